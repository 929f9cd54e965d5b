//! What replication asks the write-ahead log to remember: entries, hard states and the life of
//! replicas. The log of a process is shared by all its replicas and keyed by replica id.

use crate::id::{LogIndex, ReplicaId, ShardId, Term, VolumeId};
use bytes::Bytes;

/// Where the log of a replica that was bootstrapped or born of a split starts: as if everything
/// up to this index, in this term, had been compacted. Above 1, so that an empty replica created
/// by a message can only ever be brought up by a snapshot.
pub const INITIAL_POSITION: LogPosition = LogPosition { index: LogIndex(5), term: Term(5) };

/// An index and the term of the entry there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogPosition {
    /// The index.
    pub index: LogIndex,
    /// The term of the entry at `index`.
    pub term: Term,
}

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// Commands (or nothing: the entry that a new leader starts its term with).
    Normal,
    /// A change of the group's members (raft's `ConfChangeV2`).
    ConfChange,
}

/// An entry of a Raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its place in the log.
    pub index: LogIndex,
    /// The term of the leader that proposed it.
    pub term: Term,
    /// What it is for.
    pub kind: EntryKind,
    /// The content: an [`crate::EntryPayload`] or a membership change.
    pub data: Bytes,
    /// What accompanies a membership change (the descriptor after it); else empty.
    pub context: Bytes,
}

/// What a Raft member must remember besides its log (the Raft paper, figure 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term seen.
    pub term: Term,
    /// Who got this member's vote in `term`; `ReplicaId(0)` for nobody.
    pub vote: ReplicaId,
    /// Highest index known to be committed. Needs no sync of its own.
    pub commit: LogIndex,
}

/// One thing that the log remembers. Records of one replica take effect in the order in which
/// they were appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalRecord {
    /// A replica begins its life. It must be the first record of its replica.
    Created {
        /// The replica.
        replica: ReplicaId,
        /// Its shard.
        shard: ShardId,
        /// Its volume; `None` for a replica that was created by a message and waits for its first
        /// snapshot (it has no state of its own yet).
        volume: Option<VolumeId>,
        /// Where its log starts; [`INITIAL_POSITION`], or zero without a volume.
        start: LogPosition,
        /// The encoded descriptor that it was born with; empty without a volume. Kept for as long
        /// as the replica lives, since the engine may lose what it hasn't flushed.
        birth: Bytes,
    },
    /// A split gives a replica its state. It creates the replica, or brings up one that was created
    /// by a message (whose hard state stays); one that has a log already stays as it is. Its log
    /// starts at [`INITIAL_POSITION`], its volume is the parent's.
    Split {
        /// The child's replica.
        replica: ReplicaId,
        /// The child.
        shard: ShardId,
        /// The parent's volume.
        volume: VolumeId,
        /// The encoded descriptor that the child was born with.
        birth: Bytes,
        /// The parent's replica here.
        parent: ReplicaId,
        /// The entry of the parent's log that split it: it is committed. A restart applies the
        /// parent's log up to it before the child starts.
        index: LogIndex,
    },
    /// Entries follow. An entry at an index that exists replaces it and all after it.
    Append {
        /// The replica.
        replica: ReplicaId,
        /// Consecutive entries, at least one.
        entries: Vec<LogEntry>,
    },
    /// The hard state is now this.
    HardState {
        /// The replica.
        replica: ReplicaId,
        /// The state.
        state: HardState,
    },
    /// Entries up to and including `through` are not needed any more.
    Compacted {
        /// The replica.
        replica: ReplicaId,
        /// The last entry that may go.
        through: LogPosition,
    },
    /// A snapshot was ingested: the replica now lives in `volume` and its log starts after
    /// `start`; all entries before this record are gone.
    VolumeSwitched {
        /// The replica.
        replica: ReplicaId,
        /// The fresh, synced volume.
        volume: VolumeId,
        /// Index and term that the snapshot holds.
        start: LogPosition,
    },
    /// The replica is gone for good. Kept forever as the shard's tombstone: no replica of this
    /// shard with this id or a lower one may exist here again.
    Destroyed {
        /// The replica.
        replica: ReplicaId,
        /// Its shard.
        shard: ShardId,
    },
}

impl WalRecord {
    /// The replica that this record is about.
    pub fn replica(&self) -> ReplicaId {
        match self {
            WalRecord::Created { replica, .. }
            | WalRecord::Split { replica, .. }
            | WalRecord::Append { replica, .. }
            | WalRecord::HardState { replica, .. }
            | WalRecord::Compacted { replica, .. }
            | WalRecord::VolumeSwitched { replica, .. }
            | WalRecord::Destroyed { replica, .. } => *replica,
        }
    }
}
