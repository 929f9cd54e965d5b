//! Making a failure small enough to read.
//!
//! A history stays wrong when it is cut at the return that no order gets past, if what is under way
//! then must still fit its answer in case that it takes effect. From there the
//! failure is made smaller by steps that each only *permit more*, so that what is left is wrong by
//! itself: operations that ended before some time are dropped and the key may then hold anything; a
//! read is dropped; a write that returned is treated as one of unknown outcome. What still has its
//! answer in the end is the core: operations that contradict each other. (The greedy loop is that of
//! A. Zeller and R. Hildebrandt's delta debugging, IEEE TSE 28(2), 2002, with one element at a time.)

use crate::data::Data;
use crate::register::model::{Change, Guard, Product, State, Told, Values};
use crate::register::search::{Deepest, Found, search};
use crate::register::timeline::{Entry, Rank, Timeline};
use std::collections::BTreeSet;

/// Configurations that one attempt may enter.
const STEPS_PER_ATTEMPT: u64 = 20_000;
/// Attempts at leaving one operation out.
const ATTEMPTS: usize = 300;
/// Operations that are shown where no smaller core is found.
const SHOWN: usize = 40;

/// Numbers in the history of operations that can't be ordered.
pub(crate) fn core_of(timeline: &Timeline, deepest: &Deepest) -> Vec<usize> {
    let cut = cut_after(timeline, deepest.rank);
    let (mut core, start) = match cut_before(&cut) {
        Some(window) => (window, Start::Anything),
        None => (cut, Start::Absent),
    };
    let mut attempts = ATTEMPTS;
    // The latest first: what is near the failure is more likely to be left in the end.
    for place in (0..core.entries.len()).rev() {
        if attempts == 0 || !may_relax(&core.entries[place], start) {
            continue;
        }
        attempts -= 1;
        let mut fewer = core.clone();
        relax(&mut fewer.entries[place]);
        if is_wrong(&fewer, start) {
            core = fewer;
        }
    }
    let mut left: Vec<&Entry> = core.entries.iter().filter(|entry| is_answered(entry)).collect();
    left.sort_by_key(|entry| entry.returned);
    let skipped = left.len().saturating_sub(SHOWN);
    left[skipped..].iter().map(|entry| entry.source).collect()
}

/// What the key may hold at first.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    Absent,
    Anything,
}

/// The part of a history up to a return. What returned later may take effect before it or not; if it
/// does, its answer must fit.
fn cut_after(timeline: &Timeline, rank: Rank) -> Timeline {
    let mut entries: Vec<Entry> =
        timeline.entries.iter().filter(|entry| entry.called < rank).cloned().collect();
    for entry in &mut entries {
        entry.returned = entry.returned.filter(|returned| *returned <= rank);
    }
    entries.retain(|entry| entry.returned.is_some() || !entry.action.is_pure());
    Timeline { entries, values: timeline.values.clone() }
}

/// The shortest end of a history (by doubling) that is wrong whatever the key held before it.
fn cut_before(timeline: &Timeline) -> Option<Timeline> {
    if !starts_can_be_listed(timeline) {
        return None;
    }
    let mut returns: Vec<Rank> =
        timeline.entries.iter().filter_map(|entry| entry.returned).collect();
    returns.sort_unstable_by(|first, second| second.cmp(first));
    let mut kept = 2;
    while let Some(&last_dropped) = returns.get(kept) {
        let window = from(timeline, last_dropped);
        if is_wrong(&window, Start::Anything) {
            return Some(window);
        }
        kept *= 2;
    }
    None
}

/// The part of a history after a return. What was under way then may have taken effect before.
fn from(timeline: &Timeline, last_dropped: Rank) -> Timeline {
    let mut entries: Vec<Entry> = timeline
        .entries
        .iter()
        .filter(|entry| entry.returned.is_none_or(|returned| returned > last_dropped))
        .cloned()
        .collect();
    for entry in entries.iter_mut().filter(|entry| entry.called < last_dropped) {
        entry.returned = None;
    }
    entries.retain(|entry| entry.returned.is_some() || !entry.action.is_pure());
    Timeline { entries, values: timeline.values.clone() }
}

fn relax(entry: &mut Entry) {
    entry.returned = None;
    entry.action.told = Told::default();
}

/// An increment of unknown outcome could start from any number: too many to list.
fn may_relax(entry: &Entry, start: Start) -> bool {
    let counts = matches!(entry.action.change, Change::Increment(_));
    is_answered(entry) && !(counts && start == Start::Anything)
}

fn is_answered(entry: &Entry) -> bool {
    entry.returned.is_some() || entry.action.told != Told::default()
}

/// Whether there is certainly no order, within a small budget.
fn is_wrong(timeline: &Timeline, start: Start) -> bool {
    let mut timeline = timeline.clone();
    let starts = match start {
        Start::Absent => vec![State::ABSENT],
        Start::Anything => possible_starts(&mut timeline),
    };
    let mut steps = STEPS_PER_ATTEMPT;
    starts
        .into_iter()
        .all(|start| matches!(search(&mut timeline, None, start, &mut steps), Found::Nothing(_)))
}

/// Whether [`possible_starts`] stands for everything that the key may hold: no answer depends on a
/// number that it doesn't name.
fn starts_can_be_listed(timeline: &Timeline) -> bool {
    let mut values = timeline.values.clone();
    let hidden = |entry: &Entry, values: &mut Values| {
        entry.action.told.wrong_value == Some(true)
            || entry.action.product(values) == Product::AnyNumber
    };
    !values.has_odd_numbers() && !timeline.entries.iter().any(|entry| hidden(entry, &mut values))
}

/// All states that an operation tells from others, and one that none does.
fn possible_starts(timeline: &mut Timeline) -> Vec<State> {
    let values = &mut timeline.values;
    let mut starts = BTreeSet::from([State::ABSENT, values.number_state(0)]);
    for entry in &timeline.entries {
        starts.extend(entry.action.observed(values));
        if let Guard::Is(value) = entry.action.guard {
            starts.insert(value);
        }
    }
    let mut other = String::from("something else");
    while values.knows(&Data::from(other.as_str())) {
        other.push('.');
    }
    starts.insert(values.intern(&Data::from(other)));
    starts.into_iter().collect()
}
