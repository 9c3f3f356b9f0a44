//! Twin: wyrmhole/protocol/cookie.py.
//!
//! mac1, mac2 and cookies (whitepaper 5.3, 5.4.4, 5.4.7), for the side that receives initiations.

use std::net::{IpAddr, SocketAddr};

use zeroize::Zeroizing;

use crate::messages::{COOKIE_REPLY_SIZE, MAC_SIZE, MESSAGE_COOKIE_REPLY, TAG_SIZE, mac1_parts, mac2_parts};
use crate::primitives::{hash2s, is_mac, mac, xseal};

/// The lifetime of a cookie secret, and so of every cookie, in nanoseconds.
pub const COOKIE_LIFETIME: u64 = 120 * 1_000_000_000;
const LABEL_MAC1: &[u8] = b"mac1----";
const LABEL_COOKIE: &[u8] = b"cookie--";
/// The size of a cookie reply's nonce.
pub const NONCE: usize = 24;

/// The key of mac1 in messages to the owner of this public key.
#[must_use]
pub fn mac1_key(public: &[u8; 32]) -> [u8; 32] {
    hash2s(&[LABEL_MAC1, public])
}

/// The key of cookie replies from the owner of this public key.
#[must_use]
pub fn cookie_key(public: &[u8; 32]) -> [u8; 32] {
    hash2s(&[LABEL_COOKIE, public])
}

/// The cookie of a sender: a MAC of its address and port under the secret.
#[must_use]
pub fn cookie(secret: &[u8; 32], from: SocketAddr) -> Zeroizing<[u8; MAC_SIZE]> {
    let port = from.port().to_be_bytes();
    Zeroizing::new(match from.ip() {
        IpAddr::V4(address) => mac(secret, &[&address.octets(), &port]),
        IpAddr::V6(address) => mac(secret, &[&address.octets(), &port]),
    })
}

/// Whether a message of type 1 or 2 has the mac2 that follows from the secret and the sender's address.
#[must_use]
pub fn is_mac2(secret: &[u8; 32], message: &[u8], from: SocketAddr) -> bool {
    let (covered, mac2) = mac2_parts(message);
    mac2 != [0; MAC_SIZE] && is_mac(&*cookie(secret, from), &[covered], mac2)
}

/// Write mac1 for the receiver into a message whose macs are zero; mac2 stays zero.
pub fn add_mac1(message: &mut [u8], receiver: &[u8; 32]) {
    let (covered, _) = mac1_parts(message);
    let at = covered.len();
    let mac1 = mac(&mac1_key(receiver), &[covered]);
    message[at..at + MAC_SIZE].copy_from_slice(&mac1);
}

/// Create a cookie reply to a message with a valid mac1. `public` is our own key; `nonce` is random.
#[must_use]
pub fn create_reply(
    public: &[u8; 32],
    message: &[u8],
    from: SocketAddr,
    secret: &[u8; 32],
    nonce: &[u8; NONCE],
) -> [u8; COOKIE_REPLY_SIZE] {
    let mut sealed = [0; MAC_SIZE + TAG_SIZE];
    sealed[..MAC_SIZE].copy_from_slice(&*cookie(secret, from));
    let (_, mac1) = mac1_parts(message);
    xseal(&cookie_key(public), nonce, &mut sealed, mac1);
    let mut reply = [0; COOKIE_REPLY_SIZE];
    reply[..4].copy_from_slice(&MESSAGE_COOKIE_REPLY.to_le_bytes());
    // The sender index of the message is the receiver index of the reply.
    reply[4..8].copy_from_slice(&message[4..8]);
    reply[8..8 + NONCE].copy_from_slice(nonce);
    reply[8 + NONCE..].copy_from_slice(&sealed);
    reply
}
