//! Twin: wyrmhole/protocol/noise.py.
//!
//! Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (whitepaper 5.4): pure functions from keys and bytes to bytes and keys. Random
//! bytes are arguments, and [`crate::cookie`] adds the MACs. The names and the order of steps are those of the Python
//! original, which can be read beside the whitepaper.

use zeroize::Zeroizing;

use crate::messages::TAG_SIZE;
use crate::primitives::{CryptoError, ExchangeKey, Secret, hash2s, kdf1, kdf2, kdf3, open, seal};

/// The Noise protocol's name.
pub const CONSTRUCTION: &[u8] = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
/// The prologue.
pub const IDENTIFIER: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";
/// The size of a Curve25519 key, private or public, and of a preshared key.
pub const KEY: usize = 32;
const ZERO_NONCE: [u8; 12] = [0; 12];

/// The reason why message 1 is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A tag is wrong, or a key is of low order.
    Crypto(CryptoError),
    /// The initiation is well formed, but its static key is not configured.
    UnknownPeer([u8; 32]),
}

impl From<CryptoError> for Refusal {
    fn from(error: CryptoError) -> Self {
        Self::Crypto(error)
    }
}

/// The keys that result from a handshake (5.4.5).
pub struct TransportKeys {
    /// The key with which we seal.
    pub send: Secret,
    /// The key with which we open.
    pub receive: Secret,
}

/// Our static key pair.
pub struct StaticKey {
    private: ExchangeKey,
    /// The public half.
    pub public: [u8; 32],
}

impl StaticKey {
    /// Derive the key pair from the 32 bytes of the private key.
    #[must_use]
    pub fn new(private: &[u8; 32]) -> Self {
        let private = ExchangeKey::new(private);
        let public = private.public();
        Self { private, public }
    }

    /// Compute Curve25519 with another static key.
    ///
    /// # Errors
    /// `ZeroSharedSecret`.
    pub fn static_static(&self, remote: &[u8; 32]) -> Result<Secret, CryptoError> {
        self.private.dh(remote)
    }
}

/// The chaining key and the hash, with the operations that advance them (Noise 5.2).
#[derive(Clone)]
struct Symmetric {
    chaining_key: Secret,
    hash: [u8; 32],
}

impl Symmetric {
    fn start(responder_static: &[u8; 32], prologue: &[u8]) -> Self {
        let chaining_key = hash2s(&[CONSTRUCTION]);
        let hash = hash2s(&[&hash2s(&[&chaining_key, prologue]), responder_static]);
        Self { chaining_key: Zeroizing::new(chaining_key), hash }
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.hash = hash2s(&[&self.hash, data]);
    }

    /// Mix in an ephemeral key. In patterns with a psk it goes into the chaining key too (Noise 9.2).
    fn mix_ephemeral(&mut self, public: &[u8; 32]) {
        self.mix_hash(public);
        self.mix_key(public);
    }

    fn mix_key(&mut self, secret: &[u8; 32]) {
        self.chaining_key = kdf1(&self.chaining_key, secret);
    }

    fn mix_key_for_use(&mut self, secret: &[u8; 32]) -> Secret {
        let (chaining_key, key) = kdf2(&self.chaining_key, secret);
        self.chaining_key = chaining_key;
        key
    }

    fn mix_psk(&mut self, psk: &[u8; 32]) -> Secret {
        let (chaining_key, to_hash, key) = kdf3(&self.chaining_key, psk);
        self.chaining_key = chaining_key;
        self.mix_hash(&*to_hash);
        key
    }

    /// Encrypt in place; the last 16 bytes of `text` are room for the tag.
    fn seal(&mut self, key: &[u8; 32], text: &mut [u8]) {
        seal(key, ZERO_NONCE, text, &self.hash);
        self.mix_hash(text);
    }

    fn open(&mut self, key: &[u8; 32], sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
        let mut text = sealed.to_vec();
        open(key, ZERO_NONCE, &mut text, &self.hash)?;
        self.mix_hash(sealed);
        text.truncate(sealed.len() - TAG_SIZE);
        Ok(text)
    }

    /// Derive the transport keys: initiator to responder, and responder to initiator.
    fn split(&self) -> (Secret, Secret) {
        kdf2(&self.chaining_key, b"")
    }
}

/// The initiator's state while it waits for a response.
pub struct InitiationSent {
    symmetric: Symmetric,
    ephemeral: ExchangeKey,
}

/// The responder's state after message 1: it knows the initiator's static key, that the initiator holds the private
/// half, and the timestamp.
pub struct InitiationReceived {
    symmetric: Symmetric,
    /// The initiator's static key.
    pub remote_static: [u8; 32],
    remote_ephemeral: [u8; 32],
    /// The timestamp.
    pub payload: Vec<u8>,
}

/// The size of Noise's part of message 1: ephemeral key, sealed static key, sealed payload.
pub const fn initiation_body(payload: usize) -> usize {
    KEY + KEY + TAG_SIZE + payload + TAG_SIZE
}

/// The size of Noise's part of message 2: ephemeral key, sealed payload.
pub const fn response_body(payload: usize) -> usize {
    KEY + payload + TAG_SIZE
}

/// Start a handshake: fill `body`, whose size is `initiation_body` of the payload's size. `static_static` is Curve25519
/// of both static keys.
///
/// # Errors
/// `ZeroSharedSecret`.
pub fn create_initiation(
    own: &StaticKey,
    remote_static: &[u8; KEY],
    static_static: &[u8; KEY],
    ephemeral_private: &[u8; KEY],
    (payload, prologue): (&[u8], &[u8]),
    body: &mut [u8],
) -> Result<InitiationSent, CryptoError> {
    let ephemeral = ExchangeKey::new(ephemeral_private);
    let public = ephemeral.public();
    let (clear, sealed) = body.split_at_mut(KEY);
    let (encrypted_static, encrypted_payload) = sealed.split_at_mut(KEY + TAG_SIZE);
    clear.copy_from_slice(&public);
    let mut symmetric = Symmetric::start(remote_static, prologue);
    symmetric.mix_ephemeral(&public);
    let key = symmetric.mix_key_for_use(&*ephemeral.dh(remote_static)?);
    encrypted_static[..KEY].copy_from_slice(&own.public);
    symmetric.seal(&key, encrypted_static);
    let key = symmetric.mix_key_for_use(static_static);
    encrypted_payload[..payload.len()].copy_from_slice(payload);
    symmetric.seal(&key, encrypted_payload);
    Ok(InitiationSent { symmetric, ephemeral })
}

/// Open message 1. `static_static_of` returns Curve25519 of our static key and the given one, or `None` if no peer has
/// that key.
///
/// # Errors
/// See [`Refusal`].
pub fn consume_initiation(
    own: &StaticKey,
    body: &[u8],
    prologue: &[u8],
    static_static_of: impl FnOnce(&[u8; KEY]) -> Result<Option<Secret>, CryptoError>,
) -> Result<InitiationReceived, Refusal> {
    let (clear, sealed) = body.split_at(KEY);
    let (encrypted_static, encrypted_payload) = sealed.split_at(KEY + TAG_SIZE);
    let remote_ephemeral = key_of(clear);
    let mut symmetric = Symmetric::start(&own.public, prologue);
    symmetric.mix_ephemeral(&remote_ephemeral);
    let key = symmetric.mix_key_for_use(&*own.private.dh(&remote_ephemeral)?);
    let remote_static = key_of(&symmetric.open(&key, encrypted_static)?);
    let static_static = static_static_of(&remote_static)?.ok_or(Refusal::UnknownPeer(remote_static))?;
    let key = symmetric.mix_key_for_use(&static_static);
    let payload = symmetric.open(&key, encrypted_payload)?;
    Ok(InitiationReceived { symmetric, remote_static, remote_ephemeral, payload })
}

/// Answer message 1: fill `body`, whose size is `response_body` of the payload's size.
///
/// # Errors
/// `ZeroSharedSecret`.
pub fn create_response(
    received: InitiationReceived,
    psk: &[u8; KEY],
    ephemeral_private: &[u8; KEY],
    payload: &[u8],
    body: &mut [u8],
) -> Result<TransportKeys, CryptoError> {
    let ephemeral = ExchangeKey::new(ephemeral_private);
    let public = ephemeral.public();
    let (clear, encrypted_payload) = body.split_at_mut(KEY);
    clear.copy_from_slice(&public);
    let mut symmetric = received.symmetric;
    symmetric.mix_ephemeral(&public);
    symmetric.mix_key(&*ephemeral.dh(&received.remote_ephemeral)?);
    symmetric.mix_key(&*ephemeral.dh(&received.remote_static)?);
    let key = symmetric.mix_psk(psk);
    encrypted_payload[..payload.len()].copy_from_slice(payload);
    symmetric.seal(&key, encrypted_payload);
    let (receive, send) = symmetric.split();
    Ok(TransportKeys { send, receive })
}

/// Open message 2. Returns keys and payload. After an error, `sent` can be used again.
///
/// # Errors
/// `InvalidTag`, `ZeroSharedSecret`.
pub fn consume_response(
    sent: &InitiationSent,
    own: &StaticKey,
    psk: &[u8; KEY],
    body: &[u8],
) -> Result<(TransportKeys, Vec<u8>), CryptoError> {
    let (clear, encrypted_payload) = body.split_at(KEY);
    let remote_ephemeral = key_of(clear);
    let mut symmetric = sent.symmetric.clone();
    symmetric.mix_ephemeral(&remote_ephemeral);
    symmetric.mix_key(&*sent.ephemeral.dh(&remote_ephemeral)?);
    symmetric.mix_key(&*own.private.dh(&remote_ephemeral)?);
    let key = symmetric.mix_psk(psk);
    let payload = symmetric.open(&key, encrypted_payload)?;
    let (send, receive) = symmetric.split();
    Ok((TransportKeys { send, receive }, payload))
}

/// The first 32 bytes.
fn key_of(bytes: &[u8]) -> [u8; KEY] {
    let mut key = [0; KEY];
    key.copy_from_slice(&bytes[..KEY]);
    key
}
