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
