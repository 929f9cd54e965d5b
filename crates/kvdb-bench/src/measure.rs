//! What clients measured: latencies in histograms, errors by kind.

use crate::load::Action;
use crate::target::{Answer, Failed};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::Duration;

/// Longest latency that is told apart from longer ones, in microseconds: an hour.
const LONGEST_US: u64 = 3_600_000_000;
/// Latencies are exact to this many decimal digits.
const DIGITS: u8 = 3;

/// What one client, or all of them, measured.
#[derive(Default)]
pub(crate) struct Measured {
    by_action: [Option<Histogram<u32>>; Action::COUNT],
    /// By kind: how many, and the words of the first.
    pub(crate) errors: BTreeMap<String, (u64, String)>,
    pub(crate) first_error: Option<Failed>,
    /// Reads of keys that weren't there.
    pub(crate) missing: u64,
    /// Keys that scans found.
    pub(crate) scanned: u64,
    /// Attempts of read-modify-write that another write got in the way of.
    pub(crate) conflicts: u64,
}

/// Latencies of a kind of operation, in microseconds.
pub(crate) type Latencies = Histogram<u64>;

impl Measured {
    pub(crate) fn answered(&mut self, action: Action, latency: Duration, answer: Answer) {
        let latency_us = u64::try_from(latency.as_micros()).unwrap_or(LONGEST_US);
        self.by_action[action.index()].get_or_insert_with(empty).saturating_record(latency_us);
        self.missing += u64::from(answer.missing);
        self.scanned += u64::from(answer.scanned);
        self.conflicts += u64::from(answer.conflicts);
    }

    pub(crate) fn failed(&mut self, failed: Failed) {
        let kind = self.errors.entry(failed.kind()).or_insert_with(|| (0, failed.to_string()));
        kind.0 += 1;
        self.first_error.get_or_insert(failed);
    }

    /// Latencies of each kind of operation that there was.
    pub(crate) fn latencies(clients: &[Measured]) -> Vec<(&'static str, Latencies)> {
        let sum_of = |action: usize| {
            let mut all: Option<Latencies> = None;
            for one in clients.iter().filter_map(|client| client.by_action[action].as_ref()) {
                let all = all.get_or_insert_with(empty);
                for bucket in one.iter_recorded() {
                    let count = bucket.count_at_value().into();
                    all.saturating_record_n(bucket.value_iterated_to(), count);
                }
            }
            all
        };
        let sums = Action::NAMES.iter().enumerate();
        sums.filter_map(|(action, name)| Some((*name, sum_of(action)?))).collect()
    }

    /// Everything but latencies.
    pub(crate) fn add_counts(&mut self, other: Measured) {
        for (kind, (count, words)) in other.errors {
            self.errors.entry(kind).or_insert((0, words)).0 += count;
        }
        self.first_error = self.first_error.take().or(other.first_error);
        self.missing += other.missing;
        self.scanned += other.scanned;
        self.conflicts += other.conflicts;
    }
}

/// Histograms are made at full size, so that adding them up can't fail; what isn't touched of
/// their memory costs nothing.
pub(crate) fn empty<C: hdrhistogram::Counter>() -> Histogram<C> {
    Histogram::new_with_bounds(1, LONGEST_US, DIGITS).expect("the bounds are constant and good")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn answered(latencies_us: impl IntoIterator<Item = u64>) -> Measured {
        let mut measured = Measured::default();
        for latency_us in latencies_us {
            let latency = Duration::from_micros(latency_us);
            measured.answered(Action::Read, latency, Answer::default());
        }
        measured
    }

    #[test]
    fn percentiles_are_of_all_clients_together() {
        let clients = [answered(1..=500), answered(501..=1000), answered([])];
        let latencies = Measured::latencies(&clients);
        let [(name, read)] = &latencies[..] else { panic!("only reads: {latencies:?}") };
        assert_eq!((*name, read.len()), ("read", 1000));
        let quantile = |rank| read.value_at_quantile(rank);
        assert_eq!((quantile(0.5), quantile(0.99), quantile(0.999)), (500, 990, 999));
    }

    #[test]
    fn a_latency_beyond_all_bounds_is_not_lost() {
        let latencies = Measured::latencies(&[answered([u64::MAX])]);
        assert_eq!(latencies[0].1.len(), 1);
        assert!(latencies[0].1.max() >= LONGEST_US);
    }

    #[test]
    fn errors_count_by_kind() {
        let refused = || Failed::Io(io::Error::from(io::ErrorKind::ConnectionRefused));
        let mut all = Measured::default();
        let mut one = Measured::default();
        one.failed(refused());
        one.failed(Failed::Redis("OOM no room".to_owned()));
        all.failed(refused());
        all.add_counts(one);
        let counts: Vec<(&str, u64)> =
            all.errors.iter().map(|(kind, (count, _))| (kind.as_str(), *count)).collect();
        assert_eq!(counts, [("OOM", 1), ("connection refused", 2)]);
    }
}
