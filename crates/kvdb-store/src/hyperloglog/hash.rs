//! Which register an element goes to, and what it raises that to.

/// Bits of a hash that choose the register.
const INDEX_BITS: u32 = 14;
/// How many registers there are. A part of the format.
pub(super) const REGISTERS: usize = 1 << INDEX_BITS;
/// Bits of a hash whose trailing zeros are counted. A register goes up to one more.
pub(super) const COUNTED_BITS: usize = 64 - INDEX_BITS as usize;

const SEED: u64 = 0xadc8_3b19;
const MULTIPLIER: u64 = 0xc6a4_a793_5bd1_e995;
const SHIFT: u32 = 47;

/// MurmurHash64A of Austin Appleby, which is in the public domain; words are little-endian on every machine.
fn hash(data: &[u8]) -> u64 {
    let mut hash = SEED ^ (data.len() as u64).wrapping_mul(MULTIPLIER);
    let mut words = data.chunks_exact(8);
    for word in &mut words {
        hash = (hash ^ mixed(number(word))).wrapping_mul(MULTIPLIER);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        hash = (hash ^ number(rest)).wrapping_mul(MULTIPLIER);
    }
    hash = (hash ^ hash >> SHIFT).wrapping_mul(MULTIPLIER);
    hash ^ hash >> SHIFT
}

fn mixed(word: u64) -> u64 {
    let word = word.wrapping_mul(MULTIPLIER);
    (word ^ word >> SHIFT).wrapping_mul(MULTIPLIER)
}

/// Up to eight bytes as a little-endian number.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The register of an element, and the least that it holds once the element is in: one more than the zeros that
/// the rest of its hash ends with.
pub(super) fn position(element: &[u8]) -> (usize, u8) {
    let hash = hash(element);
    let index = hash as usize % REGISTERS;
    // The bit above the last one that counts ends the zeros.
    let counted = hash >> INDEX_BITS | 1 << COUNTED_BITS;
    (index, counted.trailing_zeros() as u8 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_register_goes_up_to_one_more_than_the_bits_that_are_counted() {
        let highest = (0..200_000u32).map(|number| position(&number.to_le_bytes()).1).max();
        assert!(highest.is_some_and(|highest| (10..=51).contains(&highest)), "{highest:?}");
    }

    #[test]
    fn each_byte_of_an_element_counts_whatever_its_length() {
        for length in 0..40 {
            let element = vec![7u8; length];
            let before = hash(&element);
            assert_ne!(before, hash(&vec![7u8; length + 1]), "{length}");
            for place in 0..length {
                let mut other = element.clone();
                other[place] ^= 1;
                assert_ne!(before, hash(&other), "{length} {place}");
            }
        }
    }
}
