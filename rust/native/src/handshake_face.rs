//! The pure handshake functions for Python, so that the tests and vectors of the Python original also run on this twin.
//! The product does not call them: the engine processes handshakes without the interpreter.

use std::net::SocketAddr;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use wyrmhole_core::noise::{self, InitiationReceived, InitiationSent, KEY, Refusal, StaticKey};
use wyrmhole_core::primitives::{self, CryptoError, ExchangeKey};
use wyrmhole_core::{cookie, messages};

use crate::foreign::parse_host;

/// The state that `create_initiation` returns for `consume_response`.
#[pyclass(frozen, module = "wyrmhole.engine._native")]
pub struct Sent(InitiationSent);

/// The state that `consume_initiation` returns for one call of `create_response`.
#[pyclass(module = "wyrmhole.engine._native")]
pub struct Received(Option<InitiationReceived>);

/// Convert an error to a ValueError with its name.
fn refused(error: CryptoError) -> PyErr {
    PyValueError::new_err(match error {
        CryptoError::InvalidTag => "InvalidTag",
        CryptoError::ZeroSharedSecret => "ZeroSharedSecret",
    })
}

fn array<const N: usize>(bytes: &[u8]) -> PyResult<[u8; N]> {
    bytes.try_into().map_err(|_| PyValueError::new_err(format!("expected {N} bytes, not {}", bytes.len())))
}

#[pyfunction]
fn dh<'py>(py: Python<'py>, private: &[u8], public: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let secret = ExchangeKey::new(&array(private)?).dh(&array(public)?).map_err(refused)?;
    Ok(PyBytes::new(py, &*secret))
}

#[pyfunction]
fn hash2s<'py>(py: Python<'py>, data: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &primitives::hash2s(&[data]))
}

#[pyfunction]
fn mac<'py>(py: Python<'py>, key: &[u8], data: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &primitives::mac(key, &[data]))
}

/// Return three outputs. The first is also that of kdf1, the first two are those of kdf2.
#[pyfunction]
fn kdf3<'py>(py: Python<'py>, key: &[u8], data: &[u8]) -> PyResult<[Bound<'py, PyBytes>; 3]> {
    let (first, second, third) = primitives::kdf3(&array(key)?, data);
    Ok([&first, &second, &third].map(|secret| PyBytes::new(py, &**secret)))
}

#[pyfunction]
fn hchacha20<'py>(py: Python<'py>, key: &[u8], nonce: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    Ok(PyBytes::new(py, &*primitives::hchacha20(&array(key)?, &array(nonce)?)))
}

#[pyfunction]
fn xseal<'py>(py: Python<'py>, key: &[u8], nonce: &[u8], plain: &[u8], ad: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    let mut text = plain.to_vec();
    text.resize(plain.len() + messages::TAG_SIZE, 0);
    primitives::xseal(&array(key)?, &array(nonce)?, &mut text, ad);
    Ok(PyBytes::new(py, &text))
}

#[pyfunction]
fn create_initiation<'py>(
    py: Python<'py>,
    private: &[u8],
    remote: &[u8],
    ephemeral: &[u8],
    payload: &[u8],
    prologue: &[u8],
) -> PyResult<(Sent, Bound<'py, PyBytes>)> {
    let (own, remote) = (StaticKey::new(&array(private)?), array(remote)?);
    let static_static = own.static_static(&remote).map_err(refused)?;
    let mut body = vec![0; noise::initiation_body(payload.len())];
    let text = (payload, prologue);
    let sent = noise::create_initiation(&own, &remote, &static_static, &array(ephemeral)?, text, &mut body);
    Ok((Sent(sent.map_err(refused)?), PyBytes::new(py, &body)))
}

/// Open message 1. Also returns the initiator's static key and the payload. Raises ValueError("UnknownPeer") unless the
/// static key is `known`.
#[pyfunction]
fn consume_initiation<'py>(
    py: Python<'py>,
    private: &[u8],
    body: &[u8],
    prologue: &[u8],
    known: &[u8],
) -> PyResult<(Received, Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let (own, known): (_, [u8; KEY]) = (StaticKey::new(&array(private)?), array(known)?);
    let found = |remote: &[u8; KEY]| if *remote == known { own.static_static(remote).map(Some) } else { Ok(None) };
    let received = noise::consume_initiation(&own, body, prologue, found).map_err(|refusal| match refusal {
        Refusal::Crypto(error) => refused(error),
        Refusal::UnknownPeer(_) => PyValueError::new_err("UnknownPeer"),
    })?;
    let (remote, payload) = (PyBytes::new(py, &received.remote_static), PyBytes::new(py, &received.payload));
    Ok((Received(Some(received)), remote, payload))
}

/// Create message 2. Returns the keys for sending and receiving, and the body.
#[pyfunction]
fn create_response<'py>(
    py: Python<'py>,
    received: &mut Received,
    psk: &[u8],
    ephemeral: &[u8],
    payload: &[u8],
) -> PyResult<[Bound<'py, PyBytes>; 3]> {
    let received = received.0.take().ok_or_else(|| PyValueError::new_err("the initiation was already answered"))?;
    let mut body = vec![0; noise::response_body(payload.len())];
    let keys = noise::create_response(received, &array(psk)?, &array(ephemeral)?, payload, &mut body);
    let keys = keys.map_err(refused)?;
    Ok([PyBytes::new(py, &*keys.send), PyBytes::new(py, &*keys.receive), PyBytes::new(py, &body)])
}

/// Open message 2. Returns the keys for sending and receiving, and the payload.
#[pyfunction]
fn consume_response<'py>(
    py: Python<'py>,
    sent: &Sent,
    private: &[u8],
    psk: &[u8],
    body: &[u8],
) -> PyResult<[Bound<'py, PyBytes>; 3]> {
    let own = StaticKey::new(&array(private)?);
    let (keys, payload) = noise::consume_response(&sent.0, &own, &array(psk)?, body).map_err(refused)?;
    Ok([PyBytes::new(py, &*keys.send), PyBytes::new(py, &*keys.receive), PyBytes::new(py, &payload)])
}

fn sender(host: &str, port: u16) -> PyResult<SocketAddr> {
    parse_host(host, port, 0, 0).ok_or_else(|| PyValueError::new_err(format!("{host:?} is not a numeric address")))
}

/// Create a cookie reply with this secret and nonce.
#[pyfunction]
fn create_cookie_reply<'py>(
    py: Python<'py>,
    public: &[u8],
    message: &[u8],
    from: (&str, u16),
    secret: &[u8],
    nonce: &[u8],
) -> PyResult<Bound<'py, PyBytes>> {
    let reply =
        cookie::create_reply(&array(public)?, message, sender(from.0, from.1)?, &array(secret)?, &array(nonce)?);
    Ok(PyBytes::new(py, &reply))
}

#[pyfunction]
fn mac2_is_valid(secret: &[u8], message: &[u8], host: &str, port: u16) -> PyResult<bool> {
    Ok(cookie::is_mac2(&array(secret)?, message, sender(host, port)?))
}

/// Create the submodule with the functions above.
pub fn module<'py>(py: Python<'py>) -> PyResult<Bound<'py, PyModule>> {
    let module = PyModule::new(py, "handshake")?;
    module.add_function(wrap_pyfunction!(dh, &module)?)?;
    module.add_function(wrap_pyfunction!(hash2s, &module)?)?;
    module.add_function(wrap_pyfunction!(mac, &module)?)?;
    module.add_function(wrap_pyfunction!(kdf3, &module)?)?;
    module.add_function(wrap_pyfunction!(hchacha20, &module)?)?;
    module.add_function(wrap_pyfunction!(xseal, &module)?)?;
    module.add_function(wrap_pyfunction!(create_initiation, &module)?)?;
    module.add_function(wrap_pyfunction!(consume_initiation, &module)?)?;
    module.add_function(wrap_pyfunction!(create_response, &module)?)?;
    module.add_function(wrap_pyfunction!(consume_response, &module)?)?;
    module.add_function(wrap_pyfunction!(create_cookie_reply, &module)?)?;
    module.add_function(wrap_pyfunction!(mac2_is_valid, &module)?)?;
    Ok(module)
}
