//! Twin: wyrmhole/protocol/exchange.py, the half that answers initiations.
//!
//! From an initiation that passed the gate to a response and a keypair, without the control thread. Policy stays in the
//! control thread: it configures the peers and the lifetime of sessions, and receives a report of each answer. Cheap
//! checks come first (whitepaper 5.3): under load mac2 and the source's rate, then Diffie-Hellman, then the timestamp.
//! A peer's state changes only after its message was authenticated.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use zeroize::Zeroizing;

use crate::constants::{HANDSHAKE_FLOOR, UNDER_LOAD_HOLD, UNDER_LOAD_QUEUE_DEPTH};
use crate::cookie::{self, COOKIE_LIFETIME, NONCE};
use crate::drops::DropReason;
use crate::handshake_queues::HandshakeDatagram;
use crate::keypair::KeypairParams;
use crate::messages::{COOKIE_REPLY_SIZE, INITIATION_SIZE, MAC_SIZE, MESSAGE_RESPONSE, RESPONSE_SIZE, mac1_parts};
use crate::noise::{self, IDENTIFIER, InitiationReceived, KEY, Refusal, StaticKey};
use crate::peer::EnginePeer;
use crate::primitives::{CryptoError, Secret, mac};
use crate::ratelimiter::RateLimiter;
use crate::reports::Report;
use crate::tables::Tables;

/// A deadline that never comes.
const NEVER: u64 = 1 << 63;
/// Noise's part of the two messages, between the indices and the macs.
const INITIATION_BODY: std::ops::Range<usize> = 8..INITIATION_SIZE - 2 * MAC_SIZE;
const RESPONSE_BODY: std::ops::Range<usize> = 12..RESPONSE_SIZE - 2 * MAC_SIZE;

/// The limits of sessions that the peer began.
#[derive(Clone, Copy, Default)]
pub struct SessionLimits {
    /// Nanoseconds after the handshake for which messages may be sent and received.
    pub reject_after: u64,
    /// Nanoseconds after the handshake for which messages may be sent.
    pub send_for: u64,
    /// Messages after which another keypair is requested.
    pub rekey_after_messages: u64,
    /// Messages after which the keypair must not be used.
    pub reject_after_messages: u64,
}

/// The handshake state of a configured peer.
/// Our static key, with a number that no former key had.
struct Identity {
    key: StaticKey,
    number: u64,
}

struct Known {
    peer: Arc<EnginePeer>,
    psk: Secret,
    /// Computed when first needed, and forgotten when our private key changes.
    static_static: Option<(u64, Secret)>,
    /// The timestamp of the last authenticated initiation; empty before the first.
    stamp: Vec<u8>,
    /// When the last authenticated initiation arrived; `None` before the first.
    consumed_at: Option<u64>,
    /// The peer's cookie for us, and the last nanosecond at which it is valid.
    cookie: Option<([u8; MAC_SIZE], u64)>,
}

impl Known {
    fn why_stale(&self, stamp: &[u8], now: u64) -> Option<DropReason> {
        if stamp <= self.stamp.as_slice() {
            return Some(DropReason::ReplayedHandshake);
        }
        let is_flood = self.consumed_at.is_some_and(|at| now.saturating_sub(at) < HANDSHAKE_FLOOR);
        is_flood.then_some(DropReason::HandshakeFlood)
    }
}

/// The answer to an initiation.
pub enum Answer {
    /// A cookie reply, to a source that has not proved its address.
    CookieReply([u8; COOKIE_REPLY_SIZE]),
    /// A response, to the peer; the session is in the tables already.
    Response(Arc<EnginePeer>, [u8; RESPONSE_SIZE]),
}

/// Answer initiations; see the module.
#[derive(Default)]
pub struct Responder {
    own: RwLock<Option<Arc<Identity>>>,
    identities: AtomicU64,
    known: RwLock<HashMap<[u8; KEY], Arc<Mutex<Known>>>>,
    limits: RwLock<SessionLimits>,
    limiter: Mutex<RateLimiter>,
    under_load_until: AtomicU64,
    answers: AtomicBool,
}

impl Responder {
    /// Whether initiations are answered here, which needs a private key.
    pub fn answers(&self) -> bool {
        self.answers.load(Ordering::Acquire)
    }

    /// Set our static key; with `None`, nothing is answered. Secrets derived from the former key are forgotten.
    /// Return the number of this identity, which `Report::Answered` carries.
    pub fn set_private_key(&self, private: Option<&[u8; KEY]>, limits: SessionLimits) -> u64 {
        let number = self.identities.fetch_add(1, Ordering::Relaxed) + 1;
        *write(&self.limits) = limits;
        *write(&self.own) = private.map(|private| Arc::new(Identity { key: StaticKey::new(private), number }));
        for known in read(&self.known).values() {
            lock(known).static_static = None;
        }
        self.answers.store(private.is_some(), Ordering::Release);
        number
    }

    /// Set the public key and the preshared key of a peer; an all-zero preshared key means none.
    pub fn set_identity(&self, peer: &Arc<EnginePeer>, public: [u8; KEY], psk: Secret) {
        if let Some(known) = read(&self.known).get(&public) {
            lock(known).psk = psk;
            return;
        }
        let _ = peer.identity.set(public);
        let known = Known {
            peer: Arc::clone(peer),
            psk,
            static_static: None,
            stamp: Vec::new(),
            consumed_at: None,
            cookie: None,
        };
        write(&self.known).insert(public, Arc::new(Mutex::new(known)));
    }

    /// Forget a peer that was removed from the tables.
    pub fn forget(&self, peer: &EnginePeer) {
        if let Some(public) = peer.identity.get() {
            write(&self.known).remove(public);
        }
    }

    /// Store a cookie that the peer sent us, for mac2 of our responses, valid up to and including `until`.
    pub fn set_cookie(&self, peer: &EnginePeer, cookie: [u8; MAC_SIZE], until: u64) {
        let known = peer.identity.get().and_then(|public| read(&self.known).get(public).cloned());
        if let Some(known) = known {
            lock(&known).cookie = Some((cookie, until));
        }
    }

    /// Process one initiation. `None` if it was dropped; the drop is counted, and reported if refusals are reported.
    pub fn answer(
        &self,
        tables: &Tables,
        initiation: &HandshakeDatagram,
        now: u64,
        random: &dyn Fn(&mut [u8]),
    ) -> Option<Answer> {
        let Some(own) = read(&self.own).clone() else {
            tables.refuse(DropReason::NoPrivateKey, initiation.from, now);
            return None;
        };
        if self.is_under_load(initiation.queue_depth, now) {
            if !has_cookie(tables, &initiation.data, initiation.from, now) {
                tables.refuse(DropReason::UnderLoad, initiation.from, now);
                return Some(Answer::CookieReply(cookie_reply(tables, &own, initiation, now, random)));
            }
            if !lock(&self.limiter).allow(initiation.from.ip(), now) {
                tables.refuse(DropReason::RateLimited, initiation.from, now);
                return None;
            }
        }
        let (known, received) = self.consume(tables, &own, initiation, now)?;
        self.respond(tables, &own, &known, received, initiation, now, random)
    }

    fn is_under_load(&self, queue_depth: usize, now: u64) -> bool {
        if queue_depth >= UNDER_LOAD_QUEUE_DEPTH {
            self.under_load_until.store(now + UNDER_LOAD_HOLD, Ordering::Relaxed);
        }
        now < self.under_load_until.load(Ordering::Relaxed)
    }

    /// Open the initiation and record its timestamp.
    fn consume(
        &self,
        tables: &Tables,
        own: &Identity,
        initiation: &HandshakeDatagram,
        now: u64,
    ) -> Option<(Arc<Mutex<Known>>, InitiationReceived)> {
        let from = initiation.from;
        let mut found = None;
        let opened = noise::consume_initiation(&own.key, &initiation.data[INITIATION_BODY], IDENTIFIER, |remote| {
            let Some(known) = read(&self.known).get(remote).cloned() else { return Ok(None) };
            let shared = self.static_static(own, &known, remote)?;
            found = Some(known);
            Ok(Some(shared))
        });
        let received = match opened {
            Ok(received) => received,
            Err(Refusal::UnknownPeer(public)) => {
                tables.refuse_stranger(public, from, now);
                return None;
            }
            Err(Refusal::Crypto(_)) => {
                tables.refuse(DropReason::BadHandshake, from, now);
                return None;
            }
        };
        let known = found?;
        let mut state = lock(&known);
        if let Some(reason) = state.why_stale(&received.payload, now) {
            tables.refuse_handshake_of(&state.peer, reason, from, now);
            return None;
        }
        state.stamp.clone_from(&received.payload);
        state.consumed_at = Some(now);
        drop(state);
        Some((known, received))
    }

    /// Create the response and install the session.
    #[allow(clippy::too_many_arguments)]
    fn respond(
        &self,
        tables: &Tables,
        own: &Arc<Identity>,
        known: &Mutex<Known>,
        received: InitiationReceived,
        initiation: &HandshakeDatagram,
        now: u64,
        random: &dyn Fn(&mut [u8]),
    ) -> Option<Answer> {
        let (peer, psk, cookie) = {
            let state = lock(known);
            (Arc::clone(&state.peer), state.psk.clone(), state.cookie)
        };
        let mut ephemeral = Secret::default();
        random(&mut *ephemeral);
        let (remote_static, stamp) = (received.remote_static, received.payload.clone());
        let mut response = [0; RESPONSE_SIZE];
        let keys = noise::create_response(received, &psk, &ephemeral, b"", &mut response[RESPONSE_BODY]).ok()?;
        let remote_index = &initiation.data[4..8];
        let local_index = tables.draw_index(random);
        response[..4].copy_from_slice(&MESSAGE_RESPONSE.to_le_bytes());
        response[4..8].copy_from_slice(&local_index.to_le_bytes());
        response[8..12].copy_from_slice(remote_index);
        add_macs(&mut response, &remote_static, cookie.filter(|(_, until)| now <= *until).map(|(cookie, _)| cookie));
        let params = self.params(local_index, word(remote_index), now);
        let is_begun = {
            // The session must not begin if our private key was replaced meanwhile.
            let state = lock(known);
            let current = read(&self.own);
            // Nor if another thread processed a newer initiation of the same peer.
            current.as_ref().is_some_and(|current| Arc::ptr_eq(current, own))
                && state.stamp == stamp
                && begin(tables, &peer, own.number, params, &keys, initiation, now)
        };
        tables.gate.end_initiation(local_index);
        is_begun.then_some(Answer::Response(peer, response))
    }

    /// Return Curve25519 of both static keys. A thread that still works with a former key must not leave its result: all
    /// later initiations of the peer would be refused.
    fn static_static(&self, own: &Identity, known: &Mutex<Known>, remote: &[u8; KEY]) -> Result<Secret, CryptoError> {
        let mut state = lock(known);
        if let Some((_, shared)) = state.static_static.as_ref().filter(|(number, _)| *number == own.number) {
            return Ok(shared.clone());
        }
        let shared = own.key.static_static(remote)?;
        if read(&self.own).as_ref().is_some_and(|current| current.number == own.number) {
            state.static_static = Some((own.number, shared.clone()));
        }
        Ok(shared)
    }

    fn params(&self, local_index: u32, remote_index: u32, now: u64) -> KeypairParams {
        let limits = *read(&self.limits);
        KeypairParams {
            local_index,
            remote_index,
            is_initiator: false,
            rekey_send_at: NEVER,
            rekey_receive_at: NEVER,
            reject_at: now + limits.reject_after,
            send_until: now + limits.send_for,
            rekey_after_messages: limits.rekey_after_messages,
            reject_after_messages: limits.reject_after_messages,
        }
    }

    /// Forget keys and secrets.
    pub fn close(&self) {
        let _ = self.set_private_key(None, SessionLimits::default());
        write(&self.known).clear();
    }
}

/// Install the session. It is reported first, because the next report may concern it.
fn begin(
    tables: &Tables,
    peer: &Arc<EnginePeer>,
    identity: u64,
    params: KeypairParams,
    keys: &noise::TransportKeys,
    initiation: &HandshakeDatagram,
    now: u64,
) -> bool {
    let mut state = peer.lock();
    if state.removed {
        tables.drops.one(DropReason::PeerRemoved);
        return false;
    }
    let answered = Report::Answered(peer.id, initiation.from, params.local_index, now, identity);
    if !tables.report(answered) {
        return false;
    }
    state.set_endpoint(Some(initiation.from), initiation.source);
    tables.note_received(peer, &mut state, INITIATION_SIZE, now);
    drop(state);
    tables.install_keypair(peer.id, params, &keys.send, &keys.receive).is_some()
}

fn has_cookie(tables: &Tables, message: &[u8], from: SocketAddr, now: u64) -> bool {
    tables.gate.cookie_secret(now).is_some_and(|secret| cookie::is_mac2(&secret, message, from))
}

fn cookie_reply(
    tables: &Tables,
    own: &Identity,
    initiation: &HandshakeDatagram,
    now: u64,
    random: &dyn Fn(&mut [u8]),
) -> [u8; COOKIE_REPLY_SIZE] {
    let secret = tables.gate.cookie_secret(now).unwrap_or_else(|| {
        let mut fresh = Secret::default();
        random(&mut *fresh);
        tables.gate.renew_cookie_secret(fresh, now, now + COOKIE_LIFETIME)
    });
    let mut nonce = [0; NONCE];
    random(&mut nonce);
    cookie::create_reply(&own.key.public, &initiation.data, initiation.from, &secret, &nonce)
}

/// Write mac1 for the receiver, and mac2 if we have its cookie.
fn add_macs(message: &mut [u8; RESPONSE_SIZE], receiver: &[u8; KEY], cookie: Option<[u8; MAC_SIZE]>) {
    let mac1 = mac(&cookie::mac1_key(receiver), &[mac1_parts(message).0]);
    let (at, end) = (RESPONSE_SIZE - 2 * MAC_SIZE, RESPONSE_SIZE - MAC_SIZE);
    message[at..end].copy_from_slice(&mac1);
    if let Some(cookie) = cookie.map(Zeroizing::new) {
        let mac2 = mac(&*cookie, &[&message[..end]]);
        message[end..].copy_from_slice(&mac2);
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
