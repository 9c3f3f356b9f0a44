//! Twin: wyrmhole/wire/messages.py.
//!
//! The messages' sizes and places (whitepaper 5.4). All integers are little endian; the type is one byte and three
//! reserved ones that are zero, read as one word.

use crate::drops::DropReason;

/// Type 1, the first message of a handshake (5.4.2).
pub const MESSAGE_INITIATION: u32 = 1;
/// Type 2, its answer (5.4.3).
pub const MESSAGE_RESPONSE: u32 = 2;
/// Type 3, the answer of a responder under load (5.4.7).
pub const MESSAGE_COOKIE_REPLY: u32 = 3;
/// Type 4, data (5.4.6).
pub const MESSAGE_TRANSPORT: u32 = 4;

/// Bytes of an initiation.
pub const INITIATION_SIZE: usize = 148;
/// Bytes of a response.
pub const RESPONSE_SIZE: usize = 92;
/// Bytes of a cookie reply.
pub const COOKIE_REPLY_SIZE: usize = 64;
/// Bytes before the ciphertext of a transport message: type, receiver index, counter.
pub const TRANSPORT_HEADER_SIZE: usize = 16;
/// Bytes of an authentication tag.
pub const TAG_SIZE: usize = 16;
/// Bytes of mac1 and of mac2.
pub const MAC_SIZE: usize = 16;
/// What a transport message adds to its packet, which is the size of a keepalive.
pub const TRANSPORT_OVERHEAD: usize = TRANSPORT_HEADER_SIZE + TAG_SIZE;

/// The receiver's index in a cookie reply.
const RECEIVER_OFFSET: usize = 4;
/// The receiver's index in a response.
const RESPONSE_RECEIVER_OFFSET: usize = 8;

/// The header of a transport message (5.4.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportHeader {
    /// The message's type word.
    pub kind: u32,
    /// The receiver's index.
    pub receiver: u32,
    /// The nonce.
    pub counter: u64,
}

impl TransportHeader {
    /// The first 16 bytes; None when there are not that many.
    #[must_use]
    pub fn parse(data: &[u8]) -> Option<Self> {
        let data: &[u8; TRANSPORT_HEADER_SIZE] = data.get(..TRANSPORT_HEADER_SIZE)?.try_into().ok()?;
        Some(Self { kind: word(data, 0), receiver: word(data, 4), counter: u64::from_le_bytes(eight(data, 8)) })
    }

    /// Lay the header down at the start of `out`, which has room for it.
    pub fn emit(&self, out: &mut [u8]) {
        out[..4].copy_from_slice(&self.kind.to_le_bytes());
        out[4..8].copy_from_slice(&self.receiver.to_le_bytes());
        out[8..TRANSPORT_HEADER_SIZE].copy_from_slice(&self.counter.to_le_bytes());
    }
}

fn word(data: &[u8; TRANSPORT_HEADER_SIZE], at: usize) -> u32 {
    u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
}

fn eight(data: &[u8; TRANSPORT_HEADER_SIZE], at: usize) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&data[at..at + 8]);
    bytes
}

/// The type of a handshake message of the right length. For every datagram that is not a valid transport message.
///
/// # Errors
/// The cause: too short for a type word, an unknown type, or another length than that type has.
pub fn classify(data: &[u8]) -> Result<u32, DropReason> {
    let Some(bytes) = data.get(..4) else { return Err(DropReason::TooShort) };
    let kind = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let fits = match kind {
        MESSAGE_INITIATION => data.len() == INITIATION_SIZE,
        MESSAGE_RESPONSE => data.len() == RESPONSE_SIZE,
        MESSAGE_COOKIE_REPLY => data.len() == COOKIE_REPLY_SIZE,
        // A transport message of a good length never comes here.
        MESSAGE_TRANSPORT => false,
        _ => return Err(DropReason::UnknownType),
    };
    if fits { Ok(kind) } else { Err(DropReason::WrongLength) }
}

/// What mac2 covers, and mac2, of a message of type 1 or 2 of the right length.
#[must_use]
pub fn mac2_parts(message: &[u8]) -> (&[u8], &[u8]) {
    message.split_at(message.len() - MAC_SIZE)
}

/// The receiver's index in a message of type 2 or 3 of the right length.
#[must_use]
pub fn reply_index(kind: u32, message: &[u8]) -> u32 {
    let at = if kind == MESSAGE_RESPONSE { RESPONSE_RECEIVER_OFFSET } else { RECEIVER_OFFSET };
    u32::from_le_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]])
}

/// What mac1 covers, and mac1, of a message of type 1 or 2 of the right length (5.4.4).
#[must_use]
pub fn mac1_parts(message: &[u8]) -> (&[u8], &[u8]) {
    message[..message.len() - MAC_SIZE].split_at(message.len() - 2 * MAC_SIZE)
}
