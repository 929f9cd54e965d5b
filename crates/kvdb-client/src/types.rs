//! What goes into a call and what comes out of it.

use crate::reply::Reply;
use bytes::Bytes;
use kvdb_model::{Condition, NodeId, Previous, Version};
use kvdb_wire::proto;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// Linearizable: it sees every write that was acknowledged before it began.
    #[default]
    Strong,
    /// From any replica that is known to be fresh enough ([`ReadOptions::max_staleness_ms`]).
    Bounded,
    /// From any replica.
    Eventual,
}

impl Consistency {
    pub(crate) fn to_proto(self) -> i32 {
        match self {
            Consistency::Strong => proto::Consistency::Strong.into(),
            Consistency::Bounded => proto::Consistency::Bounded.into(),
            Consistency::Eventual => proto::Consistency::Eventual.into(),
        }
    }
}

/// How to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// How fresh.
    pub consistency: Consistency,
    /// Everything but the value.
    pub head_only: bool,
    /// Of a bounded read: how old the state may be that it is served from, in milliseconds; 1000
    /// if `None`. By clocks, so give or take what they differ.
    pub max_staleness_ms: Option<u64>,
    /// Of a bounded or eventual read: the state must have reached this version of the key's shard.
    /// With that of an own write the read sees that write.
    pub min_version: Version,
}

/// How to write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Milliseconds to live, for a put; for ever if `None`. 0 counts as `None`.
    pub ttl_ms: Option<u64>,
    /// When to apply it; always if `None`.
    pub condition: Option<Condition>,
    /// Whether the answer holds what was there before.
    pub return_previous: bool,
}

/// A key's value, and what is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The value; empty if only the head was asked for.
    pub value: Bytes,
    /// Its version.
    pub version: Version,
    /// When it expires, in milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
    /// The node that served the read.
    pub served_by: NodeId,
    /// The shard's time in the state that was read: every write up to it was seen.
    pub as_of: Version,
}

/// What became of a command that the cluster carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Executed {
    /// What it answers.
    pub reply: Reply,
    /// Of a command that may change something: the latest version that its keys have now. As [`ReadOptions::min_version`]
    /// it makes a read of the same shard see the change. Zero if the command only reads.
    pub version: Version,
    /// Of a command that only reads: a node that has served it.
    pub served_by: NodeId,
    /// The shard's time in the state that was read: every write up to it was seen. Of several shards the earliest.
    pub as_of: Version,
}

/// What became of a write that the cluster carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// False when its condition failed, or there was nothing to delete.
    pub applied: bool,
    /// The version of the key now: the new one if applied, else the one that is there (zero if the
    /// key is absent).
    pub version: Version,
    /// What was there before, where it was asked for and something was there.
    pub previous: Option<Previous>,
}

/// A counter after an increment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Its value.
    pub value: i64,
    /// Its version.
    pub version: Version,
}

/// One write of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchOperation {
    /// The key.
    pub key: Bytes,
    /// What to do with it.
    pub action: BatchAction,
    /// When to do it; always if `None`.
    pub condition: Option<Condition>,
    /// Whether the answer holds what was there before.
    pub return_previous: bool,
}

/// What an operation of a batch does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchAction {
    /// Sets the value.
    Put {
        /// The value.
        value: Bytes,
        /// Milliseconds to live; for ever if `None`.
        ttl_ms: Option<u64>,
    },
    /// Removes the key.
    Delete,
    /// Leaves the value and lets it live so long, or for ever.
    Expire {
        /// Milliseconds to live; for ever if `None`.
        ttl_ms: Option<u64>,
    },
}

impl BatchOperation {
    /// Sets `key` to `value`.
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        let action = BatchAction::Put { value: value.into(), ttl_ms: None };
        BatchOperation { key: key.into(), action, condition: None, return_previous: false }
    }

    /// Removes `key`.
    pub fn delete(key: impl Into<Bytes>) -> Self {
        BatchOperation {
            key: key.into(),
            action: BatchAction::Delete,
            condition: None,
            return_previous: false,
        }
    }

    pub(crate) fn to_proto(&self) -> proto::WriteOperation {
        use proto::write_operation::Action;
        let action = match &self.action {
            BatchAction::Put { value, ttl_ms } => Action::Put(proto::PutAction {
                value: value.clone(),
                ttl_ms: ttl_ms.unwrap_or_default(),
            }),
            BatchAction::Delete => Action::Delete(proto::DeleteAction {}),
            BatchAction::Expire { ttl_ms } => {
                Action::Expire(proto::ExpireAction { ttl_ms: ttl_ms.unwrap_or_default() })
            }
        };
        proto::WriteOperation {
            key: self.key.clone(),
            action: Some(action),
            condition: self.condition.as_ref().map(kvdb_wire::requests::condition_to),
            return_previous: self.return_previous,
        }
    }
}

/// What to scan. Without any bound: the whole keyspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions {
    /// Only keys that start with it; not together with `start` or `end`.
    pub prefix: Bytes,
    /// First key inside; empty for no bound.
    pub start: Bytes,
    /// First key after; empty for no bound.
    pub end: Bytes,
    /// At most so many items.
    pub limit: Option<u64>,
    /// From the last key to the first, in range keyspaces.
    pub reverse: bool,
    /// No values.
    pub keys_only: bool,
    /// Where an earlier scan with the same bounds ended ([`crate::Scan::cursor`]); empty = from the
    /// beginning.
    pub cursor: Bytes,
}

/// One item of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The key.
    pub key: Bytes,
    /// The value; empty if only keys were asked for.
    pub value: Bytes,
    /// Its version.
    pub version: Version,
    /// When it expires, in milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
    /// What the key holds where it isn't a string, as `hash`; its content isn't in `value` then.
    pub kind: Option<String>,
}

/// The type of what a key holds, unless it is a string.
pub(crate) fn kind_from(kind: String) -> Option<String> {
    Some(kind).filter(|kind| !kind.is_empty())
}

pub(crate) fn expiry_from(expires_at_ms: u64) -> Option<u64> {
    (expires_at_ms != 0).then_some(expires_at_ms)
}

pub(crate) fn previous_from(previous: proto::Previous) -> Previous {
    Previous {
        value: previous.value,
        version: Version(previous.version),
        expires_at_ms: previous.expires_at_ms,
    }
}
