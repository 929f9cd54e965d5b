//! A shard as it would be if nothing could fail: a map, and the answers given so far.

use crate::support::*;
use bytes::Bytes;
use kvdb_model::Reply;
use kvdb_model::codec::Reader;
use kvdb_model::{
    Condition, EntryCommand, HistoryLimits, HistoryPolicy, Operation, OperationOutcome, Previous,
    Refusal, Version, Write, WriteResult,
};
use kvdb_store::Command as _;
use kvdb_store::keys::{Delete, Expiry, SetExpiry};
use kvdb_store::string::{Increment, Set};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    pub value: Bytes,
    pub version: Version,
    pub expires_at_ms: Option<u64>,
}

#[derive(Clone, Default)]
pub struct Model {
    data: BTreeMap<Bytes, Value>,
    answers: BTreeMap<(u64, u32), (Operation, OperationOutcome)>,
    now: Version,
}

impl Model {
    /// Applies a write at a version.
    pub fn write(&mut self, write: &Write, version: Version) -> Vec<OperationOutcome> {
        let sequence = write.request.as_ref().map(|tag| tag.sequence);
        let outcomes = if write.atomic {
            self.together(write, sequence, version)
        } else {
            let versions = (0..).map(|place| version.plus(place));
            let one = |(operation, version)| match self.earlier(sequence, operation) {
                Some(earlier) => earlier,
                None => self.one(operation, version),
            };
            write.operations.iter().zip(versions).map(one).collect()
        };
        if let Some(sequence) = sequence {
            for (operation, outcome) in write.operations.iter().zip(&outcomes) {
                let answer = (operation.clone(), outcome.clone());
                self.answers.entry((sequence, operation.item)).or_insert(answer);
            }
        }
        outcomes
    }

    /// Frees what has expired of these keys; how many.
    pub fn reclaim(&mut self, keys: &[Bytes], version: Version) -> u64 {
        let before = self.data.len();
        let expired = |value: &Value| value.expires_at_ms.is_some_and(|at| at <= version.millis());
        self.data.retain(|key, value| !(keys.contains(key) && expired(value)));
        (before - self.data.len()) as u64
    }

    /// What is stored, expired or not.
    pub fn stored(&self) -> &BTreeMap<Bytes, Value> {
        &self.data
    }

    /// Lets time pass.
    pub fn reach(&mut self, version: Version) {
        self.now = self.now.max(version);
    }

    /// What is there now.
    pub fn live(&self) -> BTreeMap<Bytes, Value> {
        let live = |value: &Value| value.expires_at_ms.is_none_or(|at| at > self.now.millis());
        self.data.clone().into_iter().filter(|(_, value)| live(value)).collect()
    }

    fn earlier(&self, sequence: Option<u64>, operation: &Operation) -> Option<OperationOutcome> {
        let (_, outcome) = self.answers.get(&(sequence?, operation.item))?;
        let repeated = |result| WriteResult { deduplicated: true, ..result };
        Some(outcome.clone().map(repeated))
    }

    fn together(
        &mut self,
        write: &Write,
        sequence: Option<u64>,
        version: Version,
    ) -> Vec<OperationOutcome> {
        if let Some(earlier) = write.operations.iter().map(|o| self.earlier(sequence, o)).collect()
        {
            return earlier;
        }
        let before = self.data.clone();
        let outcomes: Vec<_> = write.operations.iter().map(|o| self.one(o, version)).collect();
        let is_bad = |(operation, outcome): (&Operation, &OperationOutcome)| {
            outcome.as_ref().map_or(true, |result| !result.applied && operation.condition.is_some())
        };
        if !write.operations.iter().zip(&outcomes).any(is_bad) {
            return outcomes;
        }
        self.data = before;
        let undone = |(operation, outcome): (&Operation, OperationOutcome)| {
            outcome.map(|_| self.untouched(operation))
        };
        write.operations.iter().zip(outcomes).map(undone).collect()
    }

    fn untouched(&self, operation: &Operation) -> WriteResult {
        let current = self.live().get(&operation.key).cloned();
        WriteResult {
            version: current.as_ref().map_or(Version::ZERO, |value| value.version),
            previous: previous(operation, current.as_ref()),
            ..WriteResult::default()
        }
    }

    fn one(&mut self, operation: &Operation, version: Version) -> OperationOutcome {
        self.reach(version);
        let current = self.live().get(&operation.key).cloned();
        let there = current.as_ref();
        let holds = match &operation.condition {
            None => true,
            Some(Condition::IfAbsent) => there.is_none(),
            Some(Condition::IfPresent) => there.is_some(),
            Some(Condition::IfVersion(wanted)) => there.is_some_and(|v| v.version == *wanted),
            Some(Condition::IfValue(wanted)) => there.is_some_and(|v| v.value == *wanted),
        };
        let action = Action::of(operation);
        let is_idle = matches!(action, Action::Delete | Action::Expire { .. }) && there.is_none();
        if !holds || is_idle {
            return Ok(self.untouched(operation));
        }
        let mut result = WriteResult {
            applied: true,
            version,
            previous: previous(operation, there),
            ..WriteResult::default()
        };
        let after = match &action {
            Action::Delete => {
                self.data.remove(&operation.key);
                return Ok(result);
            }
            Action::Put { value, ttl_ms } => Value {
                value: value.clone(),
                version,
                expires_at_ms: ttl_ms.map(|ttl| version.millis() + ttl),
            },
            Action::Expire { ttl_ms } => Value {
                value: there.map(|value| value.value.clone()).unwrap_or_default(),
                version,
                expires_at_ms: ttl_ms.map(|ttl| version.millis() + ttl),
            },
            Action::Increment { delta } => {
                let text = there.map_or("0", |v| std::str::from_utf8(&v.value).unwrap_or(""));
                let Ok(number) = text.parse::<i64>() else {
                    let why = "the value is not an integer or is out of range";
                    return Err(Refusal::WrongValue(why));
                };
                let sum = number + delta;
                result.reply = Reply::Integer(sum);
                let expires_at_ms = there.and_then(|value| value.expires_at_ms);
                Value { value: sum.to_string().into(), version, expires_at_ms }
            }
        };
        self.data.insert(operation.key.clone(), after);
        Ok(result)
    }
}

fn previous(operation: &Operation, current: Option<&Value>) -> Option<Previous> {
    let current = current.filter(|_| operation.return_previous)?;
    Some(Previous {
        value: current.value.clone(),
        version: current.version,
        expires_at_ms: current.expires_at_ms.unwrap_or(0),
    })
}

/// A step of a random history.
#[derive(Clone, Debug)]
pub enum Step {
    /// A write, tagged or not.
    Write { is_atomic: bool, is_tagged: bool, operations: Vec<Operation> },
    /// The same tagged write as an earlier one.
    Retry { which: prop::sample::Index },
    /// Time passes.
    Wait { millis: u64 },
    /// Expired records of these keys are freed.
    Reclaim { keys: Vec<Bytes> },
    /// History is bounded anew, or ends.
    History { limits: Option<HistoryLimits> },
    /// The entry ends.
    EntryEnds,
}

/// What the model draws, as it understands it.
#[derive(Clone, Debug)]
enum Action {
    Put { value: Bytes, ttl_ms: Option<u64> },
    Delete,
    Increment { delta: i64 },
    Expire { ttl_ms: Option<u64> },
}

impl Action {
    fn on(self, key: &str) -> Operation {
        match self {
            Action::Put { value, ttl_ms } => on(key, Set { value, expiry: Expiry::after(ttl_ms) }),
            Action::Delete => delete(key),
            Action::Increment { delta } => increment(key, delta),
            Action::Expire { ttl_ms } => expire(key, ttl_ms),
        }
    }

    /// What an operation was drawn as.
    fn of(operation: &Operation) -> Self {
        let input = &mut Reader::new(operation.body.args.clone());
        let ttl_ms = |expiry| match expiry {
            Expiry::In(ttl_ms) => Some(ttl_ms),
            _ => None,
        };
        match operation.body.id {
            Set::ID => {
                let Set { value, expiry } = Set::decode(input).expect("it was drawn");
                Action::Put { value, ttl_ms: ttl_ms(expiry) }
            }
            Delete::ID => Action::Delete,
            Increment::ID => {
                Action::Increment { delta: Increment::decode(input).expect("it was drawn").delta }
            }
            _ => Action::Expire {
                ttl_ms: ttl_ms(SetExpiry::decode(input).expect("it was drawn").expiry),
            },
        }
    }
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let key = prop::sample::select(vec!["b", "c", "d", "e"]);
    let value = prop::sample::select(vec!["", "1", "7", "text"]);
    let action = prop_oneof![
        4 => (value.clone(), prop::option::weighted(0.3, 1u64..200)).prop_map(|(value, ttl_ms)| {
            Action::Put { value: value.into(), ttl_ms }
        }),
        2 => Just(Action::Delete),
        3 => (-3i64..4).prop_map(|delta| Action::Increment { delta }),
        1 => prop::option::weighted(0.7, 1u64..200).prop_map(|ttl_ms| Action::Expire { ttl_ms }),
    ];
    let condition = prop::option::weighted(
        0.4,
        prop_oneof![
            Just(Condition::IfAbsent),
            Just(Condition::IfPresent),
            // Versions as they are given out: some will match.
            (0u64..150, 0u64..3).prop_map(|(millis, counter)| {
                Condition::IfVersion(Version::from_millis(START_MS + millis).plus(counter))
            }),
            value.prop_map(|value| Condition::IfValue(value.into())),
        ],
    );
    (key, action, condition, any::<bool>()).prop_map(|(key, action, condition, return_previous)| {
        Operation { condition, return_previous, ..action.on(key) }
    })
}

/// Limits that a short history goes beyond.
pub fn any_limits() -> impl Strategy<Value = HistoryLimits> {
    (50u64..2000, 300u64..20_000)
        .prop_map(|(max_age_ms, max_bytes)| HistoryLimits { max_age_ms, max_bytes })
}

pub fn any_history() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (any::<bool>(), any::<bool>(), prop::collection::vec(any_operation(), 1..4)).prop_map(
            |(is_atomic, is_tagged, mut operations)| {
                for (item, operation) in (0..).zip(&mut operations) {
                    operation.item = item;
                }
                Step::Write { is_atomic, is_tagged, operations }
            }
        ),
        2 => any::<prop::sample::Index>().prop_map(|which| Step::Retry { which }),
        2 => (0u64..80).prop_map(|millis| Step::Wait { millis }),
        1 => prop::collection::vec(prop::sample::select(vec!["b", "c", "d", "e", "z"]), 0..4)
            .prop_map(|keys| Step::Reclaim { keys: keys.into_iter().map(Bytes::from).collect() }),
        1 => prop::option::weighted(0.8, any_limits()).prop_map(|limits| Step::History { limits }),
        3 => Just(Step::EntryEnds),
    ];
    prop::collection::vec(step, 1..40)
}

/// The log of a history: entries of the commands between two ends.
pub fn log_of(history: &[Step]) -> (Log, Vec<Vec<EntryCommand>>) {
    let mut log = Log::new();
    let mut sent: Vec<Write> = Vec::new();
    let mut contents = vec![vec![]];
    let mut open: Vec<EntryCommand> = vec![];
    let mut revision = 0;
    for step in history {
        match step {
            Step::Write { is_atomic, is_tagged, operations } => {
                let mut new = write(operations.clone());
                new.atomic = *is_atomic;
                if *is_tagged {
                    new = tagged(sent.len() as u64, new);
                    sent.push(new.clone());
                }
                open.push(EntryCommand::Write(new));
            }
            Step::Retry { which } if !sent.is_empty() => {
                open.push(EntryCommand::Write(which.get(&sent).clone()));
            }
            Step::Retry { .. } => open.push(EntryCommand::AdvanceTime),
            Step::Wait { millis } => log.now_ms += millis,
            Step::Reclaim { keys } => open.push(EntryCommand::Reclaim(keys.clone())),
            Step::History { limits } => {
                revision += 1;
                open.push(EntryCommand::History(HistoryPolicy { revision, limits: *limits }));
            }
            Step::EntryEnds if open.is_empty() => {
                log.push_empty();
                contents.push(vec![]);
            }
            Step::EntryEnds => {
                log.push(&open);
                contents.push(std::mem::take(&mut open));
            }
        }
    }
    open.push(EntryCommand::AdvanceTime);
    log.push(&open);
    contents.push(open);
    contents.remove(0);
    (log, contents)
}
