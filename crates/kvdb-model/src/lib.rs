//! The vocabulary of KvDB: identifiers, routing keys, shard descriptors, the shard map and its
//! deltas, epochs, versions, commands, results, refusals and limits.
//!
//! Everything here is plain data with pure functions on it. There is no clock, file, socket,
//! thread or randomness in this crate, and nothing in it knows how the data travels (that is
//! `kvdb-wire`) or how it is kept (that is `kvdb-wal` and the engines).
//!
//! Reading order: [`id`], [`key`], [`descriptor`], [`map`] for what the cluster *is*;
//! [`version`], [`operation`], [`command`], [`refusal`] for what an operation does; [`task`] for how shards change; [`log`] for what replication
//! asks the write-ahead log to remember; [`codec`] for how small things become bytes.

pub mod codec;
pub mod command;
pub mod descriptor;
pub mod generation;
pub mod history;
pub mod id;
pub mod key;
pub mod limits;
pub mod log;
pub mod map;
pub mod operation;
pub mod planted;
pub mod refusal;
pub mod reply;
pub mod task;
pub mod time;
pub mod unavailable;
pub mod version;
pub mod wrong_value;

pub use command::{EntryCommand, EntryPayload, RequestTag, ValidUntil, Write};
pub use descriptor::{Replica, Role, ShardDescriptor};
pub use generation::{Generation, GenerationOrder, MOST_GENERATIONS};
pub use history::{HistoryLimits, HistoryPolicy};
pub use id::*;
pub use key::{KeyRange, Partitioning, SLOT_COUNT, slot_of};
pub use limits::Limits;
pub use log::{EntryKind, HardState, LogEntry, LogPosition, WalRecord};
pub use map::{
    DeltaGap, Keyspace, LAST_REDIS_DB, MapChange, MapDelta, NewKeyspace, NodeRecord, NodeStatus,
    ShardMap, ShardRecord, redis_db_named,
};
pub use operation::{
    Body, CommandId, Condition, Operation, OperationOutcome, Previous, WriteResult,
};
pub use refusal::{Refusal, RetryClass};
pub use reply::Reply;
pub use task::{RecoveryPlan, ShardTask, SplitPlan, Step, Work, next_step};
pub use time::{ClusterClock, ShardTimes, TimeMark};
pub use version::{HybridClock, Version};
