//! How long a worker goes on looking for work before it sleeps.
//!
//! To wake a processor that sleeps takes tens of microseconds, on a virtual machine more: longer than the answer to a
//! packet may take to come. So after a turn that moved a lone packet the worker looks again and again for a while, and
//! others run in between. The while is learnt, as KVM's halt polling learns its own: a wait that a longer look would have
//! covered doubles it, one beyond all patience halves it, down to nothing. Bulk traffic has work at hand without this,
//! and its receivers need the processor more.

/// Nanoseconds. Less is not worth two readings of the clock.
const LEAST: u64 = 8_000;
/// Nanoseconds: what a processor is woken in, there and back. More would only burn.
const MOST: u64 = 100_000;
/// Bytes that a turn moved. More is bulk.
const LONE: usize = 4096;

/// What a turn began with. Answers to what was sent come sooner than the next question, so each learns for itself.
#[derive(Clone, Copy, Default)]
pub enum After {
    /// A packet of this host was sent.
    #[default]
    Sending,
    /// Packets of a peer were received.
    Receiving,
}

/// See the module.
#[derive(Default)]
pub struct Patience {
    spans: [u64; 2],
}

impl Patience {
    /// Nanoseconds to look for after a turn that moved so many bytes; 0: sleep at once.
    #[must_use]
    pub fn span(&self, after: After, moved: usize) -> u64 {
        if moved < LONE { self.spans[after as usize] } else { 0 }
    }

    /// It slept after all, and work came so many nanoseconds after the turn's end.
    pub fn learn(&mut self, after: After, moved: usize, waited: u64) {
        if moved >= LONE {
            return;
        }
        let span = &mut self.spans[after as usize];
        *span = match waited {
            ..=MOST => (*span * 2).clamp(LEAST, MOST),
            _ if *span < 2 * LEAST => 0,
            _ => *span / 2,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taught(waits: &[u64]) -> Patience {
        let mut patience = Patience::default();
        for wait in waits {
            patience.learn(After::Sending, 100, *wait);
        }
        patience
    }

    #[test]
    fn work_that_comes_soon_is_looked_for_and_no_longer_than_it_is_worth() {
        assert_eq!(Patience::default().span(After::Sending, 100), 0);
        assert_eq!(taught(&[50_000]).span(After::Sending, 100), LEAST);
        assert_eq!(taught(&[50_000; 3]).span(After::Sending, 100), 4 * LEAST);
        assert_eq!(taught(&[50_000; 50]).span(After::Sending, 100), MOST);
    }

    #[test]
    fn work_that_comes_late_is_slept_for_again() {
        let mut waits = vec![50_000; 50];
        waits.extend([2_000_000; 4]);
        assert_eq!(taught(&waits).span(After::Sending, 100), 0);
    }

    #[test]
    fn each_direction_learns_for_itself() {
        assert_eq!(taught(&[50_000; 50]).span(After::Receiving, 100), 0);
    }

    #[test]
    fn bulk_is_not_waited_for_and_teaches_nothing() {
        let mut patience = taught(&[50_000; 50]);
        assert_eq!(patience.span(After::Sending, LONE), 0);
        patience.learn(After::Sending, LONE, u64::MAX);
        assert_eq!(patience.span(After::Sending, 100), MOST);
    }
}
