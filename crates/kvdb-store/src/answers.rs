//! The record of one request: its answers, by item.
//!
//! ```text
//! format (u8)  1
//! keep_until (u64)  acked_below (varint)  number of answers (varint)
//! each: item (varint)  fingerprint (u64)  flags (u8)
//!       version (u64)  [previous: version (u64), expires_at_ms (varint), value]  [reply]
//!       or, for a wrong value, its code (u8)
//! ```
//!
//! stored under client id (length in one byte, then the bytes) and sequence (u64 big endian).
//!
//! An answer is what the shard's *data* made of an operation: a result, or a value that couldn't
//! be counted with. Refusals for other reasons (epoch, room, window) aren't answers: the operation
//! was not tried.

use crate::keys;
use crate::layout::{Kind, record_key};
use bytes::{BufMut, Bytes, BytesMut};
use kvdb_model::codec::{DecodeError, Reader, Writer};
use kvdb_model::wrong_value;
use kvdb_model::{
    Operation, OperationOutcome, Previous, Refusal, ReplicaId, Reply, Version, WriteResult,
};

/// Longest client id that fits a key.
pub(crate) const CLIENT_ID_MAX_BYTES: usize = u8::MAX as usize;
/// Longest previous value that is kept for a retry; the answer of a longer one is repeated
/// without it. What was taken away, not overwritten, is kept whole: it is nowhere else.
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
                let taken = keys::Delete::is(&operation.body);
                kept.left_out = !taken && kept.previous.as_ref().is_some_and(long);
                if kept.left_out {
                    kept.previous = None;
                }
                Ok(kept)
            }
            Err(Refusal::WrongValue(why)) => Err(*why),
            Err(_) => return None,
        };
        Some(Answer { item: operation.item, fingerprint: operation.fingerprint(), outcome })
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
const HAS_REPLY: u8 = 4;
const LEFT_OUT: u8 = 8;
const RESULT_FLAGS: u8 = APPLIED | HAS_PREVIOUS | HAS_REPLY | LEFT_OUT;
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
            | (u8::from(result.reply != Reply::None) * HAS_REPLY)
            | (u8::from(result.left_out) * LEFT_OUT));
        out.u64(result.version.0);
        if let Some(previous) = &result.previous {
            out.u64(previous.version.0);
            out.varint(previous.expires_at_ms);
            out.bytes(&previous.value);
        }
        if result.reply != Reply::None {
            result.reply.encode(out);
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
    let reply = if flags & HAS_REPLY != 0 { Reply::decode(input)? } else { Reply::None };
    Ok(WriteResult {
        applied: flags & APPLIED != 0,
        version,
        previous,
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
        let reply = prop_oneof![
            Just(Reply::None),
            Just(Reply::Nil),
            any::<i64>().prop_map(Reply::Integer),
            prop::collection::vec(any::<i64>().prop_map(Reply::Integer), 0..5)
                .prop_map(Reply::List),
        ];
        let left_out = any::<bool>();
        let result = (any::<bool>(), any::<u64>(), previous, reply, left_out).prop_map(
            |(applied, version, previous, reply, left_out)| WriteResult {
                applied,
                version: Version(version),
                previous,
                reply,
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
}
