//! The operations on one key, laid out in time.

use crate::history::{Answer, Operation, Outcome, RequestId, Time, Written};
use crate::register::model::{Action, Values};
use rustc_hash::FxHashMap;

/// A place in the order of all calls and returns of a key. At equal times calls come first, so
/// that what happens at equal times is concurrent.
pub(crate) type Rank = usize;

/// One operation, or all tries of one request.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) action: Action,
    pub(crate) called: Rank,
    /// `None` if the outcome is unknown.
    pub(crate) returned: Option<Rank>,
    /// Its number in the history.
    pub(crate) source: usize,
    pub(crate) version: Option<u64>,
}

/// The operations on one key.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    pub(crate) entries: Vec<Entry>,
    pub(crate) values: Values,
}

/// Two tries of one request were answered differently: (earlier, later), as numbers in the
/// history.
pub(crate) struct Conflict(pub(crate) usize, pub(crate) usize);

struct Merged {
    source: usize,
    called: Time,
    returned: Option<(Time, usize)>,
}

impl Timeline {
    /// Lays out the operations `sources` of `all`, which are on one key.
    pub(crate) fn new(all: &[Operation], sources: &[usize]) -> Result<Self, Conflict> {
        let merged = merge_tries(all, sources)?;
        let mut events = Vec::with_capacity(merged.len() * 2);
        for (place, one) in merged.iter().enumerate() {
            events.push((one.called, false, place));
            if let Some((time, _)) = one.returned {
                events.push((time, true, place));
            }
        }
        events.sort_unstable();
        let mut called = vec![0; merged.len()];
        let mut returned = vec![None; merged.len()];
        for (rank, (_, is_return, place)) in events.iter().enumerate() {
            if *is_return {
                returned[*place] = Some(rank);
            } else {
                called[*place] = rank;
            }
        }
        let mut values = Values::default();
        let mut entries = Vec::with_capacity(merged.len());
        for (place, one) in merged.iter().enumerate() {
            let source = one.returned.map_or(one.source, |(_, source)| source);
            let answer = all[source].returned().map(|(_, answer)| answer);
            let Some(action) = Action::new(&all[source].call, answer, &mut values) else {
                continue;
            };
            entries.push(Entry {
                action,
                called: called[place],
                returned: returned[place],
                source,
                version: answer.and_then(version_of),
            });
        }
        Ok(Timeline { entries, values })
    }
}

fn merge_tries(all: &[Operation], sources: &[usize]) -> Result<Vec<Merged>, Conflict> {
    let mut merged: Vec<Merged> = Vec::with_capacity(sources.len());
    let mut requests: FxHashMap<RequestId, usize> = FxHashMap::default();
    for &source in sources {
        let operation = &all[source];
        let returned = match &operation.outcome {
            Outcome::Failed => continue,
            Outcome::Unknown => None,
            Outcome::Returned { time, .. } => Some((*time, source)),
        };
        let earlier = operation.request.and_then(|id| requests.get(&id).copied());
        match earlier {
            Some(place) if all[merged[place].source].call == operation.call => {
                let one = &mut merged[place];
                one.called = one.called.min(operation.called);
                if let (Some((_, first)), Some((_, second))) = (one.returned, returned)
                    && !agree(&all[first], &all[second])
                {
                    return Err(Conflict(first, second));
                }
                one.returned = match (one.returned, returned) {
                    (Some(first), Some(second)) => Some(first.min(second)),
                    (first, second) => first.or(second),
                };
            }
            _ => {
                if let Some(id) = operation.request {
                    requests.insert(id, merged.len());
                }
                merged.push(Merged { source, called: operation.called, returned });
            }
        }
    }
    Ok(merged)
}

/// Whether two tries of one request were told the same, as far as both were told.
pub(crate) fn agree(first: &Operation, second: &Operation) -> bool {
    fn same<T: PartialEq>(first: &Option<T>, second: &Option<T>) -> bool {
        first.is_none() || second.is_none() || first == second
    }
    match (first.returned(), second.returned()) {
        (Some((_, Answer::Written(first))), Some((_, Answer::Written(second)))) => {
            same(&first.applied, &second.applied)
                && same(&first.previous, &second.previous)
                && same(&first.counter, &second.counter)
        }
        // A read is carried out anew by each try.
        (Some((_, Answer::Got { .. })), Some((_, Answer::Got { .. }))) => true,
        (Some((_, first)), Some((_, second))) => first == second,
        _ => true,
    }
}

fn version_of(answer: &Answer) -> Option<u64> {
    match answer {
        Answer::Got { version, .. } | Answer::Written(Written { version, .. }) => {
            version.map(|version| version.0)
        }
        _ => None,
    }
}
