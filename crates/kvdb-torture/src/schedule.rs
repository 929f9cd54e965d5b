//! Which fault comes when: drawn from the seed alone, so that a seed names a schedule.
//!
//! What the cluster makes of it differs from run to run (who leads, how long recovery takes), so a
//! seed replays the faults, their order and lengths, and not each instant.

use crate::fault::Fault;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::time::Duration;

/// A fault to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What.
    pub fault: Fault,
    /// How long it lasts.
    pub length: Duration,
    /// Chooses whom it hits, and how.
    pub choice: u64,
}

/// Draws faults. Every kind comes once before one comes twice.
pub struct Schedule {
    random: ChaCha8Rng,
    kinds: Vec<Fault>,
    bag: Vec<Fault>,
    longest: Duration,
}

impl Schedule {
    /// A schedule of these kinds, for a run of this length: no fault takes more than a sixth of it.
    pub fn new(seed: u64, kinds: &[Fault], run: Duration) -> Self {
        Schedule {
            random: ChaCha8Rng::seed_from_u64(seed),
            kinds: kinds.to_vec(),
            bag: Vec::new(),
            longest: run / 6,
        }
    }

    /// The next fault; `None` if there are no kinds.
    pub fn next_fault(&mut self) -> Option<Planned> {
        if self.bag.is_empty() {
            self.bag = self.kinds.clone();
            self.shuffle_bag();
        }
        let fault = self.bag.pop()?;
        Some(self.plan(fault))
    }

    /// A fault of this kind, with its length drawn.
    pub fn plan(&mut self, fault: Fault) -> Planned {
        let (shortest, longest) = fault.lengths();
        let longest = longest.min(self.longest.max(shortest));
        Planned { fault, length: self.between(shortest, longest), choice: self.random.next_u64() }
    }

    /// How long to leave the cluster in peace after it has recovered.
    pub fn calm(&mut self) -> Duration {
        let longest = Duration::from_secs(3).min(self.longest);
        self.between(longest / 6, longest)
    }

    fn shuffle_bag(&mut self) {
        for place in (1..self.bag.len()).rev() {
            let other = (self.random.next_u64() % (place as u64 + 1)) as usize;
            self.bag.swap(place, other);
        }
    }

    /// Short ones are as likely as long ones: what is drawn evenly is the order of magnitude.
    fn between(&mut self, shortest: Duration, longest: Duration) -> Duration {
        let share = self.random.next_u32() as f64 / f64::from(u32::MAX);
        let ratio = longest.as_secs_f64() / shortest.as_secs_f64().max(1e-6);
        shortest.mul_f64(ratio.max(1.0).powf(share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RUN: Duration = Duration::from_secs(600);

    proptest! {
        #[test]
        fn a_seed_names_a_schedule_within_its_bounds(seed in any::<u64>(), seconds in 5u64..1000) {
            let run = Duration::from_secs(seconds);
            let mut first = Schedule::new(seed, &Fault::ALL, run);
            let mut second = Schedule::new(seed, &Fault::ALL, run);
            for _ in 0..60 {
                let planned = first.next_fault().unwrap();
                prop_assert_eq!(Some(planned), second.next_fault());
                let (shortest, longest) = planned.fault.lengths();
                let slack = Duration::from_micros(1);
                prop_assert!(planned.length + slack >= shortest);
                prop_assert!(planned.length <= longest + slack);
                prop_assert!(planned.length <= (run / 6).max(shortest) + slack);
                prop_assert_eq!(first.calm(), second.calm());
            }
        }
    }

    #[test]
    fn every_kind_comes_once_before_one_comes_twice() {
        let kinds = [Fault::KillAll, Fault::PauseLeader, Fault::Mute];
        let mut schedule = Schedule::new(7, &kinds, RUN);
        for _ in 0..10 {
            let mut round: Vec<_> = (0..3).map(|_| schedule.next_fault().unwrap().fault).collect();
            round.sort_unstable();
            assert_eq!(round, kinds);
        }
        assert_eq!(Schedule::new(7, &[], RUN).next_fault(), None);
    }

    #[test]
    fn different_seeds_give_different_schedules() {
        let drawn = |seed| {
            let mut schedule = Schedule::new(seed, &Fault::ALL, RUN);
            (0..5).map(|_| schedule.next_fault().unwrap()).collect::<Vec<_>>()
        };
        assert_ne!(drawn(1), drawn(2));
    }
}
