//! A shard goes on from one replica: its state, with all of its log applied, as that of a new one.
//!
//! The majority is lost, so nobody can say which entries at the end of the survivor's log were
//! committed. All of them are applied: what was acknowledged may be among them, and what wasn't
//! has an outcome that nobody was told, but for entries that a lost leader had replaced already.
//!
//! The copy lives in a volume of its own, under the new replica's id, and is durable when
//! [`copy_alone`] returns; nothing of the survivor is touched. It only counts once the host has
//! taken it ([`kvdb_replication::Input::RecoverUnsafely`]).
//!
//! Membership changes in that log aren't carried out any more: the shard has one replica now. Nor
//! are splits: the survivor keeps the whole range, and what was written to it after the split.

use kvdb_engine::{Engine, EngineError};
use kvdb_model::{
    EntryCommand, EntryKind, EntryPayload, LogEntry, RangeEpoch, RecoveryPlan, ShardDescriptor,
    VolumeId,
};
use kvdb_replication::{LogTail, UnsafeRecovery};
use kvdb_store::{ApplyError, Machine, OpenError, Shard, SnapshotWriter};
use std::sync::Arc;
use thiserror::Error;

/// Why there is no copy. Nothing was changed, but for a volume that nobody names.
#[derive(Debug, Error)]
pub enum UnsafeRecoveryError {
    /// The survivor hasn't heard of a split.
    #[error(
        "the replica is at range epoch {has}, but the shard has been at {least}: it was split since, \
         and what this replica holds belongs to two shards. Go on from another replica"
    )]
    BeforeSplit {
        /// The survivor's.
        has: RangeEpoch,
        /// What the map knows.
        least: RangeEpoch,
    },
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The copy.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The end of the log.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl UnsafeRecoveryError {
    /// Whether another try can't end otherwise.
    pub fn is_final(&self) -> bool {
        matches!(self, UnsafeRecoveryError::BeforeSplit { .. })
    }
}

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// For the host.
    pub unsafe_recovery: UnsafeRecovery,
    /// Entries that were applied though they aren't known to be committed.
    pub unconfirmed: u64,
}

/// Copies a replica's state and applies its log to the copy, durably.
///
/// # Errors
/// [`UnsafeRecoveryError`].
pub fn copy_alone<M: Machine>(
    engine: &Arc<dyn Engine>,
    survivor: &SnapshotWriter,
    tail: &LogTail,
    plan: &RecoveryPlan,
    volume: VolumeId,
    machine: M,
) -> Result<Copied, UnsafeRecoveryError> {
    let before = survivor.descriptor().clone();
    if before.range_epoch < plan.least_range_epoch {
        let (has, least) = (before.range_epoch, plan.least_range_epoch);
        return Err(UnsafeRecoveryError::BeforeSplit { has, least });
    }
    let replica = plan.replica.replica_id;
    engine.ingest_volume(volume, &mut survivor.items_for(replica))?;
    let none = bytes::Bytes::new();
    let mut shard =
        Shard::open(engine.clone(), replica, volume, &none, survivor.position(), machine)?;
    // First the members, so that the log changes none. The range epoch stays for as long as there
    // are writes to apply that were made under it.
    shard.redescribe(ShardDescriptor {
        membership_epoch: plan.membership_epoch,
        replicas: vec![plan.replica],
        ..before.clone()
    })?;
    for entry in &tail.entries {
        shard.apply(std::slice::from_ref(entry))?;
        if splits(entry, &before) {
            let after = shard.descriptor().clone();
            shard.redescribe(ShardDescriptor { range_epoch: after.range_epoch.next(), ..after })?;
        }
    }
    let range_epoch = plan.range_epoch.max(shard.descriptor().range_epoch.next());
    let descriptor = ShardDescriptor { range_epoch, ..shard.descriptor().clone() };
    shard.redescribe(descriptor.clone())?;
    let time = shard.time();
    engine.flush(volume)?;
    let unsafe_recovery = UnsafeRecovery {
        survivor: plan.survivor,
        log_end: tail.end,
        descriptor,
        volume,
        time,
        term: plan.term,
    };
    Ok(Copied { unsafe_recovery, unconfirmed: tail.entries.len() as u64 })
}

/// Whether an entry would have split the shard. (One that can't be read fails to apply.)
fn splits(entry: &LogEntry, shard: &ShardDescriptor) -> bool {
    if entry.kind != EntryKind::Normal || entry.data.is_empty() {
        return false;
    }
    let Ok(payload) = EntryPayload::decode(entry.data.clone()) else { return false };
    payload.commands.into_iter().any(|command| {
        matches!(EntryCommand::decode(command), Ok(EntryCommand::Split(plan)) if plan.apply_to(shard).is_some())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use kvdb_engine::MemoryEngine;
    use kvdb_model::log::INITIAL_POSITION;
    use kvdb_model::{
        KeyRange, KeyspaceId, LogIndex, LogPosition, MembershipEpoch, NodeId, Replica, ReplicaId,
        Role, ShardId, SplitPlan, Term, Version, Write,
    };
    use kvdb_store::keys::Expiry;
    use kvdb_store::string::Set;
    use kvdb_store::{Command as _, MembershipChange, NoControl, View};

    const OLD: ReplicaId = ReplicaId(11);
    const EPOCH: RangeEpoch = RangeEpoch(3);

    fn replica(node: u64) -> Replica {
        Replica { node_id: NodeId(node), replica_id: ReplicaId(10 + node), role: Role::Voter }
    }

    fn descriptor() -> ShardDescriptor {
        ShardDescriptor {
            shard_id: ShardId(4),
            keyspace_id: KeyspaceId(0),
            range: KeyRange::new("b", "y"),
            range_epoch: EPOCH,
            membership_epoch: MembershipEpoch(2),
            replicas: vec![replica(1), replica(2), replica(3)],
        }
    }

    fn entry(number: u64, kind: EntryKind, data: Bytes, context: Bytes) -> LogEntry {
        let index = LogIndex(INITIAL_POSITION.index.0 + number);
        LogEntry { index, term: Term(6), kind, data, context }
    }

    fn normal(number: u64, command: &EntryCommand) -> LogEntry {
        let payload = EntryPayload {
            version: Version::from_millis(1_000_000 + number),
            version_count: command.version_count(),
            jump_ms: 0,
            commands: vec![command.to_bytes()],
        };
        entry(number, EntryKind::Normal, payload.to_bytes(), Bytes::new())
    }

    fn put(number: u64, key: &'static str, epoch: RangeEpoch) -> LogEntry {
        let set = Set { value: Bytes::from_static(b"v"), expiry: Expiry::Never };
        let operation = set.on(Bytes::from_static(key.as_bytes()));
        let write = Write { epoch, atomic: false, request: None, operations: vec![operation] };
        normal(number, &EntryCommand::Write(write))
    }

    struct Survivor {
        engine: Arc<dyn Engine>,
        shard: Shard<NoControl>,
    }

    impl Survivor {
        /// A replica that has applied a write to `c`.
        fn new() -> Self {
            let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
            engine.create_volume(VolumeId(1)).expect("it is new");
            let birth = descriptor().to_bytes();
            let start = INITIAL_POSITION;
            let mut shard = Shard::open(engine.clone(), OLD, VolumeId(1), &birth, start, NoControl)
                .expect("it opens");
            shard.apply(&[put(1, "c", EPOCH)]).expect("it applies");
            Survivor { engine, shard }
        }

        fn copy(&self, entries: Vec<LogEntry>) -> Result<Copied, UnsafeRecoveryError> {
            let snapshot = self.shard.engine_snapshot().expect("it can be read");
            let writer = SnapshotWriter::new(snapshot, OLD).expect("it is there");
            let end = entries.last().map_or(self.shard.applied(), |last| LogPosition {
                index: last.index,
                term: last.term,
            });
            copy_alone(
                &self.engine,
                &writer,
                &LogTail { entries, end },
                &plan(),
                VolumeId(2),
                NoControl,
            )
        }

        fn has(&self, key: &str, epoch: RangeEpoch) -> bool {
            let snapshot = self.engine.snapshot(VolumeId(2)).expect("it is there");
            let view = View::new(&*snapshot, ReplicaId(77)).expect("the replica is there");
            view.get(epoch, key.as_bytes(), 0).expect("it is served").record.is_some()
        }
    }

    fn plan() -> RecoveryPlan {
        RecoveryPlan {
            survivor: OLD,
            replica: Replica { node_id: NodeId(1), replica_id: ReplicaId(77), role: Role::Voter },
            membership_epoch: MembershipEpoch(1000),
            range_epoch: RangeEpoch(2000),
            least_range_epoch: EPOCH,
            term: Term(50),
        }
    }

    #[test]
    fn what_was_written_under_the_old_epoch_is_in_the_copy() {
        let survivor = Survivor::new();
        let copied =
            survivor.copy(vec![put(2, "d", EPOCH), put(3, "e", EPOCH)]).expect("it can be");
        assert_eq!(copied.unconfirmed, 2);
        let descriptor = &copied.unsafe_recovery.descriptor;
        assert_eq!(descriptor.replicas, [plan().replica]);
        assert_eq!(descriptor.membership_epoch, MembershipEpoch(1000));
        assert_eq!(
            (descriptor.range_epoch, &descriptor.range),
            (RangeEpoch(2000), &super::tests::descriptor().range)
        );
        for key in ["c", "d", "e"] {
            assert!(survivor.has(key, RangeEpoch(2000)), "{key}");
        }
        // The survivor itself is as it was.
        assert_eq!(survivor.shard.descriptor(), &super::tests::descriptor());
        assert_eq!(survivor.shard.applied().index.0, INITIAL_POSITION.index.0 + 1);
    }

    #[test]
    fn the_end_of_the_log_changes_neither_members_nor_range() {
        let survivor = Survivor::new();
        let before = descriptor();
        let replicas = vec![replica(1), replica(2)];
        let change = MembershipChange { expected: before.membership_epoch, replicas };
        let plan = SplitPlan {
            at: Bytes::from_static(b"m"),
            child: ShardId(9),
            replicas: (1..=3)
                .map(|node| Replica { replica_id: ReplicaId(90 + node), ..replica(node) })
                .collect(),
            membership_epoch: before.membership_epoch,
        };
        let entries = vec![
            normal(2, &EntryCommand::Split(plan)),
            // Acknowledged by whoever had applied the split.
            put(3, "d", EPOCH.next()),
            entry(4, EntryKind::ConfChange, Bytes::new(), change.to_bytes(&before)),
        ];
        let copied = survivor.copy(entries).expect("it can be");
        assert_eq!(copied.unsafe_recovery.descriptor.replicas.len(), 1);
        assert_eq!(copied.unsafe_recovery.descriptor.range, before.range);
        assert!(survivor.has("d", RangeEpoch(2000)));
    }

    #[test]
    fn a_survivor_from_before_a_split_is_no_source() {
        let survivor = Survivor::new();
        let snapshot = survivor.shard.engine_snapshot().expect("it can be read");
        let writer = SnapshotWriter::new(snapshot, OLD).expect("it is there");
        let tail = LogTail { entries: vec![], end: survivor.shard.applied() };
        let plan = RecoveryPlan { least_range_epoch: EPOCH.next(), ..plan() };
        let copied = copy_alone(&survivor.engine, &writer, &tail, &plan, VolumeId(2), NoControl);
        let error = copied.expect_err("it must be refused");
        assert!(error.is_final(), "{error}");
        assert_eq!(survivor.engine.volumes(), [VolumeId(1)]);
    }
}
