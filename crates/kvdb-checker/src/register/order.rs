//! Guesses at the order that the search should try first. They are advice, never a verdict.
//!
//! The best advice is the order of the versions that the store gave, where all writes have one and it
//! doesn't contradict real time. Else zones (see `zones.rs`) say where writes *probably* took
//! effect. Values whose writers needed one another's (counters, compare and set, writes that were told
//! what they replaced) follow each other directly: they make up a *block*. A block that was certainly
//! there for a while starts just before that; one that may have been there for a moment only has its
//! moment as soon as all its operations are called, but outside of the blocks that were there longer.
//! If all values are written once and every answer says what was there, this is the proof of Gibbons
//! and Korach turned into a schedule, and the search never turns back.

use crate::register::model::{Product, State};
use crate::register::timeline::{Entry, Timeline};
use crate::register::zones::{Cluster, NEVER, START, called, returned};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};

/// What to try first: lower before higher. One an entry.
pub(crate) type Hints = Vec<(i64, i64)>;

/// The advice for a key, the best first.
pub(crate) fn hints_of(timeline: &mut Timeline, clusters: &BTreeMap<State, Cluster>) -> Vec<Hints> {
    let by_versions = by_versions(timeline, clusters);
    by_versions.into_iter().chain([by_zones(timeline, clusters)]).collect()
}

/// By the store's versions, if every write that returned has one and their order is possible.
fn by_versions(timeline: &mut Timeline, clusters: &BTreeMap<State, Cluster>) -> Option<Hints> {
    // Twice the version, so that there is room before it.
    let entries = &timeline.entries;
    let mut versions: Vec<Option<u64>> =
        entries.iter().map(|entry| Some(entry.version?.saturating_mul(2))).collect();
    for (state, told) in orphans(clusters, entries, &versions) {
        // The first called of those of unknown outcome gets the lowest.
        let writers = clusters.get(&state).map_or(&[][..], |cluster| &cluster.writers);
        let mut unknown: Vec<usize> =
            writers.iter().copied().filter(|writer| versions[*writer].is_none()).collect();
        unknown.sort_by_key(|writer| entries[*writer].called);
        for (writer, version) in unknown.into_iter().zip(told) {
            versions[writer] = Some(version);
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

/// Versions at which somebody met a value that no write with a version had left by then: a read tells
/// the very one, a write that replaced it one a little below its own.
fn orphans(
    clusters: &BTreeMap<State, Cluster>,
    entries: &[Entry],
    versions: &[Option<u64>],
) -> BTreeMap<State, BTreeSet<u64>> {
    let mut known: BTreeMap<u64, State> = BTreeMap::new();
    for (state, cluster) in clusters {
        let versions = cluster.writers.iter().filter_map(|writer| versions[*writer]);
        known.extend(versions.map(|version| (version, *state)));
    }
    let mut orphans: BTreeMap<State, BTreeSet<u64>> = BTreeMap::new();
    for reads in [true, false] {
        for (state, cluster) in clusters {
            let readers = cluster.readers.iter();
            for reader in readers.filter(|reader| entries[**reader].action.is_pure() == reads) {
                // What was absent has no version.
                let Some(version) = versions[*reader].filter(|version| *version > 0) else {
                    continue;
                };
                let (at, left) = if reads {
                    (version, known.get(&version))
                } else {
                    (version - 1, known.range(..version).next_back().map(|(_, left)| left))
                };
                if left != Some(state) {
                    known.insert(at, *state);
                    orphans.entry(*state).or_default().insert(at);
                }
            }
        }
    }
    orphans
}

/// Values that followed each other directly.
struct Block {
    links: Vec<Link>,
    /// Who replaced the last value by one that others may have written too.
    ender: Option<usize>,
    /// First return and last call of all. Where the return is earlier it was there in between.
    from: i64,
    to: i64,
}

/// One value of a block.
struct Link {
    writer: Option<usize>,
    /// The last call among those who wrote or met it.
    to: i64,
}

/// Points in time are four times a rank: these are the places between two ranks.
const SCALE: i64 = 4;
/// Just after `rank`, at the end of a block that lasts until then.
const fn at_end(rank: i64) -> i64 {
    SCALE * rank + 1
}
/// After `rank`, and after a block that ends there.
const fn after(rank: i64) -> i64 {
    SCALE * rank + 2
}
/// Before `rank`, and before a block that starts there.
const fn before(rank: i64) -> i64 {
    SCALE * rank - 2
}
/// Just before `rank`, at the start of a block.
const fn at_start(rank: i64) -> i64 {
    SCALE * rank - 1
}

fn by_zones(timeline: &mut Timeline, clusters: &BTreeMap<State, Cluster>) -> Hints {
    let blocks = blocks_of(timeline, clusters);
    let held = Held::of(&blocks);
    let mut hints = vec![(NEVER, 0); timeline.entries.len()];
    for (place, entry) in timeline.entries.iter().enumerate() {
        hints[place] = match entry.action.product(&mut timeline.values) {
            Product::Nothing => (NEVER, 0),
            // A counter that wasn't told its sum.
            Product::AnyNumber => (before(returned(entry)), 0),
            Product::One(state) => {
                let met_by = clusters.get(&state).map_or(&[][..], |cluster| &cluster.readers);
                (held.leave(alone(entry, met_by, &timeline.entries)), 0)
            }
        };
    }
    for (number, block) in blocks.iter().enumerate() {
        block.schedule(number as i64, &held, &mut hints);
    }
    hints
}

/// When a write took effect whose value others may have written too: at once if nobody met the
/// value, otherwise late, but in time for the first who may have met it.
fn alone(entry: &Entry, met_by: &[usize], entries: &[Entry]) -> Wish {
    let ends = met_by.iter().map(|reader| returned(&entries[*reader]));
    match ends.filter(|end| *end > called(entry)).min() {
        None => Wish::Early(called(entry)),
        Some(end) => Wish::Late(returned(entry).min(end)),
    }
}

fn blocks_of(timeline: &mut Timeline, clusters: &BTreeMap<State, Cluster>) -> Vec<Block> {
    let mut next: FxHashMap<State, State> = FxHashMap::default();
    let mut enders: FxHashMap<State, usize> = FxHashMap::default();
    let mut heads: BTreeMap<State, bool> = BTreeMap::new();
    let is_single =
        |state: State| clusters.get(&state).is_some_and(|one| one.likely_writer(state).is_some());
    for (place, entry) in timeline.entries.iter().enumerate() {
        let observed = entry.action.observed(&mut timeline.values);
        let left = entry.action.certainly_leaves(&mut timeline.values);
        let (Some(first), Some(second)) = (observed, left) else { continue };
        if first == second || !is_single(first) {
            continue;
        }
        if is_single(second) && second != State::ABSENT {
            next.insert(first, second);
            heads.insert(second, false);
        } else {
            enders.insert(first, place);
        }
    }
    for state in clusters.keys().filter(|state| is_single(**state)) {
        heads.entry(*state).or_insert(true);
    }
    let starts = heads.into_iter().filter(|(_, is_head)| *is_head).map(|(state, _)| state);
    starts.filter_map(|state| block_from(state, &next, &enders, clusters, timeline)).collect()
}

fn block_from(
    head: State,
    next: &FxHashMap<State, State>,
    enders: &FxHashMap<State, usize>,
    clusters: &BTreeMap<State, Cluster>,
    timeline: &Timeline,
) -> Option<Block> {
    let mut block = Block { links: Vec::new(), ender: None, from: NEVER, to: START };
    let mut at = Some(head);
    while let Some(state) = at {
        let cluster = clusters.get(&state)?;
        let writer = cluster.likely_writer(state)?;
        let ((from, _), (to, _)) = cluster.span(writer, &timeline.entries)?;
        let from = if writer.is_some() { from } else { START };
        block.from = block.from.min(from);
        block.to = block.to.max(to);
        block.links.push(Link { writer, to });
        block.ender = enders.get(&state).copied();
        // A chain can't be longer than there are values, unless it runs in a circle.
        at = next.get(&state).copied().filter(|_| block.links.len() <= clusters.len());
    }
    // What nobody met, and may never have taken effect.
    (block.from < NEVER).then_some(block)
}

impl Block {
    fn lasts(&self) -> bool {
        self.from < self.to
    }

    /// Gives its writers their places: in order, and nobody else between them.
    fn schedule(&self, number: i64, held: &Held, hints: &mut Hints) {
        const LONGEST: i64 = 1 << 28;
        let mut point =
            if self.lasts() { at_start(self.from) } else { held.leave(Wish::Early(self.to)) };
        let mut place = number.saturating_mul(LONGEST);
        for link in &self.links {
            place += 1;
            if let Some(writer) = link.writer {
                hints[writer] = (point, place);
            }
            if self.lasts() {
                point = point.max(at_end(link.to));
            }
        }
        if let Some(ender) = self.ender {
            hints[ender] = (point, place + 1);
        }
    }
}

/// When something should happen, if nothing is against it.
enum Wish {
    /// Soon after this rank.
    Early(i64),
    /// Shortly before this rank.
    Late(i64),
}

/// The times during which blocks last, in order and apart from each other.
struct Held(Vec<(i64, i64)>);

impl Held {
    fn of(blocks: &[Block]) -> Self {
        let lasting = blocks.iter().filter(|block| block.lasts());
        let mut spans: Vec<(i64, i64)> = lasting.map(|block| (block.from, block.to)).collect();
        spans.sort_unstable();
        let mut merged: Vec<(i64, i64)> = Vec::new();
        for (from, to) in spans {
            match merged.last_mut() {
                Some((_, end)) if from <= *end => *end = to.max(*end),
                _ => merged.push((from, to)),
            }
        }
        Held(merged)
    }

    /// The point that is wished for, or the nearest on its side outside of all blocks that last.
    fn leave(&self, wish: Wish) -> i64 {
        let point = match wish {
            Wish::Early(rank) => after(rank),
            Wish::Late(rank) => before(rank),
        };
        let spans = &self.0[..self.0.partition_point(|(from, _)| at_start(*from) < point)];
        match (spans.last(), wish) {
            (Some((_, to)), Wish::Early(_)) if point < after(*to) => after(*to),
            (Some((from, to)), Wish::Late(_)) if point < after(*to) => before(*from),
            _ => point,
        }
    }
}
