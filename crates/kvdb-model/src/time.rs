//! Time that no wall clock decides.
//!
//! *Cluster time* is a base plus what has passed since by the boot clock (CLOCK_BOOTTIME). It follows
//! wall clocks only where a majority of the cluster's nodes agree on them: one clock that is wrong by
//! any amount, jumps or stands still changes nothing. Where no majority agrees it goes on by the boot
//! clock. What is left as an assumption is the *rate* of that clock.
//!
//! *Shard time* is made of versions: it starts at cluster time, goes on by its leader's boot clock, and
//! is put forward where it has fallen behind cluster time (nobody had heard of it for a while). A
//! shard's *age* is its time without these jumps: what must not end because time was put forward, such
//! as a request's validity and how long its answer is kept, counts the age.

use crate::id::NodeId;
use crate::version::Version;
use std::collections::BTreeMap;
use std::fmt;

/// Clocks that differ by no more than this agree, in milliseconds.
pub const MAX_CLOCK_SKEW_MS: u64 = 500;
/// A clock that is corrected runs at most this part faster or slower: one percent.
pub const SLEW_PART: i64 = 100;

/// A reading of a wall clock is used for this long after it was taken.
const READING_LASTS_US: u64 = 10_000_000;
/// Of the readings of one clock, the one that was least delayed on its way counts for so long.
const LEAST_DELAYED_US: u64 = 3_000_000;
/// What the coordinators say counts before the other nodes' wall clocks for so long.
const TOLD_LASTS_US: u64 = 5_000_000;
/// How long nodes may take to agree before time goes on from the coordinators' log.
const AGREE_WITHIN_US: u64 = 3_000_000;
/// Between two looks at whether the wall clocks agree.
const LOOK_EVERY_US: u64 = 100_000;
/// Looks in a row at which a majority must differ from cluster time before it is put right. They are
/// counted, not timed: a process that was stopped finds old readings first.
const LOOKS_TO_BE_SURE: u32 = 20;
/// As [`LOOKS_TO_BE_SURE`], of what the coordinators say.
const TELLINGS_TO_BE_SURE: u32 = 2;

/// One wall clock, as far as it is known here.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// The wall clock less the boot clock here, in microseconds.
    offset_us: i64,
    /// When that was measured.
    at_us: u64,
    /// When the clock was heard of last.
    heard_us: u64,
}

/// Cluster time as one process knows it. All times are of its own boot clock, in microseconds.
#[derive(Clone, Debug, Default)]
pub struct ClusterClock {
    /// Cluster time less the boot clock; `None` while it isn't known.
    offset_us: Option<i64>,
    readings: BTreeMap<NodeId, Reading>,
    told_us: Option<u64>,
    looked_us: u64,
    adjusted_us: u64,
    /// Since when a leading coordinator has waited for the nodes to agree.
    waits_since_us: Option<u64>,
    /// How often in a row something else than this clock says was found.
    differing: u32,
}

impl ClusterClock {
    /// Cluster time in milliseconds since 1970, if it is known.
    pub fn now_ms(&self, boot_us: u64) -> Option<u64> {
        let now_us = self.offset_us?.saturating_add_unsigned(boot_us);
        Some(u64::try_from(now_us).unwrap_or_default() / 1000)
    }

    /// Starts at this time, unless it is known already.
    pub fn begin(&mut self, now_ms: u64, boot_us: u64) {
        self.offset_us.get_or_insert_with(|| offset(now_ms, boot_us));
        self.adjusted_us = boot_us;
    }

    /// The wall clock of a node was read there a moment ago, or longer if its message was delayed.
    pub fn heard(&mut self, node: NodeId, wall_ms: u64, boot_us: u64) {
        let new =
            Reading { offset_us: offset(wall_ms, boot_us), at_us: boot_us, heard_us: boot_us };
        let reading = self.readings.entry(node).or_insert(new);
        // A delay makes a clock seem behind: the reading that is furthest ahead had the least.
        if new.offset_us >= reading.offset_us || reading.at_us + LEAST_DELAYED_US < boot_us {
            *reading = new;
        }
        reading.heard_us = boot_us;
    }

    /// Nothing more is known of the wall clocks of other nodes than these.
    pub fn keep_only(&mut self, is_member: impl Fn(NodeId) -> bool) {
        self.readings.retain(|node, _| is_member(*node));
    }

    /// Who has agreed time has told it: the leading coordinator, at `boot_us` here.
    pub fn told(&mut self, cluster_ms: u64, boot_us: u64) {
        self.told_us = Some(boot_us);
        self.follow(offset(cluster_ms, boot_us), boot_us, TELLINGS_TO_BE_SURE);
    }

    /// Looks whether the wall clocks of a majority of `members` nodes agree, and follows them. Where the
    /// coordinators have told the time, they know better. Returns whether there is a majority.
    pub fn look(&mut self, members: usize, boot_us: u64) -> bool {
        let is_told = self.told_us.is_some_and(|told_us| boot_us < told_us + TOLD_LASTS_US);
        if is_told || (boot_us < self.looked_us + LOOK_EVERY_US && self.offset_us.is_some()) {
            return is_told;
        }
        self.looked_us = boot_us;
        let agreed = self.agreed(members, boot_us);
        match agreed {
            Some(agreed_us) => self.follow(agreed_us, boot_us, LOOKS_TO_BE_SURE),
            None => self.differing = 0,
        }
        agreed.is_some()
    }

    /// A look of the leading coordinator, which has heard the wall clocks of a cluster of `members`
    /// nodes, and whose own log has reached `logged_ms`. Where nothing else is known, time begins by its
    /// own wall clock in a cluster of at most one node, and else, if the nodes don't agree for a while,
    /// by the log. Returns whether the nodes agree.
    pub fn look_as_leader(
        &mut self,
        members: usize,
        wall_ms: u64,
        logged_ms: u64,
        boot_us: u64,
    ) -> bool {
        let is_agreed = members >= 2 && self.look(members, boot_us);
        if self.offset_us.is_some() {
            self.waits_since_us = None;
            return is_agreed;
        }
        let since_us = *self.waits_since_us.get_or_insert(boot_us);
        if members < 2 {
            self.begin(logged_ms.max(wall_ms), boot_us);
        } else if logged_ms > 0 && boot_us > since_us + AGREE_WITHIN_US {
            self.begin(logged_ms, boot_us);
        }
        is_agreed
    }

    /// What a majority of the wall clocks say, less the boot clock. One clock is no majority.
    fn agreed(&self, members: usize, boot_us: u64) -> Option<i64> {
        let fresh = |reading: &&Reading| boot_us < reading.heard_us + READING_LASTS_US;
        let mut offsets: Vec<i64> =
            self.readings.values().filter(fresh).map(|reading| reading.offset_us).collect();
        offsets.sort_unstable();
        let skew_us = (MAX_CLOCK_SKEW_MS * 1000) as i64;
        let mut best: &[i64] = &[];
        for start in 0..offsets.len() {
            let end =
                offsets.partition_point(|other| *other <= offsets[start].saturating_add(skew_us));
            if end - start > best.len() {
                best = &offsets[start..end];
            }
        }
        let is_majority = best.len() >= 2 && 2 * best.len() > members.max(offsets.len());
        is_majority.then(|| best[best.len() / 2])
    }

    fn follow(&mut self, target_us: i64, boot_us: u64, sure: u32) {
        let passed_us = boot_us.saturating_sub(self.adjusted_us) as i64;
        self.adjusted_us = boot_us;
        let Some(offset_us) = self.offset_us else {
            self.offset_us = Some(target_us);
            return;
        };
        let differs_us = target_us.saturating_sub(offset_us);
        if differs_us.unsigned_abs() <= MAX_CLOCK_SKEW_MS * 1000 {
            self.differing = 0;
            let most_us = passed_us / SLEW_PART;
            self.offset_us = Some(offset_us + differs_us.clamp(-most_us, most_us));
            return;
        }
        self.differing += 1;
        if self.differing >= sure {
            self.differing = 0;
            self.offset_us = Some(target_us);
        }
    }

    /// How far the wall clock of a node is ahead of cluster time (behind, if negative), in
    /// milliseconds; `None` if one of the two isn't known, or nothing was heard of it lately.
    pub fn ahead_ms(&self, node: NodeId, boot_us: u64) -> Option<i64> {
        let reading = self.readings.get(&node)?;
        let is_fresh = boot_us < reading.heard_us + READING_LASTS_US;
        is_fresh.then_some(reading.offset_us.saturating_sub(self.offset_us?) / 1000)
    }

    /// How far a wall clock that says `wall_ms` now is ahead of cluster time, in milliseconds; `None` if
    /// that isn't known.
    pub fn wall_ahead_ms(&self, wall_ms: u64, boot_us: u64) -> Option<i64> {
        Some(offset(wall_ms, boot_us).saturating_sub(self.offset_us?) / 1000)
    }
}

fn offset(now_ms: u64, boot_us: u64) -> i64 {
    let now_us = i64::try_from(now_ms.saturating_mul(1000)).unwrap_or(i64::MAX);
    now_us.saturating_sub_unsigned(boot_us)
}

/// How far the time of a shard has come, as its log or its state says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeMark {
    /// The highest version.
    pub version: Version,
    /// By how much time was put forward on the way there, in milliseconds.
    pub jumped_ms: u64,
}

impl TimeMark {
    /// An entry was added whose versions end at `version`, and which says that it puts time forward by
    /// `jump_ms`. Never by more than time went on: age doesn't go back.
    #[must_use]
    pub fn after(self, first: Version, version: Version, jump_ms: u64) -> Self {
        let passed_ms = first.millis().saturating_sub(self.version.millis());
        TimeMark {
            version: self.version.max(version),
            jumped_ms: self.jumped_ms.saturating_add(jump_ms.min(passed_ms)),
        }
    }
}

/// What a shard's clock says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardTimes {
    /// Shard time, in milliseconds since 1970.
    pub time_ms: u64,
    /// Shard time less all jumps, in milliseconds.
    pub age_ms: u64,
}

/// A moment as people write it: `2026-11-28 17:52:56 UTC`.
pub struct Utc(pub u64);

impl fmt::Display for Utc {
    /// From days to a date: Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1000;
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
        let year_of_era = (day_of_era - leap_days) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months from March on, so that the leap day comes last.
        let from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02} UTC", second % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND_US: u64 = 1_000_000;
    const START_MS: u64 = 1_800_000_000_000;
    const HOUR_MS: i64 = 3_600_000;

    /// Nodes with these errors of their wall clocks report each 100 ms for some seconds.
    fn hear(clock: &mut ClusterClock, errors_ms: &[i64], from_us: u64, seconds: u64) -> u64 {
        let until_us = from_us + seconds * SECOND_US;
        let mut now_us = from_us;
        while now_us < until_us {
            for (node, error_ms) in errors_ms.iter().enumerate() {
                let wall_ms = (START_MS + now_us / 1000).saturating_add_signed(*error_ms);
                clock.heard(NodeId(node as u64 + 1), wall_ms, now_us);
            }
            clock.look(errors_ms.len(), now_us);
            now_us += 100_000;
        }
        now_us
    }

    fn error_ms(clock: &ClusterClock, now_us: u64) -> i64 {
        clock.now_ms(now_us).unwrap() as i64 - (START_MS + now_us / 1000) as i64
    }

    #[test]
    fn one_clock_of_three_may_be_wrong_by_any_amount() {
        for wrong_ms in [8 * HOUR_MS, 50 * 365 * 24 * HOUR_MS, -HOUR_MS, -1_700_000_000_000] {
            let mut clock = ClusterClock::default();
            let now_us = hear(&mut clock, &[3, -2, wrong_ms], 0, 10);
            assert!(error_ms(&clock, now_us).abs() <= 3, "{wrong_ms}");
            let ahead_ms = clock.ahead_ms(NodeId(3), now_us).unwrap();
            assert!((ahead_ms - wrong_ms).abs() <= 5, "{ahead_ms}");
            // Also when it goes wrong later, and when it is right again.
            let now_us = hear(&mut clock, &[wrong_ms, -2, 3], now_us, 10);
            assert!(error_ms(&clock, now_us).abs() <= 3, "{wrong_ms}");
            let now_us = hear(&mut clock, &[0, 0, 0], now_us, 10);
            assert!(clock.ahead_ms(NodeId(1), now_us).unwrap().abs() <= 3);
        }
    }

    #[test]
    fn a_wrong_start_is_put_right_by_a_majority_and_by_nobody_less() {
        let mut clock = ClusterClock::default();
        clock.begin(START_MS + 10 * HOUR_MS as u64, 0);
        let now_us = hear(&mut clock, &[0, 5000], 0, 60);
        assert_eq!(error_ms(&clock, now_us), 10 * HOUR_MS, "two that disagree");
        let now_us = hear(&mut clock, &[0], now_us, 60);
        assert_eq!(error_ms(&clock, now_us), 10 * HOUR_MS, "one alone");
        let now_us = hear(&mut clock, &[0, 100, 5000], now_us, 60);
        assert!(error_ms(&clock, now_us).abs() <= 100);
    }

    #[test]
    fn a_part_of_the_members_is_no_majority_however_well_they_agree() {
        let mut clock = ClusterClock::default();
        for now_us in (0..10 * SECOND_US).step_by(100_000) {
            for node in 1..=2 {
                clock.heard(NodeId(node), START_MS + now_us / 1000, now_us);
            }
            assert!(!clock.look(4, now_us));
        }
        assert_eq!(clock.now_ms(10 * SECOND_US), None);
        assert!(clock.look(3, 10 * SECOND_US));
    }

    #[test]
    fn readings_that_waited_while_a_process_was_stopped_change_nothing() {
        let mut clock = ClusterClock::default();
        let stopped_us = hear(&mut clock, &[0, 0, 0], 0, 10);
        // What came during the minute is read at its end, at once.
        let now_us = stopped_us + 60 * SECOND_US;
        for late_us in (stopped_us..now_us).step_by(100_000) {
            for node in 2..=3 {
                clock.heard(NodeId(node), START_MS + late_us / 1000, now_us);
            }
            clock.look(3, now_us);
        }
        let now_us = hear(&mut clock, &[0, 0, 0], now_us, 5);
        assert!(error_ms(&clock, now_us).abs() <= 2);
    }

    #[test]
    fn coordinators_know_better_than_the_wall_clocks_around_and_are_taken_at_their_second_word() {
        let mut clock = ClusterClock::default();
        clock.told(START_MS, 0);
        let now_us = hear(&mut clock, &[HOUR_MS, HOUR_MS, HOUR_MS], 100_000, 4);
        assert!(error_ms(&clock, now_us).abs() <= 1);
        clock.told(START_MS + HOUR_MS as u64, now_us);
        assert!(error_ms(&clock, now_us).abs() <= 1);
        clock.told(START_MS + now_us / 1000 + HOUR_MS as u64, now_us);
        assert_eq!(error_ms(&clock, now_us), HOUR_MS);
    }

    #[test]
    fn moments_are_written_as_people_write_them() {
        assert_eq!(Utc(0).to_string(), "1970-01-01 00:00:00 UTC");
        assert_eq!(Utc(1_709_210_096_123).to_string(), "2024-02-29 12:34:56 UTC");
        assert_eq!(Utc(4_102_444_799_000).to_string(), "2099-12-31 23:59:59 UTC");
    }

    proptest! {
        #[test]
        fn small_differences_are_made_up_for_at_one_percent(
            errors in prop::collection::vec(-200i64..200, 3..8),
            start in -250i64..250,
        ) {
            let mut clock = ClusterClock::default();
            clock.begin(START_MS.saturating_add_signed(start), 0);
            let mut now_us = 0;
            let mut before_ms = start;
            for _ in 0..100 {
                now_us = hear(&mut clock, &errors, now_us, 1);
                let error = error_ms(&clock, now_us);
                prop_assert!((error - before_ms).abs() <= 12, "{before_ms} {error}");
                before_ms = error;
            }
            prop_assert!(before_ms.abs() <= 201);
        }

        #[test]
        fn any_readings_are_taken_without_a_panic(
            readings in prop::collection::vec((0u64..4, any::<u64>(), 0u64..u64::MAX / 4), 0..50),
        ) {
            let mut clock = ClusterClock::default();
            for (node, wall_ms, boot_us) in readings {
                clock.heard(NodeId(node), wall_ms, boot_us);
                clock.told(wall_ms, boot_us);
                clock.look(3, boot_us);
                let _ = (clock.now_ms(boot_us), clock.ahead_ms(NodeId(node), boot_us), Utc(wall_ms).to_string());
            }
        }
    }
}
