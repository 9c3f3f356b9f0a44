//! Twin: wyrmhole/datapath/gate.py.
//!
//! The gate: cheap checks of a handshake message before it is queued. The twin gives the reasons.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use zeroize::Zeroizing;

use crate::cookie::is_mac2;
use crate::drops::DropReason;
use crate::messages::{MESSAGE_COOKIE_REPLY, MESSAGE_INITIATION, MESSAGE_RESPONSE, mac1_parts, reply_index};
use crate::primitives::is_mac;
use crate::ratelimiter::RateLimiter;
use crate::tables::IndexHasher;

/// The queue in which a message waits, in order of priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// The first response and the first cookie replies to a pending initiation: at most nine for each.
    Replies,
    /// Initiations and responses with a valid mac2.
    Proven,
    /// All other messages with a valid mac1.
    Others,
}

/// The cookie replies per initiation that go to the first queue. More than one, because only the protocol can recognise
/// a forged one.
const COOKIE_REPLIES: u8 = 8;

/// The replies to an initiation that are still accepted.
#[derive(Clone, Copy)]
struct Awaited {
    response: bool,
    cookie_replies: u8,
}

struct CookieSecret {
    key: Zeroizing<[u8; 32]>,
    until: u64,
}

/// The checks and their state.
#[derive(Default)]
pub struct Gate {
    mac1_key: RwLock<Option<Zeroizing<[u8; 32]>>>,
    cookie_secret: RwLock<Option<CookieSecret>>,
    awaited: Mutex<HashMap<u32, Awaited, BuildHasherDefault<IndexHasher>>>,
    limiter: Mutex<RateLimiter>,
}

impl Gate {
    /// Set the key of mac1; see `Tables::set_mac1_key`.
    pub fn set_mac1_key(&self, key: Option<[u8; 32]>) {
        *write(&self.mac1_key) = key.map(Zeroizing::new);
    }

    /// Set the secret of the cookies in our cookie replies, valid up to and including `until`.
    pub fn set_cookie_secret(&self, secret: Option<[u8; 32]>, until: u64) {
        *write(&self.cookie_secret) = secret.map(|key| CookieSecret { key: Zeroizing::new(key), until });
    }

    /// Accept replies to an initiation with this sender index, which is about to be sent.
    pub fn begin_initiation(&self, index: u32) {
        lock(&self.awaited).insert(index, Awaited { response: true, cookie_replies: COOKIE_REPLIES });
    }

    /// Reserve the index until `end_initiation`. Returns false if it is in use.
    pub fn reserve(&self, index: u32) -> bool {
        let mut awaited = lock(&self.awaited);
        let is_free = !awaited.contains_key(&index);
        if is_free {
            awaited.insert(index, Awaited { response: false, cookie_replies: 0 });
        }
        is_free
    }

    /// The secret of the cookies that we issue, while it is valid.
    pub fn cookie_secret(&self, now: u64) -> Option<Zeroizing<[u8; 32]>> {
        read(&self.cookie_secret).as_ref().filter(|secret| now <= secret.until).map(|secret| secret.key.clone())
    }

    /// Replace the secret with a fresh one, unless it is still valid. Returns the secret to use.
    pub fn renew_cookie_secret(&self, fresh: Zeroizing<[u8; 32]>, now: u64, until: u64) -> Zeroizing<[u8; 32]> {
        let mut secret = write(&self.cookie_secret);
        if secret.as_ref().is_none_or(|secret| now > secret.until) {
            *secret = Some(CookieSecret { key: fresh, until });
        }
        secret.as_ref().map(|secret| secret.key.clone()).unwrap_or_default()
    }

    /// Accept no more replies to the initiation: it was answered or abandoned.
    pub fn end_initiation(&self, index: u32) {
        lock(&self.awaited).remove(&index);
    }

    /// Choose the queue for a message of type 1, 2 or 3 of the right length.
    ///
    /// # Errors
    /// The reason for dropping the message.
    pub fn admit(&self, kind: u32, message: &[u8], from: SocketAddr, now: u64) -> Result<Queue, DropReason> {
        let key = read(&self.mac1_key);
        let key = key.as_ref().ok_or(DropReason::NoPrivateKey)?;
        if kind != MESSAGE_COOKIE_REPLY {
            let (covered, mac1) = mac1_parts(message);
            if !is_mac(&**key, &[covered], mac1) {
                return Err(DropReason::BadMac1);
            }
        }
        if kind != MESSAGE_INITIATION && self.is_first_reply(kind, message)? {
            return Ok(Queue::Replies);
        }
        Ok(if self.has_proven_itself(message, from, now) { Queue::Proven } else { Queue::Others })
    }

    /// Whether the message is among the first replies of its type to an initiation; an error if none is pending.
    fn is_first_reply(&self, kind: u32, message: &[u8]) -> Result<bool, DropReason> {
        let mut awaited = lock(&self.awaited);
        let awaited = awaited.get_mut(&reply_index(kind, message));
        if kind == MESSAGE_RESPONSE {
            let awaited = awaited.ok_or(DropReason::UnexpectedResponse)?;
            return Ok(std::mem::take(&mut awaited.response));
        }
        let awaited = awaited.ok_or(DropReason::UnexpectedCookie)?;
        awaited.cookie_replies = awaited.cookie_replies.checked_sub(1).ok_or(DropReason::UnexpectedCookie)?;
        Ok(true)
    }

    fn has_proven_itself(&self, message: &[u8], from: SocketAddr, now: u64) -> bool {
        let secret = read(&self.cookie_secret);
        let Some(secret) = secret.as_ref().filter(|secret| now <= secret.until) else { return false };
        is_mac2(&secret.key, message, from) && lock(&self.limiter).allow(from.ip(), now)
    }

    /// Forget keys, secrets and initiations.
    pub fn close(&self) {
        self.set_mac1_key(None);
        self.set_cookie_secret(None, 0);
        lock(&self.awaited).clear();
    }
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
