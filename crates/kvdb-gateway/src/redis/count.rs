//! How many keys there are, for `INFO`: counted by walking them, as nobody keeps count, but no more
//! often than is worth it.

use super::info::Keys;
use super::jobs::WALKS;
use super::scan::{self, Pages};
use crate::route::Gateway;
use futures_util::stream::{self, StreamExt};
use kvdb_model::{Keyspace, KeyspaceId, Refusal};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest that an `INFO` waits for a count; then it tells the one before.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long a count is good in any case.
const GOOD_FOR: Duration = Duration::from_millis(500);
/// A count is good for so many times what it took.
const GOOD_FOR_TIMES: u32 = 20;

#[derive(Default)]
struct Known {
    keys: Option<Keys>,
    good_until: Option<Instant>,
    is_running: bool,
}

/// The latest counts.
#[derive(Clone, Default)]
pub(crate) struct Counts(Arc<Mutex<BTreeMap<KeyspaceId, Known>>>);

impl Counts {
    /// The keys of a keyspace; `None` while they are counted for the first time.
    pub(crate) async fn of(&self, gateway: &Gateway, keyspace: Keyspace) -> Option<Keys> {
        let id = keyspace.keyspace_id;
        if self.begins(id) {
            let (counts, gateway) = (self.clone(), gateway.clone());
            let counting = tokio::spawn(async move {
                let started = Instant::now();
                let counted = count(&gateway, &keyspace).await;
                counts.ends(id, counted.ok(), started);
            });
            let _ = tokio::time::timeout(PATIENCE, counting).await;
        }
        self.0.lock().get(&id).and_then(|known| known.keys)
    }

    /// Whether it is time to count again.
    fn begins(&self, id: KeyspaceId) -> bool {
        let mut all = self.0.lock();
        let known = all.entry(id).or_default();
        let is_good = known.good_until.is_some_and(|until| Instant::now() < until);
        if is_good || known.is_running {
            return false;
        }
        known.is_running = true;
        true
    }

    fn ends(&self, id: KeyspaceId, counted: Option<Keys>, started: Instant) {
        let mut all = self.0.lock();
        let known = all.entry(id).or_default();
        known.keys = counted.or(known.keys);
        let took = started.elapsed();
        known.good_until = Some(Instant::now() + GOOD_FOR.max(took * GOOD_FOR_TIMES));
        known.is_running = false;
    }
}

/// Walks all keys.
pub(super) async fn count(gateway: &Gateway, keyspace: &Keyspace) -> Result<Keys, Refusal> {
    let now = gateway.now_ms();
    let walks = stream::iter(scan::shard_starts(gateway, keyspace)).map(|range| async move {
        let mut counted = Keys::default();
        let mut pages = Pages::new(gateway, keyspace, range);
        while let Some(page) = pages.next(scan::PAGE_KEYS).await? {
            let left = page.ends_ms.iter().map(|end| u128::from(end.saturating_sub(now)));
            counted = counted.and(Keys {
                keys: page.keys.len() as u64,
                expiring: page.ends_ms.len() as u64,
                left_ms: left.sum(),
            });
        }
        Ok(counted)
    });
    let counts: Vec<Result<Keys, Refusal>> = walks.buffer_unordered(WALKS).collect().await;
    counts.into_iter().try_fold(Keys::default(), |sum, keys| Ok(sum.and(keys?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_not_counted_again_while_a_count_is_good_or_under_way() {
        let counts = Counts::default();
        let id = KeyspaceId(1);
        assert!(counts.begins(id));
        assert!(!counts.begins(id), "it runs");
        let keys = Keys { keys: 3, ..Keys::default() };
        counts.ends(id, Some(keys), Instant::now());
        assert!(!counts.begins(id), "it is good");
        counts.ends(id, None, Instant::now());
        assert_eq!(counts.0.lock()[&id].keys, Some(keys), "the one before is kept");
        assert!(counts.begins(KeyspaceId(2)));
    }
}
