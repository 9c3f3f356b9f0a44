//! Twin: wyrmhole/wire/messages.py.
//!
//! The sizes and layouts of the messages (whitepaper 5.4). All integers are little endian. The type is one byte and
//! three reserved zero bytes; reading them as a 32-bit integer checks all four.

use crate::drops::DropReason;

/// Type 1, the first message of a handshake (5.4.2).
pub const MESSAGE_INITIATION: u32 = 1;
/// Type 2, the second message of a handshake (5.4.3).
pub const MESSAGE_RESPONSE: u32 = 2;
/// Type 3, the cookie reply of a receiver under load (5.4.7).
pub const MESSAGE_COOKIE_REPLY: u32 = 3;
/// Type 4, data (5.4.6).
pub const MESSAGE_TRANSPORT: u32 = 4;

/// The size of an initiation.
pub const INITIATION_SIZE: usize = 148;
/// The size of a response.
pub const RESPONSE_SIZE: usize = 92;
/// The size of a cookie reply.
pub const COOKIE_REPLY_SIZE: usize = 64;
/// The size of a transport data message's header: type, receiver index, counter.
pub const TRANSPORT_HEADER_SIZE: usize = 16;
/// The size of an authentication tag.
pub const TAG_SIZE: usize = 16;
/// The size of mac1 and of mac2.
pub const MAC_SIZE: usize = 16;
/// The bytes that a transport data message adds to its packet, and the size of a keepalive, which has none.
pub const TRANSPORT_OVERHEAD: usize = TRANSPORT_HEADER_SIZE + TAG_SIZE;

/// The offset of the receiver's index in a cookie reply.
const RECEIVER_OFFSET: usize = 4;
/// The offset of the receiver's index in a response.
const RESPONSE_RECEIVER_OFFSET: usize = 8;

/// The header of a transport data message (5.4.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportHeader {
    /// The type word.
    pub kind: u32,
    /// The receiver's index.
    pub receiver: u32,
    /// The nonce.
    pub counter: u64,
}

impl TransportHeader {
    /// Parse the first 16 bytes. `None` if there are fewer.
    #[must_use]
    pub fn parse(data: &[u8]) -> Option<Self> {
        let data: &[u8; TRANSPORT_HEADER_SIZE] = data.get(..TRANSPORT_HEADER_SIZE)?.try_into().ok()?;
        Some(Self { kind: word(data, 0), receiver: word(data, 4), counter: u64::from_le_bytes(eight(data, 8)) })
    }

    /// Write the header to the start of `out`, which must have room for it.
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

/// Return the type of a handshake message of the right length. Called for every datagram that is not a valid transport
/// data message.
///
/// # Errors
/// The drop reason: too short for a type word, an unknown type, or a length that the type does not have.
pub fn classify(data: &[u8]) -> Result<u32, DropReason> {
    let Some(bytes) = data.get(..4) else { return Err(DropReason::TooShort) };
    let kind = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let fits = match kind {
        MESSAGE_INITIATION => data.len() == INITIATION_SIZE,
        MESSAGE_RESPONSE => data.len() == RESPONSE_SIZE,
        MESSAGE_COOKIE_REPLY => data.len() == COOKIE_REPLY_SIZE,
        // A transport data message of a valid length never gets here.
        MESSAGE_TRANSPORT => false,
        _ => return Err(DropReason::UnknownType),
    };
    if fits { Ok(kind) } else { Err(DropReason::WrongLength) }
}

/// The part of a message of type 1 or 2 that mac2 covers, and its mac2. The message has the right length.
#[must_use]
pub fn mac2_parts(message: &[u8]) -> (&[u8], &[u8]) {
    message.split_at(message.len() - MAC_SIZE)
}

/// The receiver's index in a message of type 2 or 3. The message has the right length.
#[must_use]
pub fn reply_index(kind: u32, message: &[u8]) -> u32 {
    let at = if kind == MESSAGE_RESPONSE { RESPONSE_RECEIVER_OFFSET } else { RECEIVER_OFFSET };
    u32::from_le_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]])
}

/// The part of a message of type 1 or 2 that mac1 covers, and its mac1 (5.4.4). The message has the right length.
#[must_use]
pub fn mac1_parts(message: &[u8]) -> (&[u8], &[u8]) {
    message[..message.len() - MAC_SIZE].split_at(message.len() - 2 * MAC_SIZE)
}
