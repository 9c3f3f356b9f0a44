//! The edges: all system calls, and the only module with `unsafe` code.
//!
//! The Python edges (`LinuxTun`, `UdpBind`) open, configure and close the descriptors. This module reads and writes
//! duplicates of them between attach and detach.

pub mod stack;
pub mod sys;
pub mod tun;
pub mod udp;
pub mod vector;
