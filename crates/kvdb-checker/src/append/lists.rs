//! What the reads tell about each list, and what is wrong without looking at cycles.

use crate::append::AppendAnomaly;
use crate::data::Data;
use crate::history::{Answer, Call, Element, History, OpId, Operation, Step};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;

/// All lists of a history.
pub(super) struct Lists<'a> {
    /// The transactions that may have taken effect.
    pub(super) operations: Vec<&'a Operation>,
    pub(super) keys: BTreeMap<&'a Data, List>,
    pub(super) anomalies: Vec<AppendAnomaly>,
}

/// One list. Transactions are places in [`Lists::operations`].
#[derive(Default)]
pub(super) struct List {
    /// Who appended what.
    pub(super) writers: FxHashMap<Element, usize>,
    /// The last element that each transaction appended here.
    last_of: FxHashMap<usize, Element>,
    /// What transactions read before their own appends.
    pub(super) reads: Vec<(usize, Vec<Element>)>,
    /// The longest list that was read: the order of the appends.
    pub(super) order: Vec<Element>,
}

impl<'a> Lists<'a> {
    pub(super) fn of(history: &'a History) -> Self {
        let operations: Vec<&Operation> = history
            .operations()
            .iter()
            .filter(|one| matches!(one.call, Call::Transaction { .. }) && !one.has_failed())
            .collect();
        let mut lists = Lists { operations, keys: BTreeMap::new(), anomalies: Vec::new() };
        for place in 0..lists.operations.len() {
            lists.note_appends(place);
        }
        for place in 0..lists.operations.len() {
            lists.note_reads(place);
        }
        let Lists { keys, operations, anomalies } = &mut lists;
        for (key, list) in keys {
            list.settle_order(key, operations, anomalies);
        }
        lists
    }

    fn note_appends(&mut self, place: usize) {
        let operation = self.operations[place];
        for (key, element) in appends(operation) {
            let list = self.keys.entry(key).or_default();
            list.last_of.insert(place, element);
            if list.writers.insert(element, place).is_some() {
                self.anomalies.push(AppendAnomaly::AppendedByTwo { key: key.clone(), element });
            }
        }
    }

    fn note_reads(&mut self, place: usize) {
        let operation = self.operations[place];
        let (Call::Transaction { steps }, Some((_, Answer::Lists(answers)))) =
            (&operation.call, operation.returned())
        else {
            return;
        };
        let mut answers = answers.iter();
        // What this transaction must read of each list, as far as it knows.
        let mut own: FxHashMap<&Data, Own> = FxHashMap::default();
        for step in steps {
            match step {
                Step::Append { key, element } => {
                    own.entry(key).or_default().appended.push(*element);
                }
                Step::Read { key } => {
                    let Some(read) = answers.next() else { return };
                    self.note_read(place, key, read, own.entry(key).or_default());
                }
            }
        }
    }

    fn note_read(&mut self, place: usize, key: &'a Data, read: &[Element], own: &mut Own) {
        let operation = self.operations[place].id;
        let list = self.keys.entry(key).or_default();
        let Some(before) = read.strip_suffix(own.appended.as_slice()) else {
            self.anomalies.push(AppendAnomaly::Internal { key: key.clone(), operation });
            return;
        };
        match &own.before {
            Some(earlier) if earlier != before => {
                self.anomalies.push(AppendAnomaly::Internal { key: key.clone(), operation });
            }
            Some(_) => {}
            None => {
                own.before = Some(before.to_vec());
                list.check_read(key, operation, read, &mut self.anomalies);
                list.check_end(key, place, operation, before, &mut self.anomalies);
                list.reads.push((place, before.to_vec()));
            }
        }
    }
}

/// What a transaction knows of one list by itself.
#[derive(Default)]
struct Own {
    before: Option<Vec<Element>>,
    appended: Vec<Element>,
}

fn appends(operation: &Operation) -> impl Iterator<Item = (&Data, Element)> {
    let steps = match &operation.call {
        Call::Transaction { steps } => steps.as_slice(),
        _ => &[],
    };
    steps.iter().filter_map(|step| match step {
        Step::Append { key, element } => Some((key, *element)),
        Step::Read { .. } => None,
    })
}

impl List {
    fn check_read(
        &self,
        key: &Data,
        read_by: OpId,
        read: &[Element],
        anomalies: &mut Vec<AppendAnomaly>,
    ) {
        let mut seen = FxHashSet::default();
        for &element in read {
            if !seen.insert(element) {
                anomalies.push(AppendAnomaly::Doubled { key: key.clone(), element, read_by });
            }
            if !self.writers.contains_key(&element) {
                anomalies.push(AppendAnomaly::NeverAppended { key: key.clone(), element, read_by });
            }
        }
    }

    fn check_end(
        &self,
        key: &Data,
        reader: usize,
        read_by: OpId,
        before: &[Element],
        anomalies: &mut Vec<AppendAnomaly>,
    ) {
        let Some(&element) = before.last() else { return };
        let Some(&writer) = self.writers.get(&element) else { return };
        if writer != reader && self.last_of.get(&writer) != Some(&element) {
            anomalies.push(AppendAnomaly::Intermediate { key: key.clone(), element, read_by });
        }
    }

    /// Takes the longest read as the order, and holds the others against it.
    fn settle_order(
        &mut self,
        key: &Data,
        operations: &[&Operation],
        anomalies: &mut Vec<AppendAnomaly>,
    ) {
        let Some((longest, order)) = self.reads.iter().max_by_key(|(_, read)| read.len()) else {
            return;
        };
        for (place, read) in &self.reads {
            if !order.starts_with(read) {
                let (first, second) = (operations[*place].id, operations[*longest].id);
                anomalies.push(AppendAnomaly::Disagree { key: key.clone(), first, second });
            }
        }
        self.order = order.clone();
    }
}
