//! Twin: wyrmhole/datapath/train_health.py.
//!
//! Whether GSO batches ("trains") reach a peer, judged by the TCP retransmissions inside the tunnel. The twin has the
//! theory of operation; rules, numbers and slots are the same.

use crate::constants::SECOND;
use crate::ip::PROTOCOL_TCP;

const MIN_LOST: u64 = 16;
/// Losing an eighth begins a trial. In single datagrams, less than an eighth of the trains' loss must remain.
const LOSS_DIVISOR: u64 = 8;
const COUNT_SPAN: u64 = 2 * SECOND;
/// The most bytes that a TCP may have in flight (RFC 7323, 2.3).
const LONGEST_WINDOW: u32 = 1 << 30;
const TRIAL_SEGMENTS: u64 = 64;
/// The length of each round; they differ because loss may be periodic.
const TRIAL_SPANS: [u64; ROUNDS] = [2 * SECOND, 3 * SECOND, 5 * SECOND];
const ROUNDS: usize = 3;
const REST: u64 = 600 * SECOND;
const MAX_REST: u64 = 16 * REST;
/// How long a peer gets no trains after its first TCP segment, on a suspect kernel.
const DOUBT_SPAN: u64 = 10 * SECOND;
/// Connection tracking forgets UDP flows after 30 s by default; the next datagram then begins a new flow.
pub const PATH_QUIET: u64 = 29 * SECOND;

const FLOWS: usize = 8;
const FACTOR: u32 = 0x9E37_79B1;
const SYN: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Watching,
    OnTrial,
    OnTrialSingly,
    /// Until this time; `None` before the first TCP segment.
    Resting(Option<u64>),
}

#[derive(Clone, Copy)]
struct Flow {
    key: u32,
    /// The end of the data sent.
    latest: u32,
    /// Where `latest` was when the phase began.
    start: u32,
    /// How far the retransmissions of older data have come.
    again: Option<u32>,
}

/// The state of one peer, locked with the rest of the peer's state.
pub struct TrainHealth {
    phase: Phase,
    rounds: usize,
    rest: u64,
    since: u64,
    sent: u64,
    lost: u64,
    bad: (u64, u64),
    /// When the current count began, and the segments sent and lost in the phase before that.
    counted: (u64, u64, u64),
    /// The segments sent in the first second of the phase.
    early: Option<u64>,
    /// Created with the peer's first TCP data: most peers of a large device are idle.
    flows: Option<Box<[Option<Flow>; FLOWS]>>,
}

impl Default for TrainHealth {
    fn default() -> Self {
        Self::new(false)
    }
}

impl TrainHealth {
    /// Create the state. If `is_doubted`, trains are not sent until there is evidence that they arrive.
    #[must_use]
    pub fn new(is_doubted: bool) -> Self {
        let phase = if is_doubted { Phase::Resting(None) } else { Phase::Watching };
        let (bad, counted) = ((0, 0), (0, 0, 0));
        Self { phase, rounds: 0, rest: 0, since: 0, sent: 0, lost: 0, bad, counted, early: None, flows: None }
    }

    /// Whether to send single datagrams. The engine asks before it sends a train.
    #[must_use]
    pub fn sends_singly(&self) -> bool {
        matches!(self.phase, Phase::OnTrialSingly | Phase::Resting(_))
    }

    /// Inspect a packet that is sent to the peer, or a super-packet of `segments` segments. Returns true if trains were
    /// just judged to be lost, for the first time since they last worked.
    pub fn note(&mut self, packet: &[u8], segments: usize, now: u64) -> bool {
        let Some(segment) = Segment::parse(packet) else { return false };
        if segment.is_syn {
            self.forget(segment.key);
            return false;
        }
        segment.data > 0 && self.note_data(&segment, segments as u64, now)
    }

    /// Forget a flow, because a new connection with the same ports has other sequence numbers.
    fn forget(&mut self, key: u32) {
        if let Some(flows) = &mut self.flows {
            let slot = &mut flows[slot_of(key)];
            if slot.is_some_and(|flow| flow.key == key) {
                *slot = None;
            }
        }
    }

    fn note_data(&mut self, segment: &Segment, segments: u64, now: u64) -> bool {
        if let Phase::Resting(until) = self.phase {
            let until = until.unwrap_or(now + DOUBT_SPAN);
            self.phase = Phase::Resting(Some(until));
            if now < until {
                return false;
            }
            self.rounds = ROUNDS - 1;
            self.begin(Phase::OnTrial, now);
        }
        // Judge before counting: the packet that begins a phase is sent by the rule of that phase.
        let is_news = self.judge(now);
        if self.is_first(segment, segments) {
            self.sent += segments;
        }
        is_news
    }

    /// Whether the data is sent for the first time in this phase. Otherwise it is counted as lost.
    fn is_first(&mut self, segment: &Segment, segments: u64) -> bool {
        let flows = self.flows.get_or_insert_with(|| Box::new([None; FLOWS]));
        let slot = &mut flows[slot_of(segment.key)];
        let end = segment.sequence.wrapping_add(segment.data);
        let Some(flow) = slot.as_mut().filter(|flow| flow.key == segment.key) else {
            *slot = Some(Flow { key: segment.key, latest: end, start: segment.sequence, again: None });
            return true;
        };
        if !is_before(segment.sequence, flow.latest) {
            flow.latest = end;
            return true;
        }
        if !is_before(segment.sequence, flow.start) {
            self.lost += segments;
            return false;
        }
        if self.phase == Phase::Watching || end == flow.start {
            // Too old; or a tail loss probe (RFC 8985, 7), which does not show which data has arrived.
            return false;
        }
        if flow.again.is_none_or(|again| !is_before(segment.sequence, again)) {
            // Data lost in an earlier phase is retransmitted. Its progress is evidence, and may be the only one for
            // long.
            flow.again = Some(end);
            return true;
        }
        self.lost += segments;
        false
    }

    fn judge(&mut self, now: u64) -> bool {
        if self.early.is_none() && now.saturating_sub(self.since) >= SECOND {
            self.early = Some(self.sent);
        }
        if self.phase == Phase::OnTrialSingly {
            return self.is_over(now) && self.compare(now);
        }
        if self.is_bad(now) {
            self.begin(Phase::OnTrialSingly, now);
        } else if self.phase == Phase::OnTrial && self.is_over(now) && self.moves_on() {
            self.acquit(now);
            self.rest = 0;
        }
        false
    }

    /// Whether connections make progress. One whose trains are lost stalls when its window is used up, long before all
    /// of it is retransmitted.
    fn moves_on(&self) -> bool {
        let early = self.early.unwrap_or(0);
        self.sent - early >= TRIAL_SEGMENTS.max(early)
    }

    /// Whether enough was lost for a trial. The loss is kept for the comparison.
    fn is_bad(&mut self, now: u64) -> bool {
        let (since, sent, lost) = self.counted;
        if now.saturating_sub(since) < COUNT_SPAN {
            return false;
        }
        let (sent, lost) = (self.sent - sent, self.lost - lost);
        if lost * LOSS_DIVISOR < sent || lost == 0 {
            self.count_anew(now);
            return false;
        }
        // If less was sent than retransmitted, at most all of it was lost.
        self.bad = (sent.max(lost), lost);
        lost >= MIN_LOST
    }

    fn count_anew(&mut self, now: u64) {
        self.counted = (now, self.sent, self.lost);
        if self.phase == Phase::Watching {
            for flow in self.flows.iter_mut().flat_map(|flows| flows.iter_mut()).flatten() {
                // Keep one window at most, because sequence numbers wrap.
                let kept = flow.latest.wrapping_sub(flow.start).min(LONGEST_WINDOW);
                flow.start = flow.latest.wrapping_sub(kept);
            }
        }
    }

    fn is_over(&self, now: u64) -> bool {
        self.sent >= TRIAL_SEGMENTS && now.saturating_sub(self.since) >= TRIAL_SPANS[self.rounds]
    }

    fn compare(&mut self, now: u64) -> bool {
        let (sent, lost) = self.bad;
        if self.lost * sent * LOSS_DIVISOR >= lost * self.sent {
            self.acquit(now);
            return false;
        }
        self.rounds += 1;
        if self.rounds < ROUNDS {
            self.begin(Phase::OnTrial, now);
            return false;
        }
        let is_news = self.rest == 0;
        self.rest = if is_news { REST } else { MAX_REST.min(2 * self.rest) };
        self.begin(Phase::Resting(Some(now + self.rest)), now);
        is_news
    }

    fn acquit(&mut self, now: u64) {
        self.rounds = 0;
        self.begin(Phase::Watching, now);
    }

    fn begin(&mut self, phase: Phase, now: u64) {
        self.phase = phase;
        self.since = now;
        (self.sent, self.lost, self.early) = (0, 0, None);
        self.counted = (now, 0, 0);
        for flow in self.flows.iter_mut().flat_map(|flows| flows.iter_mut()).flatten() {
            (flow.start, flow.again) = (flow.latest, None);
        }
    }
}

/// The fields of a TCP segment that are inspected.
struct Segment {
    key: u32,
    sequence: u32,
    data: u32,
    is_syn: bool,
}

impl Segment {
    /// Parse a packet. `None` if it is not TCP, is a fragment, or has extension headers.
    fn parse(packet: &[u8]) -> Option<Self> {
        let headers = match packet.first()? {
            0x45 if packet.len() >= 40 => {
                if packet[9] != PROTOCOL_TCP || packet[6] & 0x3F != 0 || packet[7] != 0 {
                    return None;
                }
                20
            }
            0x60..=0x6F if packet.len() >= 60 && packet[6] == PROTOCOL_TCP => 40,
            _ => return None,
        };
        let (source, destination) = if headers == 20 { (12, 16) } else { (20, 36) };
        let tcp = &packet[headers..];
        let length = headers + usize::from(tcp[12] >> 4) * 4;
        Some(Self {
            key: word(packet, source) ^ word(packet, destination).wrapping_mul(FACTOR) ^ word(tcp, 0),
            sequence: word(tcp, 4),
            data: packet.len().saturating_sub(length) as u32,
            is_syn: tcp[13] & SYN != 0,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Whether one number precedes another in sequence space (RFC 9293 3.4).
fn is_before(sequence: u32, other: u32) -> bool {
    sequence.wrapping_sub(other) >= 1 << 31
}

fn slot_of(key: u32) -> usize {
    (key.wrapping_mul(FACTOR) >> 29) as usize
}
