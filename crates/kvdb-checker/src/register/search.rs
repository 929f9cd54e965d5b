//! The search for a witness: an order of the operations that explains what every client saw.
//!
//! The algorithm is that of J. Wing and C. Gong, "Testing and Verifying Concurrent Objects" (J.
//! Parallel Distrib. Comput. 17, 1993), with the two improvements of G. Lowe, "Testing for
//! Linearizability" (Concurrency Computat. Pract. Exper. 29(4), 2017), that A. Athalye's Porcupine
//! made popular: calls and returns are a doubly linked list from which an operation is lifted when it
//! is put next in the order, and configurations that were seen to lead nowhere are remembered.
//!
//! A *configuration* is which operations are in the order so far, and the state that they lead to.
//! Next in the order may be any operation that was called before the first return that is still in
//! the list. When all that returned are in the order, there is a witness.
//!
//! What is added here, and why it loses no witness:
//!
//! - **An operation that changes nothing** and fits the state is next, without alternatives. In any
//!   witness it can be moved forward to here.
//! - **Operations of unknown outcome** aren't in the list, as they never return. One is next only if
//!   what follows directly then goes otherwise than it would without it. A witness with the fewest
//!   such operations has this form: where what follows goes the same way, drop the unknown one.
//!   So of thousands of them only those matter that somebody waits for (`wanted.rs`).
//! - **Equal operations** are interchangeable: of those under way only the one that returns first is
//!   tried, of those of unknown outcome the one that was called first.
//! - **Lost causes**: where an operation under way needs a state other than the present one, and nothing
//!   is left that could lead there, there is nothing to try (`needs.rs`).
//! - **Hints** (`order.rs`) say what to try first.
//! - A set of operations is remembered as the exclusive or of 128-bit keys, one an operation, so that
//!   a configuration takes 32 bytes and not a bit for each of 100,000 operations (A. Zobrist, "A New
//!   Hashing Method with Application for Game Playing", 1970). With 10^9 configurations the chance
//!   that any two are mistaken for each other is about 10^-21.

use crate::register::model::{Action, Product, State};
use crate::register::needs::Needs;
use crate::register::order::Hints;
use crate::register::timeline::{Rank, Timeline};
use crate::register::wanted::Unknowns;
use crate::register::zones::NEVER;
use rustc_hash::{FxHashMap, FxHashSet};

/// How a search ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// There is a witness.
    Witness,
    /// There is none.
    Nothing(Deepest),
    /// The budget was used up.
    OutOfSteps,
}

/// The furthest that any order got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Deepest {
    /// No order gets past this return.
    pub(crate) rank: Rank,
    /// Whose return that is.
    pub(crate) entry: usize,
    /// What the key may have held then.
    pub(crate) states: Vec<State>,
}

/// States that are kept of the furthest configurations, for the report.
const DEEPEST_STATES: usize = 8;

/// Searches for a witness that starts in `initial`, counting down `steps` for each configuration
/// entered.
pub(crate) fn search(
    timeline: &mut Timeline,
    hints: Option<&Hints>,
    initial: State,
    steps: &mut u64,
) -> Found {
    Search::new(timeline, hints, initial).run(steps)
}

const NONE: u32 = u32::MAX;

/// The hint of what should be next.
const NOW: (i64, i64) = (i64::MIN, 0);

/// A node of the list: a call or a return of an operation that returned.
#[derive(Clone, Copy)]
struct Node {
    previous: u32,
    next: u32,
    entry: u32,
    is_return: bool,
}

/// What may be next in the order.
#[derive(Clone, Copy)]
enum Move {
    /// The operation that returned, by entry.
    Known(u32),
    /// The next one of a class of unknown outcome.
    Unknown(u32),
}

#[derive(Clone, Copy)]
struct Choice {
    next: Move,
    leads_to: State,
    hint: (i64, i64),
}

/// A configuration on the path that is being tried.
struct Frame {
    state: State,
    /// The state before the operation of unknown outcome that led here, if one did.
    without: Option<State>,
    set: u128,
    /// The move that led here; `None` for the first.
    by: Option<Move>,
    /// Where its choices begin, and the next one to try.
    choices: usize,
    next: usize,
}

struct Search<'a> {
    timeline: &'a mut Timeline,
    advice: Advice,
    nodes: Vec<Node>,
    head: u32,
    unknowns: Unknowns,
    needs: Needs,
    seen: FxHashSet<(u128, State, Option<State>)>,
    frames: Vec<Frame>,
    choices: Vec<Choice>,
    deepest: Deepest,
    /// Operations under way in the current configuration, by entry; and of each class the first.
    candidates: Vec<u32>,
    first_of_class: FxHashMap<u32, u32>,
}

/// Which operations are equal, and when to try the next of them. As they are interchangeable the
/// lowest hint of a class goes to whichever is taken first.
struct Advice {
    /// By entry.
    classes: Vec<u32>,
    /// Of each class: the hints of its entries in order, and how many of them are taken.
    hints: Vec<(Vec<(i64, i64)>, usize)>,
}

impl Advice {
    fn new(timeline: &Timeline, hints: Option<&Hints>) -> Self {
        let mut by_action: FxHashMap<(Action, bool), u32> = FxHashMap::default();
        let mut advice =
            Advice { classes: Vec::with_capacity(timeline.entries.len()), hints: Vec::new() };
        for (place, entry) in timeline.entries.iter().enumerate() {
            let class = *by_action
                .entry((entry.action, entry.returned.is_some()))
                .or_insert(advice.hints.len() as u32);
            if class as usize == advice.hints.len() {
                advice.hints.push((Vec::new(), 0));
            }
            advice.classes.push(class);
            let hint = hints.map_or((entry.called as i64, 0), |hints| hints[place]);
            advice.hints[class as usize].0.push(hint);
        }
        advice.hints.iter_mut().for_each(|(hints, _)| hints.sort_unstable());
        advice
    }

    fn hint(&self, entry: usize) -> (i64, i64) {
        let (hints, taken) = &self.hints[self.classes[entry] as usize];
        hints[*taken]
    }

    fn take(&mut self, entry: usize) {
        self.hints[self.classes[entry] as usize].1 += 1;
    }

    fn give_back(&mut self, entry: usize) {
        self.hints[self.classes[entry] as usize].1 -= 1;
    }
}

/// A fixed, well-mixed number for each input (Steele, Lea and Flood's splitmix64).
fn mix(input: u64) -> u64 {
    let mut z = input.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn key(kind: u64, first: u64, second: u64) -> u128 {
    let low = mix(mix(mix(kind) ^ first) ^ second);
    let high = mix(mix(mix(kind ^ 0x5bd1_e995) ^ first) ^ second);
    u128::from(high) << 64 | u128::from(low)
}

impl<'a> Search<'a> {
    fn new(timeline: &'a mut Timeline, hints: Option<&Hints>, initial: State) -> Self {
        let advice = Advice::new(timeline, hints);
        let unknowns = Unknowns::new(timeline);
        let needs = Needs::new(timeline);
        let (nodes, head) = list_of(timeline);
        let deepest = Deepest { rank: 0, entry: 0, states: Vec::new() };
        let first = Frame { state: initial, without: None, set: 0, by: None, choices: 0, next: 0 };
        Search {
            timeline,
            advice,
            nodes,
            head,
            unknowns,
            needs,
            seen: FxHashSet::default(),
            frames: vec![first],
            choices: Vec::new(),
            deepest,
            candidates: Vec::new(),
            first_of_class: FxHashMap::default(),
        }
    }

    fn run(mut self, steps: &mut u64) -> Found {
        if self.head == NONE {
            return Found::Witness;
        }
        self.choose();
        while let Some(frame) = self.frames.last_mut() {
            let Some(&choice) = self.choices.get(frame.next) else {
                self.retreat();
                continue;
            };
            frame.next += 1;
            let is_forced = self.choices.len() - frame.choices == 1;
            if !self.advance(choice, is_forced) {
                continue;
            }
            if self.head == NONE {
                return Found::Witness;
            }
            let Some(left) = steps.checked_sub(1) else { return Found::OutOfSteps };
            *steps = left;
            self.choose();
        }
        Found::Nothing(self.deepest)
    }

    /// Enters the configuration that a choice leads to, unless it was entered before.
    fn advance(&mut self, choice: Choice, is_forced: bool) -> bool {
        let frame = self.frames.last().expect("the frame that the choice was read from");
        let (toggle, without) = match choice.next {
            Move::Known(entry) => (key(1, u64::from(entry), 0), None),
            Move::Unknown(class) => {
                let used = self.unknowns.used(class);
                (key(2, u64::from(class), used as u64), Some(frame.state))
            }
        };
        let set = frame.set ^ toggle;
        // Where there was no choice, whoever gets here came the same way.
        if !is_forced && !self.seen.insert((set, choice.leads_to, without)) {
            return false;
        }
        match choice.next {
            Move::Known(entry) => {
                self.needs.take(entry as usize);
                self.advice.take(entry as usize);
                self.lift(entry);
            }
            Move::Unknown(class) => {
                let entry = self.unknowns.next_of(class).1;
                self.needs.take(entry);
                self.advice.take(entry);
                self.unknowns.take(class);
            }
        }
        self.frames.push(Frame {
            state: choice.leads_to,
            without,
            set,
            by: Some(choice.next),
            choices: self.choices.len(),
            next: self.choices.len(),
        });
        true
    }

    /// Leaves the last configuration of the path: it leads nowhere.
    fn retreat(&mut self) {
        let Some(frame) = self.frames.pop() else { return };
        self.choices.truncate(frame.choices);
        match frame.by {
            Some(Move::Known(entry)) => {
                self.unlift(entry);
                self.advice.give_back(entry as usize);
                self.needs.give_back(entry as usize);
            }
            Some(Move::Unknown(class)) => {
                self.unknowns.give_back(class);
                let entry = self.unknowns.next_of(class).1;
                self.advice.give_back(entry);
                self.needs.give_back(entry);
            }
            None => {}
        }
    }

    /// Lists what may be next in the last configuration of the path.
    fn choose(&mut self) {
        let frame = self.frames.last().expect("the path starts with a configuration");
        let (state, without, start) = (frame.state, frame.without, frame.choices);
        let (boundary, blocking) = self.gather();
        let lost = self.needs.lost(&self.candidates, state, &self.timeline.values);
        let lost = lost.map(|entry| (self.timeline.entries[entry].returned, entry)).min();
        if let Some((Some(returned), entry)) = lost {
            self.note_depth(returned, entry, state);
            return;
        }
        self.note_depth(boundary, blocking, state);
        for place in 0..self.candidates.len() {
            let entry = self.candidates[place];
            let action = self.timeline.entries[entry as usize].action;
            let Some(leads_to) = self.goes_otherwise(action, state, without) else { continue };
            if action.is_pure() {
                self.choices.truncate(start);
                self.choices.push(Choice { next: Move::Known(entry), leads_to, hint: (0, 0) });
                return;
            }
            let hint = self.advice.hint(entry as usize);
            self.choices.push(Choice { next: Move::Known(entry), leads_to, hint });
        }
        self.choose_unknown(state, without, boundary, blocking);
        self.choices[start..].sort_by_key(|choice| choice.hint);
    }

    /// Where `action` leads to from `state`, if it can be next: after an operation of unknown
    /// outcome only if it goes otherwise than it would `without` that one.
    fn goes_otherwise(
        &mut self,
        action: Action,
        state: State,
        without: Option<State>,
    ) -> Option<State> {
        let leads_to = action.step(state, &mut self.timeline.values)?;
        match without {
            Some(without) if action.step(without, &mut self.timeline.values) == Some(leads_to) => {
                None
            }
            _ => Some(leads_to),
        }
    }

    fn choose_unknown(
        &mut self,
        state: State,
        without: Option<State>,
        boundary: Rank,
        blocking: usize,
    ) {
        if self.unknowns.is_empty() {
            return;
        }
        // Where nothing says when it took effect, and it alone leads on, it is time for it now.
        let now = self.needs.of(blocking).map(Product::One).filter(|needed| {
            let leads_on = |entry: &u32| self.needs.product(*entry as usize) == *needed;
            !self.candidates.iter().any(leads_on)
        });
        let entries = &self.timeline.entries;
        let actions: Vec<Action> =
            self.candidates.iter().map(|entry| entries[*entry as usize].action).collect();
        let classes = self.unknowns.wanted(&actions, state, boundary, &mut self.timeline.values);
        for class in classes {
            let (action, entry) = self.unknowns.next_of(class);
            match self.goes_otherwise(action, state, without) {
                Some(leads_to) if leads_to != state => {
                    let mut hint = self.advice.hint(entry);
                    if hint.0 == NEVER && now == Some(self.needs.product(entry)) {
                        hint = NOW;
                    }
                    self.choices.push(Choice { next: Move::Unknown(class), leads_to, hint });
                }
                _ => {}
            }
        }
    }

    /// Fills `candidates` with the operations under way before the first return in the list, of
    /// equal ones the one that returns first. Returns the rank of that return, and whose it is.
    fn gather(&mut self) -> (Rank, usize) {
        self.candidates.clear();
        self.first_of_class.clear();
        let mut place = self.head;
        loop {
            let node = self.nodes[place as usize];
            if node.is_return {
                break;
            }
            let class = self.advice.classes[node.entry as usize];
            let first = self.first_of_class.entry(class).or_insert(node.entry);
            if self.timeline.entries[node.entry as usize].returned
                < self.timeline.entries[*first as usize].returned
            {
                *first = node.entry;
            }
            self.candidates.push(node.entry);
            place = node.next;
        }
        let (classes, first) = (&self.advice.classes, &self.first_of_class);
        self.candidates.retain(|entry| first[&classes[*entry as usize]] == *entry);
        let blocking = self.nodes[place as usize].entry as usize;
        let boundary = self.timeline.entries[blocking].returned;
        (boundary.expect("only what returned is in the list"), blocking)
    }

    fn note_depth(&mut self, rank: Rank, entry: usize, state: State) {
        if rank > self.deepest.rank || self.deepest.states.is_empty() {
            self.deepest = Deepest { rank, entry, states: vec![state] };
        } else if rank == self.deepest.rank
            && self.deepest.states.len() < DEEPEST_STATES
            && !self.deepest.states.contains(&state)
        {
            self.deepest.states.push(state);
        }
    }

    fn nodes_of(&self, entry: u32) -> [u32; 2] {
        // Filled in by `list_of` in the order of entries.
        [2 * entry, 2 * entry + 1]
    }

    fn lift(&mut self, entry: u32) {
        for place in self.nodes_of(entry) {
            let Node { previous, next, .. } = self.nodes[place as usize];
            match previous {
                NONE => self.head = next,
                previous => self.nodes[previous as usize].next = next,
            }
            if next != NONE {
                self.nodes[next as usize].previous = previous;
            }
        }
    }

    fn unlift(&mut self, entry: u32) {
        for place in self.nodes_of(entry).into_iter().rev() {
            let Node { previous, next, .. } = self.nodes[place as usize];
            match previous {
                NONE => self.head = place,
                previous => self.nodes[previous as usize].next = place,
            }
            if next != NONE {
                self.nodes[next as usize].previous = place;
            }
        }
    }
}

/// The list of calls and returns in their order. The nodes of entry `n` are at `2n` and `2n + 1`;
/// those of entries that never returned are not in the list.
fn list_of(timeline: &Timeline) -> (Vec<Node>, u32) {
    let mut nodes = Vec::with_capacity(timeline.entries.len() * 2);
    let mut order = Vec::with_capacity(timeline.entries.len() * 2);
    for (place, entry) in timeline.entries.iter().enumerate() {
        for is_return in [false, true] {
            nodes.push(Node { previous: NONE, next: NONE, entry: place as u32, is_return });
        }
        if let Some(returned) = entry.returned {
            order.push((entry.called, 2 * place as u32));
            order.push((returned, 2 * place as u32 + 1));
        }
    }
    order.sort_unstable();
    for pair in order.windows(2) {
        let ((_, first), (_, second)) = (pair[0], pair[1]);
        nodes[first as usize].next = second;
        nodes[second as usize].previous = first;
    }
    (nodes, order.first().map_or(NONE, |(_, place)| *place))
}
