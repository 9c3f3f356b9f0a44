//! Twin: wyrmhole/datapath/replay.py.
//!
//! The sliding window of received counters (RFC 6479, whitepaper 5.4.6), one per keypair.
//!
//! The window is a ring of words. Moving it clears whole words, so one word is spare, and the usable window is
//! 8192 - 64 = 8128, like that of the kernel and wireguard-go. Call only after the tag was verified (rule M23).

const WORDS: usize = 128;
const WINDOW_BITS: u64 = WORDS as u64 * 64;
/// How far a counter may be behind the greatest one.
pub const WINDOW_SIZE: u64 = WINDOW_BITS - 64;

/// The counters seen so far.
pub struct ReplayWindow {
    /// One more than the greatest counter seen; 0 if none was.
    next: u64,
    words: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, words: [0; WORDS] }
    }
}

impl ReplayWindow {
    /// Return true once for each counter that is not too old, and remember it. The caller enforces the upper limit on
    /// counters.
    pub fn accept(&mut self, counter: u64) -> bool {
        let word = (counter / 64) as usize % WORDS;
        let bit = 1 << (counter % 64);
        if counter >= self.next {
            let ahead = (counter / 64).wrapping_sub(self.next.wrapping_sub(1) / 64);
            if self.next == 0 || ahead >= WORDS as u64 {
                self.words = [0; WORDS];
            } else {
                for step in 0..ahead {
                    self.words[(word + WORDS - step as usize) % WORDS] = 0;
                }
            }
            self.words[word] |= bit;
            self.next = counter.saturating_add(1);
            return true;
        }
        if self.next - 1 - counter >= WINDOW_SIZE || self.words[word] & bit != 0 {
            return false;
        }
        self.words[word] |= bit;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn agrees_with_a_set_of_all_counters_seen() {
        let mut window = ReplayWindow::default();
        let mut seen = HashSet::new();
        let mut greatest: i128 = -1;
        let mut state = 7u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let step = match state >> 60 {
                0 => (state >> 33) % 20_000,
                1..4 => (state >> 33) % 70,
                _ => 1,
            };
            let counter = if state >> 59 & 1 == 0 {
                (greatest + i128::from(step)).max(0) as u64
            } else {
                (greatest - i128::from(step % 9000)).max(0) as u64
            };
            let fresh = i128::from(counter) > greatest
                || (greatest - i128::from(counter) < i128::from(WINDOW_SIZE) && !seen.contains(&counter));
            assert_eq!(window.accept(counter), fresh, "counter {counter} after {greatest}");
            if fresh {
                seen.insert(counter);
                greatest = greatest.max(i128::from(counter));
            }
        }
    }

    #[test]
    fn the_window_is_8128_wide() {
        let mut window = ReplayWindow::default();
        assert!(window.accept(WINDOW_SIZE));
        assert!(!window.accept(0), "too old by one");
        assert!(window.accept(1), "the oldest one in the window");
        assert!(!window.accept(1));
    }
}
