//! What one key of the store *should* do: states, operations, one step.
//!
//! States are interned: a state is a number, so that the search compares and hashes words, not
//! values.

use crate::data::Data;
use crate::history::{Answer, Call, Condition, Previous, Written};
use rustc_hash::FxHashMap;

/// What a key holds: nothing, or one of the values that were met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct State(pub(crate) u32);

impl State {
    pub(crate) const ABSENT: State = State(0);
}

/// The values that were met, by number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values {
    ids: FxHashMap<Data, State>,
    data: Vec<(Data, Option<i64>)>,
    odd_numbers: bool,
}

impl Values {
    pub(crate) fn intern(&mut self, data: &Data) -> State {
        if let Some(state) = self.ids.get(data) {
            return *state;
        }
        let number = data.as_number();
        self.odd_numbers |=
            number.is_some_and(|number| number.to_string().as_bytes() != data.as_bytes());
        self.data.push((data.clone(), number));
        let state = State(u32::try_from(self.data.len()).expect("fewer than 2^32 values"));
        self.ids.insert(data.clone(), state);
        state
    }

    pub(crate) fn number_state(&mut self, number: i64) -> State {
        self.intern(&Data::from(number.to_string()))
    }

    pub(crate) fn data(&self, state: State) -> Option<&Data> {
        let place = (state.0 as usize).checked_sub(1)?;
        Some(&self.data[place].0)
    }

    /// What a counter finds: 0 where nothing is, `None` where something else than a number is.
    pub(crate) fn number(&self, state: State) -> Option<i64> {
        match (state.0 as usize).checked_sub(1) {
            None => Some(0),
            Some(place) => self.data[place].1,
        }
    }

    /// Whether a number was met that isn't spelt as a counter spells it (`+5`, `007`).
    pub(crate) fn has_odd_numbers(&self) -> bool {
        self.odd_numbers
    }

    pub(crate) fn knows(&self, data: &Data) -> bool {
        self.ids.contains_key(data)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Guard {
    Always,
    Absent,
    Present,
    Is(State),
}

impl Guard {
    fn holds(self, state: State) -> bool {
        match self {
            Guard::Always => true,
            Guard::Absent => state == State::ABSENT,
            Guard::Present => state != State::ABSENT,
            Guard::Is(value) => state == value,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Change {
    /// Reads, and changes nothing.
    Nothing,
    /// Sets a value.
    Put(State),
    Delete,
    Increment(i64),
}

/// What an answer says. `None` where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Told {
    pub(crate) applied: Option<bool>,
    pub(crate) before: Option<State>,
    pub(crate) counter: Option<i64>,
    pub(crate) wrong_value: Option<bool>,
}

/// An operation as the model sees it. Two that are equal are interchangeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Action {
    pub(crate) change: Change,
    pub(crate) guard: Guard,
    pub(crate) told: Told,
}

impl Action {
    /// The action of a call on a plain key, with what its answer says (nothing, if unknown).
    pub(crate) fn new(call: &Call, answer: Option<&Answer>, values: &mut Values) -> Option<Self> {
        let (change, condition) = match call {
            Call::Get { .. } => (Change::Nothing, &None),
            Call::Put { value, condition, .. } => (Change::Put(values.intern(value)), condition),
            Call::Delete { condition, .. } => (Change::Delete, condition),
            Call::Increment { delta, condition, .. } => (Change::Increment(*delta), condition),
            _ => return None,
        };
        let guard = match condition {
            None => Guard::Always,
            Some(Condition::IfAbsent) => Guard::Absent,
            Some(Condition::IfPresent) => Guard::Present,
            Some(Condition::IfValue(value)) => Guard::Is(values.intern(value)),
        };
        let told = answer.map_or_else(Told::default, |answer| told(answer, values));
        Some(Action { change, guard, told })
    }

    /// What the key holds afterwards; `None` if the answer couldn't be given in `state`.
    pub(crate) fn step(&self, state: State, values: &mut Values) -> Option<State> {
        let mut after = state;
        let mut applied = self.guard.holds(state);
        let mut counter = None;
        let mut wrong_value = false;
        if applied {
            match self.change {
                Change::Nothing => {}
                Change::Put(value) => after = value,
                Change::Delete => {
                    applied = state != State::ABSENT;
                    after = State::ABSENT;
                }
                Change::Increment(delta) => {
                    counter = values.number(state).and_then(|number| number.checked_add(delta));
                    match counter {
                        Some(number) => after = values.number_state(number),
                        None => (applied, wrong_value) = (false, true),
                    }
                }
            }
        }
        let told = &self.told;
        let fits = told.applied.is_none_or(|told| told == applied)
            && told.before.is_none_or(|told| told == state)
            && told.counter.is_none_or(|told| counter == Some(told))
            && told.wrong_value.is_none_or(|told| told == wrong_value);
        fits.then_some(after)
    }

    /// Whether it never changes anything, given its answer.
    pub(crate) fn is_pure(&self) -> bool {
        self.change == Change::Nothing
            || self.told.applied == Some(false)
            || self.told.wrong_value == Some(true)
    }

    /// The one state that the key must be in for this answer, if there is only one.
    pub(crate) fn observed(&self, values: &mut Values) -> Option<State> {
        if self.told.before.is_some() {
            return self.told.before;
        }
        match (self.guard, self.told.applied, self.change) {
            (Guard::Is(value), Some(true), _) => Some(value),
            (Guard::Absent, Some(true), _)
            | (Guard::Present, Some(false), Change::Put(_) | Change::Increment(_))
            | (Guard::Always | Guard::Present, Some(false), Change::Delete) => Some(State::ABSENT),
            (_, Some(true), Change::Increment(delta)) => {
                let before = self.told.counter?.checked_sub(delta)?;
                // Zero may also be spelt by absence.
                let one_spelling = before != 0 && !values.has_odd_numbers();
                one_spelling.then(|| values.number_state(before))
            }
            _ => None,
        }
    }

    /// The one state that the key is in afterwards, if it is certain that it applied.
    pub(crate) fn certainly_leaves(&self, values: &mut Values) -> Option<State> {
        if self.told.applied != Some(true) && self.guard != Guard::Always {
            return None;
        }
        match self.change {
            Change::Nothing => None,
            Change::Put(value) => Some(value),
            Change::Delete => Some(State::ABSENT),
            Change::Increment(_) => self.told.counter.map(|number| values.number_state(number)),
        }
    }

    /// Which state it may leave by changing something.
    pub(crate) fn product(&self, values: &mut Values) -> Product {
        if self.is_pure() {
            return Product::Nothing;
        }
        match self.change {
            Change::Nothing => Product::Nothing,
            Change::Put(value) => Product::One(value),
            Change::Delete => Product::One(State::ABSENT),
            Change::Increment(_) => match self.told.counter {
                Some(number) => Product::One(values.number_state(number)),
                None => Product::AnyNumber,
            },
        }
    }
}

/// What a write may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Product {
    /// What was there.
    Nothing,
    /// This.
    One(State),
    /// Some number, spelt as a counter spells it.
    AnyNumber,
}

fn told(answer: &Answer, values: &mut Values) -> Told {
    match answer {
        Answer::Got { value, .. } => {
            let before = value.as_ref().map_or(State::ABSENT, |value| values.intern(value));
            Told { before: Some(before), ..Told::default() }
        }
        Answer::Written(Written { applied, previous, counter, .. }) => {
            let before = previous.as_ref().map(|previous| match previous {
                Previous::Absent => State::ABSENT,
                Previous::Value(value) => values.intern(value),
            });
            // A counter is only answered by an increment that applied.
            let applied = applied.or(counter.map(|_| true));
            let wrong_value = Some(false);
            Told { applied, before, counter: *counter, wrong_value }
        }
        Answer::WrongValue => Told { wrong_value: Some(true), ..Told::default() },
        _ => Told::default(),
    }
}
