//! Commands on the bits of strings. Bit 0 is the most significant one of the first byte.

mod number;

use crate::command::{Command, Done, Effect, Fault, flag};
use crate::string::grown_to;
use crate::tx::Tx;
use bytes::Bytes;
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::{CommandId, Reply};

/// A number inside a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitRange {
    /// Two's complement.
    pub signed: bool,
    /// 1 to 64, or 63 if unsigned.
    pub bits: u8,
    /// The first bit.
    pub offset: u64,
}

/// What becomes of a number that doesn't fit its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The bits that fit.
    Wrap,
    /// The nearest number that fits.
    Saturate,
    /// The number stays as it was, and the answer is empty.
    Fail,
}

/// One step of a [`BitField`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitFieldStep {
    /// Answers with the number.
    Get(BitRange),
    /// Sets it; answers with the one before.
    Set(BitRange, i64, Overflow),
    /// Adds to it; answers with the new one.
    Increment(BitRange, i64, Overflow),
}

/// How [`BitOp`] combines its sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitOperation {
    /// Every bit that is set in all.
    And,
    /// Every bit that is set in one.
    Or,
    /// Every bit that is set in an odd number of them.
    Xor,
    /// Every bit that isn't set in the only source.
    Not,
}

/// Sets or clears a bit; replies with the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetBit {
    /// Which bit.
    pub offset: u64,
    /// Whether to set it.
    pub bit: bool,
}

impl Command for SetBit {
    const ID: CommandId = CommandId(0x0201);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        out.varint(self.offset);
        out.u8(u8::from(self.bit));
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(SetBit { offset: input.varint()?, bit: flag(input)? })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let (before, expires_at_ms) = tx.string(0)?.unwrap_or_default();
        let mut value = grown_to(&before, self.offset / 8 + 1)?;
        let bit = number::set_bit(&mut value, self.offset, self.bit);
        Ok(store(tx, &before, value, expires_at_ms)?.with(Reply::Integer(i64::from(bit))))
    }
}

/// Stores a value, unless it is what was there.
fn store(
    tx: &mut Tx<'_>,
    before: &[u8],
    value: Vec<u8>,
    expires_at_ms: u64,
) -> Result<Done, Fault> {
    if value == before {
        return Ok(Done::NOT_APPLIED);
    }
    tx.set(0, value.into(), expires_at_ms)?;
    Ok(Done::APPLIED)
}

/// Reads and changes numbers inside the value. Replies with a list: a number a step, nil where it
/// didn't fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitField {
    /// In order.
    pub steps: Vec<BitFieldStep>,
}

/// The shortest step: tag, kind and a small offset, of a `GET`.
const STEP_LEAST_BYTES: usize = 3;

impl Command for BitField {
    const ID: CommandId = CommandId(0x0202);
    const EFFECT: Effect = Effect::Grow;

    fn encode(&self, out: &mut Writer) {
        out.varint(self.steps.len() as u64);
        self.steps.iter().for_each(|step| encode_step(*step, out));
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let count = input.count(STEP_LEAST_BYTES)?;
        let steps = (0..count).map(|_| decode_step(input)).collect::<Result<_, _>>()?;
        Ok(BitField { steps })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let (before, expires_at_ms) = tx.string(0)?.unwrap_or_default();
        let written = self.steps.iter().filter_map(|step| match step {
            BitFieldStep::Get(_) => None,
            BitFieldStep::Set(range, ..) | BitFieldStep::Increment(range, ..) => {
                Some(number::end_byte(*range))
            }
        });
        // As in Redis, also for a number that then doesn't fit.
        let mut value = grown_to(&before, written.max().unwrap_or(0))?;
        let answer = |step: &BitFieldStep| number::step(&mut value, *step);
        let answers = self.steps.iter().map(answer);
        let replies = answers.map(|answer| answer.map_or(Reply::Nil, Reply::Integer)).collect();
        Ok(store(tx, &before, value, expires_at_ms)?.with(Reply::List(replies)))
    }
}

fn encode_step(step: BitFieldStep, out: &mut Writer) {
    let (tag, range, change) = match step {
        BitFieldStep::Get(range) => (0, range, None),
        BitFieldStep::Set(range, value, overflow) => (1, range, Some((value, overflow))),
        BitFieldStep::Increment(range, value, overflow) => (2, range, Some((value, overflow))),
    };
    out.u8(tag);
    out.u8(range.bits | u8::from(range.signed) << 7);
    out.varint(range.offset);
    if let Some((value, overflow)) = change {
        out.signed(value);
        out.u8(overflow as u8);
    }
}

fn decode_step(input: &mut Reader) -> Result<BitFieldStep, DecodeError> {
    let tag = input.u8()?;
    let kind = input.u8()?;
    let (signed, bits) = (kind & 0x80 != 0, kind & 0x7f);
    if bits == 0 || bits > 64 || (bits == 64 && !signed) {
        return Err(DecodeError::unknown_tag("bit range", kind));
    }
    let range = BitRange { signed, bits, offset: input.varint()? };
    if tag == 0 {
        return Ok(BitFieldStep::Get(range));
    }
    let value = input.signed()?;
    let overflow = match input.u8()? {
        0 => Overflow::Wrap,
        1 => Overflow::Saturate,
        2 => Overflow::Fail,
        other => return Err(DecodeError::unknown_tag("overflow", other)),
    };
    match tag {
        1 => Ok(BitFieldStep::Set(range, value, overflow)),
        2 => Ok(BitFieldStep::Increment(range, value, overflow)),
        other => Err(DecodeError::unknown_tag("bit field step", other)),
    }
}

/// Stores the combination of the other keys' bits, or removes the key if all are empty; replies
/// with the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitOp {
    /// How.
    pub operation: BitOperation,
}

impl Command for BitOp {
    const ID: CommandId = CommandId(0x0203);
    const EFFECT: Effect = Effect::Grow;
    const OTHERS: (usize, usize) = (1, usize::MAX - 1);

    fn encode(&self, out: &mut Writer) {
        out.u8(self.operation as u8);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let operation = match input.u8()? {
            0 => BitOperation::And,
            1 => BitOperation::Or,
            2 => BitOperation::Xor,
            3 => BitOperation::Not,
            other => return Err(DecodeError::unknown_tag("bit operation", other)),
        };
        Ok(BitOp { operation })
    }

    fn apply(self, tx: &mut Tx<'_>) -> Result<Done, Fault> {
        let mut sources: Vec<Bytes> = Vec::with_capacity(tx.key_count() - 1);
        for place in 1..tx.key_count() {
            sources.push(tx.string(place)?.unwrap_or_default().0);
        }
        let parts: Vec<&[u8]> = sources.iter().map(|source| &source[..]).collect();
        let value = number::combine(self.operation, &parts);
        let reply = Reply::Integer(value.len() as i64);
        match value.is_empty() {
            true => tx.remove(0)?,
            false => tx.set(0, value.into(), 0)?,
        }
        Ok(Done::APPLIED.with(reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::tests::survives;
    use crate::overlay::tests::{Trial, record};
    use kvdb_model::{Refusal, wrong_value};
    use proptest::prelude::*;

    /// Small ones too, which are encoded in fewer bytes.
    fn any_number() -> impl Strategy<Value = u64> {
        prop_oneof![0..9u64, any::<u64>()]
    }

    fn any_step() -> impl Strategy<Value = BitFieldStep> {
        let overflow =
            prop::sample::select(vec![Overflow::Wrap, Overflow::Saturate, Overflow::Fail]);
        (any::<bool>(), 1u8..=63, any_number(), 0..3, any::<i64>(), overflow).prop_map(
            |(signed, bits, offset, kind, value, overflow)| {
                let range = BitRange { signed, bits, offset };
                match kind {
                    0 => BitFieldStep::Get(range),
                    1 => BitFieldStep::Set(range, value, overflow),
                    _ => BitFieldStep::Increment(range, value, overflow),
                }
            },
        )
    }

    proptest! {
        #[test]
        fn commands_on_bits_survive_encoding(steps in prop::collection::vec(any_step(), 0..5), offset in any::<u64>(), bit in any::<bool>()) {
            survives(&BitField { steps });
            survives(&SetBit { offset, bit });
        }

        #[test]
        fn no_command_on_bits_panics(before in prop::collection::vec(any::<u8>(), 0..20), steps in prop::collection::vec(any_step(), 0..5), offset in any::<u64>()) {
            let mut trial = Trial::new(&[("k", record(&before, 0))]);
            let _ = trial.run(&BitField { steps }, &["k"]);
            let _ = trial.run(&SetBit { offset, bit: true }, &["k"]);
        }
    }

    #[test]
    fn lists_of_the_shortest_steps_survive_encoding() {
        let range = BitRange { signed: false, bits: 4, offset: 1 };
        survives(&BitField { steps: vec![BitFieldStep::Get(range); 3] });
        let set = BitFieldStep::Set(range, 1, Overflow::Wrap);
        survives(&BitField {
            steps: vec![set, BitFieldStep::Get(range), BitFieldStep::Get(range)],
        });
        for operation in [BitOperation::And, BitOperation::Or, BitOperation::Xor, BitOperation::Not]
        {
            survives(&BitOp { operation });
        }
    }

    #[test]
    fn a_bit_that_is_set_keeps_the_expiry() {
        let mut trial = Trial::new(&[("k", record(b"10", 9_000))]);
        let result = trial.run(&SetBit { offset: 23, bit: true }, &["k"]).unwrap();
        assert_eq!((result.applied, result.reply), (true, Reply::Integer(0)));
        assert_eq!(trial.value("k"), Some((b"10\x01".to_vec(), 9_000)));
        assert!(!trial.run(&SetBit { offset: 23, bit: true }, &["k"]).unwrap().applied);
    }

    #[test]
    fn no_value_grows_beyond_the_limit() {
        let mut trial = Trial::new(&[]);
        let refused = trial.run(&SetBit { offset: u64::MAX, bit: true }, &["k"]);
        assert!(matches!(refused, Err(Refusal::WrongValue(wrong_value::TOO_LONG))));
    }

    #[test]
    fn an_empty_combination_removes_the_key() {
        let or = BitOp { operation: BitOperation::Or };
        let mut trial = Trial::new(&[("k", record(b"v", 0))]);
        assert_eq!(trial.run(&or, &["k", "a", "b"]).unwrap().reply, Reply::Integer(0));
        assert_eq!(trial.value("k"), None);
        let there = [("a", record(b"\x01\x02", 0)), ("b", record(b"\x10", 0))];
        let mut trial = Trial::new(&there);
        assert_eq!(trial.run(&or, &["k", "a", "b"]).unwrap().reply, Reply::Integer(2));
        assert_eq!(trial.value("k"), Some((vec![0x11, 0x02], 0)));
    }

    #[test]
    fn a_bit_field_makes_room_for_what_it_writes_even_where_a_number_does_not_fit() {
        let range = BitRange { signed: false, bits: 2, offset: 8 };
        let steps =
            vec![BitFieldStep::Increment(range, 9, Overflow::Fail), BitFieldStep::Get(range)];
        let mut trial = Trial::new(&[("long", record(b"long", 0))]);
        trial.run(&BitField { steps: steps.clone() }, &["long"]).unwrap();
        assert_eq!(trial.changes(), 0);
        let result = trial.run(&BitField { steps }, &["k"]).unwrap();
        assert_eq!(trial.value("k"), Some((vec![0, 0], 0)));
        assert_eq!(result.reply, Reply::List(vec![Reply::Nil, Reply::Integer(0)]));
    }
}
