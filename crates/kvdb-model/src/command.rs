//! What travels through a shard's log, and what comes back.
//!
//! A log entry packs the commands of many requests. Each has its own version: the entry's
//! [`EntryPayload::version`] plus the number of versions that the commands before it take up
//! ([`Command::version_count`]); the operations of an atomic batch share one. Decoding shares the
//! entry's allocation: keys and values are never copied.

use crate::codec::{DecodeError, Reader, Writer};
use crate::history::HistoryPolicy;
use crate::id::RangeEpoch;
use crate::refusal::Refusal;
use crate::string_action::StringAction;
use crate::task::SplitPlan;
use crate::version::Version;
use bytes::Bytes;

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

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The routing key.
    pub key: Bytes,
    /// Its place in the client's request; with the [`RequestTag`] it identifies the operation,
    /// however the request is regrouped on a retry.
    pub item: u32,
    /// What to do.
    pub action: Action,
    /// When to do it; always if `None`.
    pub condition: Option<Condition>,
    /// Whether the answer holds what was there before.
    pub return_previous: bool,
}

/// What an operation does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sets the value; it expires `ttl_ms` after its version's milliseconds, or never.
    Put {
        /// The new value.
        value: Bytes,
        /// Milliseconds to live.
        ttl_ms: Option<u64>,
    },
    /// Removes the key.
    Delete,
    /// Adds to a counter that is stored as decimal text; an absent key counts as 0.
    Increment {
        /// What to add.
        delta: i64,
    },
    /// A command of the Redis protocol.
    String(StringAction),
    /// Leaves the value as it is; it expires `ttl_ms` after this write's version's milliseconds, or
    /// never. Not applied if the key isn't there.
    Expire {
        /// Milliseconds to live.
        ttl_ms: Option<u64>,
    },
}

impl Action {
    /// Whether it stores nothing and may remove something: what a full disk still takes.
    pub fn frees_space(&self) -> bool {
        match self {
            Action::Delete => true,
            Action::String(action) => action.frees_space(),
            Action::Put { .. } | Action::Increment { .. } | Action::Expire { .. } => false,
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

/// One command of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
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
}

impl Command {
    /// How many consecutive versions the command takes up.
    pub fn version_count(&self) -> u64 {
        match self {
            Command::Write(write) if !write.atomic => write.operations.len() as u64,
            _ => 1,
        }
    }

    /// The encoding, ready to be packed into an entry.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Writer::with_capacity(self.size_hint());
        match self {
            Command::Write(write) => {
                out.u8(1);
                write.encode(&mut out);
            }
            Command::AdvanceTime => out.u8(2),
            Command::Control(bytes) => {
                out.u8(3);
                out.bytes(bytes);
            }
            Command::Split(plan) => {
                out.u8(4);
                plan.encode(&mut out);
            }
            Command::Reclaim(keys) => {
                out.u8(5);
                out.varint(keys.len() as u64);
                keys.iter().for_each(|key| out.bytes(key));
            }
            Command::History(policy) => {
                out.u8(6);
                policy.encode(&mut out);
            }
        }
        out.finish()
    }

    fn size_hint(&self) -> usize {
        match self {
            Command::Write(write) => {
                64 + write.operations.iter().map(Operation::size_bytes).sum::<usize>()
            }
            Command::AdvanceTime => 1,
            Command::History(_) => 32,
            Command::Control(bytes) => bytes.len() + 11,
            Command::Split(plan) => plan.at.len() + 64,
            Command::Reclaim(keys) => 8 + keys.iter().map(|key| key.len() + 5).sum::<usize>(),
        }
    }

    /// Reads one command; it must take up the whole input.
    ///
    /// # Errors
    /// [`DecodeError`] for anything that [`Command::to_bytes`] doesn't write.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let command = match input.u8()? {
            1 => Command::Write(Write::decode(&mut input)?),
            2 => Command::AdvanceTime,
            3 => Command::Control(input.bytes()?),
            4 => Command::Split(SplitPlan::decode(&mut input)?),
            5 => {
                let count = input.count(1)?;
                Command::Reclaim((0..count).map(|_| input.bytes()).collect::<Result<_, _>>()?)
            }
            6 => Command::History(HistoryPolicy::decode(&mut input)?),
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
        let count = input.count(4)?;
        let mut operations = Vec::with_capacity(count);
        for _ in 0..count {
            operations.push(Operation::decode(input)?);
        }
        Ok(Write { epoch, atomic: flags & 1 != 0, request, operations })
    }
}

const CONDITION_ABSENT: u8 = 1;
const CONDITION_PRESENT: u8 = 2;
const CONDITION_VERSION: u8 = 3;
const CONDITION_VALUE: u8 = 4;

impl Operation {
    /// Roughly how many bytes the operation takes up in a log entry.
    pub fn size_bytes(&self) -> usize {
        let value = match &self.action {
            Action::Put { value, .. } => value.len(),
            Action::String(action) => action.size_bytes(),
            _ => 0,
        };
        let condition = match &self.condition {
            Some(Condition::IfValue(value)) => value.len(),
            _ => 0,
        };
        self.key.len() + value + condition + 24
    }

    fn encode(&self, out: &mut Writer) {
        out.bytes(&self.key);
        out.varint(u64::from(self.item));
        out.u8(u8::from(self.return_previous));
        match &self.condition {
            None => out.u8(0),
            Some(Condition::IfAbsent) => out.u8(CONDITION_ABSENT),
            Some(Condition::IfPresent) => out.u8(CONDITION_PRESENT),
            Some(Condition::IfVersion(version)) => {
                out.u8(CONDITION_VERSION);
                out.u64(version.0);
            }
            Some(Condition::IfValue(value)) => {
                out.u8(CONDITION_VALUE);
                out.bytes(value);
            }
        }
        match &self.action {
            Action::Put { value, ttl_ms: None } => {
                out.u8(1);
                out.bytes(value);
            }
            Action::Put { value, ttl_ms: Some(ttl_ms) } => {
                out.u8(2);
                out.varint(*ttl_ms);
                out.bytes(value);
            }
            Action::Delete => out.u8(3),
            Action::Increment { delta } => {
                out.u8(4);
                out.signed(*delta);
            }
            Action::String(action) => {
                out.u8(5);
                action.encode(out);
            }
            Action::Expire { ttl_ms: None } => out.u8(6),
            Action::Expire { ttl_ms: Some(ttl_ms) } => {
                out.u8(7);
                out.varint(*ttl_ms);
            }
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let key = input.bytes()?;
        let item = input.varint_u32()?;
        let return_previous = match input.u8()? {
            0 => false,
            1 => true,
            other => return Err(DecodeError::unknown_tag("operation flags", other)),
        };
        let condition = match input.u8()? {
            0 => None,
            CONDITION_ABSENT => Some(Condition::IfAbsent),
            CONDITION_PRESENT => Some(Condition::IfPresent),
            CONDITION_VERSION => Some(Condition::IfVersion(Version(input.u64()?))),
            CONDITION_VALUE => Some(Condition::IfValue(input.bytes()?)),
            other => return Err(DecodeError::unknown_tag("condition", other)),
        };
        let action = match input.u8()? {
            1 => Action::Put { value: input.bytes()?, ttl_ms: None },
            2 => {
                let ttl_ms = Some(input.varint()?);
                Action::Put { value: input.bytes()?, ttl_ms }
            }
            3 => Action::Delete,
            4 => Action::Increment { delta: input.signed()? },
            5 => Action::String(StringAction::decode(input)?),
            6 => Action::Expire { ttl_ms: None },
            7 => Action::Expire { ttl_ms: Some(input.varint()?) },
            other => return Err(DecodeError::unknown_tag("action", other)),
        };
        Ok(Operation { key, item, action, condition, return_previous })
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
    /// Encoded [`Command`]s, in order.
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
    /// The new value of a counter, or another number that a string action answers with.
    pub counter: Option<i64>,
    /// Bytes that a string action answers with.
    pub reply: Option<Bytes>,
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
        let action = prop_oneof![
            (any_bytes(), any::<Option<u64>>())
                .prop_map(|(value, ttl_ms)| Action::Put { value, ttl_ms }),
            Just(Action::Delete),
            any::<i64>().prop_map(|delta| Action::Increment { delta }),
            crate::string_action::tests::any_string_action().prop_map(Action::String),
            any::<Option<u64>>().prop_map(|ttl_ms| Action::Expire { ttl_ms }),
        ];
        let condition = prop::option::of(prop_oneof![
            Just(Condition::IfAbsent),
            Just(Condition::IfPresent),
            any::<u64>().prop_map(|version| Condition::IfVersion(Version(version))),
            any_bytes().prop_map(Condition::IfValue),
        ]);
        (any_bytes(), any::<u32>(), action, condition, any::<bool>()).prop_map(
            |(key, item, action, condition, return_previous)| Operation {
                key,
                item,
                action,
                condition,
                return_previous,
            },
        )
    }

    fn any_command() -> impl Strategy<Value = Command> {
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
                    Command::Write(Write { epoch: RangeEpoch(epoch), atomic, request, operations })
                }),
            Just(Command::AdvanceTime),
            any_bytes().prop_map(Command::Control),
            prop::collection::vec(any_bytes(), 0..4).prop_map(Command::Reclaim),
            (any::<u64>(), prop::option::of((any::<u64>(), 1..u64::MAX))).prop_map(
                |(revision, limits)| {
                    let limits = limits.map(|(max_age_ms, max_bytes)| crate::HistoryLimits {
                        max_age_ms,
                        max_bytes,
                    });
                    Command::History(HistoryPolicy { revision, limits })
                }
            ),
            (any_bytes(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
                |(at, child, epoch, node)| {
                    let node_id = crate::id::NodeId(node);
                    let replica_id = crate::id::ReplicaId(child);
                    let role = crate::descriptor::Role::Voter;
                    Command::Split(SplitPlan {
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
        let operation = Operation {
            key: Bytes::new(),
            item: 0,
            action: Action::Delete,
            condition: None,
            return_previous: false,
        };
        let write = Write {
            epoch: RangeEpoch(1),
            atomic: false,
            request: None,
            operations: vec![operation; 3],
        };
        for command in [Command::Write(write), Command::Reclaim(vec![Bytes::new(); 3])] {
            let encoded = command.to_bytes();
            assert_eq!(Command::decode(encoded.clone()), Ok(command));
            let commands = vec![Bytes::new(); 3];
            let payload =
                EntryPayload { version: Version(1), version_count: 1, jump_ms: 0, commands };
            assert_eq!(EntryPayload::decode(payload.to_bytes()), Ok(payload));
        }
    }

    proptest! {
        #[test]
        fn entries_survive_encoding(version in any::<u32>(), jump_ms in any::<u64>(), commands in prop::collection::vec(any_command(), 1..5)) {
            let payload = EntryPayload {
                version: Version(u64::from(version)),
                version_count: commands.iter().map(Command::version_count).sum(),
                jump_ms,
                commands: commands.iter().map(Command::to_bytes).collect(),
            };
            let bytes = payload.to_bytes();
            let peeked = EntryPayload::peek_time(&bytes).unwrap();
            prop_assert_eq!(peeked, (payload.version, payload.last_version(), jump_ms));
            let back = EntryPayload::decode(bytes).unwrap();
            prop_assert_eq!(&back, &payload);
            for (encoded, command) in back.commands.into_iter().zip(commands) {
                prop_assert_eq!(Command::decode(encoded).unwrap(), command);
            }
        }

        #[test]
        fn junk_commands_never_panic(junk in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Command::decode(Bytes::from(junk));
        }
    }
}
