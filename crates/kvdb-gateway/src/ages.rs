//! How old each shard is, as its nodes have said: what the gateway's own request ids are stamped with.
//!
//! An id is valid until the shard has reached some age. What that is now nobody but the shard's replicas
//! can say, so each answer and refusal tells it, and it goes on here by a clock that never jumps. An id
//! that was stamped with a wrong guess is refused before anything is done; it is then stamped anew.
//! The gateway's wall clock has no part in it, but for the very first guess.

use kvdb_model::{RequestTag, ShardId, ShardTimes, ValidUntil};
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
    /// The id of a write as it is sent: with this validity, if it is one of the gateway's own.
    fn put_on(&mut self, tag: &RequestTag, age_ms: impl FnOnce() -> u64) -> RequestTag {
        if tag.valid_until != UNSTAMPED {
            return tag.clone();
        }
        let until_ms = self.until_age_ms.get_or_insert_with(|| age_ms().saturating_add(VALID_MS));
        RequestTag { valid_until: ValidUntil::Age(*until_ms), ..tag.clone() }
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

/// Stamps the ids of one try of a request.
pub(crate) struct Stamping<'a> {
    pub(crate) stamp: &'a mut Stamp,
    /// How old the shard is that the try goes to.
    pub(crate) age_ms: &'a dyn Fn() -> u64,
}

impl Stamping<'_> {
    /// The id as it is sent.
    pub(crate) fn tag(&mut self, tag: &RequestTag) -> RequestTag {
        self.stamp.put_on(tag, self.age_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn tag(valid_until: ValidUntil) -> RequestTag {
        RequestTag { client_id: "c".into(), sequence: 1, acked_below: 0, valid_until }
    }

    fn stamped(stamp: &mut Stamp, age_ms: u64) -> ValidUntil {
        stamp.put_on(&tag(UNSTAMPED), || age_ms).valid_until
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
        assert_eq!(stamped(&mut stamp, 1000), ValidUntil::Age(1000 + VALID_MS));
        let again = stamped(&mut stamp, 2000);
        assert_eq!(again, ValidUntil::Age(1000 + VALID_MS), "the same on every try");
        assert!(!stamp.was_wrong(ShardTimes { time_ms: 1500, age_ms: 1500 }));
        let years_ms = 50 * 365 * 86_400_000;
        for age_ms in [years_ms, 1000] {
            assert!(stamp.was_wrong(ShardTimes { time_ms: age_ms, age_ms }));
            assert_eq!(stamped(&mut stamp, 0), ValidUntil::Age(age_ms + VALID_MS));
        }
    }

    #[test]
    fn a_clients_own_id_is_left_alone() {
        let mut stamp = Stamp::default();
        let own = tag(ValidUntil::Time(77));
        assert_eq!(stamp.put_on(&own, || 1000), own);
        assert!(!stamp.was_wrong(ShardTimes { time_ms: 1_000_000, age_ms: 1_000_000 }));
    }
}
