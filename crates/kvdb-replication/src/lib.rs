//! The multi-raft host: many Raft groups, one per shard, driven as one pure state machine.
//!
//! ```text
//!            Input                              Effect
//!   tick, message, propose, read  ─┐      ┌─▶  Persist ─▶ (log thread) ─▶ Input::Persisted
//!   persisted, applied, flushed   ─┼▶ Host ─┼─▶  Send    ─▶ (network)
//!   snapshot taken / ingested     ─┘      ├─▶  Apply   ─▶ (apply thread) ─▶ Input::Applied
//!                                         └─▶  ReadReady, Refused, RoleChanged, Settled, snapshots
//! ```
//!
//! Consensus itself is the `raft` crate (TiKV's); what is ours is everything between it and the
//! world: packing proposals into entries and giving them versions, who waits for which entry,
//! when a message may leave, the read lease, the life of replicas, the way of a snapshot, and how
//! long a log is kept.
//!
//! # Rules that everything here follows
//!
//! 1. **Nothing is claimed before it is durable.** A ready's messages leave at once only from a
//!    leader (raft's own parallel-append argument) or when nothing of it needs a sync; otherwise
//!    they wait for [`Input::Persisted`]. The host alone decides that.
//! 2. **Waiters are known by index and term.** An entry that commits with another term at a
//!    waiter's index proves that the waiter's entry never will: that is a definite refusal. Those
//!    that are still waiting when leadership is lost get [`Rejection::OutcomeUnknown`]: at once if
//!    nobody took over, else after one election timeout, in which the next leader's entries mostly
//!    tell what became of theirs.
//! 3. **Time comes in.** [`Now`] accompanies every step. Followers count ticks and drop late ones;
//!    a leader's lease is counted on the boot-time clock from *before* the message that renewed it.
//!    Versions are made from shard time (`shard_time.rs`), which no wall clock decides.
//! 4. **The log is in memory too**, from the compaction point on: it is bounded by how far the
//!    flush lags and by [`HostConfig::log_retain_bytes`]. A follower that needs more gets a
//!    snapshot.
//! 5. **Idle groups hibernate.** They neither tick nor send heartbeats; hosts tell each other for all of
//!    them that they are alive. What is promised for a time is not shortened by it.
//!
//! The host neither blocks nor spawns, reads no clock and draws randomness only from its seed, so
//! the same inputs give the same effects, byte for byte.

#![expect(
    clippy::field_reassign_with_default,
    reason = "raft's generated types have private fields, which rules out struct literals elsewhere"
)]

mod config;
mod convert;
mod effect;
pub mod entry;
mod group;
mod host;
mod input;
mod lease;
mod liveness;
mod membership;
mod pending_votes;
mod permit;
mod proposals;
mod reads;
mod shard_time;
mod stall;
pub mod start;
pub mod starts;
mod store;

pub use config::{HostConfig, HostConfigError};
pub use effect::{
    ApplyTask, CantGoOn, CommittedEntry, Effect, GroupStatus, LogTail, PeerMessage, PersistBatch,
    PromiseLost, ReplicaProgress, ReplicaRole, SnapshotRefusal,
};
pub use group::RecoveredGroup;
pub use host::Host;
pub use input::{ConfOutcome, Input, Now, Rejection, SplitFrom, UnsafeRecovery};
pub use membership::conf_state_of;
pub use permit::ReadPermit;
pub use shard_time::ShardTime;

/// The wire form of a Raft message: protobuf, as the `raft` crate defines it.
pub mod message {
    use protobuf::Message as _;
    pub use raft::eraftpb::{Message, MessageType};

    /// The protobuf encoding.
    pub fn encode(message: &Message) -> Vec<u8> {
        // Writing to memory fails only for messages beyond 2 GiB, which the entry limits exclude.
        message.write_to_bytes().expect("a bounded message encodes")
    }

    /// Reads a message that a peer sent.
    ///
    /// # Errors
    /// If the bytes are not a message. Only feed it what an authenticated peer sent, bounded in
    /// size: the decoder has no recursion limit of its own, but these messages don't nest freely.
    pub fn decode(bytes: &bytes::Bytes) -> Result<Message, protobuf::ProtobufError> {
        let mut message = Message::default();
        let mut input = protobuf::CodedInputStream::from_carllerche_bytes(bytes);
        message.merge_from(&mut input)?;
        Ok(message)
    }
}
