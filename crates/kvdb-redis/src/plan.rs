//! What a command asks of the cluster, and how its answer is made of theirs.

use crate::reply::Reply;
use bytes::Bytes;
use kvdb_model::{Body, Condition, Refusal, WriteResult, wrong_value};
use kvdb_store::Command;
use kvdb_store::keys::{Check, Look};
use kvdb_store::string::Get;

/// One command of a shard, on one key or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The user key.
    pub key: Bytes,
    /// The user keys that the command touches beside it.
    pub others: Vec<Bytes>,
    /// What to do.
    pub body: Body,
    /// When to do it.
    pub condition: Option<Condition>,
    /// Whether the answer holds what was there before.
    pub return_previous: bool,
}

impl Step {
    /// The same, with other keys.
    #[must_use]
    pub fn and(self, others: Vec<Bytes>) -> Self {
        Step { others, ..self }
    }

    /// Whether its failure calls the whole transaction off: a check alone, the others go on.
    pub fn is_required(&self) -> bool {
        Check::is(&self.body)
    }
}

/// Makes the answer; the second argument is the clock in milliseconds since 1970.
pub type Finish = Box<dyn FnOnce(&mut [WriteResult], u64) -> Reply + Send>;

/// A command's work on keys.
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
    /// All in one shard and at one moment, or not at all.
    pub atomic: bool,
    finish: Finish,
}

impl Plan {
    /// A plan of these steps.
    pub fn new(
        steps: Vec<Step>,
        finish: impl FnOnce(&mut [WriteResult], u64) -> Reply + Send + 'static,
    ) -> Self {
        Plan { steps, atomic: false, finish: Box::new(finish) }
    }

    /// The same, atomic.
    #[must_use]
    pub fn atomic(self) -> Self {
        Plan { atomic: true, ..self }
    }

    /// A plan of one read.
    pub fn read(key: Bytes, finish: impl FnOnce(Option<Bytes>) -> Reply + Send + 'static) -> Self {
        Self::one(read(key), |result, _| finish(value_of(result)))
    }

    /// A plan of one change.
    pub fn write(
        key: Bytes,
        command: &impl Command,
        finish: impl FnOnce(&mut WriteResult) -> Reply + Send + 'static,
    ) -> Self {
        Self::one(change(key, command), |result, _| finish(result))
    }

    /// A plan of one step.
    pub fn one(
        step: Step,
        finish: impl FnOnce(&mut WriteResult, u64) -> Reply + Send + 'static,
    ) -> Self {
        Self::new(vec![step], |results, now| match results {
            [result] => finish(result, now),
            _ => Reply::error("the command came to no result"),
        })
    }

    /// A plan of a step that changes nothing: an error, unless the key isn't there, for which there is
    /// another answer.
    pub fn failing(step: Step, error: Reply, missing: Reply) -> Self {
        Self::one(step, |result, _| if result.applied { error } else { missing })
    }

    /// The answer.
    pub fn finish(self, results: Vec<Result<WriteResult, Refusal>>, now_ms: u64) -> Reply {
        let mut found = Vec::with_capacity(results.len());
        for result in results {
            match result {
                Ok(result) if result.left_out => return left_out(),
                Ok(result) => found.push(result),
                Err(refusal) => return refused(&refusal),
            }
        }
        (self.finish)(&mut found, now_ms)
    }
}

/// A step that reads a string.
pub fn read(key: Bytes) -> Step {
    change(key, &Get { strings_only: false })
}

/// A step that looks whether a key is there, of which type, and until when.
pub fn look(key: Bytes) -> Step {
    change(key, &Look)
}

/// The string that a step has read.
pub(crate) fn value_of(result: &WriteResult) -> Option<Bytes> {
    result.reply.bytes().cloned()
}

/// A step of a command, whatever is there.
pub fn change(key: Bytes, command: &impl Command) -> Step {
    change_if(key, command, None, false)
}

/// A step of a command.
pub fn change_if(
    key: Bytes,
    command: &impl Command,
    condition: Option<Condition>,
    return_previous: bool,
) -> Step {
    Step { key, others: vec![], body: command.body(), condition, return_previous }
}

fn left_out() -> Reply {
    Reply::error(
        "the command was carried out, but the value that it returns was lost on the way or is too large for an answer",
    )
}

/// A refusal in Redis's words, where it has any.
pub fn refused(refusal: &Refusal) -> Reply {
    match refusal {
        Refusal::WrongValue(wrong_value::WRONG_TYPE) => Reply::Error(
            "WRONGTYPE Operation against a key holding the wrong kind of value".to_owned(),
        ),
        Refusal::WrongValue(wrong_value::NOT_A_HYPERLOGLOG) => Reply::Error(
            "WRONGTYPE Key is not a valid HyperLogLog string value.".to_owned(),
        ),
        Refusal::WrongValue(wrong_value::DAMAGED_HYPERLOGLOG) => {
            Reply::Error("INVALIDOBJ Corrupted HLL object detected".to_owned())
        }
        Refusal::WrongValue(why) => Reply::error(match *why {
            wrong_value::NOT_A_NUMBER => "value is not an integer or out of range",
            wrong_value::OVERFLOW => "increment or decrement would overflow",
            wrong_value::NOT_A_FLOAT => "value is not a valid float",
            wrong_value::NOT_FINITE => "increment would produce NaN or Infinity",
            wrong_value::TOO_LONG => {
                "string exceeds maximum allowed size (proto-max-bulk-len)"
            }
            wrong_value::NO_SUCH_KEY => "no such key",
            wrong_value::NOT_A_WEIGHT => "One or more scores can't be converted into double",
            wrong_value::NO_SUCH_PLACE => "index out of range",
            wrong_value::NO_SUCH_MEMBER => "could not decode requested zset member",
            wrong_value::NOT_A_SCORE => "resulting score is not a number (NaN)",
            wrong_value::FIELD_NOT_A_NUMBER => "hash value is not an integer",
            wrong_value::DELTA_NOT_FINITE => "value is NaN or Infinity",
            wrong_value::FIELD_NOT_A_FLOAT => "hash value is not a float",
            other => other,
        }),
        Refusal::CrossShard { .. } => Reply::Error(
            "CROSSSHARD the keys of this command or transaction are on several shards; give them one {hash tag}".to_owned(),
        ),
        Refusal::OutcomeUnknown { .. } => Reply::Error(format!(
            "OUTCOMEUNKNOWN {refusal}: look before trying again"
        )),
        Refusal::Overloaded { .. } => Reply::Error(format!("TRYAGAIN {refusal}")),
        // Redis's own word for a disk that it can't write to.
        Refusal::DiskFull { .. } => Reply::Error(format!("MISCONF {refusal}")),
        // It was dropped.
        Refusal::UnknownKeyspace { .. } => {
            Reply::error(format!("{refusal}; SELECT finds a new one"))
        }
        Refusal::InvalidArgument { .. } => Reply::error(refusal.to_string()),
        _ => Reply::Error(format!("CLUSTERDOWN {refusal}")),
    }
}
