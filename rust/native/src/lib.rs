//! The native engine: the packet path of `wyrmhole_core` between a kernel's TUN and UDP sockets, in threads that never
//! hold the interpreter, with a Python face for the control thread.

#![deny(unsafe_code)]

mod engine;
mod foreign;
#[allow(unsafe_code)]
pub mod io;
mod worker;

use pyo3::prelude::*;

/// Grows whenever what Python sees of this module changes, so that a module built from older sources is told apart.
const INTERFACE: u32 = 2;

/// `wyrmhole.engine._native`.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<engine::Engine>()?;
    module.add("INTERFACE", INTERFACE)
}
