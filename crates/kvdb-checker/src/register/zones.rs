//! What can be said about a key at a glance.
//!
//! The idea is of P. Gibbons and E. Korach, "Testing Shared Memories" (SIAM J. Comput. 26(4), 1997,
//! section 4.1). Take a value that only one operation can have written. Once it is overwritten it
//! never comes back; so from the first return among its writer and its readers to the last call
//! among them the key held this value and no other. Where the return comes before the call, this
//! *zone* is a span of time during which the state is certain. Hence contradictions, whatever else
//! is in the history, that need no search:
//!
//! - the zones of two values overlap;
//! - a value was there for a moment only, and all such moments lie inside the zone of another;
//! - an operation that needs or leaves another state lies inside a zone;
//! - a value was read that nothing can have written, or before its write was called.
//!
//! Absence counts as a value whose writer is the beginning of time, where nothing deletes the key.

use crate::register::model::{Product, State};
use crate::register::timeline::{Entry, Timeline};
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

/// After every rank.
pub(crate) const NEVER: i64 = i64::MAX / 8;
/// Before every rank.
pub(crate) const START: i64 = -1;

/// Who may have written a value, and who met it, by their place in the timeline.
#[derive(Default)]
pub(crate) struct Cluster {
    pub(crate) writers: Vec<usize>,
    pub(crate) readers: Vec<usize>,
    /// Whether increments that weren't told their sum may have written it too.
    maybe_counted: bool,
}

impl Cluster {
    /// Its only writer, if there is only one: the beginning of time is `Some(None)`.
    pub(crate) fn only_writer(&self, state: State) -> Option<Option<usize>> {
        self.likely_writer(state).filter(|_| !self.maybe_counted)
    }

    /// The same, but for increments that weren't told their sum.
    pub(crate) fn likely_writer(&self, state: State) -> Option<Option<usize>> {
        match self.writers[..] {
            [] if state == State::ABSENT => Some(None),
            [writer] if state != State::ABSENT => Some(Some(writer)),
            _ => None,
        }
    }

    /// The first return among writer and readers, and the last call, each with whose it is.
    pub(crate) fn span(
        &self,
        writer: Option<usize>,
        entries: &[Entry],
    ) -> Option<((i64, usize), (i64, usize))> {
        let members = || self.readers.iter().copied().chain(writer);
        let first = members().map(|member| (returned(&entries[member]), member)).min()?;
        let last = members().map(|member| (called(&entries[member]), member)).max()?;
        Some((first, last))
    }
}

pub(crate) fn called(entry: &Entry) -> i64 {
    entry.called as i64
}

pub(crate) fn returned(entry: &Entry) -> i64 {
    entry.returned.map_or(NEVER, |rank| rank as i64)
}

/// The clusters of a key, by value.
pub(crate) fn clusters_of(timeline: &mut Timeline) -> BTreeMap<State, Cluster> {
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
    for (state, cluster) in &mut clusters {
        let is_number = *state != State::ABSENT && timeline.values.number(*state).is_some();
        cluster.maybe_counted = any_number && is_number;
    }
    clusters
}

/// Looks for a contradiction on a key that was absent at the beginning.
pub(crate) fn contradiction(
    timeline: &mut Timeline,
    clusters: &BTreeMap<State, Cluster>,
) -> Option<Contradiction> {
    let mut zones = Vec::new();
    let mut instants = Vec::new();
    for (&state, cluster) in clusters {
        match zone_of(state, cluster, &timeline.entries) {
            Ok(Some(zone)) if zone.from < zone.to => zones.push(zone),
            Ok(Some(zone)) => instants.push(zone),
            Ok(None) => {}
            Err(contradiction) => return Some(contradiction),
        }
    }
    zones.sort_by_key(|zone| zone.from);
    let both =
        |first: &Zone, second: &Zone| Some(Contradiction::TwoAtOnce(Box::new([*first, *second])));
    if let Some(pair) = zones.windows(2).find(|pair| pair[1].from < pair[0].to) {
        return both(&pair[0], &pair[1]);
    }
    // A value that was there for a moment only, which must be outside of all zones.
    for instant in &instants {
        if let Some(zone) = zone_before(&zones, instant.to)
            && instant.from < zone.to
        {
            return both(zone, instant);
        }
    }
    find_inside(timeline, &zones).map(|(zone, operation)| Contradiction::Inside { zone, operation })
}

/// When a value was certainly there, if only one operation can have written it and somebody met it.
/// Where it ends before it begins, the value was there at some moment in between.
fn zone_of(
    state: State,
    cluster: &Cluster,
    entries: &[Entry],
) -> Result<Option<Zone>, Contradiction> {
    let Some(&reader) = cluster.readers.first() else { return Ok(None) };
    let never = cluster.writers.is_empty() && !cluster.maybe_counted;
    let Some(writer) = cluster.only_writer(state) else {
        return if never { Err(Contradiction::NeverWritten { state, reader }) } else { Ok(None) };
    };
    let Some(((from, first), (to, closer))) = cluster.span(writer, entries) else {
        return Ok(None);
    };
    if let Some(writer) = writer
        && from < called(&entries[writer])
    {
        return Err(Contradiction::ReadTooEarly { state, writer, reader: first });
    }
    let (opener, from) = if writer.is_some() { (Some(first), from) } else { (None, START) };
    Ok(Some(Zone { state, writer, opener, closer, from, to }))
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

impl Zone {
    /// The operations that prove it.
    pub(crate) fn members(&self) -> impl Iterator<Item = usize> + use<> {
        self.writer.into_iter().chain(self.opener).chain([self.closer])
    }
}
