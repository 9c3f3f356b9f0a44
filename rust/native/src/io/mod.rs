//! The edges: everything that talks to the kernel, and the only module with `unsafe` code.
//!
//! Descriptors belong to the Python edges (`LinuxTun`, `UdpBind`), which open, configure and close them; what is here
//! reads and writes them between attach and detach.

pub mod stack;
pub mod sys;
pub mod tun;
pub mod udp;
pub mod vector;
