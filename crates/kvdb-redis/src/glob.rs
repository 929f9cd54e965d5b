//! Patterns of keys, with the rules of Redis: `*`, `?`, `[a-c]`, `[^a]` and `\`.

/// Whether a text matches a pattern. Takes time in proportion to the product of their lengths at
/// most.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut rest, mut left) = (pattern, text);
    // Where to go on if what follows the last star doesn't match: the star eats one byte more.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', after @ ..] = rest {
            rest = after;
            retry = Some((after, left));
            continue;
        }
        if rest.is_empty() && left.is_empty() {
            return true;
        }
        if let Some(after) = match_one(rest, left.first().copied()) {
            rest = after;
            left = &left[1..];
            continue;
        }
        match retry {
            Some((after, [_, from @ ..])) => {
                retry = Some((after, from));
                (rest, left) = (after, from);
            }
            _ => return false,
        }
    }
}

/// The same whatever the case of letters.
pub fn matches_any_case(pattern: &[u8], text: &[u8]) -> bool {
    matches(&pattern.to_ascii_lowercase(), &text.to_ascii_lowercase())
}

/// What is left of a pattern that doesn't begin with a star, if it matches a byte.
fn match_one(pattern: &[u8], byte: Option<u8>) -> Option<&[u8]> {
    let byte = byte?;
    match pattern {
        [] => None,
        [b'?', after @ ..] => Some(after),
        [b'[', after @ ..] => {
            let (found, after) = class(after, byte);
            found.then_some(after)
        }
        [b'\\', literal, after @ ..] | [literal, after @ ..] => (*literal == byte).then_some(after),
    }
}

/// Whether a byte is in a class, and what follows the class.
fn class(pattern: &[u8], byte: u8) -> (bool, &[u8]) {
    let (negated, mut rest) = match pattern {
        [b'^', after @ ..] => (true, after),
        _ => (false, pattern),
    };
    let mut found = false;
    loop {
        rest = match rest {
            [] => break,
            [b']', after @ ..] => {
                rest = after;
                break;
            }
            [b'\\', literal, after @ ..] => {
                found |= *literal == byte;
                after
            }
            [from, b'-', to, after @ ..] => {
                // As in Redis, bytes of 0x80 and above come before all others.
                let (from, to, byte) = (*from as i8, *to as i8, byte as i8);
                found |= (from.min(to)..=from.max(to)).contains(&byte);
                after
            }
            [literal, after @ ..] => {
                found |= *literal == byte;
                after
            }
        };
    }
    (found != negated, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "anything", true),
            ("foo*", "foobar", true),
            ("foo*", "fo", false),
            ("h?llo", "hello", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("[\\]]", "]", true),
            ("a[", "a", false),
            ("*a*b*c", "xaybzc", true),
            ("*a*b*c", "xaybz", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn ranges_take_high_bytes_for_negative_as_redis_does() {
        for (pattern, byte, expected) in [
            (&b"[a-\xff]"[..], b'b', false),
            (b"[a-\xff]", b'0', true),
            (b"[a-\xff]", 0x80, false),
            (b"[\x80-a]", 0x90, true),
            (b"[\x80-\x90]", 0x85, true),
            (b"[^\x80-\x90]", 0x91, true),
        ] {
            assert_eq!(matches(pattern, &[byte]), expected, "{pattern:?} {byte}");
        }
    }

    #[test]
    fn many_stars_take_no_long_time() {
        let pattern = "a*".repeat(2000) + "b";
        assert!(!matches(pattern.as_bytes(), "a".repeat(2000).as_bytes()));
    }

    proptest! {
        #[test]
        fn junk_never_panics(pattern in "[*?\\[\\]^a-c\\\\-]{0,12}", text in "[a-c]{0,9}") {
            matches(pattern.as_bytes(), text.as_bytes());
        }

        #[test]
        fn a_text_matches_itself_and_stars_around_it(text in "[a-z]{1,9}", from in 0usize..9) {
            prop_assert!(matches(text.as_bytes(), text.as_bytes()));
            let from = from.min(text.len());
            let pattern = format!("*{}*", &text[from..]);
            prop_assert!(matches(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
