//! What a command asks of the cluster, and how its answer is made of theirs.

use crate::reply::Reply;
use bytes::Bytes;
use kvdb_model::{Condition, Previous, Refusal, StringAction, WriteResult, wrong_value};

/// One key, and what is wanted of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The user key.
    pub key: Bytes,
    /// What is wanted.
    pub wish: Wish,
}

/// What is wanted of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Its value, or (`head_only`) version and expiry alone. The answer is
    /// [`WriteResult::previous`].
    Read {
        /// Leave the value out.
        head_only: bool,
    },
    /// A change, or a look at it that must keep its place among changes.
    Write {
        /// What to do.
        action: StringAction,
        /// When to do it.
        condition: Option<Condition>,
        /// Whether the answer holds what was there before.
        return_previous: bool,
    },
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
    pub fn read(
        key: Bytes,
        finish: impl FnOnce(Option<Previous>, u64) -> Reply + Send + 'static,
    ) -> Self {
        Self::one(read(key), |result, now| finish(result.previous.take(), now))
    }

    /// A plan of one change.
    pub fn write(
        key: Bytes,
        action: StringAction,
        finish: impl FnOnce(&mut WriteResult) -> Reply + Send + 'static,
    ) -> Self {
        Self::one(change(key, action), |result, _| finish(result))
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

    /// A plan that changes nothing: an error, unless the key isn't there, for which there is another
    /// answer.
    pub fn failing(key: Bytes, error: Reply, missing: Reply) -> Self {
        Self::one(look(key), |result, _| if result.applied { error } else { missing })
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

/// A step that reads.
pub fn read(key: Bytes) -> Step {
    Step { key, wish: Wish::Read { head_only: false } }
}

/// A step that looks whether a key is there, and until when.
pub fn look(key: Bytes) -> Step {
    Step { key, wish: Wish::Read { head_only: true } }
}

/// A step that changes, whatever is there.
pub fn change(key: Bytes, action: StringAction) -> Step {
    change_if(key, action, None, false)
}

/// A step that changes.
pub fn change_if(
    key: Bytes,
    action: StringAction,
    condition: Option<Condition>,
    return_previous: bool,
) -> Step {
    Step { key, wish: Wish::Write { action, condition, return_previous } }
}

fn left_out() -> Reply {
    Reply::error(
        "the command was carried out, but the value that it returns was lost on the way or is too large for an answer",
    )
}

/// A refusal in Redis's words, where it has any.
pub fn refused(refusal: &Refusal) -> Reply {
    match refusal {
        Refusal::WrongValue(why) => Reply::error(match *why {
            wrong_value::NOT_A_NUMBER => "value is not an integer or out of range",
            wrong_value::OVERFLOW => "increment or decrement would overflow",
            wrong_value::NOT_A_FLOAT => "value is not a valid float",
            wrong_value::NOT_FINITE => "increment would produce NaN or Infinity",
            wrong_value::TOO_LONG => {
                "string exceeds maximum allowed size (proto-max-bulk-len)"
            }
            wrong_value::NO_SUCH_KEY => "no such key",
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
