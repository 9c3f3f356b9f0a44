//! No twin: a Python thread does not spin, because it would keep the interpreter from the others.
//!
//! How long a worker spins before it sleeps.
//!
//! Waking a sleeping processor takes tens of microseconds, and more on a virtual machine: longer than the answer to a
//! packet may take to arrive. After a turn that moved a single packet, the worker therefore spins briefly, and lets
//! other threads run in between. The spin time adapts, as in KVM's halt polling: it doubles when slightly longer
//! spinning would have caught the packet, and halves, down to zero, when the wait was longer than the maximum. Bulk
//! traffic needs no spinning, because work is always available, and its receivers need the processor more.

/// The shortest spin in nanoseconds. A shorter one is not worth reading the clock twice.
const LEAST: u64 = 8_000;
/// The longest spin in nanoseconds: about the time to wake a processor at both ends. More would waste the processor.
const MOST: u64 = 100_000;
/// The number of bytes from which a turn counts as bulk traffic.
const BULK: usize = 4096;

/// The kind of a turn. Each kind adapts separately, because the answer to a sent packet comes sooner than the next
/// request.
#[derive(Clone, Copy, Default)]
pub enum After {
    /// A packet of this host was sent.
    #[default]
    Sending,
    /// Packets from a peer were received.
    Receiving,
}

/// The spin times of a worker. It calls `end_turn` after each turn, `begin_wait` before it spins, and `woke` after it
/// slept.
#[derive(Default)]
pub struct Patience {
    spans: [u64; 2],
    /// The last turn that did work: its kind, and the bytes that it moved.
    last: (After, usize),
    /// Whether the last turn did work.
    worked: bool,
    since: u64,
    waited: Option<u64>,
}

impl Patience {
    /// Return how many nanoseconds to spin, starting at `now`; 0 means to sleep at once.
    pub fn begin_wait(&mut self, now: u64) -> u64 {
        if !self.worked {
            return 0;
        }
        self.since = now;
        let (after, moved) = self.last;
        if moved < BULK { self.spans[after as usize] } else { 0 }
    }

    /// Record that the worker slept until `now`.
    pub fn woke(&mut self, now: u64) {
        self.waited = Some(now.saturating_sub(self.since));
    }

    /// Record a turn. `moved` counts bytes of this host's packets and authenticated bytes from peers. Datagrams of
    /// strangers do not count as work: the worker does not spin for them, and the wait that they interrupted continues.
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
        if moved >= BULK {
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

    /// Sleep for `nanoseconds` after the last turn, then end a turn of `moved` bytes.
    fn wait(patience: &mut Patience, nanoseconds: u64, after: After, moved: usize) {
        let now = patience.since + 1_000_000_000;
        patience.begin_wait(now);
        patience.woke(now + nanoseconds);
        patience.end_turn(after, moved);
    }

    fn adapted_to(waits: &[u64]) -> Patience {
        let mut patience = Patience::default();
        patience.end_turn(After::Sending, 100);
        for nanoseconds in waits {
            wait(&mut patience, *nanoseconds, After::Sending, 100);
        }
        patience
    }

    #[test]
    fn short_waits_double_the_spin_time_up_to_the_maximum() {
        assert_eq!(adapted_to(&[]).begin_wait(0), 0);
        assert_eq!(adapted_to(&[50_000]).begin_wait(0), LEAST);
        assert_eq!(adapted_to(&[50_000; 3]).begin_wait(0), 4 * LEAST);
        assert_eq!(adapted_to(&[50_000; 50]).begin_wait(0), MOST);
    }

    #[test]
    fn long_waits_halve_the_spin_time_to_zero() {
        let mut waits = vec![50_000; 50];
        waits.extend([2_000_000; 4]);
        assert_eq!(adapted_to(&waits).begin_wait(0), 0);
    }

    #[test]
    fn each_direction_adapts_separately() {
        let mut patience = adapted_to(&[50_000; 50]);
        patience.end_turn(After::Receiving, 100);
        assert_eq!(patience.begin_wait(0), 0);
    }

    #[test]
    fn bulk_traffic_causes_no_spinning_and_changes_no_spin_time() {
        let mut patience = adapted_to(&[50_000; 50]);
        patience.end_turn(After::Sending, BULK);
        assert_eq!(patience.begin_wait(0), 0);
        wait(&mut patience, u64::MAX / 2, After::Sending, 100);
        assert_eq!(patience.begin_wait(0), MOST);
    }

    #[test]
    fn datagrams_of_strangers_cause_no_spinning() {
        let mut patience = adapted_to(&[50_000; 50]);
        for _ in 0..1000 {
            wait(&mut patience, 90_000, After::Sending, 0);
            assert_eq!(patience.begin_wait(0), 0);
        }
    }

    #[test]
    fn datagrams_of_strangers_do_not_shorten_the_recorded_wait() {
        let mut patience = adapted_to(&[50_000; 50]);
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
