//! The state machine of a shard: what committed entries do to the data, and what reads see.
//!
//! Everything that one replica is lives in one volume of the engine (`layout`): the data under
//! routing keys, and beside it the replica's own records: applied index, shard time, descriptor,
//! the request window. A run of entries becomes **one** engine batch that holds both, so a crash
//! keeps either all of it or nothing, and replaying the log from the applied index in the volume
//! leads to the same bytes on every replica.
//!
//! Rules:
//! - Apply reads no clock. *Shard time* is the highest version applied; a record has expired if
//!   its time is at or below that.
//! - A write takes effect only if its range epoch is the shard's and its key lies in the range, as
//!   of the entry that carries it.
//! - A write with a request id takes effect once (`sessions`).
//! - A record carries a checksum over key and content: damage is found before it is served.
//!
//! Reading order: [`Shard`] for what a replica is, [`command`] for what a command is, its families
//! ([`keys`], [`string`], [`bits`], [`hash`], [`set`], [`zset`], [`geo`], [`hyperloglog`]), [`Tx`] for what it sees, `apply` for the way of an entry, `sessions` for retries, [`View`] for reads, `snapshot` for how a shard
//! travels, `split` for how it becomes two, [`Measure`] for where, [`Recent`] for what watchers are
//! told, `history` for what they are told of the past. Left out: who may propose, and when a read may
//! be served (`kvdb-replication`); when a volume is flushed or deleted (the runtime). The
//! coordinators' state machine plugs in as
//! a [`Machine`].

mod answers;
mod apply;
pub mod bits;
mod changes;
mod collection;
pub mod command;
mod deadlines;
pub mod geo;
pub mod hash;
mod history;
pub mod hyperloglog;
pub mod keys;
mod layout;
pub mod list;
mod machine;
mod measure;
mod membership;
mod order;
mod overlay;
mod read;
mod recent;
mod record;
mod seal;
mod sessions;
pub mod set;
mod shard;
mod snapshot;
mod split;
pub mod string;
mod tx;
mod unordered;
pub mod zset;

pub use apply::{Applied, ApplyError, CommandOutcome, EntryOutcome};
pub use changes::Direction;
pub use command::{Command, Effect, check, effect_of};
pub use deadlines::FREED_MOST;
pub use machine::{ControlOutcome, Machine, NoControl};
pub use measure::Measure;
pub use membership::MembershipChange;
pub use order::{End, Order};
pub use overlay::on_nothing;
pub use read::{
    GarbagePage, ReadError, ReadResult, ScanPage, ScanRequest, ScannedItem, StateCache, SweepPage,
    View, get, scan,
};
pub use recent::{
    ChangeEvent, ChangePage, ElementChanges, EpochOver, NAMED_BYTES, NAMED_MOST, Recent, WatchQuery,
};
pub use record::{ElementTimes, Record, RecordDamage, Type};
pub use sessions::check_request;
pub use shard::{OpenError, Shard};
pub use snapshot::{ChunkReader, SnapshotError, SnapshotWriter, digest};
pub use split::{Born, is_in, left_behind, replicas_in};
pub use tx::{Collection, Tx};
