//! The deltas of the recent past, for watchers that come back.

use kvdb_model::{MapDelta, MapVersion};
use std::collections::VecDeque;
use std::sync::Arc;

/// A bounded run of consecutive deltas. What is pushed out is made up for by a snapshot.
#[derive(Debug)]
pub struct History {
    deltas: VecDeque<Arc<MapDelta>>,
    changes: usize,
    most_deltas: usize,
    most_changes: usize,
}

/// What a watcher at some version needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// These, in order (none if it is up to date).
    Deltas(Vec<Arc<MapDelta>>),
    /// A snapshot: it is further behind than the history, or ahead of it.
    Snapshot,
}

impl History {
    /// A history of at most so many deltas with so many changes in all.
    pub fn new(most_deltas: usize, most_changes: usize) -> Self {
        History { deltas: VecDeque::new(), changes: 0, most_deltas, most_changes }
    }

    /// Adds the next delta. One that doesn't follow the last starts the history anew.
    pub fn push(&mut self, delta: Arc<MapDelta>) {
        if self.deltas.back().is_some_and(|last| last.version.next() != delta.version) {
            self.deltas.clear();
            self.changes = 0;
        }
        self.changes += delta.changes.len();
        self.deltas.push_back(delta);
        while self.deltas.len() > self.most_deltas || self.changes > self.most_changes {
            match self.deltas.pop_front() {
                Some(gone) => self.changes -= gone.changes.len(),
                None => break,
            }
        }
    }

    /// What leads from `version` to `current`.
    pub fn since(&self, version: MapVersion, current: MapVersion) -> Since {
        if version == current {
            return Since::Deltas(Vec::new());
        }
        // The version leaps with a generation, and there is no delta for that.
        let is_whole = self.deltas.back().is_some_and(|last| last.version == current);
        let first = self.deltas.front().filter(|_| is_whole);
        let reaches = first.is_some_and(|first| first.version <= version.next());
        if version > current || !reaches {
            return Since::Snapshot;
        }
        Since::Deltas(self.deltas.iter().filter(|delta| delta.version > version).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_watcher_gets_every_delta_in_order_or_a_snapshot(count in 1u64..60, from in 0u64..70, most in 1usize..20) {
            let mut history = History::new(most, 1000);
            for version in 1..=count {
                history.push(Arc::new(MapDelta { version: MapVersion(version), changes: vec![] }));
            }
            match history.since(MapVersion(from), MapVersion(count)) {
                Since::Deltas(deltas) => {
                    let versions: Vec<u64> = deltas.iter().map(|delta| delta.version.0).collect();
                    prop_assert_eq!(versions, (from + 1..=count).collect::<Vec<_>>());
                }
                Since::Snapshot => prop_assert!(from > count || count - from > most as u64),
            }
        }
    }

    #[test]
    fn a_version_that_has_leapt_is_followed_by_a_snapshot() {
        let mut history = History::new(100, 100);
        for version in 1..=3 {
            history.push(Arc::new(MapDelta { version: MapVersion(version), changes: vec![] }));
        }
        for version in [0, 2, 3] {
            assert_eq!(history.since(MapVersion(version), MapVersion(1003)), Since::Snapshot);
        }
        history.push(Arc::new(MapDelta { version: MapVersion(1004), changes: vec![] }));
        assert_eq!(history.since(MapVersion(3), MapVersion(1004)), Since::Snapshot);
        assert!(matches!(history.since(MapVersion(1003), MapVersion(1004)), Since::Deltas(_)));
    }

    #[test]
    fn the_history_is_bounded_by_changes_as_well() {
        let mut history = History::new(100, 3);
        let change = kvdb_model::MapChange::NodeGone(kvdb_model::NodeId(1));
        for version in 1..=3 {
            let changes = vec![change.clone(), change.clone()];
            history.push(Arc::new(MapDelta { version: MapVersion(version), changes }));
        }
        assert_eq!(history.since(MapVersion(1), MapVersion(3)), Since::Snapshot);
        assert!(matches!(history.since(MapVersion(2), MapVersion(3)), Since::Deltas(_)));
    }
}
