//! What can happen to a host.

use crate::effect::PeerMessage;
use bytes::Bytes;
use kvdb_model::{
    LogIndex, LogPosition, NodeId, Replica, ReplicaId, ShardDescriptor, ShardId, Term, TimeMark,
    VolumeId,
};
use raft::eraftpb::Message;

/// The time of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Microseconds on a clock that never jumps and also counts suspended time
    /// (CLOCK_BOOTTIME). Leases are counted on it.
    pub boot_us: u64,
    /// Milliseconds since 1970 by the wall clock: one voice of several in cluster time, and no more.
    pub wall_ms: u64,
}

/// What a shard made of a membership entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfOutcome {
    /// The entry.
    pub index: LogIndex,
    /// The descriptor after it, or `None` if the shard refused the change (its epoch had passed).
    pub descriptor: Option<ShardDescriptor>,
}

/// The entry that has split a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitFrom {
    /// The parent after the split.
    pub parent: ShardDescriptor,
    /// The parent's replica here.
    pub replica: ReplicaId,
    /// The entry of the parent's log.
    pub index: LogIndex,
}

/// A replica's state and log, copied: what a new one begins with, alone in its shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsafeRecovery {
    /// Whose they were.
    pub survivor: ReplicaId,
    /// Where the survivor's log ended when it was copied.
    pub log_end: LogPosition,
    /// The shard from now on: the new replica is its only one, on this node.
    pub descriptor: ShardDescriptor,
    /// The copy, durable, with everything up to `log_end` applied.
    pub volume: VolumeId,
    /// How far time has come in it. What the lost replicas may have given out is below the shard time
    /// that the new one begins with.
    pub time: TimeMark,
    /// The new replica begins in a term above this one, and above the survivor's.
    pub term: Term,
}

/// An event for the host. `T` is the caller's ticket: handed back with the outcome of what it
/// accompanied, exactly once.
#[derive(Debug)]
pub enum Input<T> {
    /// [`crate::HostConfig::tick_ms`] have passed. Late ticks are dropped, never made up for.
    Tick,
    /// A message from another node.
    Message {
        /// The node that sent it, as its handshake proved.
        from_node: NodeId,
        /// The message.
        message: PeerMessage,
    },
    /// Replicate a command.
    Propose {
        /// The shard.
        shard: ShardId,
        /// An encoded [`kvdb_model::EntryCommand`].
        command: Bytes,
        /// Its [`kvdb_model::EntryCommand::version_count`].
        version_count: u64,
        /// Comes back in [`crate::ApplyTask::Entries`] or [`crate::Effect::Refused`].
        ticket: T,
    },
    /// Read linearizably.
    Read {
        /// The shard.
        shard: ShardId,
        /// Comes back in [`crate::Effect::ReadReady`] or [`crate::Effect::Refused`].
        ticket: T,
    },
    /// All batches up to this number are durable.
    Persisted(u64),
    /// Entries were applied.
    Applied {
        /// The shard.
        shard: ShardId,
        /// The replica; a report about one that is gone is ignored.
        replica: ReplicaId,
        /// The last entry applied.
        position: LogPosition,
        /// What became of the membership entries among them, in order.
        membership: Vec<ConfOutcome>,
    },
    /// The engine has made a replica's state durable up to an applied index.
    Flushed {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
        /// The applied index in the flushed state.
        applied: LogIndex,
    },
    /// First replicas of these new shards will be created here, in their turn. Until then, for a
    /// bounded time, what their leaders send is left unanswered: a replica that came to be by it
    /// would be one without a state, and ask for a snapshot of nothing.
    Expect {
        /// The shards.
        shards: Vec<ShardId>,
    },
    /// Start one of the first replicas of a new shard. Ignored if the replica, or a later one of
    /// the shard, is or was here.
    Create {
        /// The descriptor that the shard is born with; this node must be in it.
        descriptor: ShardDescriptor,
        /// A fresh, empty volume that exists durably.
        volume: VolumeId,
        /// Stand for election at once, so that the new shard needn't wait for a timeout.
        campaign: bool,
    },
    /// The shard has applied a split: the child's replica, whose state is in the parent's volume
    /// already, begins. Ignored if that replica has begun by other means; closed if it may not be
    /// here any more. It stands for election at once if the parent's replica leads.
    Split {
        /// Whence it comes; `None` if that isn't known any more (and its state is durable).
        from: Option<SplitFrom>,
        /// The child.
        child: ShardDescriptor,
        /// The volume that both share.
        volume: VolumeId,
        /// How far its time has come.
        time: TimeMark,
    },
    /// The shard has lost its majority for good: a replica ends, and a new one goes on alone from
    /// what it has left. Where that can't be (any more), the copy's volume is dropped.
    RecoverUnsafely(UnsafeRecovery),
    /// Remove a replica for good.
    Destroy {
        /// The shard.
        shard: ShardId,
        /// The replica; another one of the shard stays untouched.
        replica: ReplicaId,
    },
    /// Propose a step of a membership change. A step after which the leader wouldn't vote makes
    /// it hand over leadership instead, and is refused as [`Rejection::Unavailable`].
    ChangeMembership {
        /// The shard.
        shard: ShardId,
        /// All replicas after the step.
        replicas: Vec<Replica>,
        /// Goes into the entry's context for the shard to apply.
        context: Bytes,
        /// As with [`Input::Propose`].
        ticket: T,
    },
    /// Hand leadership over, to a given replica or to the one that is furthest.
    TransferLeader {
        /// The shard.
        shard: ShardId,
        /// To whom.
        to: Option<ReplicaId>,
    },
    /// Hand over the leadership of every group: the process is about to stop.
    TransferAll,
    /// A snapshot that [`crate::Effect::TakeSnapshot`] asked for exists. If none could be taken,
    /// report [`Input::SnapshotSent`] as not delivered, so that it is asked for again.
    SnapshotTaken {
        /// The shard.
        shard: ShardId,
        /// For whom.
        to: ReplicaId,
        /// What it holds.
        position: LogPosition,
        /// The descriptor in it.
        descriptor: ShardDescriptor,
    },
    /// A snapshot was delivered and ingested by the receiver, or not.
    SnapshotSent {
        /// The shard.
        shard: ShardId,
        /// To whom.
        to: ReplicaId,
        /// Whether it arrived.
        delivered: bool,
    },
    /// A peer wants to send a snapshot; answered by [`crate::Effect::SnapshotAnswer`].
    SnapshotOffered {
        /// The node that sends it.
        from_node: NodeId,
        /// The shard.
        shard: ShardId,
        /// The raft message that it goes with.
        message: Message,
        /// The descriptor in it.
        descriptor: ShardDescriptor,
        /// The caller's name for the offer.
        offer: u64,
    },
    /// An accepted snapshot was ingested, durably, into a fresh volume.
    SnapshotIngested {
        /// The node that sent it.
        from_node: NodeId,
        /// The shard.
        shard: ShardId,
        /// The raft message that it goes with.
        message: Message,
        /// The descriptor in it.
        descriptor: ShardDescriptor,
        /// How far time has come in it.
        time: TimeMark,
        /// Where it is.
        volume: VolumeId,
    },
    /// A peer's log has stalled lately, or not any more: leadership is handed to others first.
    PeerWary {
        /// The peer.
        node: NodeId,
        /// Whether it is so.
        wary: bool,
    },
    /// Messages to this node could not be delivered.
    PeerUnreachable(NodeId),
    /// What the wall clock of another node said when it sent its last message.
    PeerClock {
        /// The node.
        from_node: NodeId,
        /// Milliseconds since 1970.
        wall_ms: u64,
    },
    /// The coordinators say that cluster time is this now, in milliseconds since 1970.
    ClusterTime(u64),
}

/// Why the host didn't carry something out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// No replica of the shard is here.
    NoSuchShard,
    /// The replica doesn't lead; the leader's node, where known. Nothing was proposed.
    NotLeader(Option<NodeId>),
    /// Leadership is being handed over, another membership change isn't finished, or the leader
    /// can't take proposals yet. Nothing was proposed; try again.
    Unavailable,
    /// The membership change doesn't follow from the present members in one step: more than one
    /// voter without a joint configuration, no voter left, a voter made a learner while joint, or
    /// no change at all. Nothing was proposed.
    InvalidMembership,
    /// Too much is waiting already. Nothing was proposed.
    Overloaded,
    /// Another leader's entry was committed in the place of the proposal: it was not and won't be
    /// applied.
    Superseded,
    /// Leadership was lost with the proposal in the log: it may or may not take effect.
    OutcomeUnknown,
}
