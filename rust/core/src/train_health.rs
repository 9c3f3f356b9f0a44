//! Twin: wyrmhole/datapath/train_health.py.
//!
//! Whether GSO batches ("trains") reach a peer, judged by the inner TCP retransmissions that leave for it. The theory of
//! operation is in the twin: same rules, same numbers, same slots.

use crate::constants::SECOND;
use crate::ip::PROTOCOL_TCP;

const MIN_LOST: u64 = 16;
/// An eighth lost is a reason for a trial; and singly, less than an eighth of the trains' loss must remain.
const LOSS_DIVISOR: u64 = 8;
const COUNT_SPAN: u64 = 2 * SECOND;
/// Bytes that a TCP may have under way (RFC 7323, 2.3).
const LONGEST_WINDOW: u32 = 1 << 30;
const TRIAL_SEGMENTS: u64 = 64;
/// Of each round, different because loss may be periodic.
const TRIAL_SPANS: [u64; ROUNDS] = [2 * SECOND, 3 * SECOND, 5 * SECOND];
const ROUNDS: usize = 3;
const REST: u64 = 600 * SECOND;
const MAX_REST: u64 = 16 * REST;
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
    /// Until that time; None: from the first TCP segment on.
    Resting(Option<u64>),
}

#[derive(Clone, Copy)]
struct Flow {
    key: u32,
    /// The end of what was sent.
    latest: u32,
    /// Where the present phase began.
    start: u32,
    /// How far before that the retransmissions of a trial came.
    again: Option<u32>,
}

/// One peer's state, locked with the rest of it.
pub struct TrainHealth {
    phase: Phase,
    rounds: usize,
    rest: u64,
    since: u64,
    sent: u64,
    lost: u64,
    bad: (u64, u64),
    /// When the present count began, and what was sent and lost in the phase by then.
    counted: (u64, u64, u64),
    /// What was sent in the first second of the phase.
    early: Option<u64>,
    /// Made with the peer's first TCP data: most peers of a large device are idle.
    flows: Option<Box<[Option<Flow>; FLOWS]>>,
}

impl Default for TrainHealth {
    fn default() -> Self {
        Self::new(false)
    }
}

impl TrainHealth {
    /// `is_doubted`: trains are not sent before there is evidence.
    #[must_use]
    pub fn new(is_doubted: bool) -> Self {
        let phase = if is_doubted { Phase::Resting(None) } else { Phase::Watching };
        let (bad, counted) = ((0, 0), (0, 0, 0));
        Self { phase, rounds: 0, rest: 0, since: 0, sent: 0, lost: 0, bad, counted, early: None, flows: None }
    }

    /// What the engine asks before it sends a train.
    #[must_use]
    pub fn sends_singly(&self) -> bool {
        matches!(self.phase, Phase::OnTrialSingly | Phase::Resting(_))
    }

    /// Look at what leaves for the peer: a packet, or a super-packet that becomes so many. True: trains to this peer
    /// were just found to be lost, for the first time since they last worked.
    pub fn note(&mut self, packet: &[u8], segments: usize, now: u64) -> bool {
        let Some(segment) = Segment::parse(packet) else { return false };
        if segment.is_syn {
            self.forget(segment.key);
            return false;
        }
        segment.data > 0 && self.note_data(&segment, segments as u64, now)
    }

    /// A connection that begins again with the same ports has other sequence numbers.
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
        // Before it is counted: what begins a phase leaves by the rule of that phase.
        let is_news = self.judge(now);
        if self.is_first(segment, segments) {
            self.sent += segments;
        }
        is_news
    }

    /// Whether the data was not sent before in this phase; what was counts as lost.
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
            // Too old; or a tail loss probe (RFC 8985, 7), which is no sign of how far the rest came.
            return false;
        }
        if flow.again.is_none_or(|again| !is_before(segment.sequence, again)) {
            // What was lost before is made good: how this moves on is evidence, and may be all for long.
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

    /// A connection whose trains are lost stands still once its window is spent, long before all is sent again.
    fn moves_on(&self) -> bool {
        let early = self.early.unwrap_or(0);
        self.sent - early >= TRIAL_SEGMENTS.max(early)
    }

    /// Whether enough was lost for a trial; what counts as one is noted.
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
        // Where less was sent than sent again, all of it may be lost, and no more.
        self.bad = (sent.max(lost), lost);
        lost >= MIN_LOST
    }

    fn count_anew(&mut self, now: u64) {
        self.counted = (now, self.sent, self.lost);
        if self.phase == Phase::Watching {
            for flow in self.flows.iter_mut().flat_map(|flows| flows.iter_mut()).flatten() {
                // Sequence numbers come again.
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

/// What is looked at of a TCP segment.
struct Segment {
    key: u32,
    sequence: u32,
    data: u32,
    is_syn: bool,
}

impl Segment {
    /// None: not TCP, a fragment, or with extension headers.
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

/// In sequence space (RFC 9293 3.4).
fn is_before(sequence: u32, other: u32) -> bool {
    sequence.wrapping_sub(other) >= 1 << 31
}

fn slot_of(key: u32) -> usize {
    (key.wrapping_mul(FACTOR) >> 29) as usize
}
