//! No twin: a Python thread does not spin, because it would keep the interpreter from the others.
//!
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

/// See the module. A worker calls `end_turn` after each turn, `begin_wait` before it looks, `woke` after it slept.
#[derive(Default)]
pub struct Patience {
    spans: [u64; 2],
    /// The last turn that did work, and the bytes that it moved.
    last: (After, usize),
    /// Whether the latest turn did work.
    worked: bool,
    since: u64,
    waited: Option<u64>,
}

impl Patience {
    /// How many nanoseconds from `now` on to look for work; 0: sleep at once.
    pub fn begin_wait(&mut self, now: u64) -> u64 {
        if !self.worked {
            return 0;
        }
        self.since = now;
        let (after, moved) = self.last;
        if moved < LONE { self.spans[after as usize] } else { 0 }
    }

    /// It slept after all, until `now`.
    pub fn woke(&mut self, now: u64) {
        self.waited = Some(now.saturating_sub(self.since));
    }

    /// What a turn did. `moved`: bytes of this host's packets, or authenticated ones of a peer. Datagrams of strangers
    /// are no work: they are not looked for, and what they interrupted goes on.
    pub fn end_turn(&mut self, after: After, moved: usize) {
        self.worked = moved > 0;
        if !self.worked {
            return;
        }
        if let Some(waited) = self.waited.take() {
            self.learn(waited);
        }
        self.last = (after, moved);
    }

    fn learn(&mut self, waited: u64) {
        let (after, moved) = self.last;
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

    /// One wait of so many nanoseconds after the latest turn, slept through, and the turn of `moved` bytes after it.
    fn wait(patience: &mut Patience, nanoseconds: u64, after: After, moved: usize) {
        let now = patience.since + 1_000_000_000;
        patience.begin_wait(now);
        patience.woke(now + nanoseconds);
        patience.end_turn(after, moved);
    }

    fn taught(waits: &[u64]) -> Patience {
        let mut patience = Patience::default();
        patience.end_turn(After::Sending, 100);
        for nanoseconds in waits {
            wait(&mut patience, *nanoseconds, After::Sending, 100);
        }
        patience
    }

    #[test]
    fn work_that_comes_soon_is_looked_for_and_no_longer_than_it_is_worth() {
        assert_eq!(taught(&[]).begin_wait(0), 0);
        assert_eq!(taught(&[50_000]).begin_wait(0), LEAST);
        assert_eq!(taught(&[50_000; 3]).begin_wait(0), 4 * LEAST);
        assert_eq!(taught(&[50_000; 50]).begin_wait(0), MOST);
    }

    #[test]
    fn work_that_comes_late_is_slept_for_again() {
        let mut waits = vec![50_000; 50];
        waits.extend([2_000_000; 4]);
        assert_eq!(taught(&waits).begin_wait(0), 0);
    }

    #[test]
    fn each_direction_learns_for_itself() {
        let mut patience = taught(&[50_000; 50]);
        patience.end_turn(After::Receiving, 100);
        assert_eq!(patience.begin_wait(0), 0);
    }

    #[test]
    fn bulk_is_not_waited_for_and_teaches_nothing() {
        let mut patience = taught(&[50_000; 50]);
        patience.end_turn(After::Sending, LONE);
        assert_eq!(patience.begin_wait(0), 0);
        wait(&mut patience, u64::MAX / 2, After::Sending, 100);
        assert_eq!(patience.begin_wait(0), MOST);
    }

    #[test]
    fn a_stranger_s_datagrams_are_not_looked_for() {
        let mut patience = taught(&[50_000; 50]);
        for _ in 0..1000 {
            wait(&mut patience, 90_000, After::Sending, 0);
            assert_eq!(patience.begin_wait(0), 0);
        }
    }

    #[test]
    fn a_stranger_s_datagrams_teach_nothing_about_the_work_between_them() {
        let mut patience = taught(&[50_000; 50]);
        for _ in 0..8 {
            let end = patience.since + 1_000_000_000;
            patience.begin_wait(end);
            for number in 1..=20 {
                patience.woke(end + number * 90_000);
                patience.end_turn(After::Receiving, 0);
                patience.begin_wait(end + number * 90_000);
            }
            patience.woke(end + 2_000_000);
            patience.end_turn(After::Sending, 100);
        }
        assert_eq!(patience.begin_wait(0), 0);
    }
}
