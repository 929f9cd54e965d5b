//! Numbers as Redis reads them.

/// A decimal integer: no plus, no spaces, no leading zeros.
pub fn parse_i64(text: &[u8]) -> Option<i64> {
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    match digits {
        [b'0'] => (text.len() == 1).then_some(0),
        [b'1'..=b'9', ..] => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

/// An integer that isn't negative.
pub fn parse_u64(text: &[u8]) -> Option<u64> {
    let is_number = matches!(text, [b'0']) || matches!(text, [b'1'..=b'9', ..]);
    if !is_number || text.len() > 20 {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// An unsigned integer as C's `strtoul` reads it, which Redis does for cursors: with a sign, which
/// counts down from 2^64, with leading zeros, or empty for 0. Nothing may follow it.
pub fn parse_unsigned_loosely(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return Some(0);
    }
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let number: u64 = std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()?;
    Some(if negative { number.wrapping_neg() } else { number })
}

/// The bytes of a string between two places, both included and possibly negative (from the end), or
/// `None` if there are none.
pub fn span(length: usize, start: i64, end: i64) -> Option<(usize, usize)> {
    if length == 0 || (start < 0 && end < 0 && start > end) {
        return None;
    }
    let size = i64::try_from(length).ok()?;
    let place = |at: i64| if at < 0 { (size.saturating_add(at)).max(0) } else { at };
    let (start, end) = (place(start), place(end).min(size - 1));
    (start <= end).then_some((start as usize, end as usize + 1))
}

/// A decimal number as C prints it with 17 digits (`%.17g`), which is how Redis 7.0 tells scores.
pub fn double_text(number: f64) -> String {
    const DIGITS: i32 = 17;
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if number.is_nan() {
        return "nan".to_owned();
    }
    // One digit, a point, sixteen digits, and the exponent of ten.
    let text = format!("{number:.16e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if !(-4..DIGITS).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trimmed(mantissa), exponent.abs());
    }
    trimmed(&format!("{number:.*}", (DIGITS - 1 - exponent).max(0) as usize))
}

/// A decimal number as Redis reads scores: as C's `strtod`, hexadecimal ones too, but as a whole and neither
/// NaN nor too large or too small to be told from infinity and 0.
pub fn parse_double(text: &[u8]) -> Option<f64> {
    let (number, is_exact) = double_of(text)?;
    is_exact.then_some(number)
}

/// An end of a range of scores as Redis reads it: up to a zero byte, after spaces, and with numbers that
/// are too large or too small. The empty text is 0.
pub fn parse_bound(text: &[u8]) -> Option<f64> {
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    let text = &text[..end];
    if text.is_empty() {
        return Some(0.0);
    }
    let is_space = |byte: &u8| byte.is_ascii_whitespace() || *byte == 0x0b;
    let start = text.iter().position(|byte| !is_space(byte))?;
    double_of(&text[start..]).map(|(number, _)| number)
}

/// A number, and whether it was in range.
fn double_of(text: &[u8]) -> Option<(f64, bool)> {
    let digits = text.strip_prefix(b"-").or(text.strip_prefix(b"+")).unwrap_or(text);
    if let [b'0', b'x' | b'X', digits @ ..] = digits {
        let number = hexadecimal(digits)?;
        let is_zero = digits.iter().take_while(|byte| !matches!(byte, b'p' | b'P'));
        let is_zero = is_zero.clone().all(|byte| matches!(byte, b'0' | b'.'));
        let is_exact = number.is_finite() && (number != 0.0 || is_zero);
        return Some((if text[0] == b'-' { -number } else { number }, is_exact));
    }
    let number: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    if number.is_nan() {
        return None;
    }
    let is_word = digits.first().is_some_and(u8::is_ascii_alphabetic);
    let mantissa = digits.iter().take_while(|byte| !matches!(byte, b'e' | b'E'));
    let is_zero = mantissa.clone().all(|byte| matches!(byte, b'0' | b'.'));
    let is_exact = is_word || (number.is_finite() && (number != 0.0 || is_zero));
    Some((number, is_exact))
}

/// Hexadecimal digits, with or without point and exponent of two.
fn hexadecimal(text: &[u8]) -> Option<f64> {
    let (mut mantissa, mut exponent, mut seen, mut is_after_point) = (0u64, 0i64, false, false);
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        match byte {
            b'.' if !is_after_point => is_after_point = true,
            byte => {
                let Some(digit) = char::from(*byte).to_digit(16) else { break };
                seen = true;
                exponent -= if is_after_point { 4 } else { 0 };
                if mantissa >> 60 == 0 {
                    mantissa = mantissa << 4 | u64::from(digit);
                } else {
                    // What no longer fits only says which way to round.
                    mantissa |= u64::from(digit != 0);
                    exponent += 4;
                }
            }
        }
        rest = after;
    }
    if !seen {
        return None;
    }
    if let [b'p' | b'P', digits @ ..] = rest {
        let (negative, digits) = match digits {
            [b'-', digits @ ..] => (true, digits),
            [b'+', digits @ ..] => (false, digits),
            digits => (false, digits),
        };
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let power = digits.iter().fold(0i64, |power, digit| {
            power.saturating_mul(10).saturating_add(i64::from(digit - b'0'))
        });
        let power = if negative { -power } else { power };
        exponent = exponent.saturating_add(power);
    } else if !rest.is_empty() {
        return None;
    }
    let mut number = mantissa as f64;
    // In steps that are in range themselves.
    let mut left = exponent.clamp(-4000, 4000);
    while left != 0 {
        let step = left.clamp(-1000, 1000);
        number *= 2f64.powi(step as i32);
        left -= step;
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_integers_are_read() {
        for (text, number) in [
            ("0", Some(0)),
            ("-7", Some(-7)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-0", None),
            ("+1", None),
            ("01", None),
            (" 1", None),
            ("1.0", None),
            ("", None),
        ] {
            assert_eq!(parse_i64(text.as_bytes()), number, "{text:?}");
        }
        assert_eq!(parse_u64(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(parse_u64(b"-1"), None);
    }

    #[test]
    fn cursors_are_read_as_loosely_as_in_redis() {
        for (text, number) in [
            ("", Some(0)),
            ("0", Some(0)),
            ("007", Some(7)),
            ("+7", Some(7)),
            ("-1", Some(u64::MAX)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            (" 1", None),
            ("1x", None),
            ("-", None),
        ] {
            assert_eq!(parse_unsigned_loosely(text.as_bytes()), number, "{text:?}");
        }
    }

    #[test]
    fn decimal_numbers_are_told_with_17_digits() {
        for (number, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (0.1, "0.10000000000000001"),
            (-3.5, "-3.5"),
            (1e15, "1000000000000000"),
            (12345678901234567.0, "12345678901234568"),
            (1e17, "1e+17"),
            (1.5e300, "1.5000000000000001e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1.0000000000000001e-05"),
            (1e-310, "9.9999999999999694e-311"),
            (123456.789, "123456.789"),
            (99999999999999999.0, "1e+17"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(double_text(number), text);
        }
    }

    #[test]
    fn scores_are_read_as_in_redis_and_bounds_more_loosely() {
        let nan = f64::NAN;
        for (text, score, bound) in [
            ("1", 1.0, 1.0),
            ("+1.5e3", 1500.0, 1500.0),
            (".5", 0.5, 0.5),
            ("5.", 5.0, 5.0),
            ("-inf", f64::NEG_INFINITY, f64::NEG_INFINITY),
            ("Infinity", f64::INFINITY, f64::INFINITY),
            ("0x1p3", 8.0, 8.0),
            ("-0X.8", -0.5, -0.5),
            ("0x1.8p-1", 0.75, 0.75),
            ("0x123456789abcdef01", 20988295479420645138.0, 20988295479420645138.0),
            ("0x0p5", 0.0, 0.0),
            ("1e-310", 1e-310, 1e-310),
            ("1e400", nan, f64::INFINITY),
            ("0x1p5000", nan, f64::INFINITY),
            ("1e-400", nan, 0.0),
            ("0e-400", 0.0, 0.0),
            ("", nan, 0.0),
            (" 1", nan, 1.0),
            ("1\0x", nan, 1.0),
            ("1 ", nan, nan),
            (" ", nan, nan),
            ("nan", nan, nan),
            ("-nan", nan, nan),
            ("abc", nan, nan),
            ("1e", nan, nan),
            ("0x", nan, nan),
            ("0x1p", nan, nan),
            ("--1", nan, nan),
            ("1_0", nan, nan),
        ] {
            let read = |number: Option<f64>| number.unwrap_or(nan).to_bits();
            assert_eq!(read(parse_double(text.as_bytes())), score.to_bits(), "{text:?}");
            assert_eq!(read(parse_bound(text.as_bytes())), bound.to_bits(), "{text:?}");
        }
    }

    #[test]
    fn spans_count_from_both_ends() {
        assert_eq!(span(5, 0, -1), Some((0, 5)));
        assert_eq!(span(5, -3, -2), Some((2, 4)));
        assert_eq!(span(5, 2, 100), Some((2, 5)));
        assert_eq!(span(5, 5, 9), None);
        assert_eq!(span(5, -1, -3), None);
        assert_eq!(span(0, 0, -1), None);
        assert_eq!(span(5, i64::MIN, i64::MAX), Some((0, 5)));
    }
}
