//! Numbers inside strings, and combinations of strings, bit by bit. Bit 0 is the most significant
//! one of the first byte.

use super::{BitFieldStep, BitOperation, BitRange, Overflow};

fn bit(value: &[u8], at: u64) -> bool {
    let byte = usize::try_from(at / 8).ok().and_then(|place| value.get(place));
    byte.is_some_and(|byte| byte >> (7 - at % 8) & 1 == 1)
}

/// Sets a bit that is inside.
pub(crate) fn set_bit(value: &mut [u8], at: u64, on: bool) -> bool {
    let before = bit(value, at);
    if let Some(byte) = value.get_mut((at / 8) as usize) {
        let mask = 1 << (7 - at % 8);
        if on {
            *byte |= mask;
        } else {
            *byte &= !mask;
        }
    }
    before
}

fn read(value: &[u8], range: BitRange) -> i128 {
    let mut number = 0i128;
    for place in 0..u64::from(range.bits) {
        number = number << 1 | i128::from(bit(value, range.offset.saturating_add(place)));
    }
    if range.signed && number >> (range.bits - 1) & 1 == 1 {
        number - (1 << range.bits)
    } else {
        number
    }
}

fn write(value: &mut [u8], range: BitRange, number: i128) {
    for place in 0..range.bits {
        let on = number >> (range.bits - 1 - place) & 1 == 1;
        set_bit(value, range.offset + u64::from(place), on);
    }
}

/// The number that fits, or `None`.
fn fit(number: i128, range: BitRange, overflow: Overflow) -> Option<i128> {
    let (least, most) = if range.signed {
        (-(1i128 << (range.bits - 1)), (1i128 << (range.bits - 1)) - 1)
    } else {
        (0, (1i128 << range.bits) - 1)
    };
    if (least..=most).contains(&number) {
        return Some(number);
    }
    match overflow {
        Overflow::Fail => None,
        Overflow::Saturate => Some(number.clamp(least, most)),
        Overflow::Wrap => {
            let bits = number & ((1i128 << range.bits) - 1);
            Some(if bits > most { bits - (1i128 << range.bits) } else { bits })
        }
    }
}

/// The first byte after a range.
pub(crate) fn end_byte(range: BitRange) -> u64 {
    range.offset.saturating_add(u64::from(range.bits)).div_ceil(8)
}

/// Carries one step out on a value that is long enough for what it writes; answers.
pub(crate) fn step(value: &mut [u8], step: BitFieldStep) -> Option<i64> {
    let (range, wanted, overflow, answers_before) = match step {
        BitFieldStep::Get(range) => return Some(read(value, range) as i64),
        BitFieldStep::Set(range, number, overflow) => {
            (range, as_wanted(range, number), overflow, true)
        }
        BitFieldStep::Increment(range, delta, overflow) => {
            (range, read(value, range) + i128::from(delta), overflow, false)
        }
    };
    let before = read(value, range);
    let number = match (overflow, step) {
        // As in Redis, what is so far below that the distance to the largest doesn't fit in 64 bits
        // counts as above.
        (Overflow::Saturate, BitFieldStep::Set(_, number, _))
            if range.signed && range.bits < 64 && wraps_round(range, number) =>
        {
            (1 << (range.bits - 1)) - 1
        }
        _ => fit(wanted, range, overflow)?,
    };
    write(value, range, number);
    Some(if answers_before { before } else { number } as i64)
}

fn wraps_round(range: BitRange, number: i64) -> bool {
    ((1i64 << (range.bits - 1)) - 1).checked_sub(number).is_none()
}

/// A negative number for an unsigned field means its 64 bits.
fn as_wanted(range: BitRange, number: i64) -> i128 {
    if range.signed { i128::from(number) } else { i128::from(number as u64) }
}

/// The combination of strings, which count as zeros beyond their ends.
pub(crate) fn combine(operation: BitOperation, sources: &[&[u8]]) -> Vec<u8> {
    let length = sources.iter().map(|source| source.len()).max().unwrap_or(0);
    let mut out = vec![0; length];
    let Some((first, rest)) = sources.split_first() else { return out };
    out[..first.len()].copy_from_slice(first);
    if operation == BitOperation::Not {
        out.iter_mut().for_each(|byte| *byte = !*byte);
        return out;
    }
    for source in rest {
        for (place, byte) in out.iter_mut().enumerate() {
            let other = source.get(place).copied().unwrap_or(0);
            match operation {
                BitOperation::And => *byte &= other,
                BitOperation::Or => *byte |= other,
                BitOperation::Xor | BitOperation::Not => *byte ^= other,
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_range() -> impl Strategy<Value = BitRange> {
        (any::<bool>(), 1u8..=63, 0u64..60).prop_map(|(signed, bits, offset)| BitRange {
            signed,
            bits,
            offset,
        })
    }

    proptest! {
        #[test]
        fn a_number_that_fits_is_read_back_and_nothing_else_changes(
            range in any_range(), number in any::<i64>(), mut value in prop::collection::vec(any::<u8>(), 16..17),
        ) {
            let fits = fit(i128::from(number), range, Overflow::Wrap).unwrap();
            let before = value.clone();
            write(&mut value, range, fits);
            prop_assert_eq!(read(&value, range), fits);
            for at in 0..128 {
                let inside = at >= range.offset && at < range.offset + u64::from(range.bits);
                prop_assert!(inside || bit(&value, at) == bit(&before, at));
            }
        }

        #[test]
        fn overflow_keeps_to_its_rule(range in any_range(), value in prop::collection::vec(any::<u8>(), 16..17), delta in any::<i64>()) {
            let exact = read(&value, range) + i128::from(delta);
            let of = |overflow| step(&mut value.clone(), BitFieldStep::Increment(range, delta, overflow));
            let fits = fit(exact, range, Overflow::Fail).is_some();
            prop_assert_eq!(of(Overflow::Fail).is_some(), fits);
            if fits {
                prop_assert_eq!(of(Overflow::Wrap), Some(exact as i64));
                prop_assert_eq!(of(Overflow::Saturate), Some(exact as i64));
            } else {
                let wrapped = i128::from(of(Overflow::Wrap).unwrap());
                prop_assert_eq!((wrapped - exact) % (1i128 << range.bits), 0);
            }
        }

        #[test]
        fn a_number_that_is_set_saturates(number in any::<i64>(), bits in 1u8..=63) {
            let range = BitRange { signed: true, bits, offset: 0 };
            let most = (1i64 << (bits - 1)) - 1;
            let mut value = vec![0; 8];
            step(&mut value, BitFieldStep::Set(range, number, Overflow::Saturate));
            let expected = if most.checked_sub(number).is_none() { most } else { number.clamp(-most - 1, most) };
            prop_assert_eq!(read(&value, range), i128::from(expected));
        }

        #[test]
        fn combining_is_bitwise(left in prop::collection::vec(any::<u8>(), 0..9), right in prop::collection::vec(any::<u8>(), 0..9)) {
            let xor = combine(BitOperation::Xor, &[&left, &right]);
            for at in 0..72 {
                prop_assert_eq!(bit(&xor, at), bit(&left, at) ^ bit(&right, at));
            }
            prop_assert_eq!(combine(BitOperation::And, &[&left]), left.clone());
            prop_assert_eq!(combine(BitOperation::Not, &[&combine(BitOperation::Not, &[&left])]), left);
        }
    }
}
