//! How old each shard is, as its nodes have said: what the gateway's own request ids are stamped with.
//!
//! An id is valid until the shard has reached some age. What that is now nobody but the shard's replicas
//! can say, so each answer and refusal tells it, and it goes on here by a clock that never jumps. An id
//! that was stamped with a wrong guess is refused before anything is done; it is then stamped anew.
//! The gateway's wall clock has no part in it, but for the very first guess.

use kvdb_model::{ShardId, ShardTimes, ValidUntil};
use kvdb_wire::proto;
use kvdb_wire::proto::node_operation::Operation as Asked;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// How far ahead a request stays valid: longer than any deadline that the gateway keeps.
const VALID_MS: u64 = 5 * 60 * 1000;
/// In the place of a validity, until the id is sent.
pub(crate) const UNSTAMPED: ValidUntil = ValidUntil::Age(0);
/// Shards whose age is remembered; beyond, those that were heard of longest ago are forgotten.
const MOST_SHARDS: usize = 100_000;

/// The ages of all shards that were heard of.
#[derive(Clone, Default)]
pub(crate) struct Ages {
    heard: Arc<Mutex<HashMap<ShardId, (ShardTimes, Instant)>>>,
}

impl Ages {
    /// A replica of a shard has said what its clock says.
    pub(crate) fn hear(&self, shard: ShardId, times: ShardTimes, now: Instant) {
        if times.time_ms == 0 {
            return;
        }
        let mut heard = self.heard.lock();
        if heard.len() >= MOST_SHARDS && !heard.contains_key(&shard) {
            let oldest = heard.iter().min_by_key(|(_, (_, at))| *at).map(|(shard, _)| *shard);
            oldest.and_then(|oldest| heard.remove(&oldest));
        }
        heard.insert(shard, (times, now));
    }

    /// What the shard's clock says now, as far as was heard.
    pub(crate) fn of(&self, shard: ShardId, now: Instant) -> Option<ShardTimes> {
        let (times, at) = *self.heard.lock().get(&shard)?;
        let passed = now.saturating_duration_since(at).as_millis() as u64;
        Some(ShardTimes { time_ms: times.time_ms + passed, age_ms: times.age_ms + passed })
    }
}

/// The validity of one request's id: the same on every try, unless it turned out to be a wrong guess
/// before anything was done.
#[derive(Default)]
pub(crate) struct Stamp {
    until_age_ms: Option<u64>,
}

impl Stamp {
    /// Stamps the id of a write, if it is one of the gateway's own.
    pub(crate) fn put_on(&mut self, asked: &mut Asked, age_ms: impl FnOnce() -> u64) {
        let Some(id) = request_id_of(asked) else { return };
        if id.valid_until_ms == 0 && id.valid_until_age_ms == 0 {
            id.valid_until_age_ms =
                *self.until_age_ms.get_or_insert_with(|| age_ms().saturating_add(VALID_MS));
        }
    }

    /// Whether the request goes under an id of the gateway's own.
    pub(crate) fn is_on(&self) -> bool {
        self.until_age_ms.is_some()
    }

    /// An id was refused, and no earlier try may have been carried out. Whether it is worth another try
    /// with what the refusal has told.
    pub(crate) fn was_wrong(&mut self, times: ShardTimes) -> bool {
        let Some(until_ms) = self.until_age_ms else { return false };
        // Otherwise it wasn't refused for its age.
        let is_wrong = until_ms <= times.age_ms || until_ms > times.age_ms + 2 * VALID_MS;
        if is_wrong {
            self.until_age_ms = Some(times.age_ms.saturating_add(VALID_MS));
        }
        is_wrong
    }
}

fn request_id_of(asked: &mut Asked) -> Option<&mut proto::RequestId> {
    match asked {
        Asked::Put(put) => put.request_id.as_mut(),
        Asked::Delete(delete) => delete.request_id.as_mut(),
        Asked::Increment(increment) => increment.request_id.as_mut(),
        Asked::BatchWrite(batch) => batch.request_id.as_mut(),
        Asked::StringWrite(write) => write.request_id.as_mut(),
        Asked::Get(_) | Asked::BatchGet(_) | Asked::Scan(_) | Asked::ReadMany(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn asked(valid_until_ms: u64) -> Asked {
        let request_id = Some(proto::RequestId { valid_until_ms, ..Default::default() });
        Asked::Delete(proto::NodeDeleteRequest { request_id, ..Default::default() })
    }

    fn stamp_of(asked: &mut Asked) -> u64 {
        request_id_of(asked).map_or(0, |id| id.valid_until_age_ms)
    }

    #[test]
    fn an_age_goes_on_from_what_was_heard() {
        let (ages, now) = (Ages::default(), Instant::now());
        assert_eq!(ages.of(ShardId(1), now), None);
        ages.hear(ShardId(1), ShardTimes { time_ms: 9000, age_ms: 5000 }, now);
        ages.hear(ShardId(1), ShardTimes::default(), now);
        let later = ages.of(ShardId(1), now + Duration::from_secs(2));
        assert_eq!(later, Some(ShardTimes { time_ms: 11_000, age_ms: 7000 }));
    }

    #[test]
    fn a_stamp_stays_until_it_is_known_to_be_wrong() {
        let mut stamp = Stamp::default();
        let mut first = asked(0);
        stamp.put_on(&mut first, || 1000);
        assert_eq!(stamp_of(&mut first), 1000 + VALID_MS);
        let mut again = asked(0);
        stamp.put_on(&mut again, || 2000);
        assert_eq!(stamp_of(&mut again), 1000 + VALID_MS, "the same on every try");
        assert!(!stamp.was_wrong(ShardTimes { time_ms: 1500, age_ms: 1500 }));
        let years_ms = 50 * 365 * 86_400_000;
        for age_ms in [years_ms, 1000] {
            assert!(stamp.was_wrong(ShardTimes { time_ms: age_ms, age_ms }));
            let mut third = asked(0);
            stamp.put_on(&mut third, || 0);
            assert_eq!(stamp_of(&mut third), age_ms + VALID_MS);
        }
    }

    #[test]
    fn a_clients_own_id_is_left_alone() {
        let mut stamp = Stamp::default();
        let mut own = asked(77);
        stamp.put_on(&mut own, || 1000);
        assert_eq!(stamp_of(&mut own), 0);
        assert!(!stamp.was_wrong(ShardTimes { time_ms: 1_000_000, age_ms: 1_000_000 }));
    }
}
