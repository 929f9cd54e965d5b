//! Whether a failed attempt may be followed by another. Decides; the caller sends and waits.
//!
//! The one rule that matters: once an attempt of a write ended with nobody knowing whether it took
//! effect, nothing but a success settles the write. A later attempt that is refused, for whatever
//! reason, says nothing about the earlier one, so the call ends as unknown.

use crate::error::Error;
use crate::options::Options;
use kvdb_model::{Refusal, RetryClass};
use std::time::Duration;

/// The retries of one call.
pub(crate) struct Retries {
    /// Whether the request may be sent again when its outcome is unknown.
    repeatable: bool,
    pause: Duration,
    longest_pause: Duration,
    /// What an attempt ended with whose outcome is unknown.
    unknown: Option<String>,
    /// What the attempt before ended with. The last one may have had too little time to tell.
    before: Option<String>,
}

/// What to do after a failed attempt.
#[derive(Debug)]
pub(crate) enum Next {
    /// Send it again after a pause.
    Again(Duration),
    /// Tell the caller.
    GiveUp(Error),
}

impl Retries {
    pub(crate) fn new(options: &Options, repeatable: bool) -> Self {
        Retries {
            repeatable,
            pause: options.first_pause,
            longest_pause: options.longest_pause,
            unknown: None,
            before: None,
        }
    }

    /// An attempt failed with `error`, `left` before the deadline. `random` spreads the pauses of
    /// clients that failed together.
    pub(crate) fn after(&mut self, error: Error, left: Duration, random: u64) -> Next {
        let again = match error.class() {
            RetryClass::RetryHere | RetryClass::RetryElsewhere => true,
            RetryClass::OutcomeUnknown => self.repeatable,
            RetryClass::Final => false,
        };
        if let Error::OutcomeUnknown { reason } = &error {
            self.unknown.get_or_insert_with(|| reason.clone());
        }
        let pause = self.pause_before_next(&error, random);
        if again && pause < left {
            self.before = Some(error.to_string());
            Next::Again(pause)
        } else {
            Next::GiveUp(self.verdict(error))
        }
    }

    /// Half of the pause is certain, half is chance. What a server wishes comes on top: those that it
    /// has refused together must not come again together.
    fn pause_before_next(&mut self, error: &Error, random: u64) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(self.longest_pause);
        let jittered = pause / 2 + (pause / 2).mul_f64((random % 1024) as f64 / 1024.0);
        match error.refusal() {
            Some(Refusal::Overloaded { retry_after_ms, .. }) => {
                jittered + Duration::from_millis(*retry_after_ms)
            }
            _ => jittered,
        }
    }

    fn with_what_came_before(&mut self, last: Error) -> Error {
        let said = last.to_string();
        match (self.before.take(), last) {
            (Some(before), Error::Unavailable { address, reason }) if before != said => {
                Error::Unavailable { address, reason: format!("{reason}; before that: {before}") }
            }
            (_, last) => last,
        }
    }

    pub(crate) fn verdict(&mut self, last: Error) -> Error {
        match (self.unknown.take(), last) {
            (_, last @ Error::OutcomeUnknown { .. }) => last,
            (Some(reason), last) => {
                Error::OutcomeUnknown { reason: format!("{reason}; then: {last}") }
            }
            (None, last) => self.with_what_came_before(last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::ShardId;
    use proptest::prelude::*;

    const LONG: Duration = Duration::from_secs(100);

    fn unknown() -> Error {
        Error::OutcomeUnknown { reason: "lost".into() }
    }

    fn refused(refusal: Refusal) -> Error {
        Error::Refused { message: refusal.to_string(), refusal }
    }

    fn busy() -> Error {
        refused(Refusal::ShardUnavailable { shard_id: ShardId(1), reason: "no leader" })
    }

    fn retries(repeatable: bool) -> Retries {
        Retries::new(&Options::default(), repeatable)
    }

    #[test]
    fn an_unknown_write_is_repeated_only_under_its_id() {
        assert!(matches!(retries(true).after(unknown(), LONG, 0), Next::Again(_)));
        assert!(matches!(retries(false).after(unknown(), LONG, 0), Next::GiveUp(_)));
    }

    #[test]
    fn what_was_refused_for_good_is_not_repeated() {
        let error = refused(Refusal::invalid("key", "is empty"));
        assert!(matches!(retries(true).after(error, LONG, 0), Next::GiveUp(Error::Refused { .. })));
    }

    #[test]
    fn a_refusal_after_an_unknown_attempt_leaves_it_unknown() {
        for last in [busy(), refused(Refusal::invalid("key", "is empty"))] {
            let mut retries = retries(true);
            assert!(matches!(retries.after(unknown(), LONG, 0), Next::Again(_)));
            let Next::GiveUp(error) = retries.after(last, Duration::ZERO, 0) else {
                panic!("no time is left");
            };
            assert_eq!(error.class(), RetryClass::OutcomeUnknown);
            assert!(error.to_string().contains("lost; then: "), "{error}");
        }
    }

    #[test]
    fn a_last_attempt_without_time_does_not_hide_the_reason() {
        let unavailable =
            |reason: &str| Error::Unavailable { address: "a:1".into(), reason: reason.into() };
        for (last, told) in [
            (
                "no connection within 0 ms",
                "no connection within 0 ms; before that: a:1 is unavailable: refused",
            ),
            ("refused", "a:1 is unavailable: refused"),
        ] {
            let mut retries = retries(false);
            assert!(matches!(retries.after(unavailable("refused"), LONG, 0), Next::Again(_)));
            let Next::GiveUp(error) = retries.after(unavailable(last), Duration::ZERO, 0) else {
                panic!("no time is left");
            };
            assert!(error.to_string().ends_with(told), "{error}");
        }
    }

    #[test]
    fn an_overloaded_server_is_given_the_time_it_asks_for() {
        let error = refused(Refusal::Overloaded { what: "queue", retry_after_ms: 700 });
        let Next::Again(pause) = retries(false).after(error, LONG, 0) else {
            panic!("nothing was done");
        };
        let longest = Duration::from_millis(700) + Options::default().first_pause;
        assert!(pause >= Duration::from_millis(700) && pause <= longest, "{pause:?}");
    }

    proptest! {
        #[test]
        fn pauses_grow_within_bounds_and_never_pass_the_deadline(randoms in prop::collection::vec(any::<u64>(), 1..20), left_ms in 0u64..2000) {
            let options = Options::default();
            let left = Duration::from_millis(left_ms);
            let mut retries = Retries::new(&options, false);
            for random in randoms {
                match retries.after(busy(), left, random) {
                    Next::Again(pause) => prop_assert!(pause < left && pause <= options.longest_pause),
                    Next::GiveUp(error) => prop_assert_eq!(error.class(), RetryClass::RetryHere),
                }
            }
        }
    }
}
