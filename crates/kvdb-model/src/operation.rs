//! One command on its keys: what a front encodes once, and what is answered.
//!
//! Everybody on its way understands keys, condition and identity; the command's arguments are for whoever
//! applies it alone.

use crate::codec::{DecodeError, Reader, Writer};
use crate::refusal::Refusal;
use crate::reply::Reply;
use crate::version::Version;
use bytes::{BufMut, Bytes};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// A command's number: which it is, for good. The upper byte is its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u16);

/// A command, encoded by whoever asks for it. Nobody on its way reads the arguments but to check
/// them; the same bytes are applied. What they mean stands in `kvdb-store`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// Which command.
    pub id: CommandId,
    /// Which encoding of its arguments.
    pub format: u8,
    /// The encoded arguments. Keys aren't among them: see [`Operation::others`].
    pub args: Bytes,
}

/// One command on one key, or on several of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The routing key.
    pub key: Bytes,
    /// The routing keys that the command touches beside `key`, in its own order.
    pub others: Vec<Bytes>,
    /// Its place in the client's request; with the [`crate::RequestTag`] it identifies the operation,
    /// however the request is regrouped on a retry.
    pub item: u32,
    /// What to do.
    pub body: Body,
    /// When to do it; always if `None`.
    pub condition: Option<Condition>,
    /// Whether the answer holds what was there before.
    pub return_previous: bool,
    /// Whether an atomic write is called off if this fails. Commands of a Redis transaction aren't:
    /// one that fails leaves the others alone.
    pub required: bool,
    /// Tells it from another operation under the same id; made by who encodes it first
    /// ([`Operation::fingerprint`]), 0 until then.
    pub sealed: u64,
}

impl Operation {
    /// A command on a key, required, under no condition.
    pub fn new(key: Bytes, body: Body) -> Self {
        Operation {
            key,
            others: vec![],
            item: 0,
            body,
            condition: None,
            return_previous: false,
            required: true,
            sealed: 0,
        }
    }

    /// The same, sealed with its fingerprint as encoding it would.
    #[must_use]
    pub fn sealed(self) -> Self {
        Operation { sealed: self.fingerprint(), ..self }
    }

    /// All keys that it touches.
    pub fn keys(&self) -> impl Iterator<Item = &Bytes> + Clone {
        std::iter::once(&self.key).chain(&self.others)
    }

    /// What tells it from another operation under the same id: a hash (XXH3) of all that it is, its
    /// place in the request excepted. Where it was sealed, the hash that was made then: a front of
    /// another version may encode the same command in another way.
    pub fn fingerprint(&self) -> u64 {
        if self.sealed != 0 {
            return self.sealed;
        }
        let mut size = 0;
        self.parts(|_, bytes| size += 9 + bytes.len());
        // The same number either way; a short one is made a few times faster in one piece.
        let mut whole = [0u8; FINGERPRINT_AT_ONCE];
        let hash = match whole.get_mut(..size) {
            Some(whole) => {
                let mut rest = &mut *whole;
                self.parts(|tag, bytes| {
                    rest.put_u8(tag);
                    rest.put_u64_le(bytes.len() as u64);
                    rest.put_slice(bytes);
                });
                xxh3_64(whole)
            }
            None => {
                let mut hash = Xxh3::new();
                self.parts(|tag, bytes| {
                    hash.update(&[tag]);
                    hash.update(&(bytes.len() as u64).to_le_bytes());
                    hash.update(bytes);
                });
                hash.digest()
            }
        };
        hash.max(1)
    }

    /// All that makes the operation what it is, in order.
    fn parts(&self, mut part: impl FnMut(u8, &[u8])) {
        let flags = u8::from(self.return_previous) | u8::from(self.required) << 1;
        part(flags, &self.key);
        self.others.iter().for_each(|key| part(0, key));
        part(1, &self.body.id.0.to_le_bytes());
        part(self.body.format, &self.body.args);
        match &self.condition {
            None => part(0, &[]),
            Some(Condition::IfAbsent) => part(1, &[]),
            Some(Condition::IfPresent) => part(2, &[]),
            Some(Condition::IfVersion(version)) => part(3, &version.0.to_le_bytes()),
            Some(Condition::IfValue(value)) => part(4, value),
        }
    }
}

/// When an operation applies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key doesn't exist.
    IfAbsent,
    /// The key exists.
    IfPresent,
    /// The key exists with this version.
    IfVersion(Version),
    /// The key exists with this value.
    IfValue(Bytes),
}

const CONDITION_NONE: u8 = 0;
const CONDITION_ABSENT: u8 = 1;
const CONDITION_PRESENT: u8 = 2;
const CONDITION_VERSION: u8 = 3;
const CONDITION_VALUE: u8 = 4;

const RETURN_PREVIOUS: u8 = 8;
const REQUIRED: u8 = 16;
const OTHERS: u8 = 32;
const CONDITION: u8 = 7;

/// Up to so many bytes a fingerprint is made in one piece.
const FINGERPRINT_AT_ONCE: usize = 512;

/// The shortest operation: an empty key, no condition, an empty body.
pub(crate) const OPERATION_LEAST_BYTES: usize = 14;

impl Operation {
    /// Roughly how many bytes the operation takes up in a log entry.
    pub fn size_bytes(&self) -> usize {
        let condition = match &self.condition {
            Some(Condition::IfValue(value)) => value.len(),
            _ => 0,
        };
        let others: usize = self.others.iter().map(|key| key.len() + 4).sum();
        self.key.len() + others + self.body.args.len() + condition + 32
    }

    pub(crate) fn encode(&self, out: &mut Writer) {
        out.bytes(&self.key);
        out.varint(u64::from(self.item));
        let condition = match &self.condition {
            None => CONDITION_NONE,
            Some(Condition::IfAbsent) => CONDITION_ABSENT,
            Some(Condition::IfPresent) => CONDITION_PRESENT,
            Some(Condition::IfVersion(_)) => CONDITION_VERSION,
            Some(Condition::IfValue(_)) => CONDITION_VALUE,
        };
        out.u8(condition
            | (u8::from(self.return_previous) * RETURN_PREVIOUS)
            | (u8::from(self.required) * REQUIRED)
            | (u8::from(!self.others.is_empty()) * OTHERS));
        out.u64(self.fingerprint());
        match &self.condition {
            Some(Condition::IfVersion(version)) => out.u64(version.0),
            Some(Condition::IfValue(value)) => out.bytes(value),
            _ => {}
        }
        if !self.others.is_empty() {
            out.varint(self.others.len() as u64);
            self.others.iter().for_each(|key| out.bytes(key));
        }
        out.u8((self.body.id.0 >> 8) as u8);
        out.u8(self.body.id.0 as u8);
        out.u8(self.body.format);
        out.bytes(&self.body.args);
    }

    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let key = input.bytes()?;
        let item = input.varint_u32()?;
        let flags = input.u8()?;
        if flags & !(CONDITION | RETURN_PREVIOUS | REQUIRED | OTHERS) != 0 {
            return Err(DecodeError::unknown_tag("operation flags", flags));
        }
        let sealed = input.u64()?;
        let condition = match flags & CONDITION {
            CONDITION_NONE => None,
            CONDITION_ABSENT => Some(Condition::IfAbsent),
            CONDITION_PRESENT => Some(Condition::IfPresent),
            CONDITION_VERSION => Some(Condition::IfVersion(Version(input.u64()?))),
            CONDITION_VALUE => Some(Condition::IfValue(input.bytes()?)),
            other => return Err(DecodeError::unknown_tag("condition", other)),
        };
        let others = if flags & OTHERS != 0 {
            let count = input.count(1)?;
            (0..count).map(|_| input.bytes()).collect::<Result<_, _>>()?
        } else {
            vec![]
        };
        let id = CommandId(u16::from_be_bytes([input.u8()?, input.u8()?]));
        let body = Body { id, format: input.u8()?, args: input.bytes()? };
        Ok(Operation {
            key,
            others,
            item,
            body,
            condition,
            return_previous: flags & RETURN_PREVIOUS != 0,
            required: flags & REQUIRED != 0,
            sealed,
        })
    }
}

/// What was there before a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Previous {
    /// The value.
    pub value: Bytes,
    /// Its version.
    pub version: Version,
    /// When it would have expired (milliseconds since 1970); 0 for never.
    pub expires_at_ms: u64,
}

/// The answer of an operation that was carried out, or not because of its condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteResult {
    /// False when the condition failed.
    pub applied: bool,
    /// The version of the key now: the new one if applied, else the one that is there (zero if
    /// the key is absent).
    pub version: Version,
    /// What was there before, where it was asked for and something was there.
    pub previous: Option<Previous>,
    /// What the command answers with beside that: the new value of a counter, for instance.
    pub reply: Reply,
    /// There is more to the answer, but it was too large to be kept for a retry, or to be sent.
    pub left_out: bool,
    /// Answered from the request window: an earlier try of the same request had been applied.
    pub deduplicated: bool,
}

impl WriteResult {
    /// Bytes of the previous value and the reply.
    pub fn answer_bytes(&self) -> usize {
        let previous = self.previous.as_ref().map_or(0, |previous| previous.value.len());
        previous + self.reply.size_bytes()
    }

    /// Whether the reply is more than a number.
    pub fn has_bulk_reply(&self) -> bool {
        !matches!(self.reply, Reply::None | Reply::Nil | Reply::Integer(_) | Reply::Double(_))
    }

    /// The same without a previous value, and with no more of a reply than a number.
    #[must_use]
    pub fn without_bulk(self) -> Self {
        let is_bulk = self.has_bulk_reply();
        let left_out = self.left_out || is_bulk || self.previous.is_some();
        let reply = if is_bulk { Reply::None } else { self.reply };
        WriteResult { previous: None, reply, left_out, ..self }
    }
}

/// The answer of one operation.
pub type OperationOutcome = Result<WriteResult, Refusal>;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..50).prop_map(Bytes::from)
    }

    pub(crate) fn any_operation() -> impl Strategy<Value = Operation> {
        let body = (any::<u16>(), any::<u8>(), any_bytes()).prop_map(|(id, format, args)| Body {
            id: CommandId(id),
            format,
            args,
        });
        let condition = prop::option::of(prop_oneof![
            Just(Condition::IfAbsent),
            Just(Condition::IfPresent),
            any::<u64>().prop_map(|version| Condition::IfVersion(Version(version))),
            any_bytes().prop_map(Condition::IfValue),
        ]);
        let keys = prop::collection::vec(any_bytes(), 1..4);
        (keys, any::<u32>(), body, condition, any::<[bool; 2]>()).prop_map(
            |(mut keys, item, body, condition, [return_previous, required])| {
                let key = keys.pop().unwrap_or_default();
                let operation = Operation::new(key, body);
                Operation { others: keys, item, condition, return_previous, required, ..operation }
                    .sealed()
            },
        )
    }

    #[test]
    fn operations_that_differ_anywhere_have_different_fingerprints() {
        let mut seen = std::collections::BTreeSet::new();
        let mut count = 0;
        let conditions = [
            None,
            Some(Condition::IfAbsent),
            Some(Condition::IfPresent),
            Some(Condition::IfVersion(Version(1))),
            Some(Condition::IfVersion(Version(2))),
            Some(Condition::IfValue(Bytes::new())),
            Some(Condition::IfValue("a".into())),
        ];
        for (id, format, args) in [(1, 1, ""), (2, 1, ""), (1, 2, ""), (1, 1, "a"), (257, 1, "")] {
            for condition in &conditions {
                for (key, others) in [("k", vec![]), ("ka", vec![]), ("k", vec!["a".into()])] {
                    for flags in 0..4 {
                        count += 1;
                        let body = Body { id: CommandId(id), format, args: args.into() };
                        let operation = Operation {
                            others: others.clone(),
                            condition: condition.clone(),
                            return_previous: flags & 1 != 0,
                            required: flags & 2 != 0,
                            ..Operation::new(key.into(), body)
                        };
                        assert_eq!(operation.fingerprint(), operation.clone().sealed().sealed);
                        seen.insert(operation.fingerprint());
                    }
                }
            }
        }
        assert_eq!(seen.len(), count);
    }

    proptest! {
        #[test]
        fn a_fingerprint_is_the_same_in_one_piece_and_in_parts(
            operation in any_operation(),
            length in 0usize..2 * FINGERPRINT_AT_ONCE,
        ) {
            let mut operation = Operation { sealed: 0, ..operation };
            operation.body.args = vec![7; length].into();
            let mut hash = Xxh3::new();
            operation.parts(|tag, bytes| {
                hash.update(&[tag]);
                hash.update(&(bytes.len() as u64).to_le_bytes());
                hash.update(bytes);
            });
            prop_assert_eq!(operation.fingerprint(), hash.digest().max(1));
        }
    }
}
