//! The latest changes of one replica, for those who watch.
//!
//! Changes are told in the order of their versions, which is the order of the log: the same on
//! every replica, whoever leads. So "everything after version v" means the same everywhere, and a
//! watcher may go on at another replica with nothing but the last version that it was told.
//!
//! What is kept is bounded in bytes; the oldest goes first, whole versions at a time. [`Recent`]
//! remembers up to which version it has forgotten (the *floor*), so that whoever asks for more is
//! told of a gap instead of being left to believe that nothing happened.
//!
//! A split ends a range epoch at a version. Whoever watches under the old epoch is told everything
//! up to it and then sent on: both sides begin with what the parent still remembers.

use crate::record::Record;
use bytes::Bytes;
use kvdb_model::{KeyRange, RangeEpoch, Version};
use std::collections::VecDeque;

/// What an event costs beside its key and value, roughly.
const EVENT_OVERHEAD_BYTES: usize = 96;
/// Splits whose place is remembered.
const ENDED_EPOCHS: usize = 16;

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeEvent {
    /// Of the write. Operations of an atomic batch share one.
    pub version: Version,
    /// The key.
    pub routing_key: Bytes,
    /// What is there now; `None` if the key was removed.
    pub record: Option<Record>,
    /// Of a collection: what happened to its elements.
    pub elements: ElementChanges,
}

/// Which elements of a collection a change is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ElementChanges {
    /// How many there are now; those that are over and weren't freed yet are counted too.
    pub count: u64,
    /// Names of some that were set or removed, at most [`NAMED_MOST`] of [`NAMED_BYTES`] together, in the order in which
    /// that was done: fields and members. Elements of lists have no names.
    pub names: Vec<Bytes>,
    /// There are others that have changed, or nobody knows which.
    pub has_more: bool,
}

/// Elements that a change names at most.
pub const NAMED_MOST: usize = 16;
/// Bytes of their names at most. Every change of every collection is told, and kept.
pub const NAMED_BYTES: usize = 1024;

impl ElementChanges {
    /// Notes that an element was set or removed.
    pub(crate) fn add(&mut self, name: &[u8]) {
        if self.has_more || self.names.iter().any(|known| known == name) {
            return;
        }
        let size: usize = self.names.iter().map(Bytes::len).sum();
        match self.names.len() < NAMED_MOST && size + name.len() <= NAMED_BYTES {
            // Not a slice of a whole request.
            true => self.names.push(Bytes::copy_from_slice(name)),
            false => self.has_more = true,
        }
    }

    /// Bytes that the names take up.
    pub(crate) fn size_bytes(&self) -> usize {
        self.names.iter().map(|name| name.len() + size_of::<Bytes>()).sum()
    }
}

impl ChangeEvent {
    /// Roughly how many bytes of memory it takes up.
    pub fn size_bytes(&self) -> usize {
        let value = self.record.as_ref().map_or(0, |record| record.value.len());
        self.routing_key.len() + value + self.elements.size_bytes() + EVENT_OVERHEAD_BYTES
    }
}

/// The latest changes.
#[derive(Clone, Debug)]
pub struct Recent {
    /// Changes up to here are forgotten.
    floor: Version,
    /// Changes up to here have come.
    last: Version,
    epoch: RangeEpoch,
    /// Range epochs that are over, and the last version of each.
    ended: VecDeque<(RangeEpoch, Version)>,
    events: VecDeque<ChangeEvent>,
    size_bytes: usize,
}

/// What is asked of [`Recent::read`].
#[derive(Clone, Debug)]
pub struct WatchQuery<'a> {
    /// The range epoch by which it was routed.
    pub epoch: RangeEpoch,
    /// Changes after this version.
    pub after: Version,
    /// Of keys in here.
    pub range: &'a KeyRange,
    /// Of those, only keys that have these bytes after the first [`WatchQuery::prefix_len`].
    pub user_prefix: &'a [u8],
    /// Bytes of a routing key before the user's own.
    pub prefix_len: usize,
    /// Bytes after which the page ends, at the end of a version.
    pub max_bytes: usize,
}

impl WatchQuery<'_> {
    /// Whether changes of a key are asked for. What isn't takes no room in a page, so a page without
    /// events tells of all that there was to look at.
    pub(crate) fn wants(&self, routing_key: &[u8]) -> bool {
        self.range.contains(routing_key)
            && routing_key
                .get(self.prefix_len..)
                .is_some_and(|user_key| user_key.starts_with(self.user_prefix))
    }
}

/// A part of the changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangePage {
    /// In the order of their versions.
    pub events: Vec<ChangeEvent>,
    /// Everything up to here has been told.
    pub version: Version,
    /// Changes up to here were forgotten before they could be told.
    pub gap: Option<Version>,
}

/// The range epoch is over, and everything of it has been told: ask again under the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochOver;

impl Recent {
    /// Knows nothing of what came up to `last`.
    pub fn new(epoch: RangeEpoch, last: Version) -> Self {
        Recent {
            floor: last,
            last,
            epoch,
            ended: VecDeque::new(),
            events: VecDeque::new(),
            size_bytes: 0,
        }
    }

    /// Changes up to here have come.
    pub fn last(&self) -> Version {
        self.last
    }

    /// Roughly how many bytes of memory it takes up.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// Adds what a run of entries did, in order, and forgets the oldest beyond `limit_bytes`. The
    /// newest version stays, however large it is.
    pub fn push(&mut self, events: Vec<ChangeEvent>, last: Version, limit_bytes: usize) {
        for event in events {
            self.size_bytes += event.size_bytes();
            self.events.push_back(event);
        }
        self.last = self.last.max(last);
        let newest = self.events.back().map(|event| event.version);
        while self.size_bytes > limit_bytes
            && let Some(oldest) = self.events.front().map(|event| event.version)
            && Some(oldest) != newest
        {
            self.forget(oldest);
        }
    }

    fn forget(&mut self, version: Version) {
        while let Some(event) = self.events.front()
            && event.version == version
        {
            self.size_bytes -= event.size_bytes();
            self.events.pop_front();
        }
        self.floor = self.floor.max(version);
    }

    /// A split at version `at` has given the shard a narrower range.
    pub fn epoch_ended(&mut self, next: RangeEpoch, at: Version) {
        self.ended.push_back((self.epoch, at));
        if self.ended.len() > ENDED_EPOCHS {
            self.ended.pop_front();
        }
        self.epoch = next;
    }

    /// The child's own, at the split: what its parent remembers of its range.
    pub fn of_child(&self, range: &KeyRange, epoch: RangeEpoch, at: Version) -> Self {
        let in_range =
            |event: &&ChangeEvent| event.version <= at && range.contains(&event.routing_key);
        let events: VecDeque<_> = self.events.iter().filter(in_range).cloned().collect();
        Recent {
            floor: self.floor.min(at),
            last: at,
            epoch,
            ended: VecDeque::new(),
            size_bytes: events.iter().map(ChangeEvent::size_bytes).sum(),
            events,
        }
    }

    /// The changes that a watcher is to be told next. An empty page says up to where nothing
    /// happened.
    ///
    /// # Errors
    /// [`EpochOver`].
    pub fn read(&self, query: &WatchQuery<'_>) -> Result<ChangePage, EpochOver> {
        let upper = if query.epoch == self.epoch {
            self.last
        } else {
            let ended = self.ended.iter().find(|(epoch, _)| *epoch == query.epoch);
            let (_, at) = ended.filter(|(_, at)| query.after < *at).ok_or(EpochOver)?;
            *at
        };
        let gap = (query.after < self.floor).then(|| self.floor.min(upper));
        let after = gap.unwrap_or(query.after);
        let mut page = ChangePage { events: vec![], version: after.max(upper), gap };
        let mut size_bytes = 0;
        let start = self.events.partition_point(|event| event.version <= after);
        for event in self.events.range(start..) {
            if event.version > upper {
                break;
            }
            let previous = page.events.last().map(|event: &ChangeEvent| event.version);
            if size_bytes >= query.max_bytes
                && let Some(previous) = previous
                && event.version != previous
            {
                page.version = previous;
                break;
            }
            if query.wants(&event.routing_key) {
                size_bytes += event.size_bytes();
                page.events.push(event.clone());
            }
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EPOCH: RangeEpoch = RangeEpoch(1);

    fn event(version: u64, key: u8) -> ChangeEvent {
        let record = Record {
            version: Version(version),
            expires_at_ms: 0,
            elements: Default::default(),
            kind: crate::record::Type::String,
            value: Bytes::from(vec![key]),
        };
        let record = (!version.is_multiple_of(3)).then_some(record);
        let (version, routing_key) = (Version(version), Bytes::from(vec![key]));
        ChangeEvent { version, routing_key, record, elements: ElementChanges::default() }
    }

    fn query(epoch: RangeEpoch, after: Version, range: &KeyRange) -> WatchQuery<'_> {
        WatchQuery { epoch, after, range, user_prefix: b"", prefix_len: 0, max_bytes: 250 }
    }

    /// Reads to the end, from replica to replica, a page each.
    fn told(
        replicas: &[Recent],
        epoch: RangeEpoch,
        after: Version,
        range: &KeyRange,
    ) -> (Vec<ChangeEvent>, Version, Option<Version>) {
        let (mut told, mut at, mut gap) = (vec![], after, None);
        for replica in replicas.iter().cycle() {
            let Ok(page) = replica.read(&query(epoch, at, range)) else { break };
            gap = page.gap.or(gap);
            if page.events.is_empty() && page.version == at {
                break;
            }
            assert!(page.version >= at);
            at = page.version;
            told.extend(page.events);
        }
        (told, at, gap)
    }

    proptest! {
        #[test]
        fn every_change_is_told_once_or_a_gap_is(
            steps in prop::collection::vec((0u64..3, 0u8..6), 1..80),
            limits in prop::collection::vec(200usize..4000, 2),
            after in 0u64..40,
            start in 0u8..6,
        ) {
            let mut version = 0;
            let events: Vec<_> = steps.iter().map(|(step, key)| {
                version += step;
                event(version.max(1), *key)
            }).collect();
            let mut replicas = vec![Recent::new(EPOCH, Version::ZERO); 2];
            for chunk in events.chunk_by(|one, other| one.version == other.version) {
                for (replica, limit) in replicas.iter_mut().zip(&limits) {
                    replica.push(chunk.to_vec(), chunk[0].version, *limit);
                    let newest = chunk.iter().map(ChangeEvent::size_bytes).sum();
                    prop_assert!(replica.size_bytes <= (*limit).max(newest));
                }
            }
            let range = KeyRange::new(vec![start], vec![5]);
            let after = Version(after);
            let (told, at, gap) = told(&replicas, EPOCH, after, &range);
            let from = gap.map_or(after, |gap| gap.max(after));
            let expected: Vec<_> = events.iter().filter(|event| event.version > after && range.contains(&event.routing_key)).cloned().collect();
            let after_gap: Vec<_> = expected.iter().filter(|event| event.version > from).cloned().collect();
            prop_assert!(told.ends_with(&after_gap), "{told:?} {after_gap:?}");
            if gap.is_none() { prop_assert_eq!(told, expected); }
            prop_assert_eq!(at, after.max(Version(version.max(u64::from(!events.is_empty())))));
        }

        #[test]
        fn across_a_split_both_sides_together_tell_every_change_once(
            before in prop::collection::vec(0u8..6, 0..20),
            after_split in prop::collection::vec(0u8..6, 0..20),
            from in 0u64..20,
            cut in 1u8..5,
        ) {
            let whole = KeyRange::new(vec![0], vec![6]);
            let halves = [KeyRange::new(vec![0], vec![cut]), KeyRange::new(vec![cut], vec![6])];
            let next = EPOCH.next();
            let mut parent = Recent::new(EPOCH, Version::ZERO);
            let mut all = vec![];
            for (version, key) in (1..).zip(before) {
                all.push(event(version, key));
                parent.push(vec![event(version, key)], Version(version), 1 << 20);
            }
            let at = Version(all.len() as u64 + 1);
            let mut child = parent.of_child(&halves[1], next, at);
            parent.push(vec![], at, 1 << 20);
            parent.epoch_ended(next, at);
            for (version, key) in (at.0 + 1..).zip(after_split) {
                let side = if key < cut { &mut parent } else { &mut child };
                side.push(vec![event(version, key)], Version(version), 1 << 20);
                all.push(event(version, key));
            }
            let from = Version(from);
            let parent = [parent];
            let (mut heard, reached, gap) = told(&parent, EPOCH, from, &whole);
            prop_assert_eq!((gap, reached), (None, from.max(at)));
            prop_assert!(from > at || parent[0].read(&query(EPOCH, reached, &whole)).is_err());
            for (side, range) in [(&parent[..], &halves[0]), (&[child][..], &halves[1])] {
                heard.extend(told(side, next, reached, range).0);
            }
            heard.sort_by_key(|event| event.version);
            let expected: Vec<_> = all.into_iter().filter(|event| event.version > from).collect();
            prop_assert_eq!(heard, expected);
        }
    }

    #[test]
    fn operations_of_one_version_stay_together() {
        let mut recent = Recent::new(EPOCH, Version::ZERO);
        recent.push((0..5).map(|key| event(1, key)).collect(), Version(1), 1);
        recent.push(vec![event(2, 0)], Version(2), 1 << 20);
        let page = recent.read(&WatchQuery {
            epoch: EPOCH,
            after: Version::ZERO,
            range: &KeyRange::ALL,
            user_prefix: b"",
            prefix_len: 0,
            max_bytes: 1,
        });
        let page = page.unwrap();
        assert_eq!((page.events.len(), page.version, page.gap), (5, Version(1), None));
    }

    #[test]
    fn a_page_passes_over_all_changes_that_are_not_asked_for() {
        let mut recent = Recent::new(EPOCH, Version::ZERO);
        let of = |version, key: String| ChangeEvent {
            routing_key: Bytes::from(key.into_bytes()),
            ..event(version, 0)
        };
        let mut events: Vec<_> = (1..=1000).map(|n| of(n, format!("#other{n}"))).collect();
        events.push(of(1001, "#wanted".to_owned()));
        recent.push(events, Version(1001), 1 << 20);
        let all = KeyRange::ALL;
        let query =
            WatchQuery { user_prefix: b"want", prefix_len: 1, ..query(EPOCH, Version::ZERO, &all) };
        let page = recent.read(&query).unwrap();
        let versions: Vec<_> = page.events.iter().map(|event| event.version.0).collect();
        assert_eq!((versions, page.version), (vec![1001], Version(1001)));
    }
}
