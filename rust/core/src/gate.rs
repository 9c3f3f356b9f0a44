//! Twin: wyrmhole/datapath/gate.py.
//!
//! What a handshake message has proved before it waits or is worked on. The twin gives the reasons.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use blake2::Blake2sMac;
use blake2::digest::consts::U16;
use blake2::digest::{KeyInit, Mac};
use zeroize::Zeroizing;

use crate::drops::DropReason;
use crate::messages::{
    MAC_SIZE, MESSAGE_COOKIE_REPLY, MESSAGE_INITIATION, MESSAGE_RESPONSE, mac1_parts, mac2_parts, reply_index,
};
use crate::ratelimiter::RateLimiter;
use crate::tables::IndexHasher;

/// Where a message waits, the first to be worked on first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// The first response and the first cookie replies to an initiation under way: no more than nine for each.
    Replies,
    /// Initiations and responses with a valid mac2.
    Proven,
    /// Everything else with a valid mac1.
    Others,
}

/// How many wait in front for one initiation. More than one, because only the protocol can tell a forged one.
const COOKIE_REPLIES: u8 = 8;

/// The messages that may still answer an initiation.
#[derive(Clone, Copy)]
struct Awaited {
    response: bool,
    cookie_replies: u8,
}

struct CookieSecret {
    key: Zeroizing<[u8; 32]>,
    until: u64,
}

/// See the module.
#[derive(Default)]
pub struct Gate {
    mac1_key: RwLock<Option<Zeroizing<[u8; 32]>>>,
    cookie_secret: RwLock<Option<CookieSecret>>,
    awaited: Mutex<HashMap<u32, Awaited, BuildHasherDefault<IndexHasher>>>,
    limiter: Mutex<RateLimiter>,
}

impl Gate {
    /// See `Tables::set_mac1_key`.
    pub fn set_mac1_key(&self, key: Option<[u8; 32]>) {
        *write(&self.mac1_key) = key.map(Zeroizing::new);
    }

    /// The secret of the cookies in our cookie replies, valid up to and including `until`.
    pub fn set_cookie_secret(&self, secret: Option<[u8; 32]>, until: u64) {
        *write(&self.cookie_secret) = secret.map(|key| CookieSecret { key: Zeroizing::new(key), until });
    }

    /// An initiation with this sender index is about to leave.
    pub fn begin_initiation(&self, index: u32) {
        lock(&self.awaited).insert(index, Awaited { response: true, cookie_replies: COOKIE_REPLIES });
    }

    /// It was answered or abandoned.
    pub fn end_initiation(&self, index: u32) {
        lock(&self.awaited).remove(&index);
    }

    /// Where a message of type 1, 2 or 3 and of the right length waits.
    ///
    /// # Errors
    /// Why it is dropped.
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

    /// Whether it is among the first of its type to answer an initiation; an error if nothing awaits it.
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
        let (covered, mac2) = mac2_parts(message);
        if mac2 == [0; MAC_SIZE] {
            return false;
        }
        let secret = read(&self.cookie_secret);
        let Some(secret) = secret.as_ref().filter(|it| now <= it.until) else { return false };
        let port = from.port().to_be_bytes();
        let cookie = match from.ip() {
            IpAddr::V4(address) => mac_of(&*secret.key, &[&address.octets(), &port]),
            IpAddr::V6(address) => mac_of(&*secret.key, &[&address.octets(), &port]),
        };
        is_mac(&*cookie, &[covered], mac2) && lock(&self.limiter).allow(from.ip(), now)
    }

    /// Forget keys, secrets and initiations.
    pub fn close(&self) {
        self.set_mac1_key(None);
        self.set_cookie_secret(None, 0);
        lock(&self.awaited).clear();
    }
}

fn keyed(key: &[u8], parts: &[&[u8]]) -> Option<Blake2sMac<U16>> {
    let mut mac = Blake2sMac::<U16>::new_from_slice(key).ok()?;
    parts.iter().for_each(|part| mac.update(part));
    Some(mac)
}

/// A key of a wrong length, which does not occur, gives zeros.
fn mac_of(key: &[u8], parts: &[&[u8]]) -> Zeroizing<[u8; MAC_SIZE]> {
    Zeroizing::new(keyed(key, parts).map_or([0; MAC_SIZE], |mac| mac.finalize().into_bytes().into()))
}

fn is_mac(key: &[u8], parts: &[&[u8]], expected: &[u8]) -> bool {
    keyed(key, parts).is_some_and(|mac| mac.verify_slice(expected).is_ok())
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
