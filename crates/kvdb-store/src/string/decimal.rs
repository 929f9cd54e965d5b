//! Adding decimal numbers as Redis on x86-64 does, the same on every machine.
//!
//! Redis reads both texts as floats with 64 bits of mantissa and 15 of exponent, adds them, rounding
//! to the nearest (to even where two are as near), and writes up to 17 digits after the point. Here
//! the same is done with integers, so nothing depends on the platform.

use kvdb_model::limits::FLOAT_TEXT_MAX_BYTES;
use kvdb_model::wrong_value::{NOT_A_FLOAT, NOT_FINITE};

/// Digits after the point that are written.
const PLACES: u32 = 17;
/// Exponents of the lowest bit: of the smallest number, and of the largest.
const LOWEST: i32 = -16_445;
const HIGHEST: i32 = 16_383 - 63;
/// Decimal exponents beyond which every number is 0 or too large.
const DECIMAL_MAX: i64 = 20_000;

/// Binary exponents beyond which it doesn't matter what they are.
const POWER_MAX: i64 = 1 << 20;

/// A number, never NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Float {
    Infinite {
        negative: bool,
    },
    /// `mantissa * 2^exponent`; the mantissa's highest bit is set unless it is 0 or the exponent the
    /// lowest.
    Finite {
        negative: bool,
        mantissa: u64,
        exponent: i32,
    },
}

const ZERO: Float = Float::Finite { negative: false, mantissa: 0, exponent: LOWEST };

/// The sum of two decimal texts.
///
/// # Errors
/// What is wrong: one isn't a number, or there is no sum.
pub(crate) fn add(left: &[u8], right: &[u8]) -> Result<String, &'static str> {
    let (left, right) = (parse(left).ok_or(NOT_A_FLOAT)?, parse(right).ok_or(NOT_A_FLOAT)?);
    match sum(left, right) {
        Some(Float::Finite { negative, mantissa, exponent }) => {
            Ok(print(negative, mantissa, exponent))
        }
        _ => Err(NOT_FINITE),
    }
}

/// Reads what C's `strtold` reads, as a whole: decimal or hexadecimal, with or without point and
/// exponent, or an infinity. No spaces, no NaN, nothing that is too large or so small that it is 0.
fn parse(text: &[u8]) -> Option<Float> {
    if text.len() > FLOAT_TEXT_MAX_BYTES {
        return None;
    }
    let (negative, rest) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    if rest.eq_ignore_ascii_case(b"inf") || rest.eq_ignore_ascii_case(b"infinity") {
        return Some(Float::Infinite { negative });
    }
    let (base, mark, rest) = match rest {
        [b'0', b'x' | b'X', rest @ ..] => (16, b'p', rest),
        rest => (10, b'e', rest),
    };
    let end = rest.iter().position(|byte| byte.to_ascii_lowercase() == mark);
    let (digits, power) = match end {
        Some(end) => (&rest[..end], power(&rest[end + 1..])?),
        None => (rest, 0),
    };
    let mut number = Natural::default();
    let (mut any, mut after_point, mut places) = (false, false, 0i64);
    for byte in digits {
        if *byte == b'.' && !after_point {
            after_point = true;
            continue;
        }
        number.multiply_add(base, (*byte as char).to_digit(base)?);
        any = true;
        places += i64::from(after_point);
    }
    if !any {
        return None;
    }
    if number.is_zero() {
        return Some(Float::Finite { negative, mantissa: 0, exponent: LOWEST });
    }
    let found = match base {
        16 => {
            let power = power.clamp(-POWER_MAX, POWER_MAX) - 4 * places;
            round(negative, &number, &Natural::from(1), power)
        }
        _ => {
            let power = power.saturating_sub(places);
            // Beyond them, whatever the digits are.
            if power.abs() > DECIMAL_MAX {
                return None;
            }
            let scale = Natural::power_of_ten(power.unsigned_abs());
            match power {
                0.. => round(negative, &number.times(&scale), &Natural::from(1), 0),
                _ => round(negative, &number, &scale, 0),
            }
        }
    };
    match found {
        Float::Finite { mantissa: 0, .. } | Float::Infinite { .. } => None,
        found => Some(found),
    }
}

/// An exponent, with or without sign. One that is too long counts as very large.
fn power(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if digits.is_empty() {
        return None;
    }
    let mut power = 0i64;
    for byte in digits {
        let digit = (*byte as char).to_digit(10)?;
        power = power.saturating_mul(10).saturating_add(i64::from(digit));
    }
    Some(if negative { -power } else { power })
}

/// `number / divisor * 2^power` as the nearest float.
fn round(negative: bool, number: &Natural, divisor: &Natural, power: i64) -> Float {
    // So that the quotient has 65 or 66 bits.
    let shift = 65 - (number.bits() as i64 - divisor.bits() as i64);
    let (above, below) = if shift >= 0 {
        (number.shifted(shift as usize), divisor.clone())
    } else {
        (number.clone(), divisor.shifted(shift.unsigned_abs() as usize))
    };
    let (quotient, rest) = above.divided(&below);
    let exponent = power.saturating_sub(shift);
    // A bit below all others that says whether anything is left.
    nearest(negative, quotient << 1 | u128::from(rest), exponent.saturating_sub(1))
}

/// The nearest float to `mantissa * 2^exponent`, whose lowest bit may stand for anything below it.
fn nearest(negative: bool, mantissa: u128, exponent: i64) -> Float {
    let bits = i64::from(128 - mantissa.leading_zeros());
    // Bits that don't fit, above or below.
    let extra = (bits - 64).max(i64::from(LOWEST) - exponent).max(0);
    let mut exponent = exponent.saturating_add(extra);
    let mut kept = match extra {
        0 => mantissa,
        129.. => 0,
        _ => {
            let kept = if extra == 128 { 0 } else { mantissa >> extra };
            let rest = if extra == 128 { mantissa } else { mantissa & ((1 << extra) - 1) };
            let half = 1u128 << (extra - 1);
            kept + u128::from(rest > half || (rest == half && kept & 1 == 1))
        }
    };
    if kept >> 64 != 0 {
        kept >>= 1;
        exponent += 1;
    }
    let mut mantissa = kept as u64;
    if mantissa == 0 {
        return Float::Finite { negative, mantissa: 0, exponent: LOWEST };
    }
    // Up to the highest bit, as far as the exponent reaches.
    let up = i64::from(mantissa.leading_zeros()).min(exponent - i64::from(LOWEST));
    mantissa <<= up;
    exponent -= up;
    match i32::try_from(exponent) {
        Ok(exponent) if exponent <= HIGHEST => Float::Finite { negative, mantissa, exponent },
        _ => Float::Infinite { negative },
    }
}

/// `None` for infinity less infinity.
fn sum(left: Float, right: Float) -> Option<Float> {
    let (left, right) = match (left, right) {
        (Float::Infinite { negative }, Float::Infinite { negative: other }) => {
            return (negative == other).then_some(left);
        }
        (Float::Infinite { .. }, _) => return Some(left),
        (_, Float::Infinite { .. }) => return Some(right),
        (
            Float::Finite { negative, mantissa, exponent },
            Float::Finite { negative: other, mantissa: less, exponent: lower },
        ) => {
            let (left, right) = ((negative, mantissa, exponent), (other, less, lower));
            if (exponent, mantissa) >= (lower, less) { (left, right) } else { (right, left) }
        }
    };
    let ((negative, large, exponent), (other, small, lower)) = (left, right);
    // 62 bits below the larger one, and one that stands for all that is lower still.
    let apart = (exponent - lower) as u32;
    let large = u128::from(large) << 62;
    let small = u128::from(small) << 62;
    let (kept, lost) = match apart {
        0 => (small, false),
        1..=126 => (small >> apart, small & ((1 << apart) - 1) != 0),
        _ => (0, small != 0),
    };
    let total = if negative == other {
        (large + kept) << 1 | u128::from(lost)
    } else {
        // What is lost makes the difference a little smaller: one less, and something below.
        (large - kept - u128::from(lost)) << 1 | u128::from(lost)
    };
    if total == 0 {
        return Some(ZERO);
    }
    Some(nearest(negative, total, i64::from(exponent) - 63))
}

fn print(negative: bool, mantissa: u64, exponent: i32) -> String {
    let sign = if negative { "-" } else { "" };
    if exponent >= 0 {
        let whole = Natural::from(mantissa).shifted(exponent as usize);
        return match whole.is_zero() {
            true => "0".to_owned(),
            false => format!("{sign}{}", whole.decimal()),
        };
    }
    let below = exponent.unsigned_abs();
    let (mut whole, rest) = match below {
        ..64 => (mantissa >> below, mantissa & ((1 << below) - 1)),
        _ => (0, mantissa),
    };
    // The part after the point in units of the last digit: below 2^121.
    let unit = 10u128.pow(PLACES);
    let exact = u128::from(rest) * unit;
    let mut after = match below {
        ..128 => {
            let (kept, lost) = (exact >> below, exact & ((1 << below) - 1));
            let half = 1u128 << (below - 1);
            kept + u128::from(lost > half || (lost == half && kept & 1 == 1))
        }
        _ => 0,
    };
    if after == unit {
        (whole, after) = (whole + 1, 0);
    }
    if after == 0 {
        // Redis turns -0 into 0.
        return if whole == 0 { "0".to_owned() } else { format!("{sign}{whole}") };
    }
    let digits = format!("{after:0width$}", width = PLACES as usize);
    format!("{sign}{whole}.{}", digits.trim_end_matches('0'))
}

/// A natural number of any size: 32 bits each, the lowest first, none above the highest that is
/// set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Natural(Vec<u32>);

impl From<u64> for Natural {
    fn from(number: u64) -> Self {
        Natural(vec![number as u32, (number >> 32) as u32]).trimmed()
    }
}

impl Natural {
    fn trimmed(mut self) -> Self {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
        self
    }

    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    fn bits(&self) -> usize {
        self.0.last().map_or(0, |top| self.0.len() * 32 - top.leading_zeros() as usize)
    }

    fn multiply_add(&mut self, factor: u32, add: u32) {
        let mut carry = u64::from(add);
        for part in &mut self.0 {
            carry += u64::from(*part) * u64::from(factor);
            *part = carry as u32;
            carry >>= 32;
        }
        if carry > 0 {
            self.0.push(carry as u32);
        }
    }

    fn power_of_ten(power: u64) -> Self {
        let mut number = Natural::from(1);
        for _ in 0..power / 9 {
            number.multiply_add(1_000_000_000, 0);
        }
        number.multiply_add(10u32.pow((power % 9) as u32), 0);
        number
    }

    fn times(&self, other: &Natural) -> Natural {
        let mut out = vec![0u32; self.0.len() + other.0.len()];
        for (at, part) in self.0.iter().enumerate() {
            let mut carry = 0u64;
            for (place, factor) in other.0.iter().enumerate() {
                carry += u64::from(out[at + place]) + u64::from(*part) * u64::from(*factor);
                out[at + place] = carry as u32;
                carry >>= 32;
            }
            out[at + other.0.len()] = carry as u32;
        }
        Natural(out).trimmed()
    }

    fn shifted(&self, bits: usize) -> Natural {
        let mut out = vec![0u32; bits / 32];
        let within = bits % 32;
        let mut carry = 0u64;
        for part in &self.0 {
            carry |= u64::from(*part) << within;
            out.push(carry as u32);
            carry >>= 32;
        }
        out.push(carry as u32);
        Natural(out).trimmed()
    }

    fn at_least(&self, other: &Natural) -> bool {
        let lengths = self.0.len().cmp(&other.0.len());
        lengths.then_with(|| self.0.iter().rev().cmp(other.0.iter().rev())).is_ge()
    }

    fn subtract(&mut self, other: &Natural) {
        let mut borrow = 0i64;
        for (at, part) in self.0.iter_mut().enumerate() {
            borrow += i64::from(*part) - other.0.get(at).map_or(0, |part| i64::from(*part));
            *part = borrow as u32;
            borrow >>= 32;
        }
        *self = std::mem::take(self).trimmed();
    }

    /// A quotient of at most 68 bits, and whether anything is left.
    fn divided(mut self, divisor: &Natural) -> (u128, bool) {
        let first = self.bits().saturating_sub(divisor.bits());
        let mut quotient = 0u128;
        for place in (0..=first).rev() {
            let part = divisor.shifted(place);
            let fits = self.at_least(&part);
            if fits {
                self.subtract(&part);
            }
            quotient = quotient << 1 | u128::from(fits);
        }
        (quotient, !self.is_zero())
    }

    fn decimal(mut self) -> String {
        let mut groups = Vec::new();
        while !self.is_zero() {
            let mut rest = 0u64;
            for part in self.0.iter_mut().rev() {
                rest = rest << 32 | u64::from(*part);
                *part = (rest / 1_000_000_000) as u32;
                rest %= 1_000_000_000;
            }
            groups.push(rest);
            self = self.trimmed();
        }
        let mut out = groups.pop().map(|first| first.to_string()).unwrap_or_default();
        for group in groups.iter().rev() {
            out.push_str(&format!("{group:09}"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sums_are_those_of_redis_on_x86() {
        for (left, right, sum) in [
            ("0.1", "0.2", "0.3"),
            ("1", "-1.1", "-0.1"),
            ("3", "1.1", "4.1"),
            ("17179869184", "1.5", "17179869185.5"),
            ("0", "0", "0"),
            ("-0.5", "0.5", "0"),
            ("-0", "-0.0", "0"),
            ("5.0e3", "200", "5200"),
            ("10.50", "0.1", "10.6"),
            ("9007199254740993", "1e-05", "9007199254740993"),
            ("9007199254740993", "0.3", "9007199254740993.2998046875"),
            ("1e18", "1", "1000000000000000001"),
            ("0x1.8p3", "0X.8", "12.5"),
            ("+.5", "5.", "5.5"),
            ("1e20", "1", "100000000000000000000"),
            ("1e-4940", "0", "0"),
            ("0x1.8p-16446", "0", "0"),
            ("3.0e-17", "0", "0.00000000000000003"),
        ] {
            assert_eq!(
                add(left.as_bytes(), right.as_bytes()).as_deref(),
                Ok(sum),
                "{left} {right}"
            );
        }
        let large = add(b"1e4932", b"1").unwrap();
        assert_eq!((large.len(), &large[..20]), (4933, "10000000000000000000"));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [
            "",
            " 1",
            "1 ",
            "abc",
            "nan",
            "1\0",
            "--1",
            ".",
            "1e",
            "1e+",
            "0x",
            "0x.",
            "0x1p",
            "1_0",
            "1e4933",
            "1e99999999999999999999",
            "1e-99999999999999999999",
            "1e-5000",
            "infi",
            "0x1p-16446",
            "0x1p99999999999999999999",
            "0x1p-99999999999999999999",
        ] {
            assert_eq!(add(text.as_bytes(), b"1"), Err(NOT_A_FLOAT), "{text:?}");
        }
        assert_eq!(add(b"inf", b"1"), Err(NOT_FINITE));
        assert_eq!(add(b"1", b"-Infinity"), Err(NOT_FINITE));
        assert_eq!(add(b"1e4932", b"1e4932"), Err(NOT_FINITE));
        let long = vec![b'1'; FLOAT_TEXT_MAX_BYTES + 1];
        assert_eq!(add(&long, b"1"), Err(NOT_A_FLOAT));
    }

    proptest! {
        #[test]
        fn integers_add_up(left in any::<i64>(), right in any::<i32>()) {
            let (left, right) = (i128::from(left / 2), i128::from(right));
            let sum = add(left.to_string().as_bytes(), right.to_string().as_bytes());
            prop_assert_eq!(sum, Ok((left + right).to_string()));
        }

        #[test]
        fn a_sum_is_a_number_again_and_near_the_float(left in -1e15f64..1e15, right in -1e3f64..1e3) {
            let sum = add(left.to_string().as_bytes(), right.to_string().as_bytes()).unwrap();
            let near: f64 = sum.parse().unwrap();
            prop_assert!((near - (left + right)).abs() <= 1e-3 * (1.0 + (left + right).abs()) / 1e6 , "{sum}");
        }

        #[test]
        fn order_does_not_matter(left in "-?[0-9]{1,25}(\\.[0-9]{1,25})?(e-?[0-9]{1,4})?", right in "-?[0-9]{1,25}") {
            prop_assert_eq!(add(left.as_bytes(), right.as_bytes()), add(right.as_bytes(), left.as_bytes()));
        }

        #[test]
        fn junk_never_panics(left in "[-+0-9.eExXpPa-f ]{0,45}", right in "[-+0-9.e]{0,20}") {
            let _ = add(left.as_bytes(), right.as_bytes());
        }
    }
}
