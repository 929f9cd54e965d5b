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
use crate::register::model::{Change, Guard, State, Told};
use crate::register::search::{Deepest, Found, search};
use crate::register::timeline::{Entry, Rank, Timeline};
use crate::register::{order, zones};
use std::collections::BTreeSet;

/// Configurations that one attempt may enter, and all attempts together.
const STEPS_PER_ATTEMPT: u64 = 5_000;
const STEPS: u64 = 500_000;
/// Sums of increments of unknown outcome that are looked at.
const SUMS: usize = 64;
/// Operations that are shown where no smaller core is found.
const SHOWN: usize = 40;

/// Numbers in the history of operations that can't be ordered.
pub(crate) fn core_of(timeline: &Timeline, deepest: &Deepest) -> Vec<usize> {
    let mut steps = STEPS;
    let cut = cut_after(timeline, deepest.rank);
    let (mut core, start) = match cut_before(&cut, &mut steps) {
        Some(window) => (window, Start::Anything),
        None => (cut, Start::Absent),
    };
    // The latest first: what is near the failure is more likely to be left in the end.
    for place in (0..core.entries.len()).rev() {
        if steps == 0 || !is_answered(&core.entries[place]) {
            continue;
        }
        let mut fewer = core.clone();
        relax(&mut fewer.entries[place]);
        if is_wrong(&fewer, start, &mut steps) {
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
fn cut_before(timeline: &Timeline, steps: &mut u64) -> Option<Timeline> {
    let mut returns: Vec<Rank> =
        timeline.entries.iter().filter_map(|entry| entry.returned).collect();
    returns.sort_unstable_by(|first, second| second.cmp(first));
    let mut kept = 2;
    while let Some(&last_dropped) = returns.get(kept) {
        let window = from(timeline, last_dropped);
        if is_wrong(&window, Start::Anything, steps) {
            return Some(window);
        }
        kept *= 2;
    }
    None
}

/// The part of a history after a return. What was under way then may have taken effect before. That
/// something was no number, or too large a one, isn't held against it.
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
    entries.retain(|entry| {
        let was_no_number = entry.action.told.wrong_value == Some(true);
        !was_no_number && (entry.returned.is_some() || !entry.action.is_pure())
    });
    Timeline { entries, values: timeline.values.clone() }
}

fn relax(entry: &mut Entry) {
    entry.returned = None;
    entry.action.told = Told::default();
}

fn is_answered(entry: &Entry) -> bool {
    entry.returned.is_some() || entry.action.told != Told::default()
}

/// Whether there is certainly no order, within a small part of the budget.
fn is_wrong(timeline: &Timeline, start: Start, steps: &mut u64) -> bool {
    let mut timeline = timeline.clone();
    let starts = match start {
        Start::Absent => Some(vec![State::ABSENT]),
        Start::Anything => possible_starts(&mut timeline),
    };
    let clusters = zones::clusters_of(&mut timeline);
    let hints = order::hints_of(&mut timeline, &clusters).pop();
    let allowed = STEPS_PER_ATTEMPT.min(*steps);
    let mut left = allowed;
    let is_wrong = starts.is_some_and(|starts| {
        starts.into_iter().all(|start| {
            let found = search(&mut timeline, hints.as_ref(), start, &mut left);
            matches!(found, Found::Nothing(_))
        })
    });
    // Each attempt costs something, so that there is an end to them.
    *steps = steps.saturating_sub(allowed - left + 100);
    is_wrong
}

/// States that stand for everything that the key may hold: those that an operation tells from
/// others, numbers from which increments may lead to such, a number and a text that mean nothing to
/// any. `None` if they are too many to list.
fn possible_starts(timeline: &mut Timeline) -> Option<Vec<State>> {
    let values = &mut timeline.values;
    if values.has_odd_numbers() {
        return None;
    }
    let mut told = BTreeSet::from([State::ABSENT, values.number_state(0)]);
    let mut sums = BTreeSet::from([0]);
    for entry in &timeline.entries {
        told.extend(entry.action.observed(values));
        if let Guard::Is(value) = entry.action.guard {
            told.insert(value);
        }
        if let Change::Increment(delta) = entry.action.change {
            let more: Vec<i64> =
                sums.iter().filter_map(|sum: &i64| sum.checked_add(delta)).collect();
            sums.extend(more);
        }
        if sums.len() > SUMS {
            return None;
        }
    }
    let mut starts = told.clone();
    let numbers: Vec<i64> = told.into_iter().filter_map(|state| values.number(state)).collect();
    for number in &numbers {
        let before = sums.iter().filter_map(|sum| number.checked_sub(*sum));
        starts.extend(before.map(|before| values.number_state(before)));
    }
    let far = numbers.iter().chain(&sums).map(|number| number.unsigned_abs() / 2).max()?;
    starts.insert(values.number_state(i64::try_from(far).ok()?.checked_mul(8)?.checked_add(8)?));
    let mut other = String::from("something else");
    while values.knows(&Data::from(other.as_str())) {
        other.push('.');
    }
    starts.insert(values.intern(&Data::from(other)));
    Some(starts.into_iter().collect())
}
