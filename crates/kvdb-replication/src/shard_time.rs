//! The time of a shard, as its replica here knows it: what its next version would be, if it led.
//!
//! A leader lets it go on by its own boot clock. A follower goes on from the highest time that it has
//! heard of in the log, and whoever takes over leads from there. No wall clock is looked at: only where
//! the shard has fallen behind *agreed* cluster time (see [`kvdb_model::time`]) does a leader put it
//! forward, and says in the entry by how much, so that the shard's age isn't put forward with it. Small
//! differences, and all that a shard is ahead, are made up for at one percent of the time that passes.

use kvdb_model::planted::{Bug, has};
use kvdb_model::time::{MAX_CLOCK_SKEW_MS, SLEW_PART};
use kvdb_model::{ShardTimes, TimeMark, Version};
use std::sync::atomic::{AtomicI64, Ordering};

const UNKNOWN: i64 = i64::MIN;

/// Shard time and age of one replica. Shared with who reads; see the head of this module.
#[derive(Debug)]
pub struct ShardTime {
    /// Shard time less boot time, in microseconds.
    offset_us: AtomicI64,
    /// Age less boot time, in microseconds.
    age_offset_us: AtomicI64,
}

impl Default for ShardTime {
    fn default() -> Self {
        ShardTime { offset_us: AtomicI64::new(UNKNOWN), age_offset_us: AtomicI64::new(UNKNOWN) }
    }
}

impl ShardTime {
    /// Shard time and age now; both 0 while the log says nothing of them: what isn't in it would be
    /// another time after a restart. `boot_us` is the boot clock.
    pub fn times(&self, boot_us: u64) -> ShardTimes {
        match self.age_offset_us.load(Ordering::Acquire) {
            UNKNOWN => ShardTimes::default(),
            age_us => ShardTimes { time_ms: self.time_ms(boot_us), age_ms: at(age_us, boot_us) },
        }
    }

    fn time_ms(&self, boot_us: u64) -> u64 {
        self.offset_us().map_or(0, |offset_us| at(offset_us, boot_us))
    }

    fn offset_us(&self) -> Option<i64> {
        Some(self.offset_us.load(Ordering::Acquire)).filter(|offset_us| *offset_us != UNKNOWN)
    }

    fn set(&self, offset_us: i64) {
        self.offset_us.store(offset_us, Ordering::Release);
    }
}

/// Keeps a [`ShardTime`].
#[derive(Debug, Default)]
pub(crate) struct TimeKeeper {
    pub(crate) shared: std::sync::Arc<ShardTime>,
    /// How far time has come in the log.
    logged: TimeMark,
    /// What the log explains: the last version in it less the boot clock when it was read there.
    logged_us: i64,
    /// When time was put right last, by the boot clock.
    adjusted_us: u64,
    /// The last version in the log may be from long ago: nobody has told of the shard's time since this
    /// replica has started, at this boot time.
    stale_since_us: Option<u64>,
}

/// How long a leader that has just started waits for word of cluster time. What is written before it is
/// put forward would expire with that.
const WORD_WITHIN_US: u64 = 3_000_000;

/// What a leader's next entry is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Shard time, in milliseconds since 1970.
    pub(crate) time_ms: u64,
    /// By how much it was put forward since the last version in the log, beyond what has passed.
    pub(crate) jump_ms: u64,
}

impl TimeKeeper {
    /// The log or the state begins here.
    pub(crate) fn begin(&mut self, reached: TimeMark, boot_us: u64) {
        self.logged = reached;
        self.stale_since_us = Some(boot_us);
        if reached.version != Version::ZERO {
            self.set_logged(offset(reached.version.millis(), boot_us));
            let known_us = self.shared.offset_us().unwrap_or(self.logged_us);
            self.shared.set(known_us.max(self.logged_us));
        }
        self.adjusted_us = boot_us;
    }

    /// An entry was added to the log: its first and its last version, and by how much it says that it
    /// puts time forward. `leads` says that it is this replica's own.
    pub(crate) fn heard(
        &mut self,
        (first, last): (Version, Version),
        jump_ms: u64,
        leads: bool,
        boot_us: u64,
    ) {
        self.logged = self.logged.after(first, last, jump_ms);
        self.stale_since_us = None;
        let heard_us = offset(last.millis(), boot_us);
        let next_us = match self.shared.offset_us() {
            Some(known_us) if heard_us < known_us && !leads => {
                // It came late, or the clock here runs fast.
                known_us - known_us.saturating_sub(heard_us).min(self.slew_us(boot_us))
            }
            Some(known_us) => known_us.max(heard_us),
            None => heard_us,
        };
        self.set_logged(if leads { next_us } else { heard_us });
        self.adjusted_us = boot_us;
        self.shared.set(next_us);
    }

    /// The end of the log was replaced. `last` is the last version before it, if that is known, and
    /// `jumped_ms` what the replaced entries had put time forward.
    pub(crate) fn cut_back(&mut self, last: Option<Version>, jumped_ms: u64, boot_us: u64) {
        self.logged.jumped_ms = self.logged.jumped_ms.saturating_sub(jumped_ms);
        let Some(last) = last else { return };
        self.logged.version = last;
        self.set_logged(self.logged_us.min(offset(last.millis(), boot_us)));
    }

    fn set_logged(&mut self, logged_us: i64) {
        self.logged_us = logged_us;
        let jumped_us = i64::try_from(self.logged.jumped_ms.saturating_mul(1000));
        let age_us = logged_us.saturating_sub(jumped_us.unwrap_or(i64::MAX));
        self.shared.age_offset_us.store(age_us, Ordering::Release);
    }

    /// Time is put forward to here; the next entry says so.
    pub(crate) fn leap(&mut self, time_ms: u64, boot_us: u64) {
        let leap_us = offset(time_ms, boot_us);
        let known_us = self.shared.offset_us().unwrap_or(leap_us);
        self.shared.set(known_us.max(leap_us));
    }

    /// The time for a leader's next version: `agreed_ms` is cluster time, if it is known. `None` if
    /// there is no time (yet) that a version could be made of.
    pub(crate) fn lead(&mut self, agreed_ms: Option<u64>, boot_us: u64) -> Option<Stamp> {
        let waits = self.stale_since_us.is_some_and(|since| boot_us < since + WORD_WITHIN_US);
        if agreed_ms.is_none() && waits {
            return None;
        }
        let skew_us = (MAX_CLOCK_SKEW_MS * 1000) as i64;
        let known_us = match (self.shared.offset_us(), agreed_ms) {
            (None, None) => return None,
            // It begins.
            (None, Some(agreed_ms)) => {
                self.logged_us = offset(agreed_ms, boot_us);
                self.logged_us
            }
            (Some(known_us), Some(agreed_ms)) => {
                let behind_us = offset(agreed_ms, boot_us).saturating_sub(known_us);
                let most_us = self.slew_us(boot_us);
                let jumps = behind_us > skew_us;
                known_us + if jumps { behind_us } else { behind_us.clamp(-most_us, most_us) }
            }
            (Some(known_us), None) => known_us,
        };
        self.adjusted_us = boot_us;
        self.shared.set(known_us);
        let unexplained_us = known_us.saturating_sub(self.logged_us);
        let jumped = unexplained_us > skew_us && !has(Bug::JumpExpiresIds);
        let jump_ms = if jumped { unexplained_us as u64 / 1000 } else { 0 };
        Some(Stamp { time_ms: self.shared.time_ms(boot_us), jump_ms })
    }

    fn slew_us(&self, boot_us: u64) -> i64 {
        (boot_us.saturating_sub(self.adjusted_us) as i64) / SLEW_PART
    }
}

fn at(offset_us: i64, boot_us: u64) -> u64 {
    u64::try_from(offset_us.saturating_add_unsigned(boot_us)).unwrap_or_default() / 1000
}

fn offset(time_ms: u64, boot_us: u64) -> i64 {
    let time_us = i64::try_from(time_ms.saturating_mul(1000)).unwrap_or(i64::MAX);
    time_us.saturating_sub_unsigned(boot_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;
    const START_MS: u64 = 1_800_000_000_000;
    const HOUR_MS: u64 = 3_600_000;
    const AT: fn(u64) -> Version = Version::from_millis;

    fn hear(time: &mut TimeKeeper, version: Version, leads: bool, boot_us: u64) {
        time.heard((version, version), 0, leads, boot_us);
    }

    fn lead(time: &mut TimeKeeper, agreed_ms: Option<u64>, boot_us: u64) -> (u64, u64) {
        let stamp = time.lead(agreed_ms, boot_us).unwrap();
        (stamp.time_ms, stamp.jump_ms)
    }

    #[test]
    fn whoever_takes_over_goes_on_from_what_was_heard_and_what_has_passed() {
        let mut time = TimeKeeper::default();
        hear(&mut time, AT(START_MS), false, 5 * SECOND_US);
        assert_eq!(lead(&mut time, None, 65 * SECOND_US), (START_MS + 60_000, 0));
    }

    #[test]
    fn without_any_time_there_is_no_version() {
        let mut time = TimeKeeper::default();
        time.begin(TimeMark::default(), SECOND_US);
        assert_eq!(time.lead(None, SECOND_US), None);
        assert_eq!(lead(&mut time, Some(START_MS), SECOND_US), (START_MS, 0), "it begins");
        assert_eq!(time.shared.times(SECOND_US), ShardTimes::default(), "it isn't in the log yet");
        hear(&mut time, AT(START_MS), true, SECOND_US);
        let begun = ShardTimes { time_ms: START_MS, age_ms: START_MS };
        assert_eq!(time.shared.times(SECOND_US), begun);
    }

    #[test]
    fn a_leader_that_has_just_started_waits_for_word_of_the_time_but_not_for_ever() {
        let mut time = TimeKeeper::default();
        time.begin(TimeMark { version: AT(START_MS), jumped_ms: 0 }, SECOND_US);
        assert_eq!(time.lead(None, 2 * SECOND_US), None);
        let mut told = TimeKeeper::default();
        told.begin(TimeMark { version: AT(START_MS), jumped_ms: 0 }, SECOND_US);
        let morning_ms = START_MS + 8 * HOUR_MS;
        assert_eq!(lead(&mut told, Some(morning_ms), 2 * SECOND_US).0, morning_ms);
        assert_eq!(lead(&mut time, None, 5 * SECOND_US), (START_MS + 4000, 0));
    }

    #[test]
    fn a_shard_that_fell_behind_is_put_forward_once_and_its_age_is_not() {
        let mut time = TimeKeeper::default();
        hear(&mut time, AT(START_MS), false, 0);
        let night_ms = 8 * HOUR_MS;
        let morning_ms = START_MS + night_ms;
        assert_eq!(lead(&mut time, Some(morning_ms), 0), (morning_ms, night_ms));
        // Until it is in the log, each entry that is tried says so.
        assert_eq!(lead(&mut time, Some(morning_ms), 0), (morning_ms, night_ms));
        let times = ShardTimes { time_ms: morning_ms, age_ms: START_MS };
        assert_eq!(time.shared.times(0), times, "before it is in the log");
        time.heard((AT(morning_ms), AT(morning_ms)), night_ms, true, 0);
        assert_eq!(time.shared.times(0), times);
        assert_eq!(lead(&mut time, Some(morning_ms + 100), 0), (morning_ms, 0));
    }

    #[test]
    fn a_jump_whose_entry_was_replaced_is_told_again() {
        let mut time = TimeKeeper::default();
        hear(&mut time, AT(START_MS), false, 0);
        lead(&mut time, Some(START_MS + HOUR_MS), 0);
        let put_forward = AT(START_MS + HOUR_MS);
        time.heard((put_forward, put_forward), HOUR_MS, true, 0);
        // Another leader went on from the entry before.
        time.cut_back(Some(AT(START_MS)), HOUR_MS, SECOND_US);
        hear(&mut time, AT(START_MS + 1000), false, SECOND_US);
        assert_eq!(lead(&mut time, None, SECOND_US).1, HOUR_MS - 10);
    }

    #[test]
    fn a_shard_that_is_ahead_is_slower_by_one_percent_and_never_goes_back() {
        let mut time = TimeKeeper::default();
        let ahead_ms = START_MS + 50 * 365 * 24 * HOUR_MS;
        hear(&mut time, AT(ahead_ms), false, 0);
        let mut last = 0;
        for second in 1..=1000 {
            let (now, jump) = lead(&mut time, Some(START_MS + second * 1000), second * SECOND_US);
            assert!(now > last && jump == 0);
            hear(&mut time, AT(now), true, second * SECOND_US);
            last = now;
        }
        assert_eq!(last, ahead_ms + 990_000);
    }

    #[test]
    fn a_follower_that_was_stopped_takes_old_entries_for_old() {
        let mut time = TimeKeeper::default();
        hear(&mut time, AT(START_MS), false, 0);
        // A minute later it reads what was sent at the start of it.
        hear(&mut time, AT(START_MS + 100), false, 60 * SECOND_US);
        let now_ms = time.shared.times(60 * SECOND_US).time_ms;
        assert!((START_MS + 59_400..=START_MS + 60_000).contains(&now_ms), "{now_ms}");
    }

    #[test]
    fn a_leader_is_not_held_back_by_its_own_entries() {
        let mut time = TimeKeeper::default();
        hear(&mut time, AT(START_MS), false, 0);
        for step in 1..=1000u64 {
            let boot_us = step * 9_999;
            let (now_ms, _) = lead(&mut time, None, boot_us);
            hear(&mut time, AT(now_ms), true, boot_us);
        }
        assert_eq!(time.shared.times(9_999_000).time_ms, START_MS + 9_999);
    }
}
