//! What travels through a shard's log, and what comes back.
//!
//! A log entry packs the commands of many requests. Each has its own version: the entry's
//! [`EntryPayload::version`] plus the number of versions that the commands before it take up
//! ([`EntryCommand::version_count`]); the operations of an atomic batch share one. Decoding shares the
//! entry's allocation: keys and values are never copied.

use crate::codec::{DecodeError, Reader, Writer};
use crate::history::HistoryPolicy;
use crate::id::RangeEpoch;
use crate::refusal::Refusal;
use crate::reply::Reply;
use crate::task::SplitPlan;
use crate::version::Version;
use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

/// The identity of a write that is retried: the same on every retry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestTag {
    /// Who asks; at most [`crate::Limits::client_id_max_bytes`].
    pub client_id: Bytes,
    /// Rises with each request of the client.
    pub sequence: u64,
    /// Every sequence below this is settled: its answer needs no remembering.
    pub acked_below: u64,
    /// From when on the request is refused instead of applied.
    pub valid_until: ValidUntil,
}

/// How long a request is valid, by the clock of the shard that it goes to. See [`crate::time`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValidUntil {
    /// Shard time, in milliseconds since 1970: of an id that a client brings along, which knows no
    /// other clock than its own.
    Time(u64),
    /// Shard age, in milliseconds: of an id that a front has made, which knows from the shard's
    /// answers how old it is. A jump of shard time doesn't end it.
    Age(u64),
}

impl ValidUntil {
    /// The number, whatever it counts.
    pub fn millis(self) -> u64 {
        match self {
            ValidUntil::Time(ms) | ValidUntil::Age(ms) => ms,
        }
    }
}

/// One client's write to one shard: a single operation or a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The range epoch under which the client routed it.
    pub epoch: RangeEpoch,
    /// All operations or none.
    pub atomic: bool,
    /// Under which identity it may be retried.
    pub request: Option<RequestTag>,
    /// At least one.
    pub operations: Vec<Operation>,
}

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
    /// Its place in the client's request; with the [`RequestTag`] it identifies the operation,
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
        let mut hash = Xxh3::new();
        let mut part = |tag: u8, bytes: &[u8]| {
            hash.update(&[tag]);
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
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
        hash.digest().max(1)
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

/// One command of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryCommand {
    /// A client's write.
    Write(Write),
    /// Nothing but its version: lets shard time reach the present, so that keys expire.
    AdvanceTime,
    /// A command of the coordinators' state machine, encoded by `kvdb-control`.
    Control(Bytes),
    /// Cuts the shard in two.
    Split(SplitPlan),
    /// Frees the records under these routing keys as far as they have expired; others stay.
    Reclaim(Vec<Bytes>),
    /// Begins, ends or bounds the shard's change history, unless it has heard of a later decision.
    History(HistoryPolicy),
    /// Frees elements of a collection that was removed or overwritten.
    Free {
        /// The routing key that it had.
        key: Bytes,
        /// Which life of the key is over.
        incarnation: u64,
        /// Those before this place, or all that are left.
        end: Option<Bytes>,
    },
}

impl EntryCommand {
    /// How many consecutive versions the command takes up.
    pub fn version_count(&self) -> u64 {
        match self {
            EntryCommand::Write(write) if !write.atomic => write.operations.len() as u64,
            _ => 1,
        }
    }

    /// The encoding, ready to be packed into an entry.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Writer::with_capacity(self.size_hint());
        match self {
            EntryCommand::Write(write) => {
                out.u8(1);
                write.encode(&mut out);
            }
            EntryCommand::AdvanceTime => out.u8(2),
            EntryCommand::Control(bytes) => {
                out.u8(3);
                out.bytes(bytes);
            }
            EntryCommand::Split(plan) => {
                out.u8(4);
                plan.encode(&mut out);
            }
            EntryCommand::Reclaim(keys) => {
                out.u8(5);
                out.varint(keys.len() as u64);
                keys.iter().for_each(|key| out.bytes(key));
            }
            EntryCommand::History(policy) => {
                out.u8(6);
                policy.encode(&mut out);
            }
            EntryCommand::Free { key, incarnation, end } => {
                out.u8(if end.is_some() { 8 } else { 7 });
                out.bytes(key);
                out.varint(*incarnation);
                end.iter().for_each(|end| out.bytes(end));
            }
        }
        out.finish()
    }

    fn size_hint(&self) -> usize {
        match self {
            EntryCommand::Write(write) => {
                64 + write.operations.iter().map(Operation::size_bytes).sum::<usize>()
            }
            EntryCommand::AdvanceTime => 1,
            EntryCommand::History(_) => 32,
            EntryCommand::Free { key, end, .. } => {
                key.len() + end.as_ref().map_or(0, Bytes::len) + 16
            }
            EntryCommand::Control(bytes) => bytes.len() + 11,
            EntryCommand::Split(plan) => plan.at.len() + 64,
            EntryCommand::Reclaim(keys) => 8 + keys.iter().map(|key| key.len() + 5).sum::<usize>(),
        }
    }

    /// Reads one command; it must take up the whole input.
    ///
    /// # Errors
    /// [`DecodeError`] for anything that [`EntryCommand::to_bytes`] doesn't write.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let command = match input.u8()? {
            1 => EntryCommand::Write(Write::decode(&mut input)?),
            2 => EntryCommand::AdvanceTime,
            3 => EntryCommand::Control(input.bytes()?),
            4 => EntryCommand::Split(SplitPlan::decode(&mut input)?),
            5 => {
                let count = input.count(1)?;
                EntryCommand::Reclaim((0..count).map(|_| input.bytes()).collect::<Result<_, _>>()?)
            }
            6 => EntryCommand::History(HistoryPolicy::decode(&mut input)?),
            tag @ 7..=8 => {
                let (key, incarnation) = (input.bytes()?, input.varint()?);
                let end = if tag == 8 { Some(input.bytes()?) } else { None };
                EntryCommand::Free { key, incarnation, end }
            }
            other => return Err(DecodeError::unknown_tag("command", other)),
        };
        input.end()?;
        Ok(command)
    }
}

impl Write {
    fn encode(&self, out: &mut Writer) {
        out.varint(self.epoch.0);
        let by_age =
            self.request.as_ref().is_some_and(|tag| matches!(tag.valid_until, ValidUntil::Age(_)));
        let tagged = u8::from(self.request.is_some());
        out.u8(u8::from(self.atomic) | tagged << 1 | u8::from(by_age) << 2);
        if let Some(tag) = &self.request {
            out.bytes(&tag.client_id);
            out.varint(tag.sequence);
            out.varint(tag.acked_below);
            out.varint(tag.valid_until.millis());
        }
        out.varint(self.operations.len() as u64);
        for operation in &self.operations {
            operation.encode(out);
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let epoch = RangeEpoch(input.varint()?);
        let flags = input.u8()?;
        let by_age = flags & 4 != 0;
        if flags > 7 || (by_age && flags & 2 == 0) {
            return Err(DecodeError::unknown_tag("write flags", flags));
        }
        let request = if flags & 2 != 0 {
            Some(RequestTag {
                client_id: input.bytes()?,
                sequence: input.varint()?,
                acked_below: input.varint()?,
                valid_until: match input.varint()? {
                    age_ms if by_age => ValidUntil::Age(age_ms),
                    ms => ValidUntil::Time(ms),
                },
            })
        } else {
            None
        };
        let count = input.count(OPERATION_LEAST_BYTES)?;
        let mut operations = Vec::with_capacity(count);
        for _ in 0..count {
            operations.push(Operation::decode(input)?);
        }
        Ok(Write { epoch, atomic: flags & 1 != 0, request, operations })
    }
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

/// The shortest operation: an empty key, no condition, an empty body.
const OPERATION_LEAST_BYTES: usize = 14;

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

    fn encode(&self, out: &mut Writer) {
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

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
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

/// The content of a normal, non-empty log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPayload {
    /// The version of the first command; above every version in the log before it.
    pub version: Version,
    /// How many versions the commands take up together, at least 1.
    pub version_count: u64,
    /// By how many milliseconds shard time was put forward at this entry, beyond what had passed.
    /// The shard's age goes on as if it hadn't been.
    pub jump_ms: u64,
    /// Encoded [`EntryCommand`]s, in order.
    pub commands: Vec<Bytes>,
}

impl EntryPayload {
    /// The highest version in the entry.
    pub fn last_version(&self) -> Version {
        self.version.plus(self.version_count.saturating_sub(1))
    }

    /// The encoding that becomes the entry's data.
    pub fn to_bytes(&self) -> Bytes {
        let size = 16 + self.commands.iter().map(|command| command.len() + 5).sum::<usize>();
        let mut out = Writer::with_capacity(size);
        out.u8(1);
        out.u64(self.version.0);
        out.varint(self.version_count);
        out.varint(self.jump_ms);
        out.varint(self.commands.len() as u64);
        for command in &self.commands {
            out.bytes(command);
        }
        out.finish()
    }

    /// Reads an entry's data.
    ///
    /// # Errors
    /// [`DecodeError`] for anything that [`EntryPayload::to_bytes`] doesn't write.
    pub fn decode(data: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(data);
        let (version, version_count) = Self::header(&mut input)?;
        let jump_ms = input.varint()?;
        let count = input.count(1)?;
        let mut commands = Vec::with_capacity(count);
        for _ in 0..count {
            commands.push(input.bytes()?);
        }
        input.end()?;
        Ok(EntryPayload { version, version_count, jump_ms, commands })
    }

    fn header(input: &mut Reader) -> Result<(Version, u64), DecodeError> {
        input.version("log entry", 1)?;
        let version = Version(input.u64()?);
        let version_count = input.varint()?;
        Ok((version, version_count))
    }

    /// What is said of time in an encoded entry, without reading its commands: the first and the highest
    /// version, and the jump.
    ///
    /// # Errors
    /// As [`EntryPayload::decode`].
    pub fn peek_time(data: &Bytes) -> Result<(Version, Version, u64), DecodeError> {
        let mut input = Reader::new(data.clone());
        let (version, count) = Self::header(&mut input)?;
        Ok((version, version.plus(count.saturating_sub(1)), input.varint()?))
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

/// The answer of one operation.
pub type OperationOutcome = Result<WriteResult, Refusal>;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..50).prop_map(Bytes::from)
    }

    fn any_operation() -> impl Strategy<Value = Operation> {
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

    fn any_command() -> impl Strategy<Value = EntryCommand> {
        let request = prop::option::of(
            (any_bytes(), any::<u64>(), any::<u64>(), any::<[u64; 2]>()).prop_map(
                |(client_id, sequence, acked_below, [by_age, ms])| RequestTag {
                    client_id,
                    sequence,
                    acked_below,
                    valid_until: match by_age % 2 {
                        0 => ValidUntil::Time(ms),
                        _ => ValidUntil::Age(ms),
                    },
                },
            ),
        );
        prop_oneof![
            (any::<u64>(), any::<bool>(), request, prop::collection::vec(any_operation(), 1..5))
                .prop_map(|(epoch, atomic, request, operations)| {
                    EntryCommand::Write(Write {
                        epoch: RangeEpoch(epoch),
                        atomic,
                        request,
                        operations,
                    })
                }),
            Just(EntryCommand::AdvanceTime),
            any_bytes().prop_map(EntryCommand::Control),
            prop::collection::vec(any_bytes(), 0..4).prop_map(EntryCommand::Reclaim),
            (any_bytes(), any::<u64>(), prop::option::of(any_bytes()))
                .prop_map(|(key, incarnation, end)| EntryCommand::Free { key, incarnation, end }),
            (any::<u64>(), prop::option::of((any::<u64>(), 1..u64::MAX))).prop_map(
                |(revision, limits)| {
                    let limits = limits.map(|(max_age_ms, max_bytes)| crate::HistoryLimits {
                        max_age_ms,
                        max_bytes,
                    });
                    EntryCommand::History(HistoryPolicy { revision, limits })
                }
            ),
            (any_bytes(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
                |(at, child, epoch, node)| {
                    let node_id = crate::id::NodeId(node);
                    let replica_id = crate::id::ReplicaId(child);
                    let role = crate::descriptor::Role::Voter;
                    EntryCommand::Split(SplitPlan {
                        at,
                        child: crate::id::ShardId(child),
                        replicas: vec![crate::descriptor::Replica { node_id, replica_id, role }],
                        membership_epoch: crate::id::MembershipEpoch(epoch),
                    })
                }
            ),
        ]
    }

    #[test]
    fn lists_of_the_shortest_things_survive_encoding() {
        let body = Body { id: CommandId(1), format: 1, args: Bytes::new() };
        let operation = Operation::new(Bytes::new(), body).sealed();
        let write = Write {
            epoch: RangeEpoch(1),
            atomic: false,
            request: None,
            operations: vec![operation; 3],
        };
        for command in [EntryCommand::Write(write), EntryCommand::Reclaim(vec![Bytes::new(); 3])] {
            let encoded = command.to_bytes();
            assert_eq!(EntryCommand::decode(encoded.clone()), Ok(command));
            let commands = vec![Bytes::new(); 3];
            let payload =
                EntryPayload { version: Version(1), version_count: 1, jump_ms: 0, commands };
            assert_eq!(EntryPayload::decode(payload.to_bytes()), Ok(payload));
        }
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

    #[test]
    fn a_fingerprint_that_was_made_by_another_front_stays() {
        let body = Body { id: CommandId(1), format: 2, args: "x".into() };
        let operation = Operation { sealed: 7, ..Operation::new("k".into(), body) };
        let write = Write {
            epoch: RangeEpoch(1),
            atomic: false,
            request: None,
            operations: vec![operation],
        };
        let Ok(EntryCommand::Write(back)) =
            EntryCommand::decode(EntryCommand::Write(write).to_bytes())
        else {
            panic!("a write is a write");
        };
        assert_eq!(back.operations[0].fingerprint(), 7);
    }

    proptest! {
        #[test]
        fn entries_survive_encoding(version in any::<u32>(), jump_ms in any::<u64>(), commands in prop::collection::vec(any_command(), 1..5)) {
            let payload = EntryPayload {
                version: Version(u64::from(version)),
                version_count: commands.iter().map(EntryCommand::version_count).sum(),
                jump_ms,
                commands: commands.iter().map(EntryCommand::to_bytes).collect(),
            };
            let bytes = payload.to_bytes();
            let peeked = EntryPayload::peek_time(&bytes).unwrap();
            prop_assert_eq!(peeked, (payload.version, payload.last_version(), jump_ms));
            let back = EntryPayload::decode(bytes).unwrap();
            prop_assert_eq!(&back, &payload);
            for (encoded, command) in back.commands.into_iter().zip(commands) {
                prop_assert_eq!(EntryCommand::decode(encoded).unwrap(), command);
            }
        }

        #[test]
        fn junk_commands_never_panic(junk in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = EntryCommand::decode(Bytes::from(junk));
        }
    }
}
