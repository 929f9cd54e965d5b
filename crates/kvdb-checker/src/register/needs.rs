//! Lost causes: an operation under way that needs a state which nothing can bring about any more.
//!
//! Without this the search would find out only at the return of that operation, after trying every
//! order of all others that are under way.

use crate::register::model::{Change, Product, State, Values};
use crate::register::timeline::Timeline;
use rustc_hash::FxHashMap;

/// What operations need, and how many could still bring it about.
pub(crate) struct Needs {
    /// The one state that each entry needs, if there is only one.
    needed: Vec<Option<State>>,
    products: Vec<Product>,
    /// How many entries that aren't in the order yet may leave each state.
    writers_left: FxHashMap<State, u32>,
    /// How many may leave any number.
    counters_left: u32,
    /// Whether the key is a counter that nothing ever lowers.
    only_rises: bool,
}

impl Needs {
    pub(crate) fn new(timeline: &mut Timeline) -> Self {
        let only_rises = timeline.entries.iter().all(|entry| match entry.action.change {
            Change::Nothing => true,
            Change::Increment(delta) => delta > 0,
            Change::Put(_) | Change::Delete => false,
        });
        let mut needs = Needs {
            needed: Vec::with_capacity(timeline.entries.len()),
            products: Vec::with_capacity(timeline.entries.len()),
            writers_left: FxHashMap::default(),
            counters_left: 0,
            only_rises,
        };
        for place in 0..timeline.entries.len() {
            let action = timeline.entries[place].action;
            needs.needed.push(action.observed(&mut timeline.values));
            needs.products.push(action.product(&mut timeline.values));
            needs.give_back(place);
        }
        needs
    }

    /// An entry is in the order now.
    pub(crate) fn take(&mut self, entry: usize) {
        match self.products[entry] {
            Product::Nothing => {}
            Product::One(state) => {
                *self.writers_left.get_mut(&state).expect("it was counted by `new`") -= 1;
            }
            Product::AnyNumber => self.counters_left -= 1,
        }
    }

    /// An entry isn't in the order any more.
    pub(crate) fn give_back(&mut self, entry: usize) {
        match self.products[entry] {
            Product::Nothing => {}
            Product::One(state) => *self.writers_left.entry(state).or_default() += 1,
            Product::AnyNumber => self.counters_left += 1,
        }
    }

    /// Those of `under_way`, all of which have still to find their place, that never will.
    pub(crate) fn lost<'a>(
        &'a self,
        under_way: &'a [u32],
        state: State,
        values: &'a Values,
    ) -> impl Iterator<Item = usize> + 'a {
        let under_way = under_way.iter().map(|entry| *entry as usize);
        under_way.filter(move |entry| {
            self.needed[*entry].is_some_and(|needed| {
                needed != state && self.is_out_of_reach(needed, state, values)
            })
        })
    }

    fn is_out_of_reach(&self, needed: State, state: State, values: &Values) -> bool {
        let is_behind = self.only_rises && values.number(needed) < values.number(state);
        let may_be_counted = self.counters_left > 0 && values.number(needed).is_some();
        let writers = self.writers_left.get(&needed).copied().unwrap_or(0);
        is_behind || writers == 0 && !may_be_counted
    }

    /// The one state that an entry needs, if there is only one.
    pub(crate) fn of(&self, entry: usize) -> Option<State> {
        self.needed[entry]
    }

    /// What an entry may leave.
    pub(crate) fn product(&self, entry: usize) -> Product {
        self.products[entry]
    }
}
