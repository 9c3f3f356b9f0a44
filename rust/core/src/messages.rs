//! The messages' sizes and places (whitepaper 5.4). All integers are little endian; the type is one byte and three
//! reserved ones that are zero, read as one word.

use crate::drops::DropReason;

#[allow(missing_docs)]
mod sizes {
    pub const INITIATION: u32 = 1;
    pub const RESPONSE: u32 = 2;
    pub const COOKIE_REPLY: u32 = 3;
    pub const TRANSPORT: u32 = 4;
    pub const HEADER: usize = 16;
    pub const TAG: usize = 16;
    /// Header and tag of a transport message.
    pub const OVERHEAD: usize = HEADER + TAG;
    pub const MAC: usize = 16;
}
pub use sizes::*;

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
        let data: &[u8; HEADER] = data.get(..HEADER)?.try_into().ok()?;
        Some(Self { kind: word(data, 0), receiver: word(data, 4), counter: u64::from_le_bytes(eight(data, 8)) })
    }

    /// Lay the header down at the start of `out`, which has room for it.
    pub fn emit(&self, out: &mut [u8]) {
        out[..4].copy_from_slice(&self.kind.to_le_bytes());
        out[4..8].copy_from_slice(&self.receiver.to_le_bytes());
        out[8..HEADER].copy_from_slice(&self.counter.to_le_bytes());
    }
}

fn word(data: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
}

fn eight(data: &[u8; HEADER], at: usize) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&data[at..at + 8]);
    bytes
}

/// What a datagram that is no good transport message is: the type of a handshake message of the right length, or why
/// it is dropped.
///
/// # Errors
/// The cause: too short for a type word, an unknown type, or another length than that type has.
pub fn classify(data: &[u8]) -> Result<u32, DropReason> {
    let Some(bytes) = data.get(..4) else { return Err(DropReason::TooShort) };
    let kind = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let fits = match kind {
        INITIATION => data.len() == 148,
        RESPONSE => data.len() == 92,
        COOKIE_REPLY => data.len() == 64,
        // A transport message of a good length never comes here.
        TRANSPORT => false,
        _ => return Err(DropReason::UnknownType),
    };
    if fits { Ok(kind) } else { Err(DropReason::WrongLength) }
}

/// What mac2 covers, and mac2, of a message of type 1 or 2 of the right length.
#[must_use]
pub fn mac2_parts(message: &[u8]) -> (&[u8], &[u8]) {
    message.split_at(message.len() - MAC)
}

/// The receiver's index in a message of type 2 or 3 of the right length.
#[must_use]
pub fn reply_index(kind: u32, message: &[u8]) -> u32 {
    let at = if kind == RESPONSE { 8 } else { 4 };
    u32::from_le_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]])
}

/// What mac1 covers, and mac1, of a message of type 1 or 2 of the right length (5.4.4).
#[must_use]
pub fn mac1_parts(message: &[u8]) -> (&[u8], &[u8]) {
    message[..message.len() - MAC].split_at(message.len() - 2 * MAC)
}
