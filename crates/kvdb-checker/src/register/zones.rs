//! What can be said about a key at a glance: contradictions that need no search, and a guess at
//! the order that the search should try first.
//!
//! The idea is of P. Gibbons and E. Korach, "Testing Shared Memories" (SIAM J. Comput. 26(4), 1997,
//! section 4.1). Take a value that only one operation can have written. Once it is overwritten it
//! never comes back; so from the first return among its writer and its readers to the last call
//! among them the key held this value and no other. Where the return comes before the call, this
//! *zone* is a span of time during which the state is certain. Hence contradictions, whatever else
//! is in the history:
//!
//! - the zones of two values overlap;
//! - an operation that needs or leaves another state lies inside a zone;
//! - a value was read that nothing can have written, or before its write was called.
//!
//! Absence counts as a value whose writer is the beginning of time, where nothing deletes the key.
//!
//! If none of this is found, zones say where writes *probably* took effect: a value with a zone just
//! before it starts, one without at once but outside of the zones of others. The versions that the
//! store gave, where all writes have one and they don't contradict real time, say so even better.
//! This is advice to the search, never a verdict.

use crate::register::model::{Product, State};
use crate::register::timeline::{Entry, Timeline};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// Operations, by their place in the timeline, that can't all be true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Contradiction {
    /// Nothing can have written what this one met.
    NeverWritten { state: State, reader: usize },
    /// The reader returned before the writer was called.
    ReadTooEarly { state: State, writer: usize, reader: usize },
    /// Both values were there at the same time.
    TwoAtOnce(Box<[Zone; 2]>),
    /// An operation needs or leaves another state while the zone's value was certainly there.
    Inside { zone: Zone, operation: usize },
}

/// When a value was certainly there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Zone {
    pub(crate) state: State,
    /// Its only writer; `None` for the beginning of time.
    pub(crate) writer: Option<usize>,
    /// Who returned first.
    pub(crate) opener: Option<usize>,
    /// Who was called last.
    pub(crate) closer: usize,
    from: i64,
    to: i64,
}

/// The order that the search tries first: lower before higher. One an entry.
pub(crate) type Hints = Vec<(i64, i64)>;

const NEVER: i64 = i64::MAX / 4;
const START: i64 = -1;

#[derive(Default)]
struct Cluster {
    writers: Vec<usize>,
    readers: Vec<usize>,
}

fn called(entry: &Entry) -> i64 {
    entry.called as i64
}

fn returned(entry: &Entry) -> i64 {
    entry.returned.map_or(NEVER, |rank| rank as i64)
}

/// Looks at a key that was absent at the beginning.
pub(crate) fn survey(timeline: &mut Timeline) -> Result<Hints, Contradiction> {
    let mut any_number = false;
    let mut clusters: BTreeMap<State, Cluster> = BTreeMap::new();
    for (place, entry) in timeline.entries.iter().enumerate() {
        match entry.action.product(&mut timeline.values) {
            Product::Nothing => {}
            Product::One(state) => clusters.entry(state).or_default().writers.push(place),
            Product::AnyNumber => any_number = true,
        }
        if let Some(state) = entry.action.observed(&mut timeline.values) {
            clusters.entry(state).or_default().readers.push(place);
        }
    }
    let mut zones = Vec::new();
    for (&state, cluster) in &clusters {
        let maybe_counted =
            any_number && state != State::ABSENT && timeline.values.number(state).is_some();
        if !maybe_counted {
            zones.extend(zone_of(state, cluster, &timeline.entries)?);
        }
    }
    zones.sort_by_key(|zone| zone.from);
    if let Some(pair) = zones.windows(2).find(|pair| pair[1].from < pair[0].to) {
        return Err(Contradiction::TwoAtOnce(Box::new([pair[0], pair[1]])));
    }
    if let Some((zone, operation)) = find_inside(timeline, &zones) {
        return Err(Contradiction::Inside { zone, operation });
    }
    Ok(order_by_versions(&timeline.entries, &clusters)
        .unwrap_or_else(|| order_by_zones(timeline, &clusters, &zones)))
}

/// The zone of a value, if only one operation can have written it and there is a time at which it
/// was certainly there.
fn zone_of(
    state: State,
    cluster: &Cluster,
    entries: &[Entry],
) -> Result<Option<Zone>, Contradiction> {
    let Some(&reader) = cluster.readers.first() else { return Ok(None) };
    let writer = match (cluster.writers.as_slice(), state) {
        ([], State::ABSENT) => None,
        ([], _) => return Err(Contradiction::NeverWritten { state, reader }),
        ([writer], state) if state != State::ABSENT => Some(*writer),
        _ => return Ok(None),
    };
    let members = || cluster.readers.iter().copied().chain(writer);
    let first = members().min_by_key(|member| returned(&entries[*member]));
    let last = members().max_by_key(|member| called(&entries[*member]));
    let (Some(first), Some(last)) = (first, last) else { return Ok(None) };
    let (opener, from) = match writer {
        None => (None, START),
        Some(_) => (Some(first), returned(&entries[first])),
    };
    if let Some(writer) = writer
        && from < called(&entries[writer])
    {
        return Err(Contradiction::ReadTooEarly { state, writer, reader: first });
    }
    let to = called(&entries[last]);
    Ok((from < to).then_some(Zone { state, writer, opener, closer: last, from, to }))
}

/// The zone (of those in order, apart from each other) that may hold a time just after `rank`.
fn zone_before(zones: &[Zone], rank: i64) -> Option<&Zone> {
    zones[..zones.partition_point(|zone| zone.from < rank)].last()
}

fn find_inside(timeline: &mut Timeline, zones: &[Zone]) -> Option<(Zone, usize)> {
    for (place, entry) in timeline.entries.iter().enumerate() {
        let Some(zone) = zone_before(zones, called(entry)) else { continue };
        if returned(entry) >= zone.to {
            continue;
        }
        let observed = entry.action.observed(&mut timeline.values);
        let left = entry.action.certainly_leaves(&mut timeline.values);
        if [observed, left].into_iter().flatten().any(|state| state != zone.state) {
            return Some((*zone, place));
        }
    }
    None
}

/// By the store's versions, if every write that returned has one and their order is possible.
fn order_by_versions(entries: &[Entry], clusters: &BTreeMap<State, Cluster>) -> Option<Hints> {
    let mut versions: Vec<Option<u64>> = entries.iter().map(|entry| entry.version).collect();
    for cluster in clusters.values() {
        // Who reads a value of unknown outcome says its version.
        if let [writer] = cluster.writers[..]
            && versions[writer].is_none()
        {
            versions[writer] = cluster.readers.iter().find_map(|reader| {
                let reader = &entries[*reader];
                reader.version.filter(|_| reader.action.is_pure())
            });
        }
    }
    let mut writes = Vec::new();
    for (place, entry) in entries.iter().enumerate().filter(|(_, entry)| !entry.action.is_pure()) {
        match versions[place] {
            Some(version) => writes.push((version, place)),
            None if entry.returned.is_some() => return None,
            None => {}
        }
    }
    writes.sort_unstable();
    let mut latest_call = START;
    let mut hints = vec![(NEVER, 0); entries.len()];
    for (order, (_, place)) in writes.iter().enumerate() {
        latest_call = latest_call.max(called(&entries[*place]));
        if returned(&entries[*place]) < latest_call {
            return None;
        }
        hints[*place] = (order as i64, 0);
    }
    Some(hints)
}

/// By zones. Points lie between ranks: `2 * rank - 1` is just before, `2 * rank + 1` just after.
fn order_by_zones(
    timeline: &mut Timeline,
    clusters: &BTreeMap<State, Cluster>,
    zones: &[Zone],
) -> Hints {
    let zone_of: FxHashMap<State, &Zone> = zones.iter().map(|zone| (zone.state, zone)).collect();
    let entries = &timeline.entries;
    let mut hints = vec![(NEVER, 0); entries.len()];
    for (state, cluster) in clusters {
        let mut ends: Vec<i64> =
            cluster.readers.iter().map(|reader| returned(&entries[*reader])).collect();
        ends.sort_unstable();
        for &writer in &cluster.writers {
            let entry = &entries[writer];
            hints[writer] = match (zone_of.get(state), ends.is_empty()) {
                (Some(zone), _) if zone.writer == Some(writer) => (2 * zone.from - 1, 1),
                (_, true) => (leave_zones(2 * called(entry) + 1, zones, Side::After), 0),
                _ if cluster.writers.len() == 1 && *state != State::ABSENT => {
                    let readers = cluster.readers.iter().map(|reader| called(&entries[*reader]));
                    let latest = readers.fold(called(entry), i64::max);
                    (leave_zones(2 * latest + 1, zones, Side::After), 0)
                }
                _ => {
                    // Late, but in time for the first who may have met what it left.
                    let next = ends.partition_point(|end| *end < called(entry));
                    let needed = ends.get(next).copied().unwrap_or(NEVER);
                    let latest = returned(entry).min(needed);
                    (leave_zones(2 * latest - 1, zones, Side::Before), 0)
                }
            };
        }
    }
    // Counters that weren't told their value: as late as may be.
    for (place, entry) in entries.iter().enumerate() {
        if entry.action.product(&mut timeline.values) == Product::AnyNumber {
            hints[place] = (2 * returned(entry) - 1, 0);
        }
    }
    hints
}

enum Side {
    Before,
    After,
}

fn leave_zones(point: i64, zones: &[Zone], side: Side) -> i64 {
    match zones[..zones.partition_point(|zone| 2 * zone.from < point)].last() {
        Some(zone) if point < 2 * zone.to => match side {
            Side::Before => 2 * zone.from - 1,
            Side::After => 2 * zone.to + 1,
        },
        _ => point,
    }
}

impl Zone {
    /// The operations that prove it.
    pub(crate) fn members(&self) -> impl Iterator<Item = usize> + use<> {
        self.writer.into_iter().chain(self.opener).chain([self.closer])
    }
}
