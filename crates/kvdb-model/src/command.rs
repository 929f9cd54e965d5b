//! What travels through a shard's log.
//!
//! A log entry packs the commands of many requests. Each has its own version: the entry's
//! [`EntryPayload::version`] plus the number of versions that the commands before it take up
//! ([`EntryCommand::version_count`]); the operations of an atomic batch share one. Decoding shares the
//! entry's allocation: keys and values are never copied.

use crate::codec::{DecodeError, Reader, Writer};
use crate::history::HistoryPolicy;
use crate::id::RangeEpoch;
use crate::operation::{OPERATION_LEAST_BYTES, Operation};
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::tests::any_operation;
    use crate::operation::{Body, CommandId};
    use proptest::prelude::*;

    fn any_bytes() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(any::<u8>(), 0..50).prop_map(Bytes::from)
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
