//! Edges that are Python objects, for tests: slow, but faithful to `wyrmhole.net`.
//!
//! Called without any lock of the engine held, because each call waits for the interpreter.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use wyrmhole_core::edges::{Gather, SendOutcome};
use wyrmhole_core::inbound::Arrival;
use wyrmhole_core::peer::Source;

use crate::io::sys;
use crate::io::tun::Read;

/// Parse (host, port) or (host, port, flow, scope), as returned by `socket.recvmsg`. `None` if the host is not numeric.
pub fn parse_sockaddr(sockaddr: &Bound<'_, PyAny>) -> PyResult<Option<SocketAddr>> {
    let tuple = sockaddr.cast::<PyTuple>()?;
    let host: String = tuple.get_item(0)?.extract()?;
    let port: u16 = tuple.get_item(1)?.extract()?;
    let number = |at| tuple.get_item(at).and_then(|item| item.extract::<u32>()).unwrap_or(0);
    Ok(parse_host(&host, port, number(2), number(3)))
}

/// Parse a numeric host; a scope after `%` is ignored.
#[must_use]
pub fn parse_host(host: &str, port: u16, flow: u32, scope: u32) -> Option<SocketAddr> {
    match host.split('%').next()?.parse().ok()? {
        IpAddr::V4(host) => Some(SocketAddr::new(host.into(), port)),
        IpAddr::V6(host) => Some(SocketAddr::V6(SocketAddrV6::new(host, port, flow, scope))),
    }
}

fn emit_sockaddr<'py>(py: Python<'py>, address: &SocketAddr) -> PyResult<Bound<'py, PyAny>> {
    let host = address.ip().to_string();
    match address {
        SocketAddr::V4(v4) => (host, v4.port()).into_pyobject(py).map(Bound::into_any),
        SocketAddr::V6(v6) => (host, v6.port(), v6.flowinfo(), v6.scope_id()).into_pyobject(py).map(Bound::into_any),
    }
}

/// A `wyrmhole.net.tun.Tun`, polled by our own duplicate of its descriptor.
pub struct ForeignTun {
    tun: Py<PyAny>,
    fd: OwnedFd,
}

impl ForeignTun {
    /// Wrap the object. It is asked for its descriptor once.
    ///
    /// # Errors
    /// The exception that the object raises.
    pub fn new(tun: &Bound<'_, PyAny>) -> PyResult<Self> {
        let fd = sys::duplicate(tun.call_method0("fileno")?.extract()?)?;
        Ok(Self { fd, tun: tun.clone().unbind() })
    }

    /// The descriptor to poll.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Whether TCP and UDP super-packets are accepted.
    pub fn offloads(&self) -> (bool, bool) {
        let read = |py: Python<'_>| -> PyResult<(bool, bool)> {
            let offloads = self.tun.bind(py).getattr("offloads")?;
            Ok((offloads.getattr("tso")?.extract()?, offloads.getattr("uso")?.extract()?))
        };
        Python::attach(read).unwrap_or((false, false))
    }

    /// Read one frame. An exception means that the interface is gone.
    pub fn read(&self, buffer: &mut [u8]) -> Read {
        let frame = Python::attach(|py| -> PyResult<Vec<u8>> {
            let place = pyo3::types::PyByteArray::new_with(py, buffer.len(), |_| Ok(()))?;
            let length: usize = self.tun.bind(py).call_method1("read_into", (&place,))?.extract()?;
            let mut bytes = place.to_vec();
            bytes.truncate(length);
            Ok(bytes)
        });
        match frame {
            Ok(frame) if frame.is_empty() => Read::Nothing,
            Ok(frame) => {
                buffer[..frame.len()].copy_from_slice(&frame);
                Read::Frame(frame.len())
            }
            Err(_) => Read::Gone,
        }
    }

    /// Write one frame. Returns false if it was lost or refused.
    pub fn write(&self, frame: Gather<'_>) -> bool {
        let written = Python::attach(|py| -> PyResult<bool> {
            let parts = PyList::new(py, [PyBytes::new(py, frame.header)])?;
            for part in frame.parts {
                parts.append(PyBytes::new(py, part.of(frame.slot)))?;
            }
            self.tun.bind(py).call_method1("write", (parts,))?.extract()
        });
        written.unwrap_or(false)
    }
}

/// Our duplicate of a descriptor, and the owner's number for it.
type Lent = (OwnedFd, RawFd);

/// A `wyrmhole.net.bind.Bind`, and the descriptors to poll for it.
pub struct ForeignBind {
    bind: Py<PyAny>,
    fds: Arc<Vec<Lent>>,
}

impl ForeignBind {
    /// Wrap the object. It is asked for its descriptors once.
    ///
    /// # Errors
    /// The exception that the object raises.
    pub fn new(bind: &Bound<'_, PyAny>) -> PyResult<Self> {
        let fds = bind.call_method0("filenos")?.try_iter()?;
        let lent = fds.map(|fd| fd?.extract()).collect::<PyResult<Vec<RawFd>>>()?;
        let own = lent.into_iter().map(|fd| Ok((sys::duplicate(fd)?, fd))).collect::<PyResult<_>>()?;
        Ok(Self { bind: bind.clone().unbind(), fds: Arc::new(own) })
    }

    /// Return another handle to the same object.
    pub fn share(&self) -> Self {
        Python::attach(|py| Self { bind: self.bind.clone_ref(py), fds: Arc::clone(&self.fds) })
    }

    /// The descriptors to poll.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        self.fds.iter().map(|(own, _)| own.as_raw_fd())
    }

    /// Receive from one descriptor. `None` if there is no datagram, or the sender's address is not numeric.
    pub fn receive(&self, own: RawFd, slot: &mut [u8]) -> Option<(usize, Arrival)> {
        let (_, fd) = *self.fds.iter().find(|(each, _)| each.as_raw_fd() == own)?;
        let take = |py: Python<'_>| -> PyResult<Option<(Vec<u8>, Arrival)>> {
            let received = self.bind.bind(py).call_method1("receive", (fd,))?;
            if received.is_none() {
                return Ok(None);
            }
            let Some(from) = parse_sockaddr(&received.getattr("sockaddr")?)? else { return Ok(None) };
            let source: Option<Vec<u8>> = received.getattr("source")?.extract()?;
            let data: Vec<u8> = received.getattr("view")?.call_method0("tobytes")?.extract()?;
            let arrival = Arrival {
                from,
                source: source.as_deref().and_then(Source::new),
                tos: received.getattr("tos")?.extract()?,
                segment_size: received.getattr("segment_size")?.extract()?,
            };
            Ok(Some((data, arrival)))
        };
        let (data, arrival) = Python::attach(take).ok().flatten()?;
        slot.get_mut(..data.len())?.copy_from_slice(&data);
        Some((data.len(), arrival))
    }

    /// Send; see `wyrmhole.net.bind.Bind.send`.
    pub fn send(
        &self,
        to: &SocketAddr,
        source: Option<&Source>,
        data: &[u8],
        segment_size: usize,
        tos: u8,
    ) -> SendOutcome {
        let send = |py: Python<'_>| -> PyResult<u8> {
            let source = source.map(|source| PyBytes::new(py, source.as_bytes()));
            let arguments = (PyBytes::new(py, data), segment_size, emit_sockaddr(py, to)?, source, tos);
            self.bind.bind(py).call_method1("send", arguments)?.extract()
        };
        // The values are those of SendOutcome. An exception counts as a dropped datagram.
        let flags = Python::attach(send).unwrap_or(2);
        SendOutcome { source_rejected: flags & 1 != 0, dropped: flags & 2 != 0 }
    }
}
