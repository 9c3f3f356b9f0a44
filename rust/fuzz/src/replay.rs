//! Any sequence of counters: each is accepted once, unless it is too old.

use std::collections::HashSet;

use wyrmhole_core::replay::{ReplayWindow, WINDOW_SIZE};

/// Panic if the property does not hold.
pub fn run(data: &[u8]) {
    let mut window = ReplayWindow::default();
    let mut seen = HashSet::new();
    let mut greatest: Option<u64> = None;
    for step in data.chunks_exact(3) {
        let distance = u64::from(u16::from_le_bytes([step[1], step[2]]));
        let base = greatest.unwrap_or(0);
        let counter = match step[0] % 4 {
            0 => base.saturating_sub(distance),
            1 => base.saturating_add(distance),
            2 => base.saturating_add(distance << 48),
            _ => base.saturating_add(1),
        };
        // The caller of the window refuses counters at or beyond Reject-After-Messages.
        let counter = counter.min(u64::MAX - 8193);
        let is_fresh = greatest.is_none_or(|greatest| counter > greatest)
            || (base - counter < WINDOW_SIZE && !seen.contains(&counter));
        assert_eq!(window.accept(counter), is_fresh);
        if is_fresh {
            seen.insert(counter);
            greatest = Some(base.max(counter));
        }
    }
}
