//! Lists that are appended to: is there one order of transactions that explains all reads?
//!
//! After K. Kingsbury and P. Alvaro, "Elle: Inferring Isolation Anomalies from Experimental
//! Observations" (VLDB 14(3), 2020). As every element is appended once, a read of a list tells the
//! whole order of the appends before it. Transactions then depend on each other as in A. Adya's
//! thesis ("Weak Consistency", MIT, 1999):
//!
//! - **ww**: one appended right before the other to the same list;
//! - **wr**: one read what the other appended;
//! - **rw**: one read a list before the other appended to it;
//! - **rt**: one returned before the other was called.
//!
//! A cycle means that no order exists. Cycles are named by what they are made of: G0 of ww alone, G1c
//! with wr, G-single with one rw, G2 with several; with rt among them each breaks *strict*
//! serializability only, which for transactions of one step is linearizability. KvDB promises it for
//! the transactions within a shard.
//!
//! What needs no cycle is looked at first: elements that nobody appended or twice, reads that disagree
//! about the order, reads of half a transaction, and transactions that don't see their own appends.

mod graph;
mod lists;

use crate::data::Data;
use crate::history::{Element, History, OpId, Operation};
use crate::table::write_table;
use crate::verdict::Verdict;
use graph::Graph;
pub use graph::{CycleKind, Dependency};
use lists::Lists;
use std::fmt;

/// What is wrong with the lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppendAnomaly {
    /// An element was read that nobody appended, or whose transaction failed (G1a).
    NeverAppended {
        /// The list.
        key: Data,
        /// The element.
        element: Element,
        /// Who read it.
        read_by: OpId,
    },
    /// An element is in a list twice: its append took effect twice.
    Doubled {
        /// The list.
        key: Data,
        /// The element.
        element: Element,
        /// Who read it.
        read_by: OpId,
    },
    /// Two transactions append the same element, so that reads can't tell them apart: the workload is
    /// wrong.
    AppendedByTwo {
        /// The list.
        key: Data,
        /// The element.
        element: Element,
    },
    /// Two reads of a list of which neither begins with the other.
    Disagree {
        /// The list.
        key: Data,
        /// One.
        first: OpId,
        /// The other.
        second: OpId,
    },
    /// A read ends in the middle of a transaction of another (G1b).
    Intermediate {
        /// The list.
        key: Data,
        /// The last element that was read.
        element: Element,
        /// Who read it.
        read_by: OpId,
    },
    /// A transaction doesn't see what it did itself, or two reads within it differ otherwise.
    Internal {
        /// The list.
        key: Data,
        /// The transaction.
        operation: OpId,
    },
    /// Transactions that would each have to be before the next.
    Cycle {
        /// What it is made of.
        kind: CycleKind,
        /// The transactions, each with what makes it come before the next (before the first, for the
        /// last).
        steps: Vec<(Operation, Dependency)>,
    },
}

/// What the check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendReport {
    /// Lists looked at.
    pub lists: usize,
    /// Transactions looked at.
    pub transactions: usize,
    /// What is wrong. Cycles of the gravest kind only, one of each tangle.
    pub anomalies: Vec<AppendAnomaly>,
}

impl AppendReport {
    /// In one word.
    pub fn verdict(&self) -> Verdict {
        Verdict::of(&self.anomalies)
    }
}

/// Checks all lists of a history.
pub fn check(history: &History) -> AppendReport {
    let lists = Lists::of(history);
    let mut anomalies = lists.anomalies.clone();
    let graph = Graph::of(&lists);
    anomalies.extend(graph.cycles().into_iter().map(|(kind, steps)| AppendAnomaly::Cycle {
        kind,
        steps:
            steps.into_iter().map(|(place, why)| (lists.operations[place].clone(), why)).collect(),
    }));
    AppendReport { lists: lists.keys.len(), transactions: lists.operations.len(), anomalies }
}

impl fmt::Display for AppendAnomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AppendAnomaly::NeverAppended { key, element, read_by } => writeln!(
                f,
                "list {key}: operation {read_by} read element {element}, which was never appended"
            ),
            AppendAnomaly::Doubled { key, element, read_by } => {
                writeln!(f, "list {key}: operation {read_by} read element {element} twice")
            }
            AppendAnomaly::AppendedByTwo { key, element } => {
                writeln!(f, "list {key}: element {element} is appended by two transactions")
            }
            AppendAnomaly::Disagree { key, first, second } => {
                writeln!(f, "list {key}: operations {first} and {second} read different orders")
            }
            AppendAnomaly::Intermediate { key, element, read_by } => writeln!(
                f,
                "list {key}: operation {read_by} read as far as {element}, half a transaction"
            ),
            AppendAnomaly::Internal { key, operation } => {
                writeln!(f, "list {key}: operation {operation} contradicts itself")
            }
            AppendAnomaly::Cycle { kind, steps } => {
                let ids: Vec<_> =
                    steps.iter().map(|(one, why)| format!("{} -{why}->", one.id)).collect();
                let first = steps.first().map_or(OpId(0), |(one, _)| one.id);
                writeln!(f, "cycle {kind}: {} {first}", ids.join(" "))?;
                let operations: Vec<_> = steps.iter().map(|(one, _)| one.clone()).collect();
                write_table(f, &operations)
            }
        }
    }
}

impl fmt::Display for AppendReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = self.verdict();
        writeln!(f, "lists: {verdict} ({} lists, {} transactions)", self.lists, self.transactions)?;
        self.anomalies.iter().try_for_each(|anomaly| fmt::Display::fmt(anomaly, f))
    }
}
