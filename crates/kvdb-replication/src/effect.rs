//! What a host wants done.

use crate::input::Rejection;
use bytes::Bytes;
use kvdb_model::{
    LogEntry, LogIndex, LogPosition, MembershipEpoch, NodeId, ReplicaId, ShardDescriptor, ShardId,
    Term, VolumeId, WalRecord,
};
use raft::eraftpb::Message;

/// A Raft message with the shard that it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerMessage {
    /// The shard.
    pub shard: ShardId,
    /// The message; `from` and `to` are replica ids.
    pub message: Message,
}

/// Records for the log, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct PersistBatch {
    /// Answer with [`crate::Input::Persisted`] once this batch and all before it are durable.
    pub number: u64,
    /// What to append.
    pub records: Vec<WalRecord>,
}

/// A committed entry with the tickets of the commands in it (none, unless this host proposed it).
#[derive(Debug)]
pub struct CommittedEntry<T> {
    /// The entry.
    pub entry: LogEntry,
    /// One a command, in order, or none at all.
    pub tickets: Vec<T>,
}

/// Work for the apply thread. Tasks must be carried out in the order in which they come.
#[derive(Debug)]
pub enum ApplyTask<T> {
    /// A new replica lives in `volume`.
    Open {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
        /// Its volume: empty, or that of the parent if a split has left its state there.
        volume: VolumeId,
        /// The encoded descriptor that it is born with.
        birth: Bytes,
        /// Where its log starts.
        start: LogPosition,
    },
    /// Entries were committed: apply them, then answer with [`crate::Input::Applied`].
    Entries {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
        /// In order, without gaps.
        entries: Vec<CommittedEntry<T>>,
    },
    /// A snapshot took the place of all state: continue in `volume`; `old` can be deleted.
    /// Answer with [`crate::Input::Applied`].
    Switch {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
        /// The ingested snapshot.
        volume: VolumeId,
        /// What it holds.
        position: LogPosition,
        /// Where the replica lived before, if anywhere.
        old: Option<VolumeId>,
    },
    /// The replica is gone for good, its tombstone is durable: forget it and delete its volume.
    Close {
        /// The shard.
        shard: ShardId,
        /// The replica.
        replica: ReplicaId,
        /// Its volume, if it had one.
        volume: Option<VolumeId>,
    },
}

/// What a replica is in its group at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaRole {
    /// It leads.
    Leader,
    /// It follows, or stands for election.
    Follower,
}

/// Why an offered snapshot isn't wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotRefusal {
    /// The receiver was destroyed, or is not the one that lives here.
    WrongReplica,
    /// Its range overlaps that of another shard's replica here.
    Overlaps(ShardId),
    /// Another one is being received.
    Busy,
}

/// Why a replica can't go on as another one, alone in its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CantGoOn {
    /// It isn't here, or another one is.
    #[error("the replica is not on this node any more")]
    NotHere,
    /// It has no state: its engine is lost, or its first snapshot hasn't come.
    #[error("the replica has no state of its own: its files are lost, or it waits for a snapshot")]
    WithoutState,
    /// The shard has a leader.
    #[error("the replica hears a leader of the shard: its majority lives")]
    HasLeader,
    /// Its log or its state has changed meanwhile, or is changing.
    #[error("the replica's log has changed meanwhile")]
    Changing,
    /// The new replica is or was here.
    #[error("the id of the new replica was used before")]
    Used,
}

/// The log of a replica from some position on, as it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct LogTail {
    /// In order, without gaps.
    pub entries: Vec<LogEntry>,
    /// Where the log ends.
    pub end: LogPosition,
}

/// Something to be done by whoever drives the host.
#[derive(Debug)]
pub enum Effect<T> {
    /// Make these records durable.
    Persist(PersistBatch),
    /// Send to another node. Messages may get lost.
    Send {
        /// The node.
        to: NodeId,
        /// Messages of any groups, in order.
        messages: Vec<PeerMessage>,
    },
    /// Work for the apply thread.
    Apply(ApplyTask<T>),
    /// These reads may be served from the shard's present applied state.
    ReadReady {
        /// The shard.
        shard: ShardId,
        /// Who waits.
        tickets: Vec<T>,
    },
    /// Something was not carried out.
    Refused {
        /// The shard.
        shard: ShardId,
        /// Who waits.
        ticket: T,
        /// Why.
        why: Rejection,
    },
    /// Role, term or leader of a replica changed.
    RoleChanged(GroupStatus),
    /// A leader's group will never again need an older configuration than the applied one: others
    /// may hear of its members, and removed replicas may go.
    Settled {
        /// The shard.
        shard: ShardId,
        /// The leader.
        replica: ReplicaId,
        /// It leads in this term.
        term: Term,
        /// The epoch of the members.
        membership_epoch: MembershipEpoch,
    },
    /// Take a snapshot of the applied state, then answer with [`crate::Input::SnapshotTaken`]. It
    /// may never be streamed: it can go when a later one is taken for the same receiver, or when
    /// the replica no longer leads.
    TakeSnapshot {
        /// The shard.
        shard: ShardId,
        /// For whom.
        to: ReplicaId,
    },
    /// Stream the snapshot that was taken for this replica, then answer with
    /// [`crate::Input::SnapshotSent`].
    StreamSnapshot {
        /// The shard.
        shard: ShardId,
        /// The node to stream to.
        to_node: NodeId,
        /// The message that it goes with.
        message: Message,
    },
    /// The answer to an offer.
    SnapshotAnswer {
        /// The caller's name for the offer.
        offer: u64,
        /// Whether it is wanted.
        answer: Result<(), SnapshotRefusal>,
    },
    /// An ingested snapshot wasn't needed: delete its volume.
    DropVolume(VolumeId),
    /// A replica has lost what it had acknowledged. Its process must end before anything else that it
    /// wants sent is sent.
    PromiseLost(PromiseLost),
}

/// The log of a replica ends before what its leader has heard it acknowledge: synced bytes are lost, or
/// an older copy of the data directory was put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the log of replica {replica} of shard {shard} ends at {ends_at}, and its leader has heard it acknowledge \
     {acknowledged}: synced bytes are lost, or an older copy of the data directory was put back. This node must not \
     take part. Start it with its newest directory; if that is lost, `kvdb admin replace NODE` and start a new node \
     with an empty directory"
)]
pub struct PromiseLost {
    /// The shard.
    pub shard: ShardId,
    /// The replica.
    pub replica: ReplicaId,
    /// Where its log ends.
    pub ends_at: LogIndex,
    /// What it has acknowledged.
    pub acknowledged: LogIndex,
}

/// How a group is doing, as one replica sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// The shard.
    pub shard: ShardId,
    /// The replica here.
    pub replica: ReplicaId,
    /// What it is.
    pub role: ReplicaRole,
    /// In which term.
    pub term: Term,
    /// The node of the leader, where known.
    pub leader: Option<NodeId>,
    /// The last entry in the log.
    pub last_index: LogIndex,
    /// The highest entry known to be committed.
    pub committed: LogIndex,
    /// The last entry applied.
    pub applied: LogIndex,
    /// The term of the last entry in the log.
    pub last_term: Term,
    /// Its state is lost, or hasn't come yet.
    pub awaits_snapshot: bool,
    /// Nothing has happened for a while, and nobody counts on hearing of it.
    pub is_hibernating: bool,
    /// The descriptor as of `applied`; `None` while it waits for its first snapshot.
    pub descriptor: Option<ShardDescriptor>,
    /// As a leader: how far each replica is, itself included.
    pub progress: Vec<ReplicaProgress>,
}

/// How far a replica is, as its leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaProgress {
    /// The replica.
    pub replica: ReplicaId,
    /// The last entry that it is known to have.
    pub matched: LogIndex,
    /// It has answered lately.
    pub is_active: bool,
}

impl GroupStatus {
    /// Whether a replica has nearly all of the log: what it lacks comes in a moment.
    pub fn has_caught_up(&self, replica: ReplicaId) -> bool {
        self.progress.iter().any(|progress| {
            progress.replica == replica
                && progress.is_active
                // One that has answered nothing yet has nothing, however short the log is.
                && progress.matched > LogIndex(0)
                && progress.matched.0 + CATCH_UP_ENTRIES >= self.committed.0
        })
    }
}

/// What a replica may lack and still count as caught up.
const CATCH_UP_ENTRIES: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_has_answered_nothing_has_not_caught_up() {
        let progress = |matched| ReplicaProgress {
            replica: ReplicaId(4),
            matched: LogIndex(matched),
            is_active: true,
        };
        let status = |matched| GroupStatus {
            shard: ShardId(0),
            replica: ReplicaId(1),
            role: ReplicaRole::Leader,
            term: Term(6),
            leader: None,
            last_index: LogIndex(64),
            committed: LogIndex(64),
            applied: LogIndex(64),
            last_term: Term(6),
            awaits_snapshot: false,
            is_hibernating: false,
            descriptor: None,
            progress: vec![progress(matched)],
        };
        assert!(!status(0).has_caught_up(ReplicaId(4)));
        assert!(status(60).has_caught_up(ReplicaId(4)));
        assert!(!status(60).has_caught_up(ReplicaId(5)));
    }
}
