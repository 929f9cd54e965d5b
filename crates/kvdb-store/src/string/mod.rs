//! Commands on strings. gRPC's `Put` and Redis's `SET` are the same one.

pub(crate) mod decimal;

use crate::command::{Command, Done, Effect, Fault, flag, wrong};
use crate::keys::Expiry;
use crate::tx::Tx;
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value::{NOT_A_NUMBER, OVERFLOW, TOO_LONG};
use kvdb_model::{CommandId, Limits, Refusal, Reply};

/// Longest value that a command makes. A part of the state machine: fixed.
const VALUE_MAX_BYTES: u64 = 8 << 20;

/// A copy of a value, with zeros up to a length.
pub(crate) fn grown_to(value: &[u8], least_bytes: u64) -> Result<Vec<u8>, Fault> {
    if least_bytes > VALUE_MAX_BYTES {
        return Err(wrong(TOO_LONG));
    }
    let length = value.len().max(least_bytes as usize);
    let mut grown = Vec::with_capacity(length);
    grown.extend_from_slice(value);
    grown.resize(length, 0);
    Ok(grown)
}

/// Reads a value. Applies if it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Get {
    /// Take a key that holds another type for one that isn't there.
    pub strings_only: bool,
}

impl Command for Get {
    const ID: CommandId = CommandId(0x0100);
    const EFFECT: Effect = Effect::Read;

    fn encode(&self, out: &mut Writer) {
        out.u8(u8::from(self.strings_only));
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Get { strings_only: flag(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let value = match tx.string(0) {
            Err(Fault::Refused(_)) if self.strings_only => None,
            value => value?,
        };
        Ok(match value {
            Some((value, _)) => Done::APPLIED.with(Reply::Bytes(value)),
            None => Done::NOT_APPLIED.with(Reply::Nil),
        })
    }
}

/// Sets a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// The new value.
    pub value: Bytes,
    /// When it expires.
    pub expiry: Expiry,
}

impl Command for Set {
    const ID: CommandId = CommandId(0x0101);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        self.expiry.encode(out);
        out.raw(&self.value);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let expiry = Expiry::decode(input)?;
        Ok(Set { value: input.raw(input.remaining())?, expiry })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        limits.check_value(&self.value)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let before = match self.expiry {
            Expiry::Keep => tx.get(0)?.map_or(0, |record| record.expires_at_ms),
            _ => 0,
        };
        let expires_at_ms = self.expiry.expires_at_ms(tx.version(), before);
        tx.set(0, self.value, expires_at_ms)?;
        Ok(Done::APPLIED)
    }
}

/// Adds to a counter, which is decimal text as Redis keeps it; an absent key counts as 0. Replies
/// with the new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Increment {
    /// What to add.
    pub delta: i64,
}

impl Command for Increment {
    const ID: CommandId = CommandId(0x0102);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        out.signed(self.delta);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Increment { delta: input.signed()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let current = tx.string(0)?;
        let before = match &current {
            None => 0,
            Some((value, _)) => parse_counter(value).ok_or(wrong(NOT_A_NUMBER))?,
        };
        let after = before.checked_add(self.delta).ok_or(wrong(OVERFLOW))?;
        let expires_at_ms = current.map_or(0, |(_, expires_at_ms)| expires_at_ms);
        tx.set(0, Bytes::from(after.to_string()), expires_at_ms)?;
        Ok(Done::APPLIED.with(Reply::Integer(after)))
    }
}

/// Reads only what writing a number gives: no plus, no space, no leading zero, as Redis does.
pub(crate) fn parse_counter(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = match digits {
        [] => false,
        [b'0'] => text.len() == 1,
        [first, ..] => *first != b'0' && *first != b'+',
    };
    if !canonical {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Adds to a decimal number; replies with the new one, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncrementFloat {
    /// What to add, as text.
    pub delta: Bytes,
}

impl Command for IncrementFloat {
    const ID: CommandId = CommandId(0x0103);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        out.bytes(&self.delta);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(IncrementFloat { delta: input.bytes()? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let current = tx.string(0)?;
        let before = current.as_ref().map_or(&b"0"[..], |(value, _)| value);
        let sum = Bytes::from(decimal::add(before, &self.delta).map_err(wrong)?);
        let expires_at_ms = current.map_or(0, |(_, expires_at_ms)| expires_at_ms);
        tx.set(0, sum.clone(), expires_at_ms)?;
        Ok(Done::APPLIED.with(Reply::Bytes(sum)))
    }
}

/// Adds to the end; replies with the new length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// What to add.
    pub value: Bytes,
}

impl Command for Append {
    const ID: CommandId = CommandId(0x0104);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        out.bytes(&self.value);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Append { value: input.bytes()? })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        limits.check_value(&self.value)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let (value, expires_at_ms) = tx.string(0)?.unwrap_or_default();
        overwrite(tx, &value, expires_at_ms, value.len() as u64, &self.value)
    }
}

/// Overwrites a part, with zeros before it where the value was shorter; replies with the new
/// length. An empty part changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetRange {
    /// Bytes from the start.
    pub offset: u64,
    /// What to write there.
    pub value: Bytes,
}

impl Command for SetRange {
    const ID: CommandId = CommandId(0x0105);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        out.varint(self.offset);
        out.bytes(&self.value);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(SetRange { offset: input.varint()?, value: input.bytes()? })
    }

    fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        limits.check_value(&self.value)
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let (value, expires_at_ms) = tx.string(0)?.unwrap_or_default();
        if self.value.is_empty() {
            return Ok(Done::NOT_APPLIED.with(Reply::Integer(value.len() as i64)));
        }
        overwrite(tx, &value, expires_at_ms, self.offset, &self.value)
    }
}

fn overwrite(
    tx: &mut Tx<'_>,
    before: &[u8],
    expires_at_ms: u64,
    offset: u64,
    part: &[u8],
) -> Result<Done, Fault> {
    let end = offset.saturating_add(part.len() as u64);
    let mut value = grown_to(before, end)?;
    // It is below the limit now, and so is a place in memory.
    value[offset as usize..end as usize].copy_from_slice(part);
    let length = value.len() as i64;
    tx.set(0, value.into(), expires_at_ms)?;
    Ok(Done::APPLIED.with(Reply::Integer(length)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::tests::survives;
    use crate::overlay::tests::{Trial, record};
    use kvdb_model::wrong_value;
    use proptest::prelude::*;

    #[test]
    fn only_canonical_numbers_count() {
        for (text, number) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("10", Some(10)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("", None),
            ("-", None),
            ("-0", None),
            ("+1", None),
            ("-+1", None),
            ("01", None),
            (" 1", None),
            ("1 ", None),
            ("1.0", None),
            ("0x1", None),
            ("one", None),
        ] {
            assert_eq!(parse_counter(text.as_bytes()), number, "{text:?}");
        }
        assert_eq!(parse_counter(b"1\xff"), None);
    }

    #[test]
    fn a_change_of_a_part_keeps_the_expiry() {
        let mut trial = Trial::new(&[("k", record(b"10", 9_000))]);
        let after = |outcome: kvdb_model::OperationOutcome, trial: &mut Trial| {
            assert!(outcome.unwrap().applied);
            let (value, expires_at_ms) = trial.value("k").unwrap();
            assert_eq!(expires_at_ms, 9_000);
            String::from_utf8(value).unwrap()
        };
        let outcome = trial.run(&Append { value: "1".into() }, &["k"]);
        assert_eq!(after(outcome, &mut trial), "101");
        let outcome = trial.run(&SetRange { offset: 1, value: "55".into() }, &["k"]);
        assert_eq!(after(outcome, &mut trial), "155");
        let outcome = trial.run(&Increment { delta: -3 }, &["k"]);
        assert_eq!(after(outcome, &mut trial), "152");
        let outcome = trial.run(&IncrementFloat { delta: "0.5".into() }, &["k"]);
        assert_eq!(after(outcome, &mut trial), "152.5");
        let outcome = trial.run(&Set { value: "x".into(), expiry: Expiry::Keep }, &["k"]);
        assert_eq!(after(outcome, &mut trial), "x");
    }

    #[test]
    fn no_value_grows_beyond_the_limit() {
        for offset in [VALUE_MAX_BYTES, u64::MAX] {
            let mut trial = Trial::new(&[]);
            let refused = trial.run(&SetRange { offset, value: "x".into() }, &["k"]);
            assert!(matches!(refused, Err(Refusal::WrongValue(wrong_value::TOO_LONG))));
        }
    }

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..30).prop_map(Bytes::from)
    }

    proptest! {
        #[test]
        fn commands_on_strings_survive_encoding(value in any_bytes(), offset in any::<u64>(), delta in any::<i64>(), ttl_ms in any::<Option<u64>>()) {
            survives(&Set { value: value.clone(), expiry: Expiry::after(ttl_ms) });
            survives(&Increment { delta });
            survives(&Get { strings_only: delta > 0 });
            survives(&IncrementFloat { delta: value.clone() });
            survives(&Append { value: value.clone() });
            survives(&SetRange { offset, value });
        }

        #[test]
        fn exactly_what_is_written_is_read(number in any::<i64>(), junk in "[-+0-9 ]{0,5}") {
            prop_assert_eq!(parse_counter(number.to_string().as_bytes()), Some(number));
            let read = parse_counter(junk.as_bytes());
            prop_assert_eq!(read, junk.parse::<i64>().ok().filter(|n| n.to_string() == junk));
        }

        #[test]
        fn a_part_is_where_it_was_written_and_the_rest_as_before(
            before in prop::collection::vec(any::<u8>(), 0..20),
            offset in 0usize..30,
            part in prop::collection::vec(any::<u8>(), 1..10),
        ) {
            let mut trial = Trial::new(&[("k", record(&before, 0))]);
            let command = SetRange { offset: offset as u64, value: part.clone().into() };
            let result = trial.run(&command, &["k"]).unwrap();
            let (value, _) = trial.value("k").unwrap();
            prop_assert_eq!(result.reply, Reply::Integer(value.len() as i64));
            prop_assert_eq!(value.len(), before.len().max(offset + part.len()));
            prop_assert_eq!(&value[offset..offset + part.len()], &part[..]);
            for (place, byte) in value.iter().enumerate() {
                if !(offset..offset + part.len()).contains(&place) {
                    prop_assert_eq!(*byte, before.get(place).copied().unwrap_or(0));
                }
            }
        }

        #[test]
        fn no_command_on_a_string_panics(
            before in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
            offset in any::<u64>(), delta in "[-+0-9.e]{0,6}", number in any::<i64>(),
        ) {
            let there: Vec<_> = before.map(|value| ("k", record(&value, 0))).into_iter().collect();
            let mut trial = Trial::new(&there);
            let _ = trial.run(&SetRange { offset, value: "abc".into() }, &["k"]);
            let _ = trial.run(&IncrementFloat { delta: delta.into() }, &["k"]);
            let _ = trial.run(&Increment { delta: number }, &["k"]);
        }
    }
}
