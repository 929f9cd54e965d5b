//! The log of one group, as raft reads it: everything from the compaction point on, in memory.
//!
//! Entries are put here when raft hands them out to be persisted, before they are durable; raft
//! itself keeps count of what is. Data is shared (`Bytes`), never copied.

use kvdb_model::{HardState, LogIndex, LogPosition, ReplicaId, Term};
use raft::eraftpb::{ConfState, Entry, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};

pub(crate) struct LogStore {
    start: LogPosition,
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Up to where entries were applied, and the bytes of those among the held ones.
    applied: LogIndex,
    applied_bytes: usize,
    hard_state: HardState,
    conf_state: ConfState,
    /// Snapshots that were taken, by receiver: what raft puts into its snapshot messages.
    snapshots: BTreeMap<u64, Snapshot>,
    /// Who needs a snapshot that wasn't taken yet, and up to what at least. Set by raft through
    /// `&self`.
    wanted: Cell<Option<(u64, u64)>>,
}

impl LogStore {
    pub(crate) fn new(
        start: LogPosition,
        entries: Vec<Entry>,
        hard_state: HardState,
        conf_state: ConfState,
    ) -> Self {
        let bytes = entries.iter().map(entry_bytes).sum();
        LogStore {
            start,
            entries: entries.into(),
            bytes,
            applied: start.index,
            applied_bytes: 0,
            hard_state,
            conf_state,
            snapshots: BTreeMap::new(),
            wanted: Cell::new(None),
        }
    }

    /// The entry after which the log starts.
    pub(crate) fn start(&self) -> LogPosition {
        self.start
    }

    pub(crate) fn hard_state(&self) -> HardState {
        self.hard_state
    }

    pub(crate) fn set_hard_state(&mut self, state: HardState) {
        self.hard_state = state;
    }

    /// Bytes of entries that are in the log and not yet applied.
    pub(crate) fn unapplied_bytes(&self) -> usize {
        self.bytes - self.applied_bytes
    }

    /// Entries up to `index` are applied.
    pub(crate) fn advance_applied(&mut self, index: LogIndex) {
        while self.applied < index && self.applied.0 < self.last() {
            self.applied = self.applied.next();
            let position = (self.applied.0 - self.first()) as usize;
            self.applied_bytes += self.entries.get(position).map_or(0, entry_bytes);
        }
    }

    fn first(&self) -> u64 {
        self.start.index.0 + 1
    }

    fn last(&self) -> u64 {
        self.start.index.0 + self.entries.len() as u64
    }

    /// What stays of the log and what goes, in order, if entries from `from` on are appended; `None` if
    /// nothing of it is replaced.
    pub(crate) fn cut_at(
        &self,
        from: LogIndex,
    ) -> Option<(impl DoubleEndedIterator<Item = &Entry>, impl Iterator<Item = &Entry>)> {
        (from.0 <= self.last()).then(|| {
            let kept = from.0.saturating_sub(self.first()) as usize;
            (self.entries.iter().take(kept), self.entries.iter().skip(kept))
        })
    }

    /// Appends entries; what stood at their indexes and after is replaced.
    ///
    /// # Panics
    /// If they leave a gap or reach below the compaction point: raft's own invariant is broken.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index >= self.first() && first.index <= self.last() + 1,
            "entries from {} don't follow a log of {}..={}",
            first.index,
            self.first(),
            self.last()
        );
        while self.last() >= first.index {
            if let Some(old) = self.entries.pop_back() {
                self.bytes -= entry_bytes(&old);
            }
        }
        self.bytes += entries.iter().map(entry_bytes).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
    }

    /// Forgets entries up to and including `through`. Returns where the log starts now, if that
    /// changed.
    pub(crate) fn compact(&mut self, through: LogIndex) -> Option<LogPosition> {
        let through = through.0.min(self.last());
        if through <= self.start.index.0 {
            return None;
        }
        while self.start.index.0 < through {
            let entry = self.entries.pop_front()?;
            self.bytes -= entry_bytes(&entry);
            if entry.index <= self.applied.0 {
                self.applied_bytes -= entry_bytes(&entry);
            }
            self.start = LogPosition { index: LogIndex(entry.index), term: Term(entry.term) };
        }
        Some(self.start)
    }

    /// The index up to which the log can go while `keep_bytes` of it stay.
    pub(crate) fn index_leaving(&self, keep_bytes: usize) -> LogIndex {
        let mut kept = 0;
        for entry in self.entries.iter().rev() {
            kept += entry_bytes(entry);
            if kept > keep_bytes {
                return LogIndex(entry.index);
            }
        }
        self.start.index
    }

    /// A snapshot took the place of the whole log.
    pub(crate) fn reset(&mut self, start: LogPosition, conf_state: ConfState) {
        self.start = start;
        self.entries.clear();
        self.bytes = 0;
        self.applied = start.index;
        self.applied_bytes = 0;
        self.conf_state = conf_state;
    }

    pub(crate) fn set_conf_state(&mut self, state: ConfState) {
        self.conf_state = state;
    }

    pub(crate) fn offer_snapshot(&mut self, to: ReplicaId, snapshot: Snapshot) {
        self.snapshots.insert(to.0, snapshot);
    }

    pub(crate) fn retract_snapshot(&mut self, to: ReplicaId) {
        self.snapshots.remove(&to.0);
    }

    pub(crate) fn retract_all_snapshots(&mut self) {
        self.snapshots.clear();
    }

    /// Who needs a snapshot that doesn't exist yet, and which index it must hold; once.
    pub(crate) fn take_wanted(&self) -> Option<(ReplicaId, LogIndex)> {
        self.wanted.take().map(|(to, index)| (ReplicaId(to), LogIndex(index)))
    }
}

pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + 32
}

impl Storage for LogStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(
            crate::convert::hard_state_to_raft(&self.hard_state),
            self.conf_state.clone(),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low < self.first() {
            return Err(StorageError::Compacted.into());
        }
        assert!(high <= self.last() + 1, "entries up to {high} asked of a log to {}", self.last());
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0u64;
        let mut found = Vec::new();
        for index in low..high {
            let entry = &self.entries[(index - self.first()) as usize];
            size += entry_bytes(entry) as u64;
            if !found.is_empty() && size > limit {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.start.index.0 {
            return Ok(self.start.term.0);
        }
        if index < self.first() {
            return Err(StorageError::Compacted.into());
        }
        match self.entries.get((index - self.first()) as usize) {
            Some(entry) => Ok(entry.term),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        match self.snapshots.get(&to) {
            Some(snapshot)
                if snapshot.get_metadata().index >= request_index.max(self.start.index.0) =>
            {
                Ok(snapshot.clone())
            }
            _ => {
                self.wanted.set(Some((to, request_index)));
                Err(StorageError::SnapshotTemporarilyUnavailable.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        let mut entry = Entry::default();
        entry.index = index;
        entry.term = term;
        entry.data = vec![0; 10].into();
        entry
    }

    fn store() -> LogStore {
        let start = LogPosition { index: LogIndex(5), term: Term(5) };
        let entries = (6..=9).map(|index| entry(index, 6)).collect();
        LogStore::new(start, entries, HardState::default(), ConfState::default())
    }

    #[test]
    fn an_append_replaces_what_stood_there_and_after() {
        let mut store = store();
        store.append(&[entry(8, 7)]);
        assert_eq!(store.last_index().unwrap(), 8);
        assert_eq!(store.term(8).unwrap(), 7);
        assert_eq!(store.unapplied_bytes(), 3 * 42);
    }

    #[test]
    fn applied_and_compacted_entries_no_longer_count_as_a_backlog() {
        let mut store = store();
        assert_eq!(store.unapplied_bytes(), 4 * 42);
        store.advance_applied(LogIndex(8));
        assert_eq!(store.unapplied_bytes(), 42);
        store.compact(LogIndex(7));
        assert_eq!(store.unapplied_bytes(), 42);
        store.append(&[entry(9, 8), entry(10, 8)]);
        assert_eq!(store.unapplied_bytes(), 2 * 42);
    }

    #[test]
    fn the_term_of_the_last_compacted_entry_stays_known() {
        let mut store = store();
        let start = store.compact(LogIndex(7)).unwrap();
        assert_eq!(start, LogPosition { index: LogIndex(7), term: Term(6) });
        assert_eq!(store.term(7).unwrap(), 6);
        assert!(store.term(6).is_err());
        assert_eq!(store.first_index().unwrap(), 8);
        assert!(store.compact(LogIndex(7)).is_none());
    }

    #[test]
    fn a_reader_gets_at_least_one_entry_whatever_its_limit() {
        let found = store().entries(6, 10, 1, GetEntriesContext::empty(false)).unwrap();
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_snapshot_that_was_not_taken_is_wanted_once() {
        let store = store();
        assert!(store.snapshot(7, 3).is_err());
        assert_eq!(store.take_wanted(), Some((ReplicaId(3), LogIndex(7))));
        assert_eq!(store.take_wanted(), None);
    }

    #[test]
    fn retention_counts_from_the_end_of_the_log() {
        assert_eq!(store().index_leaving(2 * 42), LogIndex(7));
        assert_eq!(store().index_leaving(1000), LogIndex(5));
    }
}
