//! Twin: wyrmhole/engine/loop.py.
//!
//! A worker: one thread, both directions, run to completion.
//!
//! It polls its TUN queue, its UDP sockets and a wake-up descriptor together. A turn is: orders of the control thread;
//! receive, open and write to the TUN; read the TUN, seal and send. The TUN is read after every write to it as well,
//! because the answer is often there already: the packet then leaves without another wake-up. Each direction has a
//! budget per turn, so neither starves the other, and everything gathered leaves before the thread sleeps. After a lone
//! packet it looks on for a moment first (`core/patience.rs`).
//!
//! Several workers share the tables. Each has a TUN queue and sockets of its own, so a flow stays on one worker and its
//! order holds by construction.
//!
//! Longer than 500 lines because the turn and its edges, the kernel's and Python's, share the thread's state.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::prelude::*;
use wyrmhole_core::drops::DropReason;
use wyrmhole_core::edges::{Edges, Gather, SendOutcome, Turn};
use wyrmhole_core::inbound::{Arrival, Inbound};
use wyrmhole_core::messages::MESSAGE_TRANSPORT;
use wyrmhole_core::outbound::Outbound;
use wyrmhole_core::patience::{After, Patience};
use wyrmhole_core::peer::Source;
use wyrmhole_core::reports::Report;
use wyrmhole_core::tables::Tables;
use wyrmhole_core::train::TrainLimits;
use wyrmhole_core::virtio;

use crate::foreign::{ForeignBind, ForeignTun};
use crate::io::stack;
use crate::io::sys::{self, Epoll, EventFd, Ready};
use crate::io::tun::{KernelTun, Read};
use crate::io::udp::KernelBind;

/// Trains (64 KiB each) from one socket before the other direction has its turn.
const TRAINS_PER_TURN: usize = 4;
const DATAGRAMS_PER_TURN: usize = 64;
/// TUN frames before what was sealed leaves: one full train of small packets, or one super-packet.
const READS_PER_TURN: usize = 128;
const BYTES_PER_TURN: usize = 65_536;
const FRAME_BYTES: usize = virtio::VIRTIO_HEADER_SIZE + 65_535;
/// A train has at most 65,535 bytes.
const SLOT_BYTES: usize = 1 << 16;
/// Turns in a row that panicked before the engine says that it does not work.
const MAX_FAILED_TURNS: usize = 1000;
/// Errors in a row from one socket before the control thread is asked to replace it.
const ERRORS_IN_A_ROW: usize = 4;
/// Datagrams of a train after which others get the processor, if it is theirs that they wait for: the sockets of local
/// programs hold a few hundred small packets, and who reads them may be waiting for this core.
const LONG_TRAIN: usize = 48;
/// The first byte of a transport message.
const DATA: u8 = MESSAGE_TRANSPORT as u8;

/// What time it is.
pub enum Clock {
    /// CLOCK_BOOTTIME.
    System,
    /// A callable, for tests.
    Python(Py<PyAny>),
}

impl Clock {
    /// Nanoseconds.
    pub fn now(&self) -> u64 {
        match self {
            Self::System => sys::boottime(),
            Self::Python(clock) => Python::attach(|py| clock.call0(py).and_then(|now| now.extract(py))).unwrap_or(0),
        }
    }

    /// A second handle on the same clock.
    pub fn share(&self) -> Self {
        match self {
            Self::System => Self::System,
            Self::Python(clock) => Python::attach(|py| Self::Python(clock.clone_ref(py))),
        }
    }
}

/// A worker's TUN.
pub enum TunEdge {
    /// The kernel's.
    Kernel(KernelTun),
    /// A Python object.
    Foreign(ForeignTun),
}

impl TunEdge {
    fn fd(&self) -> RawFd {
        match self {
            Self::Kernel(tun) => tun.fd(),
            Self::Foreign(tun) => tun.fd(),
        }
    }

    fn offloads(&self) -> (bool, bool) {
        match self {
            Self::Kernel(tun) => tun.offloads(),
            Self::Foreign(tun) => tun.offloads(),
        }
    }

    fn read(&self, buffer: &mut [u8]) -> Read {
        match self {
            Self::Kernel(tun) => tun.read(buffer),
            Self::Foreign(tun) => tun.read(buffer),
        }
    }

    fn write(&mut self, frame: Gather<'_>) -> bool {
        match self {
            Self::Kernel(tun) => tun.write(frame),
            Self::Foreign(tun) => tun.write(frame),
        }
    }
}

/// A worker's sockets.
pub enum BindEdge {
    /// The kernel's.
    Kernel(KernelBind),
    /// A Python object.
    Foreign(ForeignBind),
}

impl BindEdge {
    /// A second handle, for the control thread.
    pub fn share(&self) -> Self {
        match self {
            Self::Kernel(bind) => Self::Kernel(bind.clone()),
            Self::Foreign(bind) => Self::Foreign(bind.share()),
        }
    }

    fn fds(&self) -> Vec<RawFd> {
        match self {
            Self::Kernel(bind) => bind.fds().collect(),
            Self::Foreign(bind) => bind.fds().collect(),
        }
    }

    /// The errno of the latest failure to send there; None: not the kernel's sockets.
    pub fn last_error(&self, to: &SocketAddr) -> Option<i32> {
        match self {
            Self::Kernel(bind) => Some(bind.last_error(to)),
            Self::Foreign(_) => None,
        }
    }

    /// How long a train may be so that it leaves in one call.
    pub fn limits(&self) -> TrainLimits {
        match self {
            Self::Kernel(bind) => bind.limits(),
            Self::Foreign(_) => TrainLimits::default(),
        }
    }
}

/// What the steps see of the world.
#[derive(Default)]
pub struct WorkerIo {
    /// The TUN, while there is one.
    pub tun: Option<TunEdge>,
    /// The bind, while the interface is up.
    pub bind: Option<BindEdge>,
    /// Something was written to the TUN in this turn.
    wrote: bool,
}

impl Edges for WorkerIo {
    fn is_bound(&self) -> bool {
        self.bind.is_some()
    }

    fn send(
        &mut self,
        to: &SocketAddr,
        source: Option<&Source>,
        data: &[u8],
        segment_size: usize,
        tos: u8,
    ) -> SendOutcome {
        match &self.bind {
            Some(BindEdge::Kernel(bind)) => bind.send(to, source, data, segment_size, tos),
            Some(BindEdge::Foreign(bind)) => bind.send(to, source, data, segment_size, tos),
            None => SendOutcome { source_rejected: false, dropped: true },
        }
    }

    fn write(&mut self, frame: Gather<'_>) -> bool {
        let Some(tun) = &mut self.tun else { return false };
        self.wrote = true;
        tun.write(frame)
    }

    fn offloads(&self) -> (bool, bool) {
        self.tun.as_ref().map_or((false, false), TunEdge::offloads)
    }
}

/// What the control thread tells a worker.
pub enum Order {
    /// Move packets of this TUN.
    AttachTun(TunEdge),
    /// No more of it.
    DetachTun,
    /// The interface came up: its descriptor may be polled again.
    ResumeTun,
    /// Use these sockets, or none.
    Bind(Option<BindEdge>),
    /// Say that you still carry out orders.
    Answer(Arc<Question>),
    /// End.
    Stop,
}

/// Put to every worker at once; the last to answer reports it.
pub struct Question {
    number: u64,
    unanswered: AtomicUsize,
}

impl Question {
    /// To so many workers.
    pub fn new(number: u64, workers: usize) -> Arc<Self> {
        Arc::new(Self { number, unanswered: AtomicUsize::new(workers) })
    }
}

/// What the control thread posts to and waits at.
pub type Mailbox = wyrmhole_core::mailbox::Mailbox<Order>;

/// See the module.
pub struct Worker {
    tables: Arc<Tables>,
    clock: Clock,
    mailbox: Arc<Mailbox>,
    wake: Arc<EventFd>,
    notify: Arc<EventFd>,
    epoll: Epoll,
    io: WorkerIo,
    inbound: Inbound,
    outbound: Outbound,
    frame: Box<[u8]>,
    slot: Box<[u8]>,
    ready: Vec<Ready>,
    is_burst: bool,
    is_stopped: bool,
    /// None: it sleeps at once.
    patience: Option<Patience>,
    after: After,
    moved: usize,
}

impl Worker {
    /// Without edges yet. `notify` wakes the control thread. `spins`: it may look for work before it sleeps.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new(
        tables: Arc<Tables>,
        clock: Clock,
        mailbox: Arc<Mailbox>,
        wake: Arc<EventFd>,
        notify: Arc<EventFd>,
        spins: bool,
    ) -> std::io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(wake.fd());
        Ok(Self {
            tables,
            clock,
            mailbox,
            wake,
            notify,
            epoll,
            io: WorkerIo::default(),
            inbound: Inbound::default(),
            outbound: Outbound::default(),
            frame: vec![0; FRAME_BYTES].into_boxed_slice(),
            slot: vec![0; SLOT_BYTES].into_boxed_slice(),
            ready: Vec::with_capacity(8),
            is_burst: false,
            is_stopped: false,
            patience: spins.then(Patience::default),
            after: After::default(),
            moved: 0,
        })
    }

    /// Until told to stop. A packet that makes a step panic must not end the tunnel.
    pub fn run(&mut self) {
        self.run_turns();
        // The memory of a thread's stack stays mapped for the next thread.
        stack::wipe();
    }

    fn run_turns(&mut self) {
        let (mut failed, mut wiped) = (0, 0);
        while !self.is_stopped {
            let retired = self.tables.retired();
            if retired != wiped {
                // What is left of keys that are gone must not stay on the stack while this thread sleeps.
                stack::wipe();
                wiped = retired;
            }
            if panic::catch_unwind(AssertUnwindSafe(|| self.turn(-1))).is_ok() {
                failed = 0;
                continue;
            }
            failed += 1;
            self.give_up_batch();
            if failed == MAX_FAILED_TURNS {
                let reason = format!("{failed} turns of the native engine failed in a row: please report it");
                self.tables.report(Report::Failed(reason));
                self.say();
                return;
            }
        }
    }

    fn give_up_batch(&mut self) {
        self.tables.drops.one(DropReason::InternalError);
        self.inbound.reset();
        self.outbound.reset();
        self.say();
    }

    /// Wait for work at most that long (milliseconds, -1: for ever), then do one turn of it. Never part of its caller's
    /// frame, which is not wiped.
    #[inline(never)]
    pub fn turn(&mut self, timeout: i32) {
        if timeout < 0 {
            self.wait();
        } else {
            self.epoll.wait(&mut self.ready, timeout);
        }
        let now = self.clock.now();
        self.io.wrote = false;
        (self.after, self.moved) = (After::Sending, 0);
        let mut is_readable = false;
        for at in 0..self.ready.len() {
            let Ready { fd, is_broken } = self.ready[at];
            if fd == self.wake.fd() {
                self.wake.clear();
                self.carry_out_orders();
                // What follows may be about descriptors that were just given back; what is still watched is told again.
                break;
            } else if self.io.tun.as_ref().is_some_and(|tun| tun.fd() == fd) {
                is_readable = true;
                if is_broken {
                    // Not to be polled again before the interface comes up.
                    self.epoll.remove(fd);
                    self.tables.report(Report::TunBroken);
                }
            } else {
                self.receive(fd, now);
                let authenticated = self.inbound.take_authenticated();
                if authenticated > 0 {
                    self.after = After::Receiving;
                    self.moved += authenticated;
                }
            }
        }
        if is_readable || self.io.wrote {
            self.read_tun(now);
        }
        self.outbound.flush(&mut Turn { tables: &self.tables, edges: &mut self.io, now });
        if let Some(patience) = &mut self.patience {
            patience.end_turn(self.after, self.moved);
        }
        self.say();
    }

    /// Until there is work: asleep, or for as long as it was worth of late, looking.
    fn wait(&mut self) {
        let Some(patience) = &mut self.patience else {
            return self.epoll.wait(&mut self.ready, -1);
        };
        self.epoll.wait(&mut self.ready, 0);
        if !self.ready.is_empty() {
            return;
        }
        let start = sys::boottime();
        let until = start.saturating_add(patience.begin_wait(start));
        while sys::boottime() < until {
            sys::give_way();
            self.epoll.wait(&mut self.ready, 0);
            if !self.ready.is_empty() {
                return;
            }
        }
        self.epoll.wait(&mut self.ready, -1);
        patience.woke(sys::boottime());
    }

    /// Wake the control thread if it has something to hear.
    pub fn say(&self) {
        if self.tables.reports.must_announce() {
            self.notify.ring();
        }
    }

    fn carry_out_orders(&mut self) {
        while let Some(order) = self.mailbox.take() {
            self.carry_out(order);
            self.mailbox.carried_out();
        }
    }

    /// One order, on the thread that runs the turns.
    pub fn carry_out(&mut self, order: Order) {
        match order {
            Order::AttachTun(tun) => {
                self.epoll.add(tun.fd());
                self.inbound.set_offloads(tun.offloads());
                self.io.tun = Some(tun);
            }
            Order::DetachTun => self.detach_tun(),
            Order::ResumeTun => {
                if let Some(tun) = &self.io.tun {
                    self.epoll.add(tun.fd());
                }
            }
            Order::Bind(bind) => self.bind(bind),
            Order::Answer(question) => {
                if question.unanswered.fetch_sub(1, Ordering::AcqRel) == 1 {
                    self.tables.reports.push_applied(question.number);
                }
            }
            Order::Stop => self.is_stopped = true,
        }
    }

    fn detach_tun(&mut self) {
        if let Some(tun) = self.io.tun.take() {
            self.epoll.remove(tun.fd());
        }
    }

    fn bind(&mut self, bind: Option<BindEdge>) {
        for fd in self.io.bind.iter().flat_map(BindEdge::fds) {
            self.epoll.remove(fd);
        }
        for fd in bind.iter().flat_map(BindEdge::fds) {
            self.epoll.add(fd);
        }
        if let Some(bind) = &bind {
            self.outbound.set_limits(bind.limits());
        }
        self.io.bind = bind;
    }

    fn receive(&mut self, fd: RawFd, now: u64) {
        let mut trains = 0;
        let mut errors = 0;
        for _ in 0..DATAGRAMS_PER_TURN {
            let (length, arrival) = match &self.io.bind {
                Some(BindEdge::Foreign(bind)) => match bind.receive(fd, &mut self.slot) {
                    Some(received) => received,
                    None => return,
                },
                Some(BindEdge::Kernel(_)) => match receive_from_kernel(fd, &mut self.slot) {
                    Ok(Some(received)) => received,
                    Ok(None) => continue,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                    Err(_) => {
                        // A pending ICMP error is consumed by being told; one that stays is the socket's end.
                        errors += 1;
                        if errors == ERRORS_IN_A_ROW {
                            self.socket_broke(fd);
                            return;
                        }
                        continue;
                    }
                },
                None => return,
            };
            errors = 0;
            let slot = &mut self.slot[..length];
            let is_data = slot.first() == Some(&DATA);
            let mut turn = Turn { tables: &self.tables, edges: &mut self.io, now };
            self.inbound.receive(&mut turn, &mut self.outbound, slot, &arrival);
            if length.checked_div(arrival.segment_size).is_some_and(|datagrams| datagrams >= LONG_TRAIN) {
                sys::give_way();
            }
            if arrival.segment_size > 0 {
                trains += 1;
                if trains == TRAINS_PER_TURN {
                    return;
                }
            } else if is_data {
                // Lone data has rarely more behind it, and a poll costs less than to ask in vain. Handshake messages
                // come in floods, and taking them together spares the control thread as many interruptions.
                return;
            }
        }
    }

    /// Not to be polled again before its owner has put another socket in its place.
    fn socket_broke(&self, fd: RawFd) {
        self.epoll.remove(fd);
        if let Some(BindEdge::Kernel(bind)) = &self.io.bind {
            if let Some(lent) = bind.lent(fd) {
                self.tables.report(Report::SocketBroken(lent));
            }
        }
    }

    fn read_tun(&mut self, now: u64) {
        let mut total = 0;
        for count in 0..READS_PER_TURN {
            let Some(tun) = &self.io.tun else { return };
            let length = match tun.read(&mut self.frame) {
                Read::Frame(length) => length,
                Read::Nothing => {
                    self.is_burst = count > 1;
                    return;
                }
                Read::Gone => {
                    self.detach_tun();
                    self.tables.report(Report::TunBroken);
                    return;
                }
            };
            let mut turn = Turn { tables: &self.tables, edges: &mut self.io, now };
            self.outbound.frame(&mut turn, &mut self.frame[..length]);
            if count == 0 && !self.is_burst {
                // Alone, as far as the last turn tells: it need not wait for the next read.
                self.outbound.flush(&mut turn);
            }
            total += length;
            self.moved += length;
            if total >= BYTES_PER_TURN {
                break;
            }
        }
        self.is_burst = true;
    }
}

impl Drop for Worker {
    /// Whatever ended it, also a thread that could not be had: nobody is to wait for it.
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

/// None: a datagram that did not fit and is not to be used.
fn receive_from_kernel(fd: RawFd, slot: &mut [u8]) -> std::io::Result<Option<(usize, Arrival)>> {
    let received = sys::receive(fd, slot)?;
    let arrival = Arrival {
        from: received.from,
        source: received.source,
        tos: received.tos,
        segment_size: received.segment_size,
    };
    Ok((!received.is_truncated).then_some((received.length, arrival)))
}
