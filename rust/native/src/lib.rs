//! The native engine: the packet path of `wyrmhole_core` between a kernel's TUN and UDP sockets, in threads that never
//! hold the interpreter, with a Python face for the control thread.

#![deny(unsafe_code)]

mod answering;
mod engine;
mod foreign;
mod handshake_face;
#[allow(unsafe_code)]
pub mod io;
mod worker;

use std::alloc::System;

use pyo3::prelude::*;
use zeroizing_alloc::ZeroAlloc;

/// Memory is wiped when it is freed, whoever had it. The packet path allocates nothing, so pays nothing.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

/// Grows whenever what Python sees of this module changes, so that a module built from older sources is told apart.
const INTERFACE: u32 = 4;

/// `wyrmhole.engine._native`.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<engine::Engine>()?;
    module.add_submodule(&handshake_face::module(module.py())?)?;
    module.add("INTERFACE", INTERFACE)
}
