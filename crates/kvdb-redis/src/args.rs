//! Reading arguments, and what to say when they are wrong.

use crate::number::{parse_i64, parse_u64, parse_unsigned_loosely};
use crate::plan::Plan;
use crate::reply::Reply;
use bytes::Bytes;
use kvdb_store::keys::Expiry;
use std::hash::{BuildHasher, Hasher, RandomState};

/// What a command's arguments come to.
pub type Planned = Result<Plan, Reply>;

/// Arguments that don't fit together.
pub fn syntax() -> Reply {
    Reply::error("syntax error")
}

/// Too few arguments, or too many.
pub fn wrong_number(command: &str) -> Reply {
    Reply::error(format!("wrong number of arguments for '{}' command", command.to_lowercase()))
}

/// An integer.
pub fn integer(text: &[u8]) -> Result<i64, Reply> {
    parse_i64(text).ok_or_else(|| Reply::error("value is not an integer or out of range"))
}

/// Whether an argument is this word, in any case.
pub fn is(text: &[u8], word: &str) -> bool {
    text.eq_ignore_ascii_case(word.as_bytes())
}

/// An argument in capitals, for matching.
pub fn upper(text: &[u8]) -> String {
    String::from_utf8_lossy(text).to_ascii_uppercase()
}

/// How a time is given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TimeUnit {
    /// Milliseconds in one.
    pub millis: i64,
    /// Since 1970, rather than from now on.
    pub absolute: bool,
}

/// Seconds from now on.
pub const SECONDS: TimeUnit = TimeUnit { millis: 1000, absolute: false };
/// Milliseconds from now on.
pub const MILLIS: TimeUnit = TimeUnit { millis: 1, absolute: false };
/// Seconds since 1970.
pub const UNIX_SECONDS: TimeUnit = TimeUnit { millis: 1000, absolute: true };
/// Milliseconds since 1970.
pub const UNIX_MILLIS: TimeUnit = TimeUnit { millis: 1, absolute: true };

/// A time that has passed, in milliseconds since 1970: what is too far from it is too far from now.
pub const BASE_MS: i64 = 1_700_000_000_000;

/// An expiry that may lie in the past.
pub fn expiry(command: &str, text: &[u8], unit: TimeUnit) -> Result<Expiry, Reply> {
    let millis = integer(text)?.checked_mul(unit.millis);
    let base = if unit.absolute { 0 } else { BASE_MS };
    // What can't be told as a time since 1970 is refused, as Redis does.
    let millis = millis.filter(|millis| millis.checked_add(base).is_some());
    let millis = millis.ok_or_else(|| invalid_expiry(command))?;
    Ok(match (u64::try_from(millis), unit.absolute) {
        (Ok(at), true) => Expiry::At(at.max(1)),
        (Ok(ms @ 1..), false) => Expiry::In(ms),
        // In the past.
        _ => Expiry::At(1),
    })
}

/// An expiry that must be above 0.
pub fn positive_expiry(command: &str, text: &[u8], unit: TimeUnit) -> Result<Expiry, Reply> {
    if integer(text)? <= 0 {
        return Err(invalid_expiry(command));
    }
    expiry(command, text, unit)
}

fn invalid_expiry(command: &str) -> Reply {
    Reply::error(format!("invalid expire time in '{command}' command"))
}

/// Options after the fixed arguments, one by one.
pub struct Options<'a> {
    rest: &'a [Bytes],
}

impl<'a> Options<'a> {
    /// Those of `args` from a place on.
    pub fn after(args: &'a [Bytes], from: usize) -> Self {
        Options { rest: args.get(from..).unwrap_or_default() }
    }

    /// Whether there are any left.
    pub fn has_more(&self) -> bool {
        !self.rest.is_empty()
    }

    /// How many are left.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next one's word, in capitals.
    pub fn word(&mut self) -> Option<String> {
        self.value().ok().map(|word| upper(word))
    }

    /// The next argument as it is.
    pub fn value(&mut self) -> Result<&'a Bytes, Reply> {
        let (first, rest) = self.rest.split_first().ok_or_else(syntax)?;
        self.rest = rest;
        Ok(first)
    }

    /// The next argument as an integer.
    pub fn integer(&mut self) -> Result<i64, Reply> {
        integer(self.value()?)
    }
}

/// The unit that an option word stands for.
pub fn unit_of(word: &str) -> Option<TimeUnit> {
    Some(match word {
        "EX" => SECONDS,
        "PX" => MILLIS,
        "EXAT" => UNIX_SECONDS,
        "PXAT" => UNIX_MILLIS,
        _ => return None,
    })
}

/// A bit's place.
pub fn bit_offset(text: &[u8]) -> Result<u64, Reply> {
    parse_u64(text)
        .filter(|offset| *offset < 1 << 32)
        .ok_or_else(|| Reply::error("bit offset is not an integer or out of range"))
}

/// A cursor of a walk.
///
/// # Errors
/// For anything but a number.
pub(crate) fn parse_cursor(text: &[u8]) -> Result<u64, Reply> {
    parse_unsigned_loosely(text).ok_or_else(|| Reply::error("invalid cursor"))
}

/// Of a walk through a collection: how many elements to look at, and which to tell.
pub(crate) fn scan_options(args: &[Bytes]) -> Result<(u64, Option<Bytes>), Reply> {
    let (mut most, mut pattern) = (10, None);
    let mut options = Options::after(args, 3);
    while let Some(word) = options.word() {
        match word.as_str() {
            "COUNT" => match options.integer()? {
                ..1 => return Err(syntax()),
                count => most = count as u64,
            },
            "MATCH" => pattern = Some(options.value()?.clone()).filter(|text| text != "*"),
            _ => return Err(syntax()),
        }
    }
    Ok((most, pattern))
}

/// How many elements are chosen at random: below 0 for repeating ones.
pub(crate) fn random_count(text: &[u8]) -> Result<i64, Reply> {
    match integer(text)? {
        i64::MIN => Err(Reply::error(format!(
            "value is out of range, value must between {} and {}",
            -i64::MAX,
            i64::MAX
        ))),
        count => Ok(count),
    }
}

/// What chance is made of, where a command leaves something to it: drawn here, so that every replica comes
/// to the same.
pub(crate) fn seed() -> u64 {
    // The standard library's own source of randomness, which needs none beside it.
    RandomState::new().build_hasher().finish()
}
