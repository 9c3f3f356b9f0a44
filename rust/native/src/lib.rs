//! The native engine: the packet path of `wyrmhole_core` between a kernel's TUN and UDP sockets, in threads that never
//! hold the interpreter, with a Python interface for the control thread.

#![deny(unsafe_code)]

mod answering;
mod engine;
mod foreign;
mod handshake_face;
#[allow(unsafe_code)]
pub mod io;
mod team;
mod worker;

use std::alloc::System;

use pyo3::prelude::*;
use zeroizing_alloc::ZeroAlloc;

/// Wipe all memory when it is freed. The packet path allocates nothing, so this costs it nothing.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

/// The version of this module's interface. It grows with every change that Python sees, so that a module built from
/// other sources is recognised.
const INTERFACE: u32 = 5;

/// The extension module `wyrmhole.engine._native`.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<engine::Engine>()?;
    module.add_submodule(&handshake_face::module(module.py())?)?;
    module.add("INTERFACE", INTERFACE)
}
