//! Twin: wyrmhole/engine/loop.py.
//!
//! A worker: one thread, both directions, run to completion.
//!
//! It polls its TUN queue, its UDP sockets and a wake-up descriptor together. A turn is: orders of the control thread;
//! receive, open and write to the TUN; read the TUN, seal and send. The TUN is read after every write to it as well,
//! because the answer is often there already: the packet then leaves without another wake-up. Each direction has a
//! budget per turn, so neither starves the other, and everything gathered leaves before the thread sleeps. After a
//! single packet the thread spins briefly before it sleeps (`core/patience.rs`).
//!
//! Several workers share the tables. Each has its own TUN queue and sockets, and is the only one to read them. It
//! handles what it reads by itself, so a flow keeps its order by construction. During a backlog idle workers help to
//! decrypt, and delivery keeps the order (`team.rs`).
//!
//! Longer than 500 lines because the turn and both kinds of edges, the kernel's and Python's, share the thread's state.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pyo3::prelude::*;
use wyrmhole_core::drops::DropReason;
use wyrmhole_core::edges::{Edges, Gather, SendOutcome, Turn};
use wyrmhole_core::inbound::{Arrival, Inbound};
use wyrmhole_core::ip::MAX_PACKET_SIZE;
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
use crate::team::{Hands, Member, OwnerEdges, SLOT_BYTES, Team};

/// Trains (64 KiB each) received from one socket before the other direction is served.
const TRAINS_PER_TURN: usize = 4;
const DATAGRAMS_PER_TURN: usize = 64;
/// TUN frames read before the sealed datagrams are sent: one full train of small packets, or one super-packet.
const READS_PER_TURN: usize = 128;
const BYTES_PER_TURN: usize = 65_536;
const FRAME_BYTES: usize = virtio::VIRTIO_HEADER_SIZE + MAX_PACKET_SIZE;
/// Consecutive turns that panic before the engine reports that it has failed.
const MAX_FAILED_TURNS: usize = 1000;
/// Consecutive errors from one socket before the control thread is asked to replace it.
const ERRORS_IN_A_ROW: usize = 4;
/// Length of a train after which the worker yields the processor: the sockets of local programs hold a few hundred
/// small packets, and the program that reads them may be waiting for this core.
const LONG_TRAIN: usize = 48;
/// The first byte of a transport message.
const DATA: u8 = MESSAGE_TRANSPORT as u8;

/// A source of the current time.
pub enum Clock {
    /// CLOCK_BOOTTIME.
    System,
    /// A callable, for tests.
    Python(Py<PyAny>),
}

impl Clock {
    /// The current time in nanoseconds.
    pub fn now(&self) -> u64 {
        match self {
            Self::System => sys::boottime(),
            Self::Python(clock) => Python::attach(|py| clock.call0(py).and_then(|now| now.extract(py))).unwrap_or(0),
        }
    }

    /// Return another handle to the same clock.
    pub fn share(&self) -> Self {
        match self {
            Self::System => Self::System,
            Self::Python(clock) => Python::attach(|py| Self::Python(clock.clone_ref(py))),
        }
    }
}

/// A worker's TUN.
pub enum TunEdge {
    /// A queue of the kernel's TUN device.
    Kernel(Arc<KernelTun>),
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
    /// Kernel sockets.
    Kernel(KernelBind),
    /// A Python object.
    Foreign(ForeignBind),
}

impl BindEdge {
    /// Return another handle, for the control thread.
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

    /// The errno of the latest failure to send to this address; `None` if these are not kernel sockets.
    pub fn last_error(&self, to: &SocketAddr) -> Option<i32> {
        match self {
            Self::Kernel(bind) => Some(bind.last_error(to)),
            Self::Foreign(_) => None,
        }
    }

    /// The limits within which a train can be sent with one call.
    pub fn limits(&self) -> TrainLimits {
        match self {
            Self::Kernel(bind) => bind.limits(),
            Self::Foreign(_) => TrainLimits::default(),
        }
    }
}

/// The edges that the inbound and outbound steps use.
#[derive(Default)]
pub struct WorkerIo {
    /// The TUN, while one is attached.
    pub tun: Option<TunEdge>,
    /// The bind, while the interface is up.
    pub bind: Option<BindEdge>,
    /// A frame was written to the TUN in this turn.
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

/// What the control thread asks of a worker.
pub enum Order {
    /// Read from and write to this TUN.
    AttachTun(TunEdge),
    /// Stop using the TUN.
    DetachTun,
    /// Poll the TUN's descriptor again: the interface came up.
    ResumeTun,
    /// Use these sockets, or none.
    Bind(Option<BindEdge>),
    /// Confirm that all earlier orders were carried out.
    Answer(Arc<Question>),
    /// End the thread.
    Stop,
}

/// Posted to every worker; the last worker to answer reports its number.
pub struct Question {
    number: u64,
    unanswered: AtomicUsize,
}

impl Question {
    /// Create a question for this many workers.
    pub fn new(number: u64, workers: usize) -> Arc<Self> {
        Arc::new(Self { number, unanswered: AtomicUsize::new(workers) })
    }
}

/// The queue of orders to one worker; the control thread can wait until they are carried out.
pub type Mailbox = wyrmhole_core::mailbox::Mailbox<Order>;

/// One thread of the engine; the module describes it.
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
    /// `None` if the worker sleeps without spinning first.
    patience: Option<Patience>,
    after: After,
    moved: usize,
    /// None: it works alone, as the only worker does.
    member: Option<Member>,
    /// The latest turn received as much from a socket as a turn may.
    was_full: bool,
    /// The latest wait ended with a shared train, opened or delivered, and not with a descriptor.
    has_helped: bool,
    /// Other workers had all buffers, so it could not receive.
    is_stalled: bool,
}

impl Worker {
    /// Create a worker without edges. `notify` wakes the control thread. `spins` allows spinning before sleeping.
    ///
    /// # Errors
    /// If no descriptor is available.
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
            member: None,
            was_full: false,
            has_helped: false,
            is_stalled: false,
        })
    }

    /// Help the other workers of a team, and let them help.
    pub fn join(&mut self, team: Arc<Team>, number: usize) {
        self.member = Some(Member::new(team, number));
    }

    /// Run until a `Stop` order. A packet that makes a step panic must not end the tunnel.
    pub fn run(&mut self) {
        self.run_turns();
        self.finish_shared();
        // The memory of a thread's stack stays mapped for the next thread.
        stack::wipe();
    }

    fn run_turns(&mut self) {
        let (mut failed, mut wiped) = (0, 0);
        while !self.is_stopped {
            let retired = self.tables.retired();
            if retired != wiped {
                // Remains of retired keys must not stay on the stack while this thread sleeps.
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
                let reason = format!("{failed} consecutive turns of the native engine failed; please report this");
                self.tables.report(Report::Failed(reason));
                self.announce();
                return;
            }
        }
    }

    fn give_up_batch(&mut self) {
        self.tables.drops.one(DropReason::InternalError);
        self.inbound.reset();
        self.outbound.reset();
        self.announce();
    }

    /// Wait for work, at most `timeout` milliseconds (-1: without limit), then does one turn. Never inlined, because
    /// the frame of its caller is not wiped.
    #[inline(never)]
    pub fn turn(&mut self, timeout: i32) {
        if timeout < 0 {
            self.wait();
        } else {
            self.epoll.wait(&mut self.ready, timeout);
        }
        if self.has_helped {
            self.announce();
            return;
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
                // The remaining events may concern descriptors that an order just released; `epoll` reports the
                // others again.
                break;
            } else if self.io.tun.as_ref().is_some_and(|tun| tun.fd() == fd) {
                is_readable = true;
                if is_broken {
                    // Do not poll it again before the interface comes up.
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
        self.announce();
        if std::mem::take(&mut self.is_stalled) {
            sys::give_way();
        }
    }

    /// Wait until there is work: spins for as long as recent waits justify, then sleeps.
    fn wait(&mut self) {
        self.has_helped = false;
        if self.patience.is_none() && self.member.is_none() {
            return self.epoll.wait(&mut self.ready, -1);
        }
        let was_full = std::mem::take(&mut self.was_full);
        if self.finds_work() {
            if let Some(member) = self.member.as_mut().filter(|_| !self.has_helped) {
                member.begin_turn(was_full);
            }
            return;
        }
        if self.look() {
            return;
        }
        if self.member.as_mut().is_none_or(Member::may_sleep) {
            self.epoll.wait(&mut self.ready, -1);
        }
        if let Some(member) = &self.member {
            member.work();
        }
        if let Some(patience) = &mut self.patience {
            patience.woke(sys::boottime());
        }
    }

    /// Spin for as long as it was worthwhile of late. False: no work came.
    fn look(&mut self) -> bool {
        let start = sys::boottime();
        let span = self.patience.as_mut().map_or(0, |patience| patience.begin_wait(start));
        let least = self.member.as_mut().map_or(0, Member::look);
        let until = start.saturating_add(span.max(least));
        while sys::boottime() < until {
            sys::give_way();
            if self.finds_work() {
                if let Some(member) = &self.member {
                    member.work();
                }
                return true;
            }
        }
        false
    }

    /// Poll, and open or deliver a shared train if no descriptor is ready. False: there was neither.
    fn finds_work(&mut self) -> bool {
        self.epoll.wait(&mut self.ready, 0);
        if self.ready.is_empty() {
            let Self { tables, inbound, outbound, member, has_helped, .. } = self;
            let mut hands = Hands { tables, inbound, outbound };
            *has_helped = member.as_mut().is_some_and(|member| member.help(&mut hands));
            inbound.take_authenticated();
        }
        self.has_helped || !self.ready.is_empty()
    }

    /// Wake the control thread if there are reports that it was not woken for.
    pub fn announce(&self) {
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

    /// Carry out one order, on the thread that runs the turns.
    pub fn carry_out(&mut self, order: Order) {
        if !matches!(order, Order::Answer(_) | Order::ResumeTun) {
            self.finish_shared();
        }
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

    /// Wait until every shared train was delivered: their delivery uses the present TUN and sockets.
    fn finish_shared(&mut self) {
        let Self { tables, inbound, outbound, member, .. } = self;
        if let Some(member) = member {
            member.finish(&mut Hands { tables, inbound, outbound });
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
            if !self.has_room() {
                (self.is_stalled, self.was_full) = (true, true);
                return;
            }
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
                        // Returning a pending ICMP error clears it. If errors persist, the socket is broken.
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
            let is_data = length > 0 && self.slot[0] == DATA;
            if !self.pass_on(length, arrival, now) {
                let slot = &mut self.slot[..length];
                let mut turn = Turn { tables: &self.tables, edges: &mut self.io, now };
                self.inbound.receive(&mut turn, &mut self.outbound, slot, &arrival);
                if length.checked_div(arrival.segment_size).is_some_and(|datagrams| datagrams >= LONG_TRAIN) {
                    sys::give_way();
                }
            }
            if arrival.segment_size > 0 {
                trains += 1;
                if trains == TRAINS_PER_TURN {
                    self.was_full = true;
                    return;
                }
            } else if is_data {
                // A single data packet is rarely followed by another, and polling is cheaper than a `recvmsg` that
                // returns EAGAIN. Handshake messages come in floods; reporting several together interrupts the
                // control thread less often.
                return;
            }
        }
    }

    /// Whether a datagram may be received; see `Member::has_room`.
    fn has_room(&mut self) -> bool {
        let Self { tables, inbound, outbound, member, .. } = self;
        member.as_ref().is_none_or(|member| member.has_room(&mut Hands { tables, inbound, outbound }))
    }

    /// Pass the datagrams in the slot to the lane. False: this worker keeps up, and handles them itself.
    fn pass_on(&mut self, length: usize, arrival: Arrival, now: u64) -> bool {
        let Self { tables, inbound, outbound, member, slot, io, .. } = self;
        let Some(member) = member else { return false };
        if member.is_direct() {
            // They may be those of another worker's TUN.
            inbound.set_offloads(io.offloads());
            return false;
        }
        let (Some(TunEdge::Kernel(tun)), Some(BindEdge::Kernel(bind))) = (&io.tun, &io.bind) else { return false };
        let edges = OwnerEdges { tun: Arc::clone(tun), bind: bind.clone() };
        member.pass_on(&mut Hands { tables, inbound, outbound }, slot, length, (arrival, now, edges));
        true
    }

    /// Stop polling the socket until its owner has replaced it.
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
                // Probably a single frame, as in the last turn: send it without waiting for the next read.
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
    /// Release everyone who waits for this worker, also if its thread could not be started.
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

/// Receive from a kernel socket. `None` means a datagram that did not fit; it must not be used.
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
