//! Stacks and vector registers after secrets were in them.
//!
//! Moving a key, sealing and opening leave copies in frames that are gone and in registers. They stay until something
//! else is put there, and the frame of a signal takes the registers to the stack as well. Compilers offer nothing
//! against it. So what works with keys is called, and afterwards, from the same depth, everything below is overwritten.

use std::hint::black_box;

/// Keys were found down to 10 KiB below the very top of a worker's stack.
const DEPTH: usize = 32 << 10;

/// Do it, and leave nothing of it on the stack. What `act` returns holds no secret, what it borrows is its owner's.
pub fn with_wiped_stack<T>(act: impl FnOnce() -> T) -> T {
    let result = apart(act);
    wipe();
    result
}

#[inline(never)]
fn apart<T>(act: impl FnOnce() -> T) -> T {
    act()
}

/// Overwrite what former calls of the caller left below its frame, and in vector registers.
#[inline(never)]
pub fn wipe() {
    black_box(&mut [0u8; DEPTH]);
    clear_registers();
}

#[cfg(target_arch = "x86_64")]
fn clear_registers() {
    #[target_feature(enable = "avx")]
    unsafe fn clear() {
        std::arch::x86_64::_mm256_zeroall();
    }
    if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the processor has the instruction, and callers expect nothing in these registers after a call.
        unsafe { clear() };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn clear_registers() {}
