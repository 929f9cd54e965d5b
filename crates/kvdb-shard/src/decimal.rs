//! Adding decimal numbers, the same on every machine.
//!
//! Numbers of up to 19 digits before and 17 after the point are added exactly. Others are added as
//! 64-bit floats and written as the shortest decimal that reads back as the same float. Neither
//! depends on the platform.

use kvdb_model::wrong_value::{NOT_A_FLOAT, NOT_FINITE};

/// Most digits after the point of an exact number, as Redis prints them.
const SCALE_MAX: u32 = 17;
/// Most significant digits of an exact number.
const DIGITS_MAX: usize = 36;
const TEXT_MAX_BYTES: usize = 512;

/// `mantissa / 10^scale`.
#[derive(Clone, Copy)]
struct Decimal {
    mantissa: i128,
    scale: u32,
}

/// Whether a text is a number that [`add`] takes: decimal, with or without point and exponent, or
/// `inf`. No spaces, no NaN.
pub(crate) fn parse(text: &[u8]) -> Option<f64> {
    if text.is_empty() || text.len() > TEXT_MAX_BYTES {
        return None;
    }
    let number: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (!number.is_nan()).then_some(number)
}

/// The sum of two decimal texts.
///
/// # Errors
/// What is wrong: one isn't a number, or there is no sum.
pub(crate) fn add(left: &[u8], right: &[u8]) -> Result<String, &'static str> {
    let floats = (parse(left).ok_or(NOT_A_FLOAT)?, parse(right).ok_or(NOT_A_FLOAT)?);
    if let (Some(left), Some(right)) = (exact(left), exact(right))
        && let Some(sum) = add_exactly(left, right)
    {
        return Ok(print(sum));
    }
    let sum = floats.0 + floats.1;
    if !sum.is_finite() {
        return Err(NOT_FINITE);
    }
    // -0 is written as 0.
    Ok(if sum == 0.0 { "0".to_owned() } else { format!("{sum}") })
}

fn exact(text: &[u8]) -> Option<Decimal> {
    let negative = text.first() == Some(&b'-');
    let digits = text.strip_prefix(b"-").or(text.strip_prefix(b"+")).unwrap_or(text);
    let mut decimal = Decimal { mantissa: 0, scale: 0 };
    let mut after_point = false;
    let mut significant = 0;
    for byte in digits {
        match byte {
            b'.' if !after_point => after_point = true,
            b'0'..=b'9' => {
                significant += usize::from(significant > 0 || *byte != b'0');
                decimal.scale += u32::from(after_point);
                if significant > DIGITS_MAX || decimal.scale > SCALE_MAX {
                    return None;
                }
                decimal.mantissa = decimal.mantissa * 10 + i128::from(byte - b'0');
            }
            _ => return None,
        }
    }
    let whole_digits = significant.saturating_sub(decimal.scale as usize);
    if whole_digits > 19 {
        return None;
    }
    if negative {
        decimal.mantissa = -decimal.mantissa;
    }
    Some(decimal)
}

fn add_exactly(left: Decimal, right: Decimal) -> Option<Decimal> {
    let scale = left.scale.max(right.scale);
    let scaled = |number: Decimal| number.mantissa.checked_mul(10i128.pow(scale - number.scale));
    let mantissa = scaled(left)?.checked_add(scaled(right)?)?;
    Some(Decimal { mantissa, scale })
}

fn print(number: Decimal) -> String {
    let unit = 10u128.pow(number.scale);
    let size = number.mantissa.unsigned_abs();
    let (whole, rest) = (size / unit, size % unit);
    let sign = if number.mantissa < 0 { "-" } else { "" };
    if rest == 0 {
        return format!("{sign}{whole}");
    }
    let after = format!("{rest:0width$}", width = number.scale as usize);
    format!("{sign}{whole}.{}", after.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sums_are_exact_where_floats_are_not() {
        for (left, right, sum) in [
            ("0.1", "0.2", "0.3"),
            ("1", "-1.1", "-0.1"),
            ("3", "1.1", "4.1"),
            ("17179869184", "1.5", "17179869185.5"),
            ("0", "0", "0"),
            ("-0.5", "0.5", "0"),
            ("5.0e3", "200", "5200"),
            ("1e300", "1", &format!("{}", 1e300)),
            ("10.50", "0.1", "10.6"),
        ] {
            assert_eq!(
                add(left.as_bytes(), right.as_bytes()).as_deref(),
                Ok(sum),
                "{left} {right}"
            );
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", " 1", "1 ", "abc", "nan", "1\0", "--1", "."] {
            assert_eq!(add(text.as_bytes(), b"1"), Err(NOT_A_FLOAT), "{text:?}");
        }
        assert_eq!(add(b"inf", b"1"), Err(NOT_FINITE));
        assert_eq!(add(b"1", b"-inf"), Err(NOT_FINITE));
        assert_eq!(add(b"1.7e308", b"1.7e308"), Err(NOT_FINITE));
    }

    proptest! {
        #[test]
        fn integers_add_up(left in -1_000_000_000_000i64..1_000_000_000_000, right in any::<i32>()) {
            let sum = add(left.to_string().as_bytes(), right.to_string().as_bytes());
            prop_assert_eq!(sum, Ok((left + i64::from(right)).to_string()));
        }

        #[test]
        fn a_sum_is_a_number_again_and_near_the_float(left in -1e15f64..1e15, right in -1e3f64..1e3) {
            let sum = add(left.to_string().as_bytes(), right.to_string().as_bytes()).unwrap();
            let near = parse(sum.as_bytes()).unwrap();
            prop_assert!((near - (left + right)).abs() <= 1e-3 * (1.0 + (left + right).abs()) / 1e6 , "{sum}");
        }

        #[test]
        fn junk_never_panics(left in "[-+0-9.e ]{0,45}", right in "[-+0-9.e]{0,20}") {
            let _ = add(left.as_bytes(), right.as_bytes());
        }
    }
}
