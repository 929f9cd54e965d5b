//! Sets that only grow: is an element that was added there from then on?
//!
//! An element is *known* from the first time at which its add, or a read that had it, returned. Every
//! read that was called after that must have it. A read that hasn't is **stale** if a later one has
//! the element again, and the element is **lost** if none has. An element that no read had, and that
//! no read was called late enough to miss, was **never read**: no anomaly, but a test that has many of
//! them proves little. (The terms are those of Jepsen's set checker.)

use crate::data::Data;
use crate::history::{Answer, Call, Element, History, OpId, Time};
use crate::verdict::Verdict;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;
use std::fmt;

/// What is wrong with a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetAnomaly {
    /// An element was known, and no read from `missed_by` on has it.
    Lost {
        /// The element.
        element: Element,
        /// The first read that lacks it.
        missed_by: OpId,
    },
    /// An element was known and a read lacks it, though a later one has it.
    Stale {
        /// The element.
        element: Element,
        /// The first read that lacks it.
        missed_by: OpId,
    },
    /// An element was read that was never added, whose add had failed, or wasn't called yet.
    NeverAdded {
        /// The element.
        element: Element,
        /// The first such read.
        read_by: OpId,
    },
    /// A read has an element twice.
    Doubled {
        /// The element.
        element: Element,
        /// The read.
        read_by: OpId,
    },
}

/// What the check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetReport {
    /// Sets looked at.
    pub sets: usize,
    /// Adds that returned.
    pub acknowledged: usize,
    /// Adds of unknown outcome.
    pub unknown: usize,
    /// Of these: elements that were read nevertheless.
    pub recovered: usize,
    /// Elements that were added and that no read could have missed.
    pub never_read: usize,
    /// What is wrong, by set.
    pub anomalies: Vec<(Data, SetAnomaly)>,
}

impl SetReport {
    /// In one word.
    pub fn verdict(&self) -> Verdict {
        Verdict::of(&self.anomalies)
    }
}

#[derive(Default)]
struct Set {
    adds: BTreeMap<Element, Add>,
    reads: Vec<Read>,
}

/// All tries to add an element.
struct Add {
    called: Time,
    returned: Option<Time>,
}

struct Read {
    op: OpId,
    called: Time,
    returned: Time,
    elements: FxHashSet<Element>,
    doubled: Vec<Element>,
}

/// Checks all sets of a history.
pub fn check(history: &History) -> SetReport {
    let mut sets: BTreeMap<&Data, Set> = BTreeMap::new();
    for operation in history.operations().iter().filter(|operation| !operation.has_failed()) {
        match (&operation.call, operation.returned()) {
            (Call::Add { key, element }, returned) => {
                let set = sets.entry(key).or_default();
                set.note_add(*element, operation.called, returned.map(|(time, _)| time));
            }
            (Call::Members { key }, Some((returned, Answer::Members(elements)))) => {
                let set = sets.entry(key).or_default();
                set.reads.push(Read::new(operation.id, operation.called, returned, elements));
            }
            _ => {}
        }
    }
    let mut report = SetReport { sets: sets.len(), ..SetReport::default() };
    for (key, mut set) in sets {
        set.reads.sort_by_key(|read| (read.called, read.op));
        set.check(key, &mut report);
    }
    report
}

impl Read {
    fn new(op: OpId, called: Time, returned: Time, listed: &[Element]) -> Self {
        let mut elements = FxHashSet::default();
        let doubled = listed.iter().copied().filter(|element| !elements.insert(*element)).collect();
        Read { op, called, returned, elements, doubled }
    }
}

impl Set {
    fn note_add(&mut self, element: Element, called: Time, returned: Option<Time>) {
        let add = self.adds.entry(element).or_insert(Add { called, returned });
        add.called = add.called.min(called);
        add.returned = match (add.returned, returned) {
            (Some(first), Some(second)) => Some(first.min(second)),
            (first, second) => first.or(second),
        };
    }

    fn check(&self, key: &Data, report: &mut SetReport) {
        let mut first_seen: FxHashMap<Element, Time> = FxHashMap::default();
        let mut anomaly = |anomaly| report.anomalies.push((key.clone(), anomaly));
        let mut accused = FxHashSet::default();
        for read in &self.reads {
            for &element in &read.doubled {
                anomaly(SetAnomaly::Doubled { element, read_by: read.op });
            }
            let mut early: Vec<Element> = Vec::new();
            for &element in &read.elements {
                let seen = first_seen.entry(element).or_insert(read.returned);
                *seen = (*seen).min(read.returned);
                if self.adds.get(&element).is_none_or(|add| read.returned < add.called) {
                    early.push(element);
                }
            }
            early.sort_unstable();
            early.retain(|element| accused.insert(*element));
            for element in early {
                anomaly(SetAnomaly::NeverAdded { element, read_by: read.op });
            }
        }
        for (&element, add) in &self.adds {
            let seen = first_seen.get(&element).copied();
            match add.returned {
                Some(_) => report.acknowledged += 1,
                None => {
                    report.unknown += 1;
                    report.recovered += usize::from(seen.is_some());
                }
            }
            let known = [seen, add.returned].into_iter().flatten().min();
            let missed = known.and_then(|known| self.missed(element, known));
            match missed {
                Some(anomaly) => report.anomalies.push((key.clone(), anomaly)),
                None if seen.is_none() && add.returned.is_some() => report.never_read += 1,
                None => {}
            }
        }
    }

    fn missed(&self, element: Element, known: Time) -> Option<SetAnomaly> {
        let after = &self.reads[self.reads.partition_point(|read| read.called <= known)..];
        let place = after.iter().position(|read| !read.elements.contains(&element))?;
        let missed_by = after[place].op;
        let again = after[place..].iter().any(|read| read.elements.contains(&element));
        Some(if again {
            SetAnomaly::Stale { element, missed_by }
        } else {
            SetAnomaly::Lost { element, missed_by }
        })
    }
}

impl fmt::Display for SetAnomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetAnomaly::Lost { element, missed_by } => {
                write!(f, "element {element} is lost: operation {missed_by} and all later lack it")
            }
            SetAnomaly::Stale { element, missed_by } => {
                write!(f, "operation {missed_by} is stale: it lacks element {element}")
            }
            SetAnomaly::NeverAdded { element, read_by } => {
                write!(f, "operation {read_by} read element {element}, which wasn't added by then")
            }
            SetAnomaly::Doubled { element, read_by } => {
                write!(f, "operation {read_by} read element {element} twice")
            }
        }
    }
}

impl fmt::Display for SetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "sets: {} ({} sets, {} acknowledged, {} unknown of which {} were read, {} never read)",
            self.verdict(),
            self.sets,
            self.acknowledged,
            self.unknown,
            self.recovered,
            self.never_read
        )?;
        self.anomalies.iter().try_for_each(|(key, anomaly)| writeln!(f, "set {key}: {anomaly}"))
    }
}
