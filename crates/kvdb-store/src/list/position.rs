//! Where an element of a list stands: a number between those of its neighbours.
//!
//! A position is a number of 128 bits, kept without the zero bytes at its end, but with 8 bytes at
//! least. What is pushed gets the next multiple of 2^64, so that it takes 8 bytes. Whatever is put between
//! two others gets the middle. Where there is no middle any more, some neighbours are spread anew
//! ([`spread`]).

use bytes::Bytes;

/// From what is pushed to what is pushed next.
const STEP: u128 = 1 << 64;
/// The first one of a list.
const FIRST: u128 = 1 << 127;
/// Room between two neighbours that were spread: so often can something be put at the same place.
const ROOM: u128 = 1 << 32;

pub(super) fn encode(position: u128) -> Bytes {
    let bytes = position.to_be_bytes();
    let zeroes = bytes.iter().rev().take_while(|byte| **byte == 0).count();
    Bytes::copy_from_slice(&bytes[..(bytes.len() - zeroes).max(8)])
}

/// What [`encode`] wrote; of a longer row what comes first.
pub(super) fn decode(row: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    let length = row.len().min(bytes.len());
    bytes[..length].copy_from_slice(&row[..length]);
    u128::from_be_bytes(bytes)
}

/// Of an element that is pushed behind the last one.
pub(super) fn behind(last: Option<u128>) -> u128 {
    last.map_or(FIRST, |last| (last / STEP).saturating_add(1).saturating_mul(STEP))
}

/// Of an element that is pushed before the first one.
pub(super) fn before(first: Option<u128>) -> u128 {
    first.map_or(FIRST, |first| (first.div_ceil(STEP)).saturating_sub(1).saturating_mul(STEP))
}

/// Between two neighbours, if there is room.
pub(super) fn between(one: u128, other: u128) -> Option<u128> {
    let middle = one + (other - one) / 2;
    (middle > one && middle < other).then_some(middle)
}

/// Positions of so many elements, evenly between two others that stay; `None` if they are too near.
pub(super) fn spread(count: u64, one: u128, other: u128) -> Option<impl Iterator<Item = u128>> {
    let gap = (other - one) / (u128::from(count) + 1);
    (gap >= ROOM).then(|| (1..=u128::from(count)).map(move |place| one + place * gap))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn positions_sort_as_their_numbers(one in any::<u128>(), other in any::<u128>(), zeroes in 0u32..128) {
            let other = other >> zeroes << zeroes;
            prop_assert_eq!(decode(&encode(one)), one);
            prop_assert_eq!(decode(&encode(other)), other);
            prop_assert_eq!(encode(one).cmp(&encode(other)), one.cmp(&other));
            let (low, high) = (one.min(other), one.max(other));
            if let Some(middle) = between(low, high) {
                prop_assert!(low < middle && middle < high);
            }
        }

        #[test]
        fn what_is_pushed_stands_outside_and_takes_eight_bytes(position in (1u128 << 100)..(1 << 127)) {
            let (last, first) = (behind(Some(position)), before(Some(position)));
            prop_assert!(first < position && position < last);
            prop_assert_eq!((encode(first).len(), encode(last).len()), (8, 8));
        }
    }

    #[test]
    fn neighbours_are_spread_only_where_there_is_room() {
        assert!(spread(3, 0, ROOM * 3).is_none());
        let spread: Vec<_> = spread(3, 0, ROOM * 4).unwrap().collect();
        assert_eq!(spread, [ROOM, ROOM * 2, ROOM * 3]);
    }
}
