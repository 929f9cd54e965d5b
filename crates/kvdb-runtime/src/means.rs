//! What something takes lately: a figure to be compared with that of other nodes.
//!
//! It is the mean over the seconds of the last ten in which something ended, each second counting
//! once: a disk that is slow every other second does few syncs in the slow ones, and a mean over syncs
//! would hide it. What is under way counts with what it took so far.

/// Seconds that are looked back on.
const SECONDS: u64 = 10;

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    number: u64,
    total_us: u64,
    count: u64,
}

/// What something took, second by second.
#[derive(Clone, Debug, Default)]
pub(crate) struct Means {
    seconds: [Second; SECONDS as usize],
}

impl Means {
    /// Something has ended, and took so long.
    pub(crate) fn note(&mut self, ended_us: u64, took_us: u64) {
        let number = ended_us / 1_000_000;
        let second = &mut self.seconds[(number % SECONDS) as usize];
        if second.number != number {
            *second = Second { number, ..Second::default() };
        }
        second.total_us += took_us;
        second.count += 1;
    }

    /// What it takes lately, in microseconds; 0 if there was none.
    pub(crate) fn figure(&self, now_us: u64, under_way_us: u64) -> u64 {
        let number = now_us / 1_000_000;
        let lately = |second: &&Second| second.count > 0 && second.number + SECONDS > number;
        let means = self.seconds.iter().filter(lately).map(|second| second.total_us / second.count);
        let (mut total, mut count) = (0, 0);
        for mean in means {
            total += mean;
            count += 1;
        }
        let mean = total.checked_div(count).unwrap_or_default();
        mean.max((total + under_way_us) / (count + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    #[test]
    fn a_disk_that_is_slow_every_other_second_is_slow_in_the_figure_all_the_time() {
        let mut syncs = Means::default();
        let mut now_us = SECOND_US;
        while now_us < 60 * SECOND_US {
            let took_us = if (now_us / SECOND_US).is_multiple_of(2) { 100_000 } else { 1_000 };
            now_us += took_us;
            syncs.note(now_us, took_us);
            if now_us > 12 * SECOND_US {
                let figure = syncs.figure(now_us, 0);
                // Half of the seconds are slow; of the present one only a fast sync may be known yet.
                assert!((35_000..70_000).contains(&figure), "{figure}");
            }
        }
        // Ten seconds later nothing is known of it.
        assert_eq!(syncs.figure(now_us + 10 * SECOND_US, 0), 0);
    }
}
