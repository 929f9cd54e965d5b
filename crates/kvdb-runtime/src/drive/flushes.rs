//! Which applied index each flush has made durable.
//!
//! The engine counts batches (sequence numbers) a volume; the log is cut by applied index a
//! replica. The apply thread notes one against the other, the maintenance thread looks up what a
//! flush has covered.

use kvdb_engine::SequenceNumber;
use kvdb_model::{LogIndex, ReplicaId, ShardId, VolumeId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};

/// Notes of one replica beyond which neighbours are merged: the log is then cut a little later
/// than it could be.
const NOTES_PER_REPLICA: usize = 4096;

/// A batch of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    sequence: SequenceNumber,
    applied: LogIndex,
}

/// The durable applied index of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flushed {
    pub(crate) shard: ShardId,
    pub(crate) replica: ReplicaId,
    pub(crate) applied: LogIndex,
}

#[derive(Default)]
pub(crate) struct Flushes {
    notes: Mutex<BTreeMap<(VolumeId, ShardId, ReplicaId), VecDeque<Note>>>,
}

impl Flushes {
    /// A batch with `sequence` in `volume` holds a replica's state up to `applied`.
    pub(crate) fn note(
        &self,
        volume: VolumeId,
        shard: ShardId,
        replica: ReplicaId,
        sequence: SequenceNumber,
        applied: LogIndex,
    ) {
        let mut notes = self.notes.lock();
        let queue = notes.entry((volume, shard, replica)).or_default();
        if queue.len() >= NOTES_PER_REPLICA {
            let mut keep = false;
            queue.retain(|_| {
                keep = !keep;
                keep
            });
        }
        queue.push_back(Note { sequence, applied });
    }

    /// Volumes with notes that wait for a flush.
    pub(crate) fn volumes(&self) -> Vec<VolumeId> {
        let mut volumes: Vec<_> = self.notes.lock().keys().map(|(volume, ..)| *volume).collect();
        volumes.dedup();
        volumes
    }

    /// All batches of `volume` up to `through` are durable: what that means for its replicas.
    pub(crate) fn take(&self, volume: VolumeId, through: SequenceNumber) -> Vec<Flushed> {
        let mut notes = self.notes.lock();
        let range =
            (volume, ShardId(0), ReplicaId(0))..=(volume, ShardId(u64::MAX), ReplicaId(u64::MAX));
        let mut flushed = Vec::new();
        for ((_, shard, replica), queue) in notes.range_mut(range.clone()) {
            let mut applied = None;
            while queue.front().is_some_and(|note| note.sequence <= through) {
                applied = queue.pop_front().map(|note| note.applied);
            }
            if let Some(applied) = applied {
                flushed.push(Flushed { shard: *shard, replica: *replica, applied });
            }
        }
        notes.extract_if(range, |_, queue| queue.is_empty()).for_each(drop);
        flushed
    }

    /// The volume is gone.
    pub(crate) fn forget(&self, volume: VolumeId) {
        self.notes.lock().retain(|(of, ..), _| *of != volume);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId(3);
    const SHARD: ShardId = ShardId(1);
    const REPLICA: ReplicaId = ReplicaId(9);

    fn flushed(applied: u64) -> Flushed {
        Flushed { shard: SHARD, replica: REPLICA, applied: LogIndex(applied) }
    }

    #[test]
    fn a_flush_covers_the_last_batch_at_or_below_it() {
        let flushes = Flushes::default();
        for step in 1..=5 {
            flushes.note(VOLUME, SHARD, REPLICA, SequenceNumber(step * 10), LogIndex(step));
        }
        assert_eq!(flushes.take(VOLUME, SequenceNumber(35)), [flushed(3)]);
        assert_eq!(flushes.take(VOLUME, SequenceNumber(35)), []);
        assert_eq!(flushes.take(VOLUME, SequenceNumber(90)), [flushed(5)]);
        assert!(flushes.volumes().is_empty());
    }

    #[test]
    fn merged_notes_never_claim_more_than_was_flushed() {
        let flushes = Flushes::default();
        for step in 1..=(3 * NOTES_PER_REPLICA as u64) {
            flushes.note(VOLUME, SHARD, REPLICA, SequenceNumber(step), LogIndex(step));
        }
        let through = NOTES_PER_REPLICA as u64;
        let covered = flushes.take(VOLUME, SequenceNumber(through));
        assert!(covered.iter().all(|flushed| flushed.applied.0 <= through));
        assert!(!covered.is_empty());
    }
}
