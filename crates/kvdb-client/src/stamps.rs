//! Until when a request id says that it is valid.
//!
//! The clock that counts is the shard's, and a client knows neither the shard nor its clock. So it guesses:
//! by its wall clock at first. A shard that goes by another time refuses the id before anything is done,
//! and tells its time; the id is then stamped anew from that ([`Refusal::stamp_from`]). An id whose
//! attempt may have been carried out is never stamped anew: it must stay what it was, so that the cluster
//! knows it.
//!
//! A guess that was wrong twice in a row makes way for what the refusals have told: then it is the
//! clock here that is wrong, not one shard's.

use crate::error::Error;
use kvdb_model::Refusal;
use kvdb_wire::proto;
use parking_lot::Mutex;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// How long a request id is good for. Retries stay within a call's deadline; the rest is room for
/// clocks that differ. The cluster allows 10 minutes.
const VALID_FOR: Duration = Duration::from_secs(5 * 60);
/// How often one request's id is stamped anew: once is enough unless time moves in between.
pub(crate) const MOST_STAMPS: usize = 4;

/// What a client believes the time is.
#[derive(Default)]
pub(crate) struct Stamps {
    guess: Mutex<Guess>,
}

#[derive(Default)]
struct Guess {
    /// A shard's time, and when it was told. The wall clock here if there is none.
    told: Option<(u64, Instant)>,
    wrong_in_a_row: u32,
}

/// Until when an id is valid that is stamped at this time of a shard.
pub(crate) fn until(shard_time_ms: u64) -> u64 {
    shard_time_ms.saturating_add(VALID_FOR.as_millis() as u64)
}

impl Stamps {
    /// Until when an id that is made now is valid, as far as can be guessed.
    pub(crate) fn now(&self, wall: SystemTime, now: Instant) -> u64 {
        let told = self.guess.lock().told;
        let guess_ms = match told {
            Some((told_ms, at)) => {
                told_ms.saturating_add(now.saturating_duration_since(at).as_millis() as u64)
            }
            None => {
                wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
            }
        };
        until(guess_ms)
    }

    /// A guess was right.
    pub(crate) fn was_right(&self) {
        self.guess.lock().wrong_in_a_row = 0;
    }

    /// A guess was wrong: a shard's clock says something else.
    pub(crate) fn was_wrong(&self, shard_time_ms: u64, now: Instant) {
        let mut guess = self.guess.lock();
        guess.wrong_in_a_row += 1;
        if guess.wrong_in_a_row >= 2 {
            *guess = Guess { told: Some((shard_time_ms, now)), wrong_in_a_row: 0 };
        }
    }
}

/// The shard's time, if an error says that nothing was done because an id was stamped by another one.
pub(crate) fn stamp_from(error: &Error) -> Option<u64> {
    error.refusal().and_then(Refusal::stamp_from)
}

/// A write that may carry a request id.
pub(crate) trait Identified: Clone {
    /// Its place for one.
    fn request_id(&mut self) -> &mut Option<proto::RequestId>;
}

macro_rules! identified {
    ($($message:ident)*) => {
        $(impl Identified for proto::$message {
            fn request_id(&mut self) -> &mut Option<proto::RequestId> {
                &mut self.request_id
            }
        })*
    };
}

identified!(PutRequest DeleteRequest ExpireRequest IncrementRequest BatchWriteRequest ExecuteRequest);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_that_is_wrong_twice_in_a_row_makes_way_for_what_was_told() {
        let (stamps, now) = (Stamps::default(), Instant::now());
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        assert_eq!(stamps.now(wall, now), 1_300_000);
        stamps.was_wrong(9_000_000, now);
        stamps.was_right();
        stamps.was_wrong(9_000_000, now);
        assert_eq!(stamps.now(wall, now), 1_300_000, "one shard of many is far ahead");
        stamps.was_wrong(9_000_000, now);
        assert_eq!(stamps.now(wall, now + Duration::from_secs(2)), 9_302_000);
    }

    #[test]
    fn times_at_the_ends_are_taken() {
        let (stamps, now) = (Stamps::default(), Instant::now());
        stamps.was_wrong(u64::MAX, now);
        stamps.was_wrong(u64::MAX, now);
        assert_eq!(stamps.now(SystemTime::UNIX_EPOCH, now + Duration::from_secs(1)), u64::MAX);
    }
}
