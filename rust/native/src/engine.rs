//! Twin: wyrmhole/engine/portable.py.
//!
//! The engine's interface for Python. `wyrmhole.engine.native` wraps it into the contract's types.
//!
//! Calls that change tables take effect at once, under the locks, and the calling thread sends any messages that they
//! produce. Only edges are handed to the workers with orders, and the caller waits for these. A worker polls and uses
//! its own duplicates of descriptors: if the owner closes one, the worker's number still refers to the same file.
//!
//! Longer than 500 lines because PyO3 takes the methods of a class in one block.

use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyList};
use wyrmhole_core::aead::{Aead, AwsLc};
use wyrmhole_core::allowed_ips::Prefix;
use wyrmhole_core::drops::DropReason;
use wyrmhole_core::edges::{Edges, Turn};
use wyrmhole_core::handshake_queues::HandshakeDatagram;
use wyrmhole_core::ip::Address;
use wyrmhole_core::keypair::KeypairParams;
use wyrmhole_core::outbound::{HANDSHAKE_TOS, Outbound, transmit};
use wyrmhole_core::peer::{EnginePeer, Source};
use wyrmhole_core::reports::Report;
use wyrmhole_core::responder::SessionLimits;
use wyrmhole_core::tables::Tables;
use zeroize::Zeroizing;

use crate::answering::{Answering, SharedBind};
use crate::foreign::{ForeignBind, ForeignTun, parse_host};
use crate::io::stack;
use crate::io::sys::EventFd;
use crate::io::tun::KernelTun;
use crate::io::udp::KernelBind;
use crate::io::vector;
use crate::team::Team;
use crate::worker::{BindEdge, Clock, Mailbox, Order, Question, TunEdge, Worker, WorkerIo};

/// Send for the control thread: handshakes, keepalives, staged packets. Its lock is held while it sends, so no worker
/// takes it.
#[derive(Default)]
struct Sender {
    outbound: Outbound,
    io: WorkerIo,
    /// The kernel sockets of all workers. The sender uses those of the first worker.
    kernel_binds: Vec<KernelBind>,
}

/// One worker, running or waiting for `turn`.
struct WorkerHandle {
    mailbox: Arc<Mailbox>,
    wake: Arc<EventFd>,
    /// The worker, while it has no thread.
    idle: Option<Worker>,
    thread: Option<JoinHandle<()>>,
}

/// The native engine; see `wyrmhole.engine.native.NativeEngine`.
#[pyclass(module = "wyrmhole.engine._native")]
pub struct Engine {
    tables: Arc<Tables>,
    clock: Clock,
    /// Wake the control thread; `None` once the engine is closed.
    notify: Mutex<Option<Arc<EventFd>>>,
    sender: Mutex<Sender>,
    handles: Mutex<Vec<WorkerHandle>>,
    answering_threads: Mutex<Vec<JoinHandle<()>>>,
    answering_bind: Arc<SharedBind>,
    threaded: bool,
    is_closed: AtomicBool,
    /// The number of retired keypairs when the workers were last woken to wipe their stacks.
    wiped: AtomicU64,
}

type Endpoint = (String, u16, u32);

/// Convert an error, keeping the errno, which PyO3's own conversion loses.
fn refused(error: std::io::Error) -> PyErr {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(number) => PyOSError::new_err((number, text.replace(&format!(" (os error {number})"), ""))),
        None => PyOSError::new_err(text),
    }
}

fn address_of(endpoint: &Endpoint) -> PyResult<SocketAddr> {
    parse_host(&endpoint.0, endpoint.1, 0, endpoint.2)
        .ok_or_else(|| PyValueError::new_err(format!("{:?} is not a numeric address", endpoint.0)))
}

fn endpoint_of(address: &SocketAddr) -> Endpoint {
    let scope = if let SocketAddr::V6(address) = address { address.scope_id() } else { 0 };
    (address.ip().to_string(), address.port(), scope)
}

fn key_of(bytes: &[u8]) -> PyResult<Zeroizing<[u8; 32]>> {
    let key = bytes.try_into().map_err(|_| PyValueError::new_err("a key must have 32 bytes"))?;
    Ok(Zeroizing::new(key))
}

/// Copy 32 bytes from `bytes`, or from a `bytearray` that its owner wipes afterwards.
fn session_key_of(value: &Bound<'_, PyAny>) -> PyResult<Zeroizing<[u8; 32]>> {
    if let Ok(bytes) = value.cast::<PyBytes>() {
        return key_of(bytes.as_bytes());
    }
    key_of(&Zeroizing::new(value.cast::<PyByteArray>()?.to_vec()))
}

fn prefix_of(address: &[u8], length: u8) -> PyResult<Prefix> {
    let address = Address::from_bytes(address);
    let address = address.ok_or_else(|| PyValueError::new_err("an address must have 4 or 16 bytes"))?;
    Ok(Prefix { address, length })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Return the named backend. Raises ValueError with the reason if it is not available.
fn aead_of(name: &str) -> PyResult<Box<dyn Aead>> {
    match name {
        "aws-lc" => Ok(Box::new(AwsLc)),
        "auto" => Ok(vector::load().map_or_else(|_| Box::new(AwsLc) as Box<dyn Aead>, |vector| Box::new(vector))),
        "vector" => vector::load().map(|vector| Box::new(vector) as Box<dyn Aead>).map_err(PyValueError::new_err),
        _ => Err(PyValueError::new_err(format!("unknown AEAD backend {name:?}: use auto, aws-lc or vector"))),
    }
}

#[pymethods]
impl Engine {
    /// Create an engine. `clock` is None for CLOCK_BOOTTIME, or a callable. Without `threaded`, packets move only in
    /// `turn`. With `spins`, workers spin briefly before they sleep.
    #[new]
    #[pyo3(signature = (clock, workers, threaded, aead, spins))]
    fn new(clock: Option<Py<PyAny>>, workers: usize, threaded: bool, aead: &str, spins: bool) -> PyResult<Self> {
        let clock = clock.map_or(Clock::System, Clock::Python);
        let tables = Arc::new(Tables::new(aead_of(aead)?));
        let notify = Arc::new(EventFd::new().map_err(refused)?);
        let workers = workers.max(1);
        let wakes: Vec<_> =
            (0..workers).map(|_| EventFd::new().map(Arc::new)).collect::<std::io::Result<_>>().map_err(refused)?;
        let team = (threaded && workers > 1).then(|| Arc::new(Team::new(wakes.clone())));
        let handle = |number: usize, wake: Arc<EventFd>| -> std::io::Result<WorkerHandle> {
            let mailbox = Arc::new(Mailbox::default());
            let mut worker = Worker::new(
                Arc::clone(&tables),
                clock.share(),
                Arc::clone(&mailbox),
                Arc::clone(&wake),
                Arc::clone(&notify),
                spins,
            )?;
            if let Some(team) = &team {
                worker.join(Arc::clone(team), number);
            }
            Ok(WorkerHandle { mailbox, wake, idle: Some(worker), thread: None })
        };
        let handles = wakes.into_iter().enumerate().map(|(number, wake)| handle(number, wake));
        let handles = handles.collect::<std::io::Result<_>>().map_err(refused)?;
        let sender = Mutex::default();
        Ok(Self {
            clock,
            notify: Mutex::new(Some(notify)),
            sender,
            handles: Mutex::new(handles),
            threaded,
            tables,
            is_closed: AtomicBool::new(false),
            wiped: AtomicU64::new(0),
            answering_threads: Mutex::default(),
            answering_bind: Arc::default(),
        })
    }

    /// The name of the library that seals and opens.
    fn aead(&self) -> &'static str {
        self.tables.aead_name()
    }

    /// A descriptor that is readable when reports wait; -1 once the engine is closed.
    fn fileno(&self) -> RawFd {
        lock(&self.notify).as_ref().map_or(-1, |notify| notify.fd())
    }

    // Edges

    /// Attach one queue to each worker: (descriptor, has a virtio header, accepts TCP, UDP super-packets).
    fn attach_tun(&self, py: Python<'_>, queues: Vec<(RawFd, bool, bool, bool)>) -> PyResult<()> {
        let order = |(lent, has_header, tso, uso)| -> PyResult<Order> {
            Ok(Order::AttachTun(TunEdge::Kernel(Arc::new(
                KernelTun::new(lent, has_header, tso, uso).map_err(refused)?,
            ))))
        };
        self.order(py, queues.into_iter().map(order).collect::<PyResult<_>>()?);
        self.start()
    }

    /// Attach a Python object instead of a kernel TUN; one worker moves its packets.
    fn attach_foreign_tun(&self, tun: &Bound<'_, PyAny>) -> PyResult<()> {
        let edge = TunEdge::Foreign(ForeignTun::new(tun)?);
        self.order(tun.py(), vec![Order::AttachTun(edge)]);
        self.start()
    }

    /// Poll the TUN again, because the interface came up.
    fn resume_tun(&self, py: Python<'_>) {
        self.order_all(py, || Order::ResumeTun);
    }

    /// Release the TUN, because the interface is gone.
    fn detach_tun(&self, py: Python<'_>) {
        self.order_all(py, || Order::DetachTun);
    }

    /// Attach the sockets of each worker: (descriptor, is IPv6, may send trains). They replace the former ones.
    fn attach_bind(&self, py: Python<'_>, sockets: Vec<Vec<(RawFd, bool, bool)>>, port: u16) -> PyResult<()> {
        let binds = sockets
            .iter()
            .map(|sockets| KernelBind::new(sockets))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(refused)?;
        lock(&self.sender).kernel_binds.clone_from(&binds);
        self.use_binds(py, binds.into_iter().map(BindEdge::Kernel).collect(), port);
        Ok(())
    }

    /// Attach a Python object instead of kernel sockets.
    fn attach_foreign_bind(&self, bind: &Bound<'_, PyAny>, port: u16) -> PyResult<()> {
        let edge = BindEdge::Foreign(ForeignBind::new(bind)?);
        self.use_binds(bind.py(), vec![edge], port);
        Ok(())
    }

    /// Release the sockets. When this returns, no worker uses them any more.
    fn detach_bind(&self, py: Python<'_>) {
        self.tables.set_listen_port(0);
        self.drop_sender_bind(py);
        self.order_all(py, || Order::Bind(None));
    }

    /// Send no trains until each peer's traffic shows that they arrive: this kernel may damage them.
    fn doubt_trains(&self) {
        self.tables.doubt_trains();
    }

    /// Forget path MTUs, because routes changed.
    fn forget_paths(&self) {
        lock(&self.sender).kernel_binds.iter().for_each(KernelBind::forget_paths);
    }

    fn set_mtu(&self, mtu: usize) {
        self.tables.set_mtu(mtu);
    }

    /// Post a question to every worker; the last to answer reports `applied` with the number. Returns at once, with
    /// false if no worker has a thread and so none will answer.
    fn ask_workers(&self, number: u64) -> bool {
        let handles = lock(&self.handles);
        let running: Vec<_> = handles.iter().filter(|handle| handle.thread.is_some()).collect();
        let question = Question::new(number, running.len());
        for handle in &running {
            handle.mailbox.post(Order::Answer(Arc::clone(&question)));
            handle.wake.ring();
        }
        !running.is_empty()
    }

    /// Do one turn of every worker on this thread, for an engine without threads.
    fn turn(&self, py: Python<'_>, timeout: i32) {
        py.detach(|| {
            for handle in lock(&self.handles).iter_mut() {
                if let Some(worker) = &mut handle.idle {
                    worker.turn(timeout);
                }
            }
        });
    }

    /// Answer the waiting initiations on this thread, for an engine without threads. For tests of load, `more` is added
    /// to the number of those that wait.
    fn answer_waiting(&self, py: Python<'_>, more: usize) {
        if let (Some(answering), false) = (self.answering(), self.threaded) {
            py.detach(|| answering.turn(more));
        }
    }

    /// Stop, join the threads, wipe keys. Idempotent.
    fn close(&self, py: Python<'_>) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.order_all(py, || Order::Stop);
        self.tables.initiations.close();
        let handles = std::mem::take(&mut *lock(&self.handles));
        py.detach(|| {
            for handle in handles {
                handle.thread.map(JoinHandle::join);
            }
            for thread in std::mem::take(&mut *lock(&self.answering_threads)) {
                let _ = thread.join();
            }
        });
        self.drop_sender_bind(py);
        for peer in self.tables.all_peers() {
            self.tables.remove_peer(peer.id);
        }
        *lock(&self.notify) = None;
        self.tables.gate.close();
        self.tables.responder.close();
    }

    // Tables

    fn set_mac1_key(&self, key: Option<&[u8]>) -> PyResult<()> {
        let key = key.map(key_of).transpose()?;
        self.tables.set_mac1_key(key.map(|key| *key));
        Ok(())
    }

    fn set_cookie_secret(&self, secret: Option<&Bound<'_, PyAny>>, until: u64) -> PyResult<()> {
        let secret = secret.map(session_key_of).transpose()?;
        self.tables.gate.set_cookie_secret(secret.map(|secret| *secret), until);
        Ok(())
    }

    /// Reserve the index for an initiation. Returns false if it is in use, so that another one is needed.
    fn begin_initiation(&self, index: u32) -> bool {
        self.is_closed.load(Ordering::Relaxed) || self.tables.begin_initiation(index)
    }

    fn end_initiation(&self, index: u32) {
        self.tables.gate.end_initiation(index);
    }

    /// Answer initiations with this static key; with None, stop answering. `limits` of the sessions are: reject after,
    /// send for (nanoseconds), rekey after, reject after (messages). Return the number of this identity.
    fn answer_initiations(&self, private: Option<&Bound<'_, PyAny>>, limits: (u64, u64, u64, u64)) -> PyResult<u64> {
        stack::with_wiped_stack(|| -> PyResult<u64> {
            let private = private.map(session_key_of).transpose()?;
            let limits = SessionLimits {
                reject_after: limits.0,
                send_for: limits.1,
                rekey_after_messages: limits.2,
                reject_after_messages: limits.3,
            };
            Ok(self.tables.responder.set_private_key(private.as_deref(), limits))
        })
    }

    /// Set the peer's public key and, if it has one, preshared key.
    fn set_identity(&self, peer: u64, public: &[u8], psk: Option<&[u8]>) -> PyResult<()> {
        let (public, psk) = (key_of(public)?, psk.map(key_of).transpose()?.unwrap_or_default());
        if let Some(peer) = self.tables.peer(peer) {
            self.tables.responder.set_identity(&peer, *public, psk);
        }
        Ok(())
    }

    /// Store the peer's cookie for us, valid up to and including `until`.
    fn set_peer_cookie(&self, peer: u64, cookie: &[u8], until: u64) -> PyResult<()> {
        let cookie = cookie.try_into().map_err(|_| PyValueError::new_err("a cookie must have 16 bytes"))?;
        if let Some(peer) = self.tables.peer(peer) {
            self.tables.responder.set_cookie(&peer, cookie, until);
        }
        Ok(())
    }

    fn add_peer(&self, peer: u64) {
        if !self.is_closed.load(Ordering::Relaxed) {
            self.tables.add_peer(peer);
        }
    }

    fn remove_peer(&self, peer: u64) {
        self.tables.remove_peer(peer);
        self.wipe_stacks();
    }

    fn insert_allowed_ip(&self, peer: u64, address: &[u8], length: u8) -> PyResult<()> {
        self.tables.insert_allowed_ip(peer, prefix_of(address, length)?);
        Ok(())
    }

    fn remove_allowed_ip(&self, peer: u64, address: &[u8], length: u8) -> PyResult<()> {
        self.tables.remove_allowed_ip(peer, prefix_of(address, length)?);
        Ok(())
    }

    fn set_endpoint(&self, peer: u64, endpoint: Option<Endpoint>, source: Option<&[u8]>) -> PyResult<()> {
        let endpoint = endpoint.as_ref().map(address_of).transpose()?;
        self.tables.with_peer(peer, |_, state| {
            state.set_endpoint(endpoint, source.and_then(Source::new));
        });
        Ok(())
    }

    fn clear_source(&self, peer: u64) {
        self.tables.with_peer(peer, |_, state| state.forget_source());
    }

    /// The peers with a sticky source, each with endpoint and source, to be checked after a route changed.
    fn sources(&self, py: Python<'_>) -> Vec<(u64, Endpoint, Py<PyBytes>)> {
        let with_source = |peer: Arc<EnginePeer>| {
            let state = peer.lock();
            let source = PyBytes::new(py, state.source?.as_bytes()).unbind();
            Some((peer.id, endpoint_of(&state.endpoint?), source))
        };
        self.tables.all_peers().into_iter().filter_map(with_source).collect()
    }

    /// Forget the peer's source if it is still this one.
    fn forget_source(&self, peer: u64, source: &[u8]) {
        let source = Source::new(source);
        self.tables.with_peer(peer, |_, state| {
            if state.source == source {
                state.forget_source();
            }
        });
    }

    /// Install a keypair. `times` are: rekey for sending, rekey for receiving, reject, end of sending. `messages` are:
    /// rekey after, reject after.
    fn install_keypair(
        &self,
        peer: u64,
        indices: (u32, u32),
        keys: (Bound<'_, PyAny>, Bound<'_, PyAny>),
        is_initiator: bool,
        times: (u64, u64, u64, u64),
        messages: (u64, u64),
    ) -> PyResult<()> {
        let params = KeypairParams {
            local_index: indices.0,
            remote_index: indices.1,
            is_initiator,
            rekey_send_at: times.0,
            rekey_receive_at: times.1,
            reject_at: times.2,
            send_until: times.3,
            rekey_after_messages: messages.0,
            reject_after_messages: messages.1,
        };
        stack::with_wiped_stack(|| -> PyResult<()> {
            let (send, receive) = (session_key_of(&keys.0)?, session_key_of(&keys.1)?);
            if let Some(peer) = self.tables.install_keypair(peer, params, &send, &receive) {
                if is_initiator {
                    self.confirm(&peer);
                }
                self.announce();
            }
            Ok(())
        })
    }

    fn forget_keypairs(&self, peer: u64) {
        self.tables.forget_keypairs(peer);
        self.announce();
    }

    fn expire_sending_keys(&self, peer: u64) {
        self.tables.with_peer(peer, |_, state| state.keypairs.expire_sending());
    }

    fn expect_key(&self, peer: u64) {
        self.tables.expect_key(peer);
    }

    fn flush_staged(&self, peer: u64) {
        self.tables.flush_staged(peer);
    }

    fn note_handshake(&self, peer: u64, rx_bytes: usize, now: u64) {
        self.tables.with_peer(peer, |peer, state| self.tables.note_received(peer, state, rx_bytes, now));
    }

    fn forget_unanswered(&self, peer: u64, since: u64) {
        self.tables.with_peer(peer, |_, state| {
            if state.marks.data_sent_since == since {
                state.marks.data_sent_since = 0;
            }
        });
    }

    fn forget_received(&self, peer: u64, since: u64) {
        self.tables.with_peer(peer, |_, state| {
            if state.marks.data_received_since == since {
                state.marks.data_received_since = 0;
            }
        });
    }

    // Sending

    fn send_to_peer(&self, peer: u64, datagram: &[u8]) {
        let Some(peer) = self.tables.peer(peer) else { return };
        let Some(endpoint) = peer.lock().endpoint else {
            self.tables.drop_of(&peer, DropReason::NoEndpoint, 1);
            return;
        };
        self.with_sender(|_, turn| {
            if !transmit(turn, &peer, datagram, 0, HANDSHAKE_TOS) {
                let error = turn.edges.bind.as_ref().and_then(|bind| bind.last_error(&endpoint));
                error.map(|error| turn.tables.report(Report::SendFailed(peer.id, error)));
            }
            turn.tables.note_sent(&mut peer.lock(), turn.now);
        });
        self.announce();
    }

    fn send_to(&self, endpoint: Endpoint, source: Option<&[u8]>, datagram: &[u8]) -> PyResult<()> {
        let to = address_of(&endpoint)?;
        let source = source.and_then(Source::new);
        lock(&self.sender).io.send(&to, source.as_ref(), datagram, 0, 0);
        Ok(())
    }

    fn send_keepalive(&self, peer: u64) {
        if let Some(peer) = self.tables.peer(peer) {
            stack::with_wiped_stack(|| {
                self.with_sender(|outbound, turn| outbound.send_keepalive(turn, &peer));
            });
            self.announce();
        }
    }

    // Queries

    /// The four marks. With `release`, `Active` is reported again afterwards.
    fn marks(&self, peer: u64, release: bool) -> (u64, u64, u64, u64) {
        let marks = self.tables.marks(peer, release);
        (marks.data_sent_since, marks.data_received_since, marks.last_data_received, marks.last_traversal)
    }

    /// The bytes (sent, received).
    fn counters(&self, peer: u64) -> (u64, u64) {
        self.tables.peer(peer).map_or((0, 0), |peer| peer.counters())
    }

    /// The counts of drops, by reason.
    fn drops<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        counts_of(py, self.tables.drops.list())
    }

    /// The counts of one peer's drops, by reason; empty for an unknown peer.
    fn peer_drops<'py>(&self, py: Python<'py>, peer: u64) -> PyResult<Bound<'py, PyDict>> {
        self.tables.peer(peer).map_or_else(|| Ok(PyDict::new(py)), |peer| counts_of(py, peer.drops()))
    }

    /// Switch reports of refusals on or off.
    fn report_refusals(&self, on: bool) {
        self.tables.refusals.switch(on);
    }

    /// The counts of oddities, by name.
    fn oddities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        counts_of(py, self.tables.oddities.list())
    }

    /// The numbers of peers, route nodes and receiver indices.
    fn sizes(&self) -> (usize, usize, usize) {
        self.tables.sizes()
    }

    /// Take reports as tuples that begin with the report's name, oldest first, handshake messages last.
    fn poll_reports<'py>(&self, py: Python<'py>, limit: usize) -> PyResult<Bound<'py, PyList>> {
        if let Some(notify) = &*lock(&self.notify) {
            notify.clear();
        }
        let (reports, handshakes) = self.tables.reports.take(limit);
        let taken = PyList::empty(py);
        for report in reports {
            append_report(&taken, report)?;
        }
        for handshake in handshakes {
            append_handshake(&taken, &handshake)?;
        }
        self.wipe_stacks();
        self.announce();
        Ok(taken)
    }
}

impl Drop for Engine {
    /// Stop the threads of an engine that was not closed. They are not joined: they may need the interpreter to end.
    fn drop(&mut self) {
        self.tables.initiations.close();
        for handle in lock(&self.handles).iter() {
            handle.mailbox.post(Order::Stop);
            handle.wake.ring();
        }
    }
}

fn counts_of<'py>(py: Python<'py>, counts: impl Iterator<Item = (&'static str, u64)>) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, count) in counts {
        dict.set_item(name, count)?;
    }
    Ok(dict)
}

fn append_report(taken: &Bound<'_, PyList>, report: Report) -> PyResult<()> {
    match report {
        Report::KeyWanted(peer, renews) => taken.append(("key_wanted", peer, renews)),
        Report::KeyConfirmed(peer, index) => taken.append(("key_confirmed", peer, index)),
        Report::KeypairsDropped(peer, indices) => {
            let indices: Vec<u32> = indices.into_iter().flatten().collect();
            taken.append(("keypairs_dropped", peer, indices))
        }
        Report::Roamed(peer) => {
            let mut state = peer.lock();
            // The flag is cleared first, so that a change after the endpoint was read is reported again.
            state.roamed_reported = false;
            let endpoint = state.endpoint.as_ref().map(endpoint_of);
            drop(state);
            endpoint.map_or(Ok(()), |endpoint| taken.append(("roamed", peer.id, endpoint)))
        }
        Report::Active(peer) => taken.append(("active", peer)),
        Report::TrainsLost(peer) => taken.append(("trains_lost", peer)),
        Report::TunBroken => taken.append(("tun_broken",)),
        Report::SocketBroken(fd) => taken.append(("socket_broken", fd)),
        Report::Stranger(public, from) => {
            taken.append(("stranger", PyBytes::new(taken.py(), &public), endpoint_of(&from)))
        }
        Report::Answered(peer, from, index, now, identity) => {
            taken.append(("answered", peer, endpoint_of(&from), index, now, identity))
        }
        Report::SendFailed(peer, error) => taken.append(("send_failed", peer, error)),
        Report::Refused(reason, from, peer, inner) => {
            let inner = inner.map(|inner| bytes_of(taken.py(), inner));
            taken.append(("refused", reason.name(), endpoint_of(&from), peer, inner))
        }
        Report::Applied(number) => taken.append(("applied", number)),
        Report::Failed(reason) => taken.append(("failed", reason)),
    }
}

fn bytes_of(py: Python<'_>, address: Address) -> Py<PyBytes> {
    match address {
        Address::V4(number) => PyBytes::new(py, &number.to_be_bytes()),
        Address::V6(number) => PyBytes::new(py, &number.to_be_bytes()),
    }
    .unbind()
}

fn append_handshake(taken: &Bound<'_, PyList>, handshake: &HandshakeDatagram) -> PyResult<()> {
    let py = taken.py();
    let source = handshake.source.map(|source| PyBytes::new(py, source.as_bytes()).unbind());
    let data = PyBytes::new(py, &handshake.data);
    taken.append(("handshake", data, endpoint_of(&handshake.from), source, handshake.queue_depth))
}

impl Engine {
    /// Wake the control thread if there are reports that it was not woken for.
    fn announce(&self) {
        if self.tables.reports.must_announce() {
            if let Some(notify) = &*lock(&self.notify) {
                notify.ring();
            }
        }
    }

    /// Send the first packet with a new keypair, which shows the responder that we have it too.
    fn confirm(&self, peer: &Arc<EnginePeer>) {
        self.with_sender(|outbound, turn| {
            if Outbound::has_staged(peer) {
                outbound.send_staged(turn, peer);
            } else {
                outbound.send_keepalive(turn, peer);
            }
        });
    }

    /// Wake the workers to wipe their stacks, if keypairs were retired since the last time.
    fn wipe_stacks(&self) {
        let retired = self.tables.retired();
        if self.threaded && self.wiped.swap(retired, Ordering::Relaxed) != retired {
            for handle in lock(&self.handles).iter() {
                handle.wake.ring();
            }
        }
    }

    /// Call a function with the control thread's sender, then send what it gathered.
    fn with_sender(&self, act: impl FnOnce(&mut Outbound, &mut Turn<'_, WorkerIo>)) {
        let now = self.clock.now();
        let mut sender = lock(&self.sender);
        let Sender { outbound, io, .. } = &mut *sender;
        let mut turn = Turn { tables: &self.tables, edges: io, now };
        act(outbound, &mut turn);
        outbound.flush(&mut turn);
    }

    fn drop_sender_bind(&self, py: Python<'_>) {
        self.set_answering_bind(py, None);
        let mut sender = lock(&self.sender);
        sender.io.bind = None;
        sender.kernel_binds.clear();
    }

    /// Replace the bind of the answering threads. Waits for one that is sending, which may need the interpreter for a
    /// Python edge.
    fn set_answering_bind(&self, py: Python<'_>, bind: Option<BindEdge>) {
        py.detach(|| *self.answering_bind.write().unwrap_or_else(PoisonError::into_inner) = bind);
    }

    fn use_binds(&self, py: Python<'_>, binds: Vec<BindEdge>, port: u16) {
        self.tables.set_listen_port(port);
        self.tables.change_paths();
        if let Some(first) = binds.first() {
            let mut sender = lock(&self.sender);
            sender.outbound.set_limits(first.limits());
            sender.io.bind = Some(first.share());
            drop(sender);
            self.set_answering_bind(py, Some(first.share()));
        }
        self.order(py, binds.into_iter().map(|bind| Order::Bind(Some(bind))).collect());
    }

    /// Give one order to each of the first workers, and wait until all are carried out.
    fn order(&self, py: Python<'_>, orders: Vec<Order>) {
        let mut waits = Vec::new();
        for (handle, order) in lock(&self.handles).iter_mut().zip(orders) {
            if let Some(worker) = &mut handle.idle {
                worker.carry_out(order);
            } else {
                waits.push((Arc::clone(&handle.mailbox), handle.mailbox.post(order)));
                handle.wake.ring();
            }
        }
        // A worker may need the interpreter for a Python edge before it sees the order.
        py.detach(|| waits.iter().for_each(|(mailbox, number)| mailbox.wait(*number)));
    }

    fn order_all(&self, py: Python<'_>, order: impl Fn() -> Order) {
        let count = lock(&self.handles).len();
        self.order(py, (0..count).map(|_| order()).collect());
    }

    fn start(&self) -> PyResult<()> {
        for (number, handle) in lock(&self.handles).iter_mut().enumerate().filter(|_| self.threaded) {
            if let Some(mut worker) = handle.idle.take() {
                let builder = std::thread::Builder::new().name(format!("wyrmhole-{number}"));
                let spawned = builder.spawn(move || worker.run());
                handle.thread = Some(spawned.map_err(refused)?);
                self.start_answering(number)?;
            }
        }
        Ok(())
    }

    /// Create the state of an answering thread. `None` if the engine is closed.
    fn answering(&self) -> Option<Answering> {
        let (bind, notify) = (Arc::clone(&self.answering_bind), lock(&self.notify).clone()?);
        Some(Answering::new(Arc::clone(&self.tables), self.clock.share(), bind, notify))
    }

    /// Start one answering thread per worker, so that all processors answer while there is no data.
    fn start_answering(&self, number: usize) -> PyResult<()> {
        let Some(answering) = self.answering() else { return Ok(()) };
        let builder = std::thread::Builder::new().name(format!("wyrmhole-h{number}"));
        let spawned = builder.spawn(move || answering.run());
        lock(&self.answering_threads).push(spawned.map_err(refused)?);
        Ok(())
    }
}
