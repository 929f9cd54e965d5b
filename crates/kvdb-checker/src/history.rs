//! What clients did and saw: the one thing that every checker reads.
//!
//! A history is a list of [`Operation`]s. Each was *called* at some time, and then one of these:
//!
//! - it **returned** with an [`Answer`]: it took effect once, between call and return;
//! - its outcome is **unknown** (a timeout, a lost connection, a client that crashed, or a test that
//!   ended first): it took effect once at any time after its call, be it much later, or never;
//! - it **failed**: it certainly didn't and won't take effect.
//!
//! Calling a failure what is unknown hides nothing and accuses falsely; calling unknown what has
//! failed is always sound and only weakens the check.
//!
//! Times are logical: any unit, any origin, one for the whole history. `a` came before `b` iff `a`
//! returned at a time *below* that of `b`'s call. What happens at equal times is concurrent, so a
//! recorder that knows the order of two events should give them different times.

use crate::data::Data;
use crate::watch::WatchRecord;
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// Names an operation within its history.
    OpId
);
number!(
    /// A client: something that has at most one operation under way whose outcome it waits for.
    ClientId
);
number!(
    /// A logical time. See the module.
    Time
);
number!(
    /// The version that a store gave to a write; only rises for a key. Used to find a witness
    /// quickly, never believed.
    Version
);
number!(
    /// An element of a set or a list. Elements are distinct: a workload draws each once.
    Element
);

/// The identity of a request that may be tried several times and must take effect once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// Who asks.
    pub client: u64,
    /// Which of its requests.
    pub sequence: u64,
}

/// When a write applies.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// The key doesn't exist.
    IfAbsent,
    /// The key exists.
    IfPresent,
    /// The key exists with this value.
    IfValue(Data),
}

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Call {
    /// Reads a key.
    Get {
        /// The key.
        key: Data,
    },
    /// Sets a key.
    Put {
        /// The key.
        key: Data,
        /// Its new value.
        value: Data,
        /// When to do it; always if `None`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        condition: Option<Condition>,
    },
    /// Removes a key. It *applies* only if the key is there.
    Delete {
        /// The key.
        key: Data,
        /// When to do it; always if `None`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        condition: Option<Condition>,
    },
    /// Adds to a counter that is kept as decimal text; an absent key counts as 0.
    Increment {
        /// The key.
        key: Data,
        /// What to add.
        delta: i64,
        /// When to do it; always if `None`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        condition: Option<Condition>,
    },
    /// Adds an element to a set.
    Add {
        /// The set.
        key: Data,
        /// The element, added by no other request.
        element: Element,
    },
    /// Reads all elements of a set.
    Members {
        /// The set.
        key: Data,
    },
    /// Appends to lists and reads them, all in one.
    Transaction {
        /// In order.
        steps: Vec<Step>,
    },
}

/// A part of a transaction on lists.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Appends an element.
    Append {
        /// The list.
        key: Data,
        /// The element, appended by no other request.
        element: Element,
    },
    /// Reads a whole list.
    Read {
        /// The list.
        key: Data,
    },
}

/// What was there before a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Previous {
    /// Nothing.
    Absent,
    /// This value.
    Value(Data),
}

/// What a write answered. What the client wasn't told, or didn't ask for, is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Whether the condition held, and for a delete also whether the key was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<bool>,
    /// What was there before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
    /// The new value of a counter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counter: Option<i64>,
    /// The version of the write, if it applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
}

/// What a client was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Of a get.
    Got {
        /// The value; `None` if the key was absent.
        #[serde(default)]
        value: Option<Data>,
        /// Its version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<Version>,
    },
    /// Of a put, delete or increment.
    Written(Written),
    /// Of an increment: what was there isn't a number, or the sum overflows. Nothing changed.
    WrongValue,
    /// Of an add, or of a transaction that reads nothing.
    Done,
    /// Of a read of a set.
    Members(Vec<Element>),
    /// Of a transaction: the lists that it read, one a read step, in their order.
    Lists(Vec<Vec<Element>>),
}

impl Answer {
    /// A get that found a value.
    pub fn found(value: impl Into<Data>) -> Self {
        Answer::Got { value: Some(value.into()), version: None }
    }

    /// A get that found nothing.
    pub fn absent() -> Self {
        Answer::Got { value: None, version: None }
    }

    /// A write that applied.
    pub fn applied() -> Self {
        Answer::Written(Written { applied: Some(true), ..Written::default() })
    }

    /// A write whose condition failed, or the delete of an absent key.
    pub fn not_applied() -> Self {
        Answer::Written(Written { applied: Some(false), ..Written::default() })
    }

    /// An increment that made the counter `value`.
    pub fn counter(value: i64) -> Self {
        Answer::Written(Written { applied: Some(true), counter: Some(value), ..Written::default() })
    }

    /// Whether this is an answer to such a call at all.
    pub fn fits(&self, call: &Call) -> bool {
        match (call, self) {
            (Call::Get { .. }, Answer::Got { .. })
            | (
                Call::Put { .. } | Call::Delete { .. } | Call::Increment { .. },
                Answer::Written(_),
            )
            | (Call::Increment { .. }, Answer::WrongValue)
            | (Call::Add { .. }, Answer::Done)
            | (Call::Members { .. }, Answer::Members(_)) => true,
            (Call::Transaction { steps }, Answer::Done) => reads(steps) == 0,
            (Call::Transaction { steps }, Answer::Lists(lists)) => reads(steps) == lists.len(),
            _ => false,
        }
    }
}

fn reads(steps: &[Step]) -> usize {
    steps.iter().filter(|step| matches!(step, Step::Read { .. })).count()
}

impl Call {
    /// A get.
    pub fn get(key: impl Into<Data>) -> Self {
        Call::Get { key: key.into() }
    }

    /// A put without a condition.
    pub fn put(key: impl Into<Data>, value: impl Into<Data>) -> Self {
        Call::Put { key: key.into(), value: value.into(), condition: None }
    }

    /// A put under a condition: compare and set.
    pub fn put_if(key: impl Into<Data>, value: impl Into<Data>, condition: Condition) -> Self {
        Call::Put { key: key.into(), value: value.into(), condition: Some(condition) }
    }

    /// A delete without a condition.
    pub fn delete(key: impl Into<Data>) -> Self {
        Call::Delete { key: key.into(), condition: None }
    }

    /// An increment without a condition.
    pub fn increment(key: impl Into<Data>, delta: i64) -> Self {
        Call::Increment { key: key.into(), delta, condition: None }
    }

    /// The key, if the call is one on a plain key: a get, put, delete or increment.
    pub fn register_key(&self) -> Option<&Data> {
        match self {
            Call::Get { key }
            | Call::Put { key, .. }
            | Call::Delete { key, .. }
            | Call::Increment { key, .. } => Some(key),
            _ => None,
        }
    }
}

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect and returned.
    Returned {
        /// When.
        time: Time,
        /// With what.
        answer: Answer,
    },
    /// It may take effect at any time after its call, or never.
    Unknown,
    /// It didn't and won't take effect.
    Failed,
}

/// One operation of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its name.
    pub id: OpId,
    /// Whose it is.
    pub client: ClientId,
    /// When it was called.
    pub called: Time,
    /// Under which identity, if it may be tried again. All operations with one identity are tries
    /// of one request: together they take effect at most once.
    pub request: Option<RequestId>,
    /// What was asked for.
    pub call: Call,
    /// How it ended.
    pub outcome: Outcome,
}

impl Operation {
    /// When it returned and with what, if it did.
    pub fn returned(&self) -> Option<(Time, &Answer)> {
        match &self.outcome {
            Outcome::Returned { time, answer } => Some((*time, answer)),
            _ => None,
        }
    }

    /// Whether it certainly never takes effect.
    pub fn has_failed(&self) -> bool {
        self.outcome == Outcome::Failed
    }
}

/// One line of a history, as it is recorded. The module [`crate::json`] shows how it is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// An operation begins.
    Call {
        /// Its name, new in this history.
        op: OpId,
        /// Whose it is.
        client: ClientId,
        /// Now.
        time: Time,
        /// Its identity, if it may be tried again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request: Option<RequestId>,
        /// What is asked for.
        #[serde(flatten)]
        call: Call,
    },
    /// An operation returns.
    Ok {
        /// Which.
        op: OpId,
        /// Now; not before its call.
        time: Time,
        /// With what.
        answer: Answer,
    },
    /// An operation's outcome isn't known. The same as no line at all.
    Unknown {
        /// Which.
        op: OpId,
    },
    /// An operation didn't and won't take effect.
    Fail {
        /// Which.
        op: OpId,
    },
    /// Something that a watch delivered.
    Watch(WatchRecord),
}

/// Why an event can't belong to the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EventError {
    /// The name was used before.
    #[error("operation {0} was called before; every operation has a name of its own")]
    CalledTwice(OpId),
    /// It ends without having begun.
    #[error("operation {0} ends, but was never called")]
    NeverCalled(OpId),
    /// It ends twice.
    #[error("operation {0} has ended before")]
    EndedTwice(OpId),
    /// Time runs backwards.
    #[error("operation {op} returns at {returned}, before its call at {called}")]
    ReturnsBeforeCall {
        /// Which.
        op: OpId,
        /// When it was called.
        called: Time,
        /// When it is said to return.
        returned: Time,
    },
    /// The answer is one to another kind of call.
    #[error("the answer of operation {0} doesn't fit what was asked")]
    AnswerDoesNotFit(OpId),
}

/// All that was done and seen.
#[derive(Clone, Debug, Default)]
pub struct History {
    operations: Vec<Operation>,
    watches: Vec<WatchRecord>,
    places: rustc_hash::FxHashMap<OpId, (usize, bool)>,
}

impl PartialEq for History {
    fn eq(&self, other: &Self) -> bool {
        self.operations == other.operations && self.watches == other.watches
    }
}

impl History {
    /// An empty history.
    pub fn new() -> Self {
        Self::default()
    }

    /// The operations, in the order of their calls' events.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// What watches delivered, in the order in which they did.
    pub fn watches(&self) -> &[WatchRecord] {
        &self.watches
    }

    /// Takes in the next event. Events of one operation, and those of one watch, must come in
    /// their order; otherwise any order will do.
    ///
    /// # Errors
    /// [`EventError`]; the history is as before.
    pub fn push(&mut self, event: Event) -> Result<(), EventError> {
        match event {
            Event::Call { op, client, time, request, call } => {
                let place = (self.operations.len(), false);
                if self.places.contains_key(&op) {
                    return Err(EventError::CalledTwice(op));
                }
                self.places.insert(op, place);
                self.operations.push(Operation {
                    id: op,
                    client,
                    called: time,
                    request,
                    call,
                    outcome: Outcome::Unknown,
                });
                Ok(())
            }
            Event::Ok { op, time, answer } => self.end(op, Outcome::Returned { time, answer }),
            Event::Unknown { op } => self.end(op, Outcome::Unknown),
            Event::Fail { op } => self.end(op, Outcome::Failed),
            Event::Watch(record) => {
                self.watches.push(record);
                Ok(())
            }
        }
    }

    fn end(&mut self, op: OpId, outcome: Outcome) -> Result<(), EventError> {
        let (place, ended) = self.places.get_mut(&op).ok_or(EventError::NeverCalled(op))?;
        let operation = &mut self.operations[*place];
        if *ended {
            return Err(EventError::EndedTwice(op));
        }
        if let Outcome::Returned { time, answer } = &outcome {
            if *time < operation.called {
                let (called, returned) = (operation.called, *time);
                return Err(EventError::ReturnsBeforeCall { op, called, returned });
            }
            if !answer.fits(&operation.call) {
                return Err(EventError::AnswerDoesNotFit(op));
            }
        }
        *ended = true;
        operation.outcome = outcome;
        Ok(())
    }

    /// The events that make up this history: operations by time (at equal times calls first), then
    /// what watches delivered.
    pub fn events(&self) -> Vec<Event> {
        let mut timed = Vec::with_capacity(self.operations.len() * 2);
        for operation in &self.operations {
            let Operation { id: op, client, called: time, request, call, outcome } =
                operation.clone();
            timed.push((time, 0, Event::Call { op, client, time, request, call }));
            timed.push(match outcome {
                Outcome::Returned { time, answer } => (time, 1, Event::Ok { op, time, answer }),
                Outcome::Unknown => (Time(u64::MAX), 2, Event::Unknown { op }),
                Outcome::Failed => (time, 1, Event::Fail { op }),
            });
        }
        timed.sort_by_key(|(time, rank, _)| (*time, *rank));
        let watched = self.watches.iter().cloned().map(Event::Watch);
        timed.into_iter().map(|(_, _, event)| event).chain(watched).collect()
    }
}
