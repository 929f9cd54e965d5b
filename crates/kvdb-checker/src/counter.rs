//! Counters: was every request applied exactly once?
//!
//! Looks at the keys on which there are only gets and increments without a condition. All tries under
//! one request id are one request. A request that was answered counts once; one of unknown outcome at
//! most once. So each value that a read, or an increment's answer, showed has bounds: at least what
//! had returned before it was called, at most what was called before it returned (for negative deltas
//! the other way round). Where nothing but unknown outcomes is left open the value must also be the
//! sum of what was acknowledged and *some* of the unknown deltas.
//!
//! This needs no search, so it judges histories that are too hard for the linearizability checker; what
//! it accepts may still not be linearizable.

use crate::data::Data;
use crate::history::{Answer, Call, History, OpId, Operation, RequestId, Time, Written};
use crate::register::tries_agree;
use crate::verdict::Verdict;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;
use std::fmt;

/// Sums of unknown deltas that are listed at most; beyond it only the bounds are checked.
const SUMS_MAX: usize = 100_000;

/// What is wrong with a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CounterAnomaly {
    /// A value that can't be: below it something was lost, above it something was applied twice.
    OutOfBounds {
        /// Who met it.
        met_by: OpId,
        /// The value.
        value: i64,
        /// The least that it can be.
        least: i128,
        /// The most.
        most: i128,
    },
    /// A value within bounds that no choice of the unknown increments adds up to.
    NoSum {
        /// Who met it.
        met_by: OpId,
        /// The value.
        value: i64,
        /// What was acknowledged.
        acknowledged: i128,
    },
    /// Two requests were told the same value, though all deltas have one sign: one of them was lost.
    ToldTwice {
        /// The earlier.
        first: OpId,
        /// The later.
        second: OpId,
        /// What both were told.
        value: i64,
    },
    /// Two tries of one request were answered differently: it took effect twice.
    TriesDisagree {
        /// The earlier.
        first: OpId,
        /// The later.
        second: OpId,
    },
    /// The key doesn't hold a number.
    NotANumber {
        /// Who met it.
        met_by: OpId,
    },
}

/// What the check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CounterReport {
    /// Counters looked at.
    pub counters: usize,
    /// Requests that were answered.
    pub acknowledged: usize,
    /// Requests of unknown outcome.
    pub unknown: usize,
    /// What is wrong, by key.
    pub anomalies: Vec<(Data, CounterAnomaly)>,
}

impl CounterReport {
    /// In one word.
    pub fn verdict(&self) -> Verdict {
        Verdict::of(&self.anomalies)
    }
}

/// Checks all counters of a history.
pub fn check(history: &History) -> CounterReport {
    let mut keys: BTreeMap<&Data, Option<Counter>> = BTreeMap::new();
    for operation in history.operations().iter().filter(|operation| !operation.has_failed()) {
        let Some(key) = operation.call.register_key() else { continue };
        let counter = keys.entry(key).or_insert_with(|| Some(Counter::default()));
        let is_counting = match &operation.call {
            Call::Get { .. } => true,
            Call::Increment { condition, .. } => {
                condition.is_none()
                    && !matches!(operation.returned(), Some((_, Answer::WrongValue)))
            }
            _ => false,
        };
        match counter {
            Some(counter) if is_counting => counter.take(operation),
            _ => *counter = None,
        }
    }
    let mut report = CounterReport::default();
    for (key, counter) in keys {
        if let Some(counter) = counter.filter(|counter| !counter.requests.is_empty()) {
            report.counters += 1;
            counter.check(key, &mut report);
        }
    }
    report
}

/// One request, all its tries together.
struct Request<'a> {
    delta: i64,
    called: Time,
    /// The try that returned first.
    answered: Option<(Time, &'a Operation)>,
}

/// A value that somebody met.
struct Met {
    by: OpId,
    called: Time,
    returned: Time,
    value: i64,
    /// The delta that is certainly in it: that of the increment itself.
    own: i64,
}

#[derive(Default)]
struct Counter<'a> {
    requests: Vec<Request<'a>>,
    places: FxHashMap<RequestId, usize>,
    gets: Vec<Met>,
    anomalies: Vec<CounterAnomaly>,
}

impl<'a> Counter<'a> {
    fn take(&mut self, operation: &'a Operation) {
        match (&operation.call, operation.returned()) {
            (Call::Get { .. }, Some((returned, Answer::Got { value, .. }))) => {
                let number = value.as_ref().map_or(Some(0), Data::as_number);
                match number {
                    Some(value) => self.gets.push(Met {
                        by: operation.id,
                        called: operation.called,
                        returned,
                        value,
                        own: 0,
                    }),
                    None => {
                        self.anomalies.push(CounterAnomaly::NotANumber { met_by: operation.id });
                    }
                }
            }
            (Call::Increment { delta, .. }, returned) => {
                self.note_try(operation, *delta, returned.map(|(time, _)| (time, operation)));
            }
            _ => {}
        }
    }

    fn note_try(
        &mut self,
        operation: &'a Operation,
        delta: i64,
        answered: Option<(Time, &'a Operation)>,
    ) {
        let place = operation.request.and_then(|request| self.places.get(&request).copied());
        let Some(place) = place else {
            if let Some(request) = operation.request {
                self.places.insert(request, self.requests.len());
            }
            self.requests.push(Request { delta, called: operation.called, answered });
            return;
        };
        let request = &mut self.requests[place];
        request.called = request.called.min(operation.called);
        match (request.answered, answered) {
            (Some((_, first)), Some((_, second))) if !tries_agree(first, second) => {
                let (first, second) = (first.id, second.id);
                self.anomalies.push(CounterAnomaly::TriesDisagree { first, second });
            }
            (Some((earlier, _)), Some((later, _))) if earlier <= later => {}
            (_, Some(answered)) => request.answered = Some(answered),
            (_, None) => {}
        }
    }

    fn check(mut self, key: &Data, report: &mut CounterReport) {
        let answered = self.requests.iter().filter(|request| request.answered.is_some()).count();
        report.acknowledged += answered;
        report.unknown += self.requests.len() - answered;
        let told = self.told();
        self.find_told_twice(&told);
        let sums = Sums::of(&self.requests);
        let choices = Choices::of(&self.requests);
        let met = self.gets.iter().chain(&told);
        self.anomalies.extend(met.filter_map(|met| sums.judge(met, &choices)));
        report.anomalies.extend(self.anomalies.into_iter().map(|anomaly| (key.clone(), anomaly)));
    }

    /// What increments were told, in the order of their calls.
    fn told(&self) -> Vec<Met> {
        let mut told: Vec<Met> = self
            .requests
            .iter()
            .filter_map(|request| {
                let (returned, operation) = request.answered?;
                match operation.returned()?.1 {
                    Answer::Written(Written { counter: Some(value), .. }) => Some(Met {
                        by: operation.id,
                        called: request.called,
                        returned,
                        value: *value,
                        own: request.delta,
                    }),
                    _ => None,
                }
            })
            .collect();
        told.sort_by_key(|met| (met.called, met.by));
        told
    }

    fn find_told_twice(&mut self, told: &[Met]) {
        let all_rise = self.requests.iter().all(|request| request.delta > 0);
        let all_fall = self.requests.iter().all(|request| request.delta < 0);
        if !all_rise && !all_fall {
            return;
        }
        let mut by_value: FxHashMap<i64, OpId> = FxHashMap::default();
        for met in told {
            if let Some(&first) = by_value.get(&met.value) {
                let (second, value) = (met.by, met.value);
                self.anomalies.push(CounterAnomaly::ToldTwice { first, second, value });
            } else {
                by_value.insert(met.value, met.by);
            }
        }
    }
}

/// Running sums of deltas by time.
#[derive(Default)]
struct Running(Vec<(Time, i128)>);

impl Running {
    fn of(deltas: impl Iterator<Item = (Time, i64)>) -> Self {
        let mut deltas: Vec<_> = deltas.collect();
        deltas.sort_unstable();
        let mut sum = 0;
        let running = deltas.into_iter().map(|(time, delta)| {
            sum += i128::from(delta);
            (time, sum)
        });
        Running(running.collect())
    }

    fn before(&self, end: Time) -> i128 {
        let count = self.0.partition_point(|(time, _)| *time < end);
        self.0[..count].last().map_or(0, |(_, sum)| *sum)
    }

    fn through(&self, end: Time) -> i128 {
        let count = self.0.partition_point(|(time, _)| *time <= end);
        self.0[..count].last().map_or(0, |(_, sum)| *sum)
    }
}

/// Sums of rising and falling deltas, by when they were called and when answered.
struct Sums {
    rises_called: Running,
    falls_called: Running,
    rises_answered: Running,
    falls_answered: Running,
}

impl Sums {
    fn of(requests: &[Request<'_>]) -> Self {
        let called = |rises: bool| {
            Running::of(
                requests
                    .iter()
                    .filter(move |request| (request.delta > 0) == rises)
                    .map(|request| (request.called, request.delta)),
            )
        };
        let answered = |rises: bool| {
            Running::of(
                requests
                    .iter()
                    .filter(move |request| (request.delta > 0) == rises)
                    .filter_map(|request| Some((request.answered?.0, request.delta))),
            )
        };
        Sums {
            rises_called: called(true),
            falls_called: called(false),
            rises_answered: answered(true),
            falls_answered: answered(false),
        }
    }

    fn judge(&self, met: &Met, choices: &Choices) -> Option<CounterAnomaly> {
        let own = i128::from(met.own);
        let least = self.rises_answered.before(met.called)
            + self.falls_called.through(met.returned)
            + own.max(0);
        let most = self.falls_answered.before(met.called)
            + self.rises_called.through(met.returned)
            + own.min(0);
        let value = i128::from(met.value);
        if value < least || most < value {
            let (met_by, value) = (met.by, met.value);
            return Some(CounterAnomaly::OutOfBounds { met_by, value, least, most });
        }
        if met.called > choices.settled && !choices.allow(value) {
            let (met_by, value, acknowledged) = (met.by, met.value, choices.acknowledged);
            return Some(CounterAnomaly::NoSum { met_by, value, acknowledged });
        }
        None
    }
}

/// What the counter may be once all that was answered is in.
struct Choices {
    /// When the last answer came.
    settled: Time,
    acknowledged: i128,
    /// What some of the unknown deltas add up to; `None` if that is too much to list.
    sums: Option<FxHashSet<i128>>,
}

impl Choices {
    fn of(requests: &[Request<'_>]) -> Self {
        let mut choices =
            Choices { settled: Time(0), acknowledged: 0, sums: Some(FxHashSet::from_iter([0])) };
        for request in requests {
            match request.answered {
                Some((time, _)) => {
                    choices.settled = choices.settled.max(time);
                    choices.acknowledged += i128::from(request.delta);
                }
                None => choices.add(i128::from(request.delta)),
            }
        }
        choices
    }

    fn add(&mut self, delta: i128) {
        let Some(sums) = &mut self.sums else { return };
        let more: Vec<i128> = sums.iter().map(|sum| sum + delta).collect();
        sums.extend(more);
        if sums.len() > SUMS_MAX {
            self.sums = None;
        }
    }

    fn allow(&self, value: i128) -> bool {
        self.sums.as_ref().is_none_or(|sums| sums.contains(&(value - self.acknowledged)))
    }
}

impl fmt::Display for CounterAnomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CounterAnomaly::OutOfBounds { met_by, value, least, most } => {
                write!(f, "operation {met_by} met {value}, which must be in {least} to {most}")
            }
            CounterAnomaly::NoSum { met_by, value, acknowledged } => write!(
                f,
                "operation {met_by} met {value}: no choice of the unknown increments leads there \
                 from the acknowledged {acknowledged}"
            ),
            CounterAnomaly::ToldTwice { first, second, value } => {
                write!(f, "operations {first} and {second} both received {value}")
            }
            CounterAnomaly::TriesDisagree { first, second } => {
                write!(f, "tries {first} and {second} of one request were answered differently")
            }
            CounterAnomaly::NotANumber { met_by } => {
                write!(f, "operation {met_by} met something that is no number")
            }
        }
    }
}

impl fmt::Display for CounterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "counters: {} ({} counters, {} acknowledged, {} unknown)",
            self.verdict(),
            self.counters,
            self.acknowledged,
            self.unknown
        )?;
        self.anomalies.iter().try_for_each(|(key, anomaly)| writeln!(f, "counter {key}: {anomaly}"))
    }
}
