//! What happened when: throughput by the second, faults, leaders, and gaps between writes.

use kvdb_client::Error;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A gap below this isn't noted: it is no more than a busy machine.
pub(crate) const SHORTEST_GAP: Duration = Duration::from_millis(20);

/// Counts what was answered, by the second, and what wasn't, by reason.
pub(crate) struct Meter {
    start: Instant,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    by_second: Vec<u32>,
    refusals: BTreeMap<String, u64>,
    /// Operations that took long, from call to answer.
    slow: Vec<Gap>,
}

impl Meter {
    pub(crate) fn new(start: Instant) -> Self {
        Meter { start, counts: Mutex::default() }
    }

    pub(crate) fn answered(&self) {
        let second = self.start.elapsed().as_secs() as usize;
        let mut counts = self.counts.lock();
        if counts.by_second.len() <= second {
            counts.by_second.resize(second + 1, 0);
        }
        counts.by_second[second] += 1;
    }

    /// An operation that was called then has ended, with whatever outcome.
    pub(crate) fn took(&self, called: Instant) {
        if called.elapsed() >= SHORTEST_GAP {
            let since_start = |at: Instant| at.duration_since(self.start).as_millis() as u64;
            let (from_ms, until_ms) = (since_start(called), since_start(Instant::now()));
            self.counts.lock().slow.push(Gap { from_ms, until_ms });
        }
    }

    /// How long the slowest operation of a time took, in milliseconds; 0 if none took long.
    pub(crate) fn slowest(&self, from_ms: u64, until_ms: u64) -> u64 {
        longest(&self.counts.lock().slow, from_ms, until_ms)
    }

    pub(crate) fn refused(&self, error: &Error) {
        let reason = match error {
            Error::Refused { refusal, .. } => refusal.code().to_owned(),
            Error::Unavailable { .. } => "UNAVAILABLE".to_owned(),
            Error::OutcomeUnknown { .. } => "OUTCOME_UNKNOWN".to_owned(),
            Error::WrongPort { .. } => "WRONG_PORT".to_owned(),
            Error::Unexpected { code, .. } => format!("{code:?}"),
        };
        *self.counts.lock().refusals.entry(reason).or_default() += 1;
    }

    /// Operations answered in each second so far.
    pub(crate) fn by_second(&self) -> Vec<u32> {
        self.counts.lock().by_second.clone()
    }

    /// Operations that weren't, by reason.
    pub(crate) fn refusals(&self) -> BTreeMap<String, u64> {
        self.counts.lock().refusals.clone()
    }

    pub(crate) fn total(&self) -> u64 {
        self.counts.lock().by_second.iter().map(|count| u64::from(*count)).sum()
    }
}

/// A fault that was injected. Times in milliseconds from the start of the load.
#[derive(Clone, Debug, Serialize)]
pub struct Span {
    /// What.
    pub fault: &'static str,
    /// To whom.
    pub target: String,
    /// When it began.
    pub from_ms: u64,
    /// When it was over.
    pub until_ms: u64,
    /// When every shard took writes again; `None` if that never came.
    pub recovered_ms: Option<u64>,
    /// The longest time that a shard took no write, from the fault to the recovery.
    pub gap_ms: u64,
    /// How long the slowest operation of the clients took in that time, with its retries; 0 if none
    /// took long.
    pub slowest_ms: u64,
    /// What was seen beside it.
    pub note: String,
}

/// No write of a shard was answered from one time to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) from_ms: u64,
    pub(crate) until_ms: u64,
}

/// The longest of the gaps that overlap a time.
pub(crate) fn longest(gaps: &[Gap], from_ms: u64, until_ms: u64) -> u64 {
    let overlapping = gaps.iter().filter(|gap| gap.from_ms < until_ms && gap.until_ms > from_ms);
    overlapping.map(|gap| gap.until_ms - gap.from_ms).max().unwrap_or_default()
}

/// A shard has a new leader.
#[derive(Clone, Debug, Serialize)]
pub struct LeaderChange {
    /// When it was seen, in milliseconds from the start of the load.
    pub at_ms: u64,
    /// Which shard.
    pub shard: u64,
    /// Who leads it now.
    pub leader: String,
}

/// How gaps were for one kind of fault.
#[derive(Clone, Debug, Serialize)]
pub struct ByFault {
    /// What.
    pub fault: &'static str,
    /// How often.
    pub times: usize,
    /// The middle one of its longest gaps.
    pub median_gap_ms: u64,
    /// The longest of its gaps.
    pub worst_gap_ms: u64,
    /// What is promised.
    pub promised_gap_ms: Option<u64>,
    /// How long the slowest operation of the clients took in those times; 0 if none took long.
    pub slowest_ms: u64,
}

/// The value in the middle of a sorted list (the lower of two).
pub(crate) fn median(sorted: &[u64]) -> u64 {
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

/// Gaps by kind of fault.
pub(crate) fn by_fault(spans: &[Span]) -> Vec<ByFault> {
    let mut gaps: BTreeMap<&'static str, (Vec<u64>, u64)> = BTreeMap::new();
    for span in spans {
        let (gaps, slowest) = gaps.entry(span.fault).or_default();
        gaps.push(span.gap_ms);
        *slowest = span.slowest_ms.max(*slowest);
    }
    let summed = gaps.into_iter().map(|(fault, (mut gaps, slowest_ms))| {
        gaps.sort_unstable();
        ByFault {
            fault,
            times: gaps.len(),
            median_gap_ms: median(&gaps),
            worst_gap_ms: gaps.last().copied().unwrap_or_default(),
            promised_gap_ms: match fault.parse::<crate::Fault>() {
                Ok(fault) => fault.promised_gap_ms(),
                Err(_) => crate::Duty::named(fault).map(crate::Duty::promised_gap_ms),
            },
            slowest_ms,
        }
    });
    summed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(fault: &'static str, gap_ms: u64) -> Span {
        Span {
            fault,
            target: "node-1".into(),
            from_ms: 0,
            until_ms: 1,
            recovered_ms: Some(2),
            gap_ms,
            slowest_ms: 0,
            note: String::new(),
        }
    }

    #[test]
    fn the_longest_gap_of_a_fault_is_one_that_touches_it() {
        let gaps = [(0, 900), (1000, 1300), (1250, 2000), (5000, 9000)]
            .map(|(from_ms, until_ms)| Gap { from_ms, until_ms });
        assert_eq!(longest(&gaps, 1000, 1300), 750);
        assert_eq!(longest(&gaps, 950, 1100), 300);
        assert_eq!(longest(&gaps, 2000, 5000), 0);
        assert_eq!(longest(&gaps, 8999, 9500), 4000);
    }

    #[test]
    fn gaps_are_summed_up_by_kind_beside_what_is_promised() {
        let spans = [span("kill-leader", 400), span("mute", 7), span("kill-leader", 200)];
        let summed = by_fault(&spans);
        assert_eq!(summed.len(), 2);
        assert_eq!((summed[0].fault, summed[0].times), ("kill-leader", 2));
        assert_eq!((summed[0].median_gap_ms, summed[0].worst_gap_ms), (200, 400));
        assert_eq!(summed[0].promised_gap_ms, Some(500));
        assert_eq!(summed[1].promised_gap_ms, None);
    }

    #[test]
    fn the_median_is_one_of_the_values() {
        assert_eq!(median(&[]), 0);
        assert_eq!(median(&[5]), 5);
        assert_eq!(median(&[1, 2]), 1);
        assert_eq!(median(&[1, 2, 9]), 2);
    }
}
