//! How many elements registers stand for.
//!
//! The improved raw estimator of Otmar Ertl ("New cardinality estimation algorithms for HyperLogLog sketches",
//! 2017, algorithm 6): it needs neither a table against bias nor another formula for small numbers. Redis uses it
//! since 4.0; each step is done in the order in which that does it, so that the numbers are the same.

use super::hash::{COUNTED_BITS, REGISTERS};

/// The highest register that an element can make.
const HIGHEST: usize = COUNTED_BITS + 1;
/// 1 / (2 ln 2).
const ALPHA: f64 = 0.721_347_520_444_481_7;
/// What six bits hold.
const VALUES: usize = 64;

/// How many registers hold each value.
pub(super) struct Histogram([u32; VALUES]);

impl Histogram {
    pub(super) fn new() -> Self {
        Histogram([0; VALUES])
    }

    /// So many registers hold a value (of six bits).
    pub(super) fn add(&mut self, value: u8, registers: usize) {
        self.0[usize::from(value) % VALUES] += registers as u32;
    }

    /// The number of elements; nothing where no number of them that can be counted makes such registers.
    pub(super) fn estimate(&self) -> Option<u64> {
        let registers = REGISTERS as f64;
        let share = |count: u32| f64::from(count) / registers;
        let below_highest = (registers - f64::from(self.0[HIGHEST])) / registers;
        let mut sum = registers * tau(below_highest);
        for count in self.0[1..HIGHEST].iter().rev() {
            sum = (sum + f64::from(*count)) * 0.5;
        }
        sum += registers * sigma(share(self.0[0]));
        let estimate = (ALPHA * registers * registers / sum).round();
        (estimate < i64::MAX as f64).then_some(estimate as u64)
    }
}

/// What the registers that are 0 add: x + x² + 2x⁴ + 4x⁸ and so on, until more changes nothing.
fn sigma(share: f64) -> f64 {
    if share == 1.0 {
        return f64::INFINITY;
    }
    let (mut power, mut weight, mut sum) = (share, 1.0, share);
    loop {
        power *= power;
        let before = sum;
        sum += power * weight;
        weight += weight;
        if sum == before {
            return sum;
        }
    }
}

/// What the registers that are full take away, likewise.
fn tau(share: f64) -> f64 {
    if share == 0.0 || share == 1.0 {
        return 0.0;
    }
    let (mut root, mut weight, mut sum) = (share, 1.0, 1.0 - share);
    loop {
        root = root.sqrt();
        let before = sum;
        weight *= 0.5;
        sum -= (1.0 - root) * (1.0 - root) * weight;
        if sum == before {
            return sum / 3.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(parts: &[(u8, usize)]) -> Option<u64> {
        let mut histogram = Histogram::new();
        parts.iter().for_each(|(value, registers)| histogram.add(*value, *registers));
        histogram.estimate()
    }

    #[test]
    fn small_numbers_are_exact_and_large_ones_in_proportion() {
        assert_eq!(estimate(&[(0, REGISTERS)]), Some(0));
        assert_eq!(estimate(&[(0, REGISTERS - 3), (1, 2), (5, 1)]), Some(3));
        let half = estimate(&[(20, REGISTERS)]).unwrap() as f64;
        let whole = estimate(&[(21, REGISTERS)]).unwrap() as f64;
        assert!((whole / half - 2.0).abs() < 1e-6, "{half} {whole}");
    }

    #[test]
    fn registers_that_no_number_of_elements_makes_have_no_estimate() {
        assert_eq!(estimate(&[(63, REGISTERS)]), None);
        assert_eq!(estimate(&[(51, REGISTERS)]), None);
        assert_eq!(estimate(&[(50, REGISTERS)]), None);
        assert!(estimate(&[(0, 1), (63, REGISTERS - 1)]).is_some());
    }
}
