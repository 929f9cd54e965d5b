//! Operations of unknown outcome, and which of them anybody waits for.
//!
//! Thousands of them may be open at once, each of which may take effect now, later or never. In a
//! given state one is worth trying only if an operation under way could not go on, or would go
//! otherwise, without it. Usually that names one value, and a look-up tells who may leave that value
//! behind, be it at the end of a chain of conditional writes.

use crate::register::model::{Action, Change, Guard, Product, State, Values};
use crate::register::timeline::{Rank, Timeline};
use rustc_hash::{FxHashMap, FxHashSet};

/// Operations that are equal but for when they were called.
struct Class {
    action: Action,
    /// (when called, entry), in order.
    members: Vec<(Rank, usize)>,
    used: usize,
}

/// All operations of unknown outcome of a key.
pub(crate) struct Unknowns {
    classes: Vec<Class>,
    writers: FxHashMap<State, Vec<u32>>,
    counters: Vec<u32>,
    /// Whether a chain is possible: one of them depends on what is there.
    any_conditional: bool,
}

/// What the operations under way wait for.
#[derive(Default)]
struct Wanted {
    states: FxHashSet<State>,
    /// Something that can't be named: everything is worth trying.
    anything: bool,
}

impl Unknowns {
    pub(crate) fn new(timeline: &mut Timeline) -> Self {
        let mut places: FxHashMap<Action, usize> = FxHashMap::default();
        let mut classes: Vec<Class> = Vec::new();
        for (entry, one) in timeline.entries.iter().enumerate() {
            if one.returned.is_some() || one.action.change == Change::Nothing {
                continue;
            }
            let place = *places.entry(one.action).or_insert_with(|| {
                classes.push(Class { action: one.action, members: Vec::new(), used: 0 });
                classes.len() - 1
            });
            classes[place].members.push((one.called, entry));
        }
        let mut writers: FxHashMap<State, Vec<u32>> = FxHashMap::default();
        let mut counters = Vec::new();
        for (place, class) in classes.iter_mut().enumerate() {
            class.members.sort_unstable();
            match class.action.product(&mut timeline.values) {
                Product::One(state) => writers.entry(state).or_default().push(place as u32),
                Product::AnyNumber => counters.push(place as u32),
                Product::Nothing => {}
            }
        }
        let any_conditional = classes.iter().any(|class| class.action.guard != Guard::Always);
        Unknowns { classes, writers, counters, any_conditional }
    }

    /// Whether there is none at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// How many of a class are in the order.
    pub(crate) fn used(&self, class: u32) -> usize {
        self.classes[class as usize].used
    }

    pub(crate) fn take(&mut self, class: u32) {
        self.classes[class as usize].used += 1;
    }

    pub(crate) fn give_back(&mut self, class: u32) {
        self.classes[class as usize].used -= 1;
    }

    /// The next one of a class: what it does, and its entry.
    ///
    /// # Panics
    /// If all of the class are used: [`Unknowns::wanted`] names none such.
    pub(crate) fn next_of(&self, class: u32) -> (Action, usize) {
        let class = &self.classes[class as usize];
        (class.action, class.members[class.used].1)
    }

    fn is_open(&self, class: u32, boundary: Rank) -> bool {
        let class = &self.classes[class as usize];
        class.members.get(class.used).is_some_and(|(called, _)| *called < boundary)
    }

    /// Which classes are worth trying in `state`, among those called before `boundary`, for the
    /// sake of the operations `under_way`.
    pub(crate) fn wanted(
        &self,
        under_way: &[Action],
        state: State,
        boundary: Rank,
        values: &mut Values,
    ) -> Vec<u32> {
        let mut wanted = Wanted::default();
        for action in under_way {
            add_wants(action, state, &mut wanted, values);
        }
        let numeric = !self.counters.is_empty()
            && wanted.states.iter().any(|state| values.number(*state).is_some());
        if wanted.anything || numeric && !self.only_counters_matter() {
            return self.open(0..self.classes.len() as u32, boundary);
        }
        let mut classes = self.producers(wanted.states.iter().copied().collect(), boundary, values);
        if numeric && self.could_count_to(state, &wanted, values) {
            classes.extend(self.open(self.counters.iter().copied(), boundary));
        }
        classes.sort_unstable();
        classes
    }

    fn open(&self, classes: impl IntoIterator<Item = u32>, boundary: Rank) -> Vec<u32> {
        classes.into_iter().filter(|class| self.is_open(*class, boundary)).collect()
    }

    /// Whether increments are all that there is, so that no chain leads through another write.
    fn only_counters_matter(&self) -> bool {
        self.writers.is_empty() && !self.any_conditional
    }

    /// Whether increments, all of one sign, may lead from `state` to something wanted.
    fn could_count_to(&self, state: State, wanted: &Wanted, values: &Values) -> bool {
        let Some(now) = values.number(state) else { return false };
        let deltas = || {
            self.counters.iter().map(|class| match self.classes[*class as usize].action.change {
                Change::Increment(delta) => delta,
                _ => 0,
            })
        };
        let (may_rise, may_fall) =
            (deltas().any(|delta| delta > 0), deltas().any(|delta| delta < 0));
        wanted.states.iter().filter_map(|state| values.number(*state)).any(|then| {
            then > now && may_rise || then < now && may_fall || may_rise && may_fall || then == now
        })
    }

    /// Open classes that leave one of `targets`, or lead there through conditional writes.
    fn producers(&self, targets: Vec<State>, boundary: Rank, values: &mut Values) -> Vec<u32> {
        let mut reached: FxHashSet<State> = targets.iter().copied().collect();
        let mut pending = targets;
        let mut found = Vec::new();
        while let Some(target) = pending.pop() {
            for &class in self.writers.get(&target).into_iter().flatten() {
                if !self.is_open(class, boundary) {
                    continue;
                }
                found.push(class);
                match need_of(&self.classes[class as usize].action, values) {
                    Need::Nothing => {}
                    Need::This(needed) => {
                        if reached.insert(needed) {
                            pending.push(needed);
                        }
                    }
                    Need::Something => return self.open(0..self.classes.len() as u32, boundary),
                }
            }
        }
        found
    }
}

/// What an operation of unknown outcome needs in order to change something.
enum Need {
    Nothing,
    This(State),
    /// One of several states.
    Something,
}

fn need_of(action: &Action, values: &mut Values) -> Need {
    if let Some(observed) = action.observed(values) {
        return Need::This(observed);
    }
    match action.guard {
        Guard::Is(value) => Need::This(value),
        Guard::Absent => Need::This(State::ABSENT),
        Guard::Present => Need::Something,
        Guard::Always => match action.change {
            Change::Put(_) | Change::Nothing => Need::Nothing,
            Change::Delete if action.told.applied.is_none() => Need::Nothing,
            Change::Delete | Change::Increment(_) => Need::Something,
        },
    }
}

/// What `action` needs in order to go on, or to go otherwise, from `state`.
fn add_wants(action: &Action, state: State, wanted: &mut Wanted, values: &mut Values) {
    if let Some(observed) = action.observed(values) {
        wanted.states.insert(observed);
        return;
    }
    let told = &action.told;
    if let (Change::Increment(delta), Some(counter)) = (action.change, told.counter) {
        match counter.checked_sub(delta) {
            // Zero may be spelt out, or be absence.
            Some(0) if !values.has_odd_numbers() => {
                let zero = values.number_state(0);
                wanted.states.extend([zero, State::ABSENT]);
            }
            _ => wanted.anything = true,
        }
        return;
    }
    // A put or delete that applies leaves the same whatever was there.
    let leaves_the_same = matches!(action.change, Change::Put(_) | Change::Delete)
        && (action.guard == Guard::Always || told.applied == Some(true));
    if !(leaves_the_same && action.step(state, values).is_some()) {
        wanted.anything = true;
    }
}
