//! Wiping of stacks and vector registers that held secrets.
//!
//! Moving a key, sealing and opening leave copies in released stack frames and in registers. They stay there until they
//! are overwritten, and a signal copies the registers to the stack as well. Compilers offer no means against this.
//! Functions that work with keys are therefore called through this module, which afterwards overwrites the stack below
//! the same depth.

use std::hint::black_box;

/// The number of bytes to overwrite. Keys were found down to 10 KiB below the top of a worker's stack.
const DEPTH: usize = 32 << 10;

/// Call a function, then wipe what it left on the stack. Its result must hold no secret; what it borrows is not wiped.
pub fn with_wiped_stack<T>(act: impl FnOnce() -> T) -> T {
    let result = in_own_frame(act);
    wipe();
    result
}

#[inline(never)]
fn in_own_frame<T>(act: impl FnOnce() -> T) -> T {
    act()
}

/// Overwrite what the caller's earlier calls left below its frame and in vector registers.
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
        // SAFETY: the processor has the instruction, and a call need not preserve these registers.
        unsafe { clear() };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn clear_registers() {}
