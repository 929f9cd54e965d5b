//! What the Redis protocol's string and key commands do to a key, as part of a shard's log.
//!
//! Each is carried out inside apply, on what the log has made of the key until then, so that none
//! of them is ever a read followed by a write. They differ from the plain actions in one more way:
//! in an atomic write, a string action whose condition fails or whose value can't be worked with
//! doesn't undo the others (that is how a Redis transaction behaves); only [`StringAction::Check`]
//! calls everything off.
//!
//! Some look at further keys ([`StringAction::other_keys`]), which must be on the same shard.

use crate::codec::{DecodeError, Reader, Writer};
use crate::version::Version;
use bytes::Bytes;

/// When a key expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Never.
    Never,
    /// As before; never if the key is new.
    Keep,
    /// So many milliseconds after the write's version.
    In(u64),
    /// At this time, in milliseconds since 1970. One that has passed removes the key.
    At(u64),
}

impl Expiry {
    /// The time in milliseconds since 1970 (0 for never), of a write at `version` where the key
    /// expired at `before`.
    pub fn expires_at_ms(self, version: Version, before: u64) -> u64 {
        match self {
            Expiry::Never => 0,
            Expiry::Keep => before,
            Expiry::In(ms) => version.millis().saturating_add(ms).max(1),
            Expiry::At(ms) => ms.max(1),
        }
    }
}

/// On which keys a change of expiry is carried out. A key that never expires counts as one that
/// expires in the far future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpiryRule(u8);

impl ExpiryRule {
    /// On every key.
    pub const ALWAYS: ExpiryRule = ExpiryRule(0);
    /// On keys that never expire.
    pub const NX: ExpiryRule = ExpiryRule(1);
    /// On keys that expire.
    pub const XX: ExpiryRule = ExpiryRule(2);
    /// If the key lives longer then.
    pub const GT: ExpiryRule = ExpiryRule(4);
    /// If the key lives shorter then.
    pub const LT: ExpiryRule = ExpiryRule(8);

    /// Both rules.
    #[must_use]
    pub fn and(self, other: ExpiryRule) -> ExpiryRule {
        ExpiryRule(self.0 | other.0)
    }

    /// Whether all of `other` is in it.
    pub fn has(self, other: ExpiryRule) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether an expiry may become `after` where it was `before` (0 for never).
    pub fn allows(self, before: u64, after: u64) -> bool {
        let far = |at: u64| if at == 0 { u64::MAX } else { at };
        !(self.has(Self::NX) && before != 0
            || self.has(Self::XX) && before == 0
            || self.has(Self::GT) && far(after) <= far(before)
            || self.has(Self::LT) && far(after) >= far(before))
    }
}

/// A number inside a string, for `BITFIELD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitRange {
    /// Two's complement.
    pub signed: bool,
    /// 1 to 64, or 63 if unsigned.
    pub bits: u8,
    /// The first bit, counted from the most significant one of the first byte.
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

/// One step of a `BITFIELD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitFieldStep {
    /// Answers with the number.
    Get(BitRange),
    /// Sets it; answers with the one before.
    Set(BitRange, i64, Overflow),
    /// Adds to it; answers with the new one.
    Increment(BitRange, i64, Overflow),
}

/// How `BITOP` combines its sources.
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

/// What an operation of the Redis protocol does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringAction {
    /// Nothing: it is there for its answer. Applies if the key exists.
    Read,
    /// Nothing. If its condition fails, none of its atomic write is carried out.
    Check,
    /// Sets the value.
    Set {
        /// The new value.
        value: Bytes,
        /// When it expires.
        expiry: Expiry,
    },
    /// Removes the key. Applies if it was there.
    Remove,
    /// Adds to a counter; answers with the new value.
    Increment {
        /// What to add.
        delta: i64,
    },
    /// Adds to a decimal number; answers with the new one, as text.
    IncrementFloat {
        /// What to add, as text.
        delta: Bytes,
    },
    /// Adds to the end; answers with the new length.
    Append {
        /// What to add.
        value: Bytes,
    },
    /// Overwrites a part, with zeros before it where the value was shorter; answers with the new
    /// length.
    SetRange {
        /// Bytes from the start.
        offset: u64,
        /// What to write there.
        value: Bytes,
    },
    /// Sets or clears a bit; answers with the one before.
    SetBit {
        /// From the most significant bit of the first byte.
        offset: u64,
        /// Whether to set it.
        bit: bool,
    },
    /// Reads and changes numbers inside the value. Answers with a list ([`bitfield_answers`]).
    BitField {
        /// In order.
        steps: Vec<BitFieldStep>,
    },
    /// Changes when the key expires. Applies if the key is there and the rule allows it.
    SetExpiry {
        /// The new one.
        expiry: Expiry,
        /// On which keys.
        rule: ExpiryRule,
    },
    /// Moves value and expiry to another key. Applies if the key is there and, with
    /// `only_absent`, the other isn't.
    Rename {
        /// The other key.
        to: Bytes,
        /// Leave another key that exists alone.
        only_absent: bool,
    },
    /// Copies value and expiry to another key; as [`StringAction::Rename`] otherwise.
    Copy {
        /// The other key.
        to: Bytes,
        /// Leave another key that exists alone.
        only_absent: bool,
    },
    /// Stores the combination of other keys' bits, or removes the key if all are empty; answers
    /// with the length.
    BitOp {
        /// How.
        operation: BitOperation,
        /// At least one.
        sources: Vec<Bytes>,
    },
}

impl StringAction {
    /// Whether it stores nothing; see [`crate::Action::frees_space`].
    pub fn frees_space(&self) -> bool {
        matches!(self, StringAction::Read | StringAction::Check | StringAction::Remove)
    }

    /// Whether an encoding that can't be read may be one of [`StringAction::Check`].
    pub fn may_be_check(encoded: &[u8]) -> bool {
        encoded.first().is_none_or(|tag| *tag == CHECK)
    }

    /// The keys beside the operation's own, which are routed like it.
    pub fn other_keys(&self) -> &[Bytes] {
        match self {
            StringAction::Rename { to, .. } | StringAction::Copy { to, .. } => {
                std::slice::from_ref(to)
            }
            StringAction::BitOp { sources, .. } => sources,
            _ => &[],
        }
    }

    /// Replaces each of [`StringAction::other_keys`].
    ///
    /// # Errors
    /// The first error of `change`.
    pub fn map_other_keys<E>(
        &mut self,
        mut change: impl FnMut(&Bytes) -> Result<Bytes, E>,
    ) -> Result<(), E> {
        let keys = match self {
            StringAction::Rename { to, .. } | StringAction::Copy { to, .. } => {
                std::slice::from_mut(to)
            }
            StringAction::BitOp { sources, .. } => sources.as_mut_slice(),
            _ => &mut [],
        };
        for key in keys {
            *key = change(key)?;
        }
        Ok(())
    }

    /// Whether what it does, or its answer, depends on what is there.
    pub fn needs_current(&self) -> bool {
        !matches!(
            self,
            StringAction::Set { expiry: Expiry::Never | Expiry::In(_) | Expiry::At(_), .. }
                | StringAction::BitOp { .. }
        )
    }

    /// Roughly how many bytes it takes up in a log entry.
    pub fn size_bytes(&self) -> usize {
        let own = match self {
            StringAction::Set { value, .. }
            | StringAction::Append { value }
            | StringAction::SetRange { value, .. } => value.len(),
            StringAction::IncrementFloat { delta } => delta.len(),
            StringAction::BitField { steps } => steps.len() * 16,
            _ => 0,
        };
        own + self.other_keys().iter().map(|key| key.len() + 4).sum::<usize>() + 12
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Writer) {
        match self {
            StringAction::Read => out.u8(1),
            StringAction::Check => out.u8(CHECK),
            StringAction::Set { value, expiry } => {
                out.u8(3);
                encode_expiry(*expiry, out);
                out.bytes(value);
            }
            StringAction::Remove => out.u8(4),
            StringAction::Increment { delta } => {
                out.u8(5);
                out.signed(*delta);
            }
            StringAction::IncrementFloat { delta } => {
                out.u8(6);
                out.bytes(delta);
            }
            StringAction::Append { value } => {
                out.u8(7);
                out.bytes(value);
            }
            StringAction::SetRange { offset, value } => {
                out.u8(8);
                out.varint(*offset);
                out.bytes(value);
            }
            StringAction::SetBit { offset, bit } => {
                out.u8(9);
                out.varint(*offset);
                out.u8(u8::from(*bit));
            }
            StringAction::BitField { steps } => {
                out.u8(10);
                out.varint(steps.len() as u64);
                steps.iter().for_each(|step| encode_step(*step, out));
            }
            StringAction::SetExpiry { expiry, rule } => {
                out.u8(11);
                encode_expiry(*expiry, out);
                out.u8(rule.0);
            }
            StringAction::Rename { to, only_absent } => {
                out.u8(12);
                out.u8(u8::from(*only_absent));
                out.bytes(to);
            }
            StringAction::Copy { to, only_absent } => {
                out.u8(13);
                out.u8(u8::from(*only_absent));
                out.bytes(to);
            }
            StringAction::BitOp { operation, sources } => {
                out.u8(14);
                out.u8(*operation as u8);
                out.varint(sources.len() as u64);
                sources.iter().for_each(|source| out.bytes(source));
            }
        }
    }

    /// Reads what [`StringAction::encode`] wrote.
    ///
    /// # Errors
    /// [`DecodeError`] for anything else.
    pub fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(match input.u8()? {
            1 => StringAction::Read,
            CHECK => StringAction::Check,
            3 => {
                let expiry = decode_expiry(input)?;
                StringAction::Set { value: input.bytes()?, expiry }
            }
            4 => StringAction::Remove,
            5 => StringAction::Increment { delta: input.signed()? },
            6 => StringAction::IncrementFloat { delta: input.bytes()? },
            7 => StringAction::Append { value: input.bytes()? },
            8 => StringAction::SetRange { offset: input.varint()?, value: input.bytes()? },
            9 => StringAction::SetBit { offset: input.varint()?, bit: flag(input)? },
            10 => {
                let count = input.count(STEP_LEAST_BYTES)?;
                let steps = (0..count).map(|_| decode_step(input)).collect::<Result<_, _>>()?;
                StringAction::BitField { steps }
            }
            11 => {
                let expiry = decode_expiry(input)?;
                let rule = match input.u8()? {
                    rule if rule < 16 => ExpiryRule(rule),
                    other => return Err(DecodeError::unknown_tag("expiry rule", other)),
                };
                StringAction::SetExpiry { expiry, rule }
            }
            12 => StringAction::Rename { only_absent: flag(input)?, to: input.bytes()? },
            13 => StringAction::Copy { only_absent: flag(input)?, to: input.bytes()? },
            14 => {
                let operation = match input.u8()? {
                    0 => BitOperation::And,
                    1 => BitOperation::Or,
                    2 => BitOperation::Xor,
                    3 => BitOperation::Not,
                    other => return Err(DecodeError::unknown_tag("bit operation", other)),
                };
                let count = input.count(1)?;
                let sources = (0..count).map(|_| input.bytes()).collect::<Result<_, _>>()?;
                StringAction::BitOp { operation, sources }
            }
            other => return Err(DecodeError::unknown_tag("string action", other)),
        })
    }
}

fn flag(input: &mut Reader) -> Result<bool, DecodeError> {
    match input.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(DecodeError::unknown_tag("flag", other)),
    }
}

fn encode_expiry(expiry: Expiry, out: &mut Writer) {
    match expiry {
        Expiry::Never => out.u8(0),
        Expiry::Keep => out.u8(1),
        Expiry::In(ms) => {
            out.u8(2);
            out.varint(ms);
        }
        Expiry::At(ms) => {
            out.u8(3);
            out.varint(ms);
        }
    }
}

fn decode_expiry(input: &mut Reader) -> Result<Expiry, DecodeError> {
    Ok(match input.u8()? {
        0 => Expiry::Never,
        1 => Expiry::Keep,
        2 => Expiry::In(input.varint()?),
        3 => Expiry::At(input.varint()?),
        other => return Err(DecodeError::unknown_tag("expiry", other)),
    })
}

const CHECK: u8 = 2;

/// The shortest step: tag, kind and a small offset, of a `GET`.
const STEP_LEAST_BYTES: usize = 3;

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

/// The answers of a [`StringAction::BitField`] as [`crate::WriteResult::reply`] holds them: one a
/// step, `None` where the number didn't fit.
pub fn encode_bitfield_answers(answers: &[Option<i64>]) -> Bytes {
    let mut out = Writer::with_capacity(answers.len() * 4);
    for answer in answers {
        out.u8(u8::from(answer.is_some()));
        if let Some(answer) = answer {
            out.signed(*answer);
        }
    }
    out.finish()
}

/// Reads what [`encode_bitfield_answers`] wrote.
///
/// # Errors
/// [`DecodeError`] for anything else.
pub fn bitfield_answers(encoded: Bytes) -> Result<Vec<Option<i64>>, DecodeError> {
    let mut input = Reader::new(encoded);
    let mut answers = Vec::new();
    while input.remaining() > 0 {
        answers.push(if flag(&mut input)? { Some(input.signed()?) } else { None });
    }
    Ok(answers)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..30).prop_map(Bytes::from)
    }

    fn any_expiry() -> impl Strategy<Value = Expiry> {
        prop_oneof![
            Just(Expiry::Never),
            Just(Expiry::Keep),
            any::<u64>().prop_map(Expiry::In),
            any::<u64>().prop_map(Expiry::At),
        ]
    }

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

    pub(crate) fn any_string_action() -> impl Strategy<Value = StringAction> {
        let operations =
            [BitOperation::And, BitOperation::Or, BitOperation::Xor, BitOperation::Not];
        prop_oneof![
            Just(StringAction::Read),
            Just(StringAction::Check),
            Just(StringAction::Remove),
            (any_bytes(), any_expiry())
                .prop_map(|(value, expiry)| StringAction::Set { value, expiry }),
            any::<i64>().prop_map(|delta| StringAction::Increment { delta }),
            any_bytes().prop_map(|delta| StringAction::IncrementFloat { delta }),
            any_bytes().prop_map(|value| StringAction::Append { value }),
            (any::<u64>(), any_bytes())
                .prop_map(|(offset, value)| StringAction::SetRange { offset, value }),
            (any::<u64>(), any::<bool>())
                .prop_map(|(offset, bit)| StringAction::SetBit { offset, bit }),
            prop::collection::vec(any_step(), 0..5)
                .prop_map(|steps| StringAction::BitField { steps }),
            (any_expiry(), 0u8..16).prop_map(|(expiry, rule)| StringAction::SetExpiry {
                expiry,
                rule: ExpiryRule(rule)
            }),
            (any_bytes(), any::<bool>())
                .prop_map(|(to, only_absent)| StringAction::Rename { to, only_absent }),
            (any_bytes(), any::<bool>())
                .prop_map(|(to, only_absent)| StringAction::Copy { to, only_absent }),
            (prop::sample::select(operations.to_vec()), prop::collection::vec(any_bytes(), 1..4))
                .prop_map(|(operation, sources)| StringAction::BitOp { operation, sources }),
        ]
    }

    #[test]
    fn lists_of_the_shortest_things_survive_encoding() {
        let range = BitRange { signed: false, bits: 4, offset: 1 };
        for action in [
            StringAction::BitField { steps: vec![BitFieldStep::Get(range); 3] },
            StringAction::BitField {
                steps: vec![
                    BitFieldStep::Set(range, 1, Overflow::Wrap),
                    BitFieldStep::Get(range),
                    BitFieldStep::Get(range),
                ],
            },
            StringAction::BitOp { operation: BitOperation::Or, sources: vec![Bytes::new(); 3] },
        ] {
            let mut out = Writer::new();
            action.encode(&mut out);
            assert_eq!(StringAction::decode(&mut Reader::new(out.finish())), Ok(action));
        }
    }

    proptest! {
        #[test]
        fn string_actions_survive_encoding(action in any_string_action()) {
            let mut out = Writer::new();
            action.encode(&mut out);
            let mut input = Reader::new(out.finish());
            prop_assert_eq!(StringAction::decode(&mut input), Ok(action));
            prop_assert_eq!(input.end(), Ok(()));
        }

        #[test]
        fn junk_never_panics(junk in prop::collection::vec(any::<u8>(), 0..60)) {
            let junk = Bytes::from(junk);
            let _ = StringAction::decode(&mut Reader::new(junk.clone()));
            let _ = bitfield_answers(junk);
        }

        #[test]
        fn answers_of_bit_fields_survive_encoding(answers in prop::collection::vec(any::<Option<i64>>(), 0..9)) {
            prop_assert_eq!(bitfield_answers(encode_bitfield_answers(&answers)), Ok(answers));
        }
    }

    #[test]
    fn rules_of_expiry_take_never_for_the_far_future() {
        assert!(ExpiryRule::NX.allows(0, 5) && !ExpiryRule::NX.allows(9, 5));
        assert!(ExpiryRule::XX.allows(9, 5) && !ExpiryRule::XX.allows(0, 5));
        assert!(ExpiryRule::GT.allows(4, 5) && !ExpiryRule::GT.allows(0, 5));
        assert!(ExpiryRule::LT.allows(0, 5) && !ExpiryRule::LT.allows(5, 5));
        assert!(!ExpiryRule::XX.and(ExpiryRule::LT).allows(0, 5));
    }
}
