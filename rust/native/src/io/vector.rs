//! Intel's multi-buffer library (`libIPSec_MB`), where the machine has it: not there yet.

use wyrmhole_core::aead::Ring;

/// The backend, or why there is none.
///
/// # Errors
/// One sentence for the log.
pub fn load() -> Result<Ring, String> {
    Err("the vector backend is not built".to_owned())
}
