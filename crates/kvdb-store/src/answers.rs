//! The record of one request: its answers, by item.
//!
//! ```text
//! format (u8)  1
//! keep_until (u64)  acked_below (varint)  number of answers (varint)
//! each: item (varint)  fingerprint (u64)  flags (u8)
//!       version (u64)  [previous: version (u64), expires_at_ms (varint), value]  [counter (signed)]
//!       [reply]
//!       or, for a wrong value, its code (u8)
//! ```
//!
//! stored under client id (length in one byte, then the bytes) and sequence (u64 big endian).
//!
//! An answer is what the shard's *data* made of an operation: a result, or a value that couldn't
//! be counted with. Refusals for other reasons (epoch, room, window) aren't answers: the operation
//! was not tried.

use crate::layout::{Kind, record_key};
use bytes::{BufMut, Bytes, BytesMut};
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value;
use kvdb_model::{
    Action, Condition, Operation, OperationOutcome, Previous, Refusal, ReplicaId, Version,
    WriteResult,
};
use xxhash_rust::xxh3::Xxh3;

/// Longest client id that fits a key.
pub(crate) const CLIENT_ID_MAX_BYTES: usize = u8::MAX as usize;
/// Longest previous value that is kept for a retry; the answer of a longer one is repeated
/// without it.
pub(crate) const PREVIOUS_MAX_BYTES: usize = 1024;

/// What an operation came to, and what tells it from another one under the same id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) item: u32,
    pub(crate) fingerprint: u64,
    outcome: Result<WriteResult, &'static str>,
}

impl Answer {
    /// The answer to remember, or `None` if the operation wasn't tried now.
    pub(crate) fn of(operation: &Operation, outcome: &OperationOutcome) -> Option<Self> {
        let outcome = match outcome {
            Ok(result) if result.deduplicated => return None,
            Ok(result) => {
                let mut kept = result.clone();
                let long = |previous: &Previous| previous.value.len() > PREVIOUS_MAX_BYTES;
                kept.left_out = kept.previous.as_ref().is_some_and(long);
                if kept.left_out {
                    kept.previous = None;
                }
                Ok(kept)
            }
            Err(Refusal::WrongValue(why)) => Err(*why),
            Err(_) => return None,
        };
        Some(Answer { item: operation.item, fingerprint: fingerprint(operation), outcome })
    }

    /// The answer for a retry.
    pub(crate) fn repeated(&self) -> OperationOutcome {
        match &self.outcome {
            Ok(result) => Ok(WriteResult { deduplicated: true, ..result.clone() }),
            Err(why) => Err(Refusal::WrongValue(why)),
        }
    }
}

/// The answers of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// Shard time from which on it may be dropped.
    pub(crate) keep_until: Version,
    /// The highest that its client had said when the record was last written.
    pub(crate) acked_below: u64,
    /// Ascending by item.
    answers: Vec<Answer>,
}

impl Request {
    pub(crate) fn find(&self, item: u32) -> Option<&Answer> {
        let place = self.answers.binary_search_by_key(&item, |answer| answer.item).ok()?;
        Some(&self.answers[place])
    }

    pub(crate) fn add(&mut self, answer: Answer) {
        match self.answers.binary_search_by_key(&answer.item, |known| known.item) {
            // Only a request that names one item twice comes here; the later one counts.
            Ok(place) => self.answers[place] = answer,
            Err(place) => self.answers.insert(place, answer),
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Writer::with_capacity(16 + 24 * self.answers.len());
        out.u8(1);
        out.u64(self.keep_until.0);
        out.varint(self.acked_below);
        out.varint(self.answers.len() as u64);
        for answer in &self.answers {
            answer.encode(&mut out);
        }
        out.finish()
    }

    pub(crate) fn decode(content: Bytes) -> Result<Self, DecodeError> {
        let mut input = Reader::new(content);
        input.version("request window record", 1)?;
        let keep_until = Version(input.u64()?);
        let acked_below = input.varint()?;
        let count = input.count(10)?;
        let mut answers = Vec::with_capacity(count);
        for _ in 0..count {
            answers.push(Answer::decode(&mut input)?);
        }
        input.end()?;
        Ok(Request { keep_until, acked_below, answers })
    }
}

const APPLIED: u8 = 1;
const HAS_PREVIOUS: u8 = 2;
const HAS_COUNTER: u8 = 4;
const HAS_REPLY: u8 = 8;
const LEFT_OUT: u8 = 16;
const RESULT_FLAGS: u8 = APPLIED | HAS_PREVIOUS | HAS_COUNTER | HAS_REPLY | LEFT_OUT;
const WRONG_VALUE: u8 = 32;

impl Answer {
    fn encode(&self, out: &mut Writer) {
        out.varint(u64::from(self.item));
        out.u64(self.fingerprint);
        let result = match &self.outcome {
            Ok(result) => result,
            Err(why) => {
                out.u8(WRONG_VALUE);
                return out.u8(wrong_value::code_of(why));
            }
        };
        out.u8((u8::from(result.applied) * APPLIED)
            | (u8::from(result.previous.is_some()) * HAS_PREVIOUS)
            | (u8::from(result.counter.is_some()) * HAS_COUNTER)
            | (u8::from(result.reply.is_some()) * HAS_REPLY)
            | (u8::from(result.left_out) * LEFT_OUT));
        out.u64(result.version.0);
        if let Some(previous) = &result.previous {
            out.u64(previous.version.0);
            out.varint(previous.expires_at_ms);
            out.bytes(&previous.value);
        }
        if let Some(counter) = result.counter {
            out.signed(counter);
        }
        if let Some(reply) = &result.reply {
            out.bytes(reply);
        }
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let item = input.varint_u32()?;
        let fingerprint = input.u64()?;
        let outcome = match input.u8()? {
            WRONG_VALUE => {
                let code = input.u8()?;
                let known = wrong_value::ALL.get(usize::from(code));
                Err(*known.ok_or(DecodeError::unknown_tag("wrong value", code))?)
            }
            flags if flags > RESULT_FLAGS => {
                return Err(DecodeError::unknown_tag("answer flags", flags));
            }
            flags => Ok(decode_result(input, flags)?),
        };
        Ok(Answer { item, fingerprint, outcome })
    }
}

fn decode_result(input: &mut Reader, flags: u8) -> Result<WriteResult, DecodeError> {
    let version = Version(input.u64()?);
    let previous = if flags & HAS_PREVIOUS != 0 {
        Some(Previous {
            version: Version(input.u64()?),
            expires_at_ms: input.varint()?,
            value: input.bytes()?,
        })
    } else {
        None
    };
    let counter = if flags & HAS_COUNTER != 0 { Some(input.signed()?) } else { None };
    let reply = if flags & HAS_REPLY != 0 { Some(input.bytes()?) } else { None };
    Ok(WriteResult {
        applied: flags & APPLIED != 0,
        version,
        previous,
        counter,
        reply,
        left_out: flags & LEFT_OUT != 0,
        deduplicated: false,
    })
}

/// The key of a request's record, replica id and kind left out.
pub(crate) fn request_suffix(client: &[u8], sequence: u64) -> Bytes {
    let length = u8::try_from(client.len()).expect("client ids are checked on admission");
    let mut suffix = BytesMut::with_capacity(client.len() + 9);
    suffix.put_u8(length);
    suffix.put_slice(client);
    suffix.put_u64(sequence);
    suffix.freeze()
}

pub(crate) fn request_key(replica: ReplicaId, client: &[u8], sequence: u64) -> Bytes {
    record_key(replica, Kind::Request, &request_suffix(client, sequence))
}

/// Client and sequence of what [`request_suffix`] made.
pub(crate) fn parse_suffix(suffix: Bytes) -> Result<(Bytes, u64), DecodeError> {
    let mut input = Reader::new(suffix);
    let length = usize::from(input.u8()?);
    let client = input.raw(length)?;
    let raw = input.raw(8)?;
    input.end()?;
    let mut sequence = [0; 8];
    sequence.copy_from_slice(&raw);
    Ok((client, u64::from_be_bytes(sequence)))
}

/// A hash (XXH3) of all that an operation is, its place in the request excepted.
pub(crate) fn fingerprint(operation: &Operation) -> u64 {
    let mut hash = Xxh3::new();
    let text = |hash: &mut Xxh3, tag: u8, bytes: &[u8]| {
        hash.update(&[tag]);
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    text(&mut hash, u8::from(operation.return_previous), &operation.key);
    match &operation.action {
        Action::Put { value, ttl_ms: None } => text(&mut hash, 1, value),
        Action::Put { value, ttl_ms: Some(ttl_ms) } => {
            text(&mut hash, 2, value);
            hash.update(&ttl_ms.to_le_bytes());
        }
        Action::Delete => hash.update(&[3]),
        Action::Increment { delta } => text(&mut hash, 4, &delta.to_le_bytes()),
        Action::String(action) => {
            let mut encoded = Writer::with_capacity(action.size_bytes());
            action.encode(&mut encoded);
            text(&mut hash, 5, encoded.as_slice());
        }
        Action::Expire { ttl_ms: None } => hash.update(&[6]),
        Action::Expire { ttl_ms: Some(ttl_ms) } => text(&mut hash, 7, &ttl_ms.to_le_bytes()),
    }
    match &operation.condition {
        None => hash.update(&[0]),
        Some(Condition::IfAbsent) => hash.update(&[1]),
        Some(Condition::IfPresent) => hash.update(&[2]),
        Some(Condition::IfVersion(version)) => text(&mut hash, 3, &version.0.to_le_bytes()),
        Some(Condition::IfValue(value)) => text(&mut hash, 4, value),
    }
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_answer() -> impl Strategy<Value = Answer> {
        let previous = prop::option::of(
            (prop::collection::vec(any::<u8>(), 0..40), any::<u64>(), any::<u64>()).prop_map(
                |(value, version, expires_at_ms)| Previous {
                    value: value.into(),
                    version: Version(version),
                    expires_at_ms,
                },
            ),
        );
        let reply = prop::option::of(prop::collection::vec(any::<u8>(), 0..9));
        let left_out = any::<bool>();
        let numbers = (any::<u64>(), any::<Option<i64>>());
        let result = (any::<bool>(), numbers, previous, reply, left_out).prop_map(
            |(applied, (version, counter), previous, reply, left_out)| WriteResult {
                applied,
                version: Version(version),
                previous,
                counter,
                reply: reply.map(Bytes::from),
                left_out,
                deduplicated: false,
            },
        );
        let wrong = prop::sample::select(wrong_value::ALL.to_vec());
        let outcome = prop_oneof![result.prop_map(Ok), wrong.prop_map(Err)];
        (any::<u32>(), any::<u64>(), outcome).prop_map(|(item, fingerprint, outcome)| Answer {
            item,
            fingerprint,
            outcome,
        })
    }

    #[test]
    fn a_list_of_the_shortest_answers_survives_encoding() {
        let mut request = Request::default();
        for item in 0..3 {
            request.add(Answer { item, fingerprint: 0, outcome: Err(wrong_value::ALL[0]) });
        }
        assert_eq!(Request::decode(request.encode()).unwrap(), request);
    }

    proptest! {
        #[test]
        fn requests_survive_encoding(
            answers in prop::collection::vec(any_answer(), 0..6),
            keep_until in any::<u64>(),
            acked_below in any::<u64>(),
        ) {
            let mut request =
                Request { keep_until: Version(keep_until), acked_below, ..Request::default() };
            for answer in answers { request.add(answer); }
            prop_assert_eq!(Request::decode(request.encode()).unwrap(), request);
        }

        #[test]
        fn keys_survive_and_keep_a_client_together(
            client in prop::collection::vec(any::<u8>(), 0..=CLIENT_ID_MAX_BYTES),
            sequence in any::<u64>(),
        ) {
            let (back, number) = parse_suffix(request_suffix(&client, sequence)).unwrap();
            prop_assert_eq!((&back[..], number), (&client[..], sequence));
        }

        #[test]
        fn junk_never_panics(junk in prop::collection::vec(any::<u8>(), 0..80)) {
            let mut framed = vec![1];
            framed.extend_from_slice(&junk);
            let _ = Request::decode(Bytes::from(framed));
            let _ = parse_suffix(Bytes::from(junk));
        }
    }

    #[test]
    fn operations_that_differ_anywhere_have_different_fingerprints() {
        let put = |value: &'static str, ttl_ms| Action::Put { value: value.into(), ttl_ms };
        let mut seen = std::collections::BTreeSet::new();
        let actions = [
            put("", None),
            put("", Some(0)),
            put("", Some(9)),
            put("a", None),
            Action::Delete,
            Action::Increment { delta: 1 },
            Action::Increment { delta: -1 },
            Action::String(kvdb_model::StringAction::Read),
            Action::String(kvdb_model::StringAction::Increment { delta: 1 }),
            Action::Expire { ttl_ms: None },
            Action::Expire { ttl_ms: Some(9) },
        ];
        let conditions = [
            None,
            Some(Condition::IfAbsent),
            Some(Condition::IfPresent),
            Some(Condition::IfVersion(Version(1))),
            Some(Condition::IfVersion(Version(2))),
            Some(Condition::IfValue(Bytes::new())),
            Some(Condition::IfValue("a".into())),
        ];
        let mut count = 0;
        for action in &actions {
            for condition in &conditions {
                for key in ["k", "ka"] {
                    for return_previous in [false, true] {
                        count += 1;
                        seen.insert(fingerprint(&Operation {
                            key: key.into(),
                            item: 0,
                            action: action.clone(),
                            condition: condition.clone(),
                            return_previous,
                        }));
                    }
                }
            }
        }
        assert_eq!(seen.len(), count);
    }
}
