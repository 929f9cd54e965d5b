//! Linearizability of plain keys: get, put, delete, increment, each with conditions.
//!
//! Keys are independent of each other, so each is checked alone (linearizability is local: M.
//! Herlihy and J. Wing, "Linearizability: A Correctness Condition for Concurrent Objects", ACM
//! TOPLAS 12(3), 1990). For one key: `timeline` lays its operations out in time, `zones` looks for
//! what is impossible at a glance, `order` guesses what to try first, `search` looks for a witness with
//! the help of `wanted`, and `explain` makes a failure small enough to read.
//!
//! Every key starts out absent. The verdict for a key is exact, but for a budget: finding a witness
//! is NP-complete (Gibbons and Korach), so a search that goes on for too long ends as undecided, with
//! the key named.

mod explain;
mod model;
mod needs;
mod order;
mod search;
mod timeline;
mod wanted;
mod zones;

use crate::data::Data;
use crate::history::{History, OpId, Operation};
use crate::table::{Held, write_table};
use crate::verdict::Verdict;
use model::State;
use order::Hints;
use search::Found;
use std::collections::BTreeMap;
use std::fmt;
pub(crate) use timeline::agree as tries_agree;
use timeline::{Conflict, Timeline};
use zones::Contradiction;

/// How far to go.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Configurations to enter for one key before it is given up as undecided. A step takes well
    /// below a microsecond to a few, and up to 100 bytes.
    pub steps_per_key: u64,
    /// Whether zones and versions may help: find contradictions at a glance and guide the search.
    /// Without it the verdict is the same, but for the budget. For tests of the checker itself.
    pub shortcuts: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { steps_per_key: 5_000_000, shortcuts: true }
    }
}

/// What the check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Keys looked at.
    pub keys: usize,
    /// Operations looked at; those that failed aren't.
    pub operations: usize,
    /// Configurations entered, over all keys.
    pub steps: u64,
    /// Keys that aren't linearizable, in order.
    pub violations: Vec<Violation>,
    /// Keys whose budget was used up, in order.
    pub undecided: Vec<Data>,
}

/// Why a key isn't linearizable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The key.
    pub key: Data,
    /// What is wrong.
    pub kind: ViolationKind,
    /// Operations that contradict each other, as few as could be found, by their calls.
    pub operations: Vec<Operation>,
}

/// What is wrong with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViolationKind {
    /// A value was read that nobody can have written.
    NeverWritten {
        /// The value.
        value: Data,
    },
    /// A read returned a value before its write was called.
    ReadTooEarly {
        /// The value.
        value: Data,
    },
    /// Two values must have been there at the same time: one was read after it had been
    /// overwritten, or a write was lost.
    TwoAtOnce {
        /// One; `None` for absence.
        first: Option<Data>,
        /// The other.
        second: Option<Data>,
    },
    /// While one value was certainly there, an operation met or left another.
    Inside {
        /// The value that was there; `None` for absence.
        value: Option<Data>,
        /// The operation.
        operation: OpId,
    },
    /// Two tries of one request were answered differently: it took effect twice.
    TriesDisagree,
    /// No order of the operations explains all answers.
    NoOrder {
        /// The operation whose return no order gets past.
        stuck_at: OpId,
        /// What the key may have held then, so far as it was noted; `None` for absence.
        possible: Vec<Option<Data>>,
    },
}

impl Report {
    /// In one word.
    pub fn verdict(&self) -> Verdict {
        match (self.violations.is_empty(), self.undecided.is_empty()) {
            (false, _) => Verdict::Violated,
            (true, false) => Verdict::Unknown,
            (true, true) => Verdict::Ok,
        }
    }
}

/// Checks every plain key of a history. Operations on sets and lists are passed over.
pub fn check(history: &History, options: &Options) -> Report {
    let mut keys: BTreeMap<&Data, Vec<usize>> = BTreeMap::new();
    for (place, operation) in history.operations().iter().enumerate() {
        if let Some(key) = operation.call.register_key()
            && !operation.has_failed()
        {
            keys.entry(key).or_default().push(place);
        }
    }
    let mut report = Report {
        keys: keys.len(),
        operations: keys.values().map(Vec::len).sum(),
        steps: 0,
        violations: Vec::new(),
        undecided: Vec::new(),
    };
    for (key, sources) in keys {
        let mut left = options.steps_per_key;
        match check_key(key, history.operations(), &sources, options, &mut left) {
            KeyVerdict::Ok => {}
            KeyVerdict::Violated(violation) => report.violations.push(violation),
            KeyVerdict::Undecided => report.undecided.push(key.clone()),
        }
        report.steps += options.steps_per_key - left;
    }
    report
}

enum KeyVerdict {
    Ok,
    Violated(Violation),
    Undecided,
}

fn check_key(
    key: &Data,
    all: &[Operation],
    sources: &[usize],
    options: &Options,
    steps: &mut u64,
) -> KeyVerdict {
    let violated = |kind, mut sources: Vec<usize>| {
        sources.sort_unstable();
        sources.dedup();
        let operations = sources.into_iter().map(|source| all[source].clone()).collect();
        KeyVerdict::Violated(Violation { key: key.clone(), kind, operations })
    };
    let mut timeline = match Timeline::new(all, sources) {
        Ok(timeline) => timeline,
        Err(Conflict(first, second)) => {
            return violated(ViolationKind::TriesDisagree, vec![first, second]);
        }
    };
    let mut advice = Vec::new();
    if options.shortcuts {
        let clusters = zones::clusters_of(&mut timeline);
        if let Some(contradiction) = zones::contradiction(&mut timeline, &clusters) {
            let (kind, entries) = describe(&contradiction, &timeline, all);
            let sources = entries.into_iter().map(|entry| timeline.entries[entry].source);
            return violated(kind, sources.collect());
        }
        advice = order::hints_of(&mut timeline, &clusters);
    }
    match search_with(&mut timeline, &advice, steps) {
        Found::Witness => KeyVerdict::Ok,
        Found::OutOfSteps => KeyVerdict::Undecided,
        Found::Nothing(deepest) => {
            let values = &timeline.values;
            let kind = ViolationKind::NoOrder {
                stuck_at: all[timeline.entries[deepest.entry].source].id,
                possible: deepest.states.iter().map(|state| values.data(*state).cloned()).collect(),
            };
            violated(kind, explain::core_of(&timeline, &deepest))
        }
    }
}

/// Follows each advice for a while, the last one for as long as the budget lasts. Each search is
/// complete by itself.
fn search_with(timeline: &mut Timeline, advice: &[Hints], steps: &mut u64) -> Found {
    let Some((last, others)) = advice.split_last() else {
        return search::search(timeline, None, State::ABSENT, steps);
    };
    for hints in others {
        let allowed = (*steps / 4).min(3 * timeline.entries.len() as u64 + 1000);
        let mut left = allowed;
        let found = search::search(timeline, Some(hints), State::ABSENT, &mut left);
        *steps -= allowed - left;
        if found != Found::OutOfSteps {
            return found;
        }
    }
    search::search(timeline, Some(last), State::ABSENT, steps)
}

fn describe(
    contradiction: &Contradiction,
    timeline: &Timeline,
    all: &[Operation],
) -> (ViolationKind, Vec<usize>) {
    let data = |state: State| timeline.values.data(state).cloned();
    let present = |state: State| data(state).expect("only present values have a writer");
    match contradiction {
        &Contradiction::NeverWritten { state, reader } => {
            (ViolationKind::NeverWritten { value: present(state) }, vec![reader])
        }
        &Contradiction::ReadTooEarly { state, writer, reader } => {
            (ViolationKind::ReadTooEarly { value: present(state) }, vec![writer, reader])
        }
        Contradiction::TwoAtOnce(both) => {
            let [first, second] = **both;
            let (one, other) = (data(first.state), data(second.state));
            let kind = ViolationKind::TwoAtOnce { first: one, second: other };
            (kind, first.members().chain(second.members()).collect())
        }
        &Contradiction::Inside { zone, operation } => {
            let kind = ViolationKind::Inside {
                value: data(zone.state),
                operation: all[timeline.entries[operation].source].id,
            };
            (kind, zone.members().chain([operation]).collect())
        }
    }
}

impl fmt::Display for ViolationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ViolationKind::NeverWritten { value } => write!(f, "{value} was read, never written"),
            ViolationKind::ReadTooEarly { value } => {
                write!(f, "{value} was read before its write was called")
            }
            ViolationKind::TwoAtOnce { first, second } => write!(
                f,
                "{} and {} must both have been there at the same time",
                Held(first.as_ref()),
                Held(second.as_ref())
            ),
            ViolationKind::Inside { value, operation } => write!(
                f,
                "{} was there all through operation {operation}, which says otherwise",
                Held(value.as_ref())
            ),
            ViolationKind::TriesDisagree => {
                f.write_str("two tries of one request were answered differently")
            }
            ViolationKind::NoOrder { stuck_at, possible } => {
                write!(f, "no order explains the answer of operation {stuck_at}; before it: ")?;
                for (place, value) in possible.iter().enumerate() {
                    f.write_str(if place == 0 { "" } else { " or " })?;
                    Held(value.as_ref()).fmt(f)?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "key {}: {}", self.key, self.kind)?;
        write_table(f, &self.operations)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "linearizability: {} ({} keys, {} operations, {} steps)",
            self.verdict(),
            self.keys,
            self.operations,
            self.steps
        )?;
        self.violations.iter().try_for_each(|violation| fmt::Display::fmt(violation, f))?;
        self.undecided
            .iter()
            .try_for_each(|key| writeln!(f, "key {key}: undecided, the budget was used up"))
    }
}
