//! Why a request wasn't carried out, and what whoever asked should do next.

use crate::command::ValidUntil;
use crate::descriptor::ShardDescriptor;
use crate::id::{RangeEpoch, ShardId};
use crate::time::{ShardTimes, Utc};
use thiserror::Error;

/// What to do about a refusal. Decided once, here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryClass {
    /// Nothing was done: the same request may be sent to the same place again, after a pause.
    RetryHere,
    /// Nothing was done: the request belongs elsewhere; the refusal says where, if that is known.
    RetryElsewhere,
    /// It may have been done, or may yet be: retry only under the same request id.
    OutcomeUnknown,
    /// Nothing was done, and asking again won't change that.
    Final,
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// This replica doesn't lead the shard.
    #[error("{}", not_leader(*shard_id))]
    NotLeader {
        /// The shard.
        shard_id: ShardId,
        /// The leader's address, where known.
        leader_hint: Option<String>,
    },
    /// The node has no replica of the shard, or the key left it.
    #[error("shard {shard_id} is not here")]
    ShardMoved {
        /// The shard that was asked for.
        shard_id: ShardId,
        /// The address of a node that holds it now, where known.
        new_node_hint: Option<String>,
        /// What is known of who owns the range now.
        descriptors: Vec<ShardDescriptor>,
    },
    /// The request was routed by an older (or a newer) range of the shard.
    #[error("shard {shard_id} is at range epoch {current}")]
    StaleEpoch {
        /// The shard.
        shard_id: ShardId,
        /// Its range epoch.
        current: RangeEpoch,
        /// The current descriptors: both sides, after a split.
        descriptors: Vec<ShardDescriptor>,
    },
    /// The shard can't serve for now: no leader, or its state is being rebuilt.
    #[error("shard {shard_id} is unavailable: {reason}")]
    ShardUnavailable {
        /// The shard.
        shard_id: ShardId,
        /// Why.
        reason: &'static str,
    },
    /// The disks of the shard's nodes have no room for what was to be written.
    #[error(
        "there is no room on the disks of shard {shard_id}: writes are refused until there is; \
         reads go on, and deletes while the reserve lasts"
    )]
    DiskFull {
        /// The shard.
        shard_id: ShardId,
    },
    /// A queue on the way is full.
    #[error("overloaded: {what} is full; try again in {retry_after_ms} ms")]
    Overloaded {
        /// What is full.
        what: &'static str,
        /// When to come back.
        retry_after_ms: u64,
    },
    /// The request may have been carried out, or may yet be.
    #[error("the outcome of the request is unknown: {reason}")]
    OutcomeUnknown {
        /// What happened.
        reason: &'static str,
    },
    /// The deadline passed before the request was handed to a shard.
    #[error("the deadline passed before the request was carried out")]
    DeadlineExceeded,
    /// The same request id came before with another payload.
    #[error("request id {client_id}/{sequence} was used for another request")]
    RequestIdReused {
        /// The client.
        client_id: String,
        /// The sequence.
        sequence: u64,
    },
    /// The request's window has passed, or isn't there yet.
    #[error("request id {client_id}/{sequence} has expired: {}", why_expired(valid_until, shard))]
    RequestIdExpired {
        /// The client.
        client_id: String,
        /// The sequence.
        sequence: u64,
        /// Until when it says that it is valid.
        valid_until: ValidUntil,
        /// What the shard's clock says.
        shard: ShardTimes,
    },
    /// A client's own request id is valid for longer than may be asked for.
    #[error("request_id.valid_until_ms {}", why_too_far_ahead(*valid_until_ms, shard))]
    RequestIdTooFarAhead {
        /// Until when it says that it is valid.
        valid_until_ms: u64,
        /// What the shard's clock says.
        shard: ShardTimes,
    },
    /// A field is not acceptable.
    #[error("{field} {problem}")]
    InvalidArgument {
        /// The field.
        field: &'static str,
        /// What is wrong with it, with the limit or the accepted values.
        problem: String,
    },
    /// No keyspace has this name.
    #[error("keyspace `{name}` does not exist; `kvdb admin keyspaces` lists those that do")]
    UnknownKeyspace {
        /// The name.
        name: String,
    },
    /// The keys of an atomic batch are on several shards.
    #[error(
        "the keys of an atomic batch must be on one shard; these are on shards {}",
        list(shards)
    )]
    CrossShard {
        /// The shards, in order.
        shards: Vec<ShardId>,
    },
    /// A value isn't what the operation needs (a counter that isn't a number, an overflow).
    #[error("{0}")]
    WrongValue(&'static str),
    /// The message is larger than a server reads.
    #[error("a request may have at most {limit_bytes} bytes; send less at a time")]
    RequestTooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// The answer of a batch is as large as a message may be; this part of it didn't fit.
    #[error("the answers of a batch take at most {limit_bytes} bytes; ask again for this one")]
    ResponseTooLarge {
        /// Bytes of values that there is room for.
        limit_bytes: u64,
    },
    /// No shards exist yet.
    #[error("the cluster has no shards yet; `kvdb admin init-shards --shards N` makes them")]
    NotInitialised,
}

/// Shards by number, the first ten.
fn not_leader(shard: ShardId) -> String {
    match shard {
        ShardId::CONTROL => "this coordinator does not lead the coordinators".to_owned(),
        _ => format!("this replica of shard {shard} is not its leader"),
    }
}

fn list(shards: &[ShardId]) -> String {
    const MOST: usize = 10;
    let ids: Vec<String> = shards.iter().take(MOST).map(ShardId::to_string).collect();
    let more = shards.len().saturating_sub(MOST);
    match more {
        0 => ids.join(", "),
        more => format!("{} and {more} more", ids.join(", ")),
    }
}

fn why_expired(valid_until: &ValidUntil, shard: &ShardTimes) -> String {
    match valid_until {
        ValidUntil::Time(ms) if *ms <= shard.time_ms => format!(
            "it was valid until {}, and by the shard's clock it is {}",
            Utc(*ms),
            Utc(shard.time_ms)
        ),
        ValidUntil::Age(ms) if *ms <= shard.age_ms => {
            format!("it was valid for {} ms less than the shard's clock says", shard.age_ms - ms)
        }
        _ => "its client has said that it needs no answer any more".to_owned(),
    }
}

fn why_too_far_ahead(valid_until_ms: u64, shard: &ShardTimes) -> String {
    format!(
        "is {}, more than 10 minutes ahead: by the shard's clock it is {}",
        Utc(valid_until_ms),
        Utc(shard.time_ms)
    )
}

impl Refusal {
    /// The field that [`Refusal::RequestIdTooFarAhead`] is about.
    pub const VALID_UNTIL: &'static str = "request_id.valid_until_ms";

    /// A bad field.
    pub fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Refusal::InvalidArgument { field, problem: problem.into() }
    }

    /// The stable name of the refusal: the `x-error-code` trailer.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::NotLeader { .. } => "NOT_LEADER",
            Refusal::ShardMoved { .. } => "SHARD_MOVED",
            Refusal::StaleEpoch { .. } => "STALE_EPOCH",
            Refusal::ShardUnavailable { .. } => "SHARD_UNAVAILABLE",
            Refusal::DiskFull { .. } => "DISK_FULL",
            Refusal::Overloaded { .. } => "OVERLOADED",
            Refusal::OutcomeUnknown { .. } => "OUTCOME_UNKNOWN",
            Refusal::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Refusal::RequestIdReused { .. } => "REQUEST_ID_REUSED",
            Refusal::RequestIdExpired { .. } => "REQUEST_ID_EXPIRED",
            Refusal::InvalidArgument { .. } | Refusal::RequestIdTooFarAhead { .. } => {
                "INVALID_ARGUMENT"
            }
            Refusal::UnknownKeyspace { .. } => "UNKNOWN_KEYSPACE",
            Refusal::CrossShard { .. } => "CROSS_SHARD",
            Refusal::WrongValue(_) => "WRONG_VALUE",
            Refusal::RequestTooLarge { .. } => "REQUEST_TOO_LARGE",
            Refusal::ResponseTooLarge { .. } => "RESPONSE_TOO_LARGE",
            Refusal::NotInitialised => "NOT_INITIALISED",
        }
    }

    /// What the shard's clock says, if a client's own request id was refused because it was stamped by
    /// another one. Nothing was done: stamped anew, from this time, it may be sent again.
    pub fn stamp_from(&self) -> Option<u64> {
        match self {
            // One whose answer is no longer needed wasn't refused for its time.
            Refusal::RequestIdExpired {
                valid_until: ValidUntil::Time(until_ms), shard, ..
            } => (*until_ms <= shard.time_ms).then_some(shard.time_ms),
            Refusal::RequestIdTooFarAhead { shard, .. } => Some(shard.time_ms),
            _ => None,
        }
    }

    /// The shard that the refusal is about.
    pub fn shard_id(&self) -> Option<ShardId> {
        match self {
            Refusal::NotLeader { shard_id, .. }
            | Refusal::ShardMoved { shard_id, .. }
            | Refusal::StaleEpoch { shard_id, .. }
            | Refusal::ShardUnavailable { shard_id, .. }
            | Refusal::DiskFull { shard_id } => Some(*shard_id),
            _ => None,
        }
    }

    /// What to do about it.
    pub fn class(&self) -> RetryClass {
        match self {
            Refusal::NotLeader { .. } | Refusal::ShardMoved { .. } | Refusal::StaleEpoch { .. } => {
                RetryClass::RetryElsewhere
            }
            Refusal::ShardUnavailable { .. } | Refusal::Overloaded { .. } => RetryClass::RetryHere,
            Refusal::OutcomeUnknown { .. } => RetryClass::OutcomeUnknown,
            _ => RetryClass::Final,
        }
    }
}
