//! Which packets arrive, when, and how often.

use crate::dice::Dice;
use std::collections::BTreeSet;

/// Places are numbered through: coordinators, nodes, clients.
pub(crate) type Place = usize;

#[derive(Default)]
pub(crate) struct Network {
    /// Directions in which nothing passes.
    cut: BTreeSet<(Place, Place)>,
    /// Of 1000 packets, how many are lost.
    pub(crate) loss: u64,
    /// Of 1000, how many come twice.
    pub(crate) doubled: u64,
    /// Longest delay beyond the least, in microseconds: packets overtake each other.
    pub(crate) jitter_us: u64,
    /// Of 1000, how many are held up for long.
    pub(crate) straggling: u64,
}

const LEAST_DELAY_US: u64 = 100;
const STRAGGLER_US: u64 = 400_000;

impl Network {
    pub(crate) fn heal(&mut self) {
        *self = Network { jitter_us: 300, ..Network::default() };
    }

    /// Cuts one direction.
    pub(crate) fn cut(&mut self, from: Place, to: Place) {
        self.cut.insert((from, to));
    }

    /// The delay of each copy that arrives.
    pub(crate) fn delays(&self, dice: &mut Dice, from: Place, to: Place) -> Vec<u64> {
        let mut delays = Vec::with_capacity(1);
        if self.cut.contains(&(from, to)) || dice.chance(self.loss) {
            return delays;
        }
        let copies = if dice.chance(self.doubled) { 2 } else { 1 };
        for _ in 0..copies {
            let straggles = if dice.chance(self.straggling) { dice.below(STRAGGLER_US) } else { 0 };
            delays.push(LEAST_DELAY_US + dice.below(self.jitter_us + 1) + straggles);
        }
        delays
    }
}
