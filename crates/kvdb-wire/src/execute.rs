//! Writes to one shard between the wire and the model: what a front sends, and what it is answered.
//!
//! The write itself crosses as it will stand in the log; nothing of it is translated.

use crate::convert::previous_to;
use crate::proto;
use crate::refusal::{refusal_from_proto, refusal_to_proto};
use bytes::Bytes;
use kvdb_model::limits::ANSWER_MAX_BYTES;
use kvdb_model::{
    EntryCommand, Limits, Operation, OperationOutcome, Previous, RangeEpoch, Refusal, Reply,
    ShardId, Version, Write, WriteResult,
};

/// A write as a front sends it.
pub fn execute_request(shard: ShardId, write: Write) -> proto::NodeExecuteRequest {
    let write = EntryCommand::Write(write).to_bytes();
    proto::NodeExecuteRequest { shard_id: shard.0, write }
}

/// Commands that change nothing, as a front sends them.
pub fn query_request(
    shard: ShardId,
    epoch: RangeEpoch,
    operations: Vec<Operation>,
    max_bytes: u64,
) -> proto::NodeQueryRequest {
    let write = Write { epoch, atomic: false, request: None, operations };
    let write = EntryCommand::Write(write).to_bytes();
    proto::NodeQueryRequest { shard_id: shard.0, write, max_bytes, ..Default::default() }
}

/// A front's write, read and checked as a whole.
///
/// # Errors
/// [`Refusal::InvalidArgument`] naming field and limit.
pub fn write_from(encoded: Bytes, limits: &Limits) -> Result<Write, Refusal> {
    let size = encoded.len();
    let command = EntryCommand::decode(encoded)
        .map_err(|error| Refusal::invalid("write", format!("can't be read: {error}")))?;
    let EntryCommand::Write(write) = command else {
        return Err(Refusal::invalid("write", "is a command that only nodes may give"));
    };
    let (count, most) = (write.operations.len(), limits.request_max_items);
    if count == 0 || count > most {
        let problem = format!("has {count} commands; it has 1 to {most}");
        return Err(Refusal::invalid("write", problem));
    }
    // Routing keys, numbers and the request id stand beside what a client's request holds.
    let limit = limits.request_max_bytes + count * OVERHEAD_BYTES;
    if size > limit {
        let problem = format!("is {size} bytes; the limit is {limit}");
        return Err(Refusal::invalid("write", problem));
    }
    if let Some(tag) = &write.request {
        let (length, most) = (tag.client_id.len(), limits.client_id_max_bytes);
        if length == 0 || length > most {
            let problem = format!("has {length} bytes; it must have 1 to {most}");
            return Err(Refusal::invalid("request_id.client_id", problem));
        }
    }
    Ok(write)
}

/// What a command takes up in an encoded write beside its keys and values, at most.
const OVERHEAD_BYTES: usize = 256;

/// The answers of a write. Previous values and replies that don't fit into a message are left out.
pub fn results_to(outcomes: Vec<OperationOutcome>) -> proto::NodeExecuteResponse {
    let mut size = 0;
    let result = |outcome: OperationOutcome| match outcome {
        Ok(mut result) => {
            size += result.answer_bytes();
            if size > ANSWER_MAX_BYTES {
                result = result.without_bulk();
            }
            result_to(result)
        }
        Err(refusal) => proto::OperationResult {
            refusal: Some(refusal_to_proto(&refusal)),
            ..Default::default()
        },
    };
    let results = outcomes.into_iter().map(result).collect();
    proto::NodeExecuteResponse { results, ..Default::default() }
}

fn result_to(result: WriteResult) -> proto::OperationResult {
    let reply = match &result.reply {
        Reply::None => Bytes::new(),
        reply => reply.to_bytes(),
    };
    proto::OperationResult {
        applied: result.applied,
        version: result.version.0,
        previous: result.previous.map(previous_to),
        reply,
        left_out: result.left_out,
        refusal: None,
    }
}

/// The answer of one command.
pub fn outcome_from(result: proto::OperationResult) -> OperationOutcome {
    if let Some(refusal) = result.refusal {
        return Err(refusal_from_proto(refusal));
    }
    let reply = match result.reply.is_empty() {
        true => Ok(Reply::None),
        false => Reply::from_bytes(result.reply),
    };
    let Ok(reply) = reply else {
        return Err(Refusal::OutcomeUnknown { reason: "the reply can't be read" });
    };
    Ok(WriteResult {
        applied: result.applied,
        version: Version(result.version),
        previous: result.previous.map(|previous| Previous {
            value: previous.value,
            version: Version(previous.version),
            expires_at_ms: previous.expires_at_ms,
        }),
        reply,
        left_out: result.left_out,
        deduplicated: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::{Body, CommandId, RequestTag, ValidUntil};

    fn write(count: usize) -> Write {
        let body = Body { id: CommandId(1), format: 1, args: "args".into() };
        let operation = Operation::new("key".into(), body).sealed();
        let operations = vec![operation; count];
        Write { epoch: RangeEpoch(7), atomic: true, request: None, operations }
    }

    fn refused(encoded: Bytes, limits: &Limits) -> String {
        write_from(encoded, limits).unwrap_err().to_string()
    }

    #[test]
    fn a_write_crosses_as_it_stands_in_the_log() {
        let request = execute_request(ShardId(3), write(2));
        assert_eq!(request.write, EntryCommand::Write(write(2)).to_bytes());
        assert_eq!(write_from(request.write, &Limits::default()), Ok(write(2)));
    }

    #[test]
    fn forged_writes_are_refused() {
        let limits = Limits { request_max_items: 2, request_max_bytes: 64, ..Limits::default() };
        let encoded = |count| execute_request(ShardId(1), write(count)).write;
        assert!(refused(Bytes::new(), &limits).starts_with("write can't be read"));
        assert!(refused(encoded(1).slice(1..), &limits).starts_with("write can't be read"));
        assert_eq!(refused(encoded(0), &limits), "write has 0 commands; it has 1 to 2");
        assert_eq!(refused(encoded(3), &limits), "write has 3 commands; it has 1 to 2");
        let others = EntryCommand::Reclaim(vec!["k".into()]).to_bytes();
        assert_eq!(refused(others, &limits), "write is a command that only nodes may give");
        let mut long = write(1);
        long.operations[0].body.args = vec![0; 500].into();
        let long = execute_request(ShardId(1), long).write;
        assert!(refused(long, &limits).ends_with("the limit is 320"));
        let nameless = RequestTag {
            client_id: Bytes::new(),
            sequence: 1,
            acked_below: 0,
            valid_until: ValidUntil::Age(1),
        };
        let nameless = Write { request: Some(nameless), ..write(1) };
        let nameless = execute_request(ShardId(1), nameless).write;
        assert!(refused(nameless, &limits).starts_with("request_id.client_id has 0 bytes"));
    }

    #[test]
    fn previous_values_and_replies_beyond_a_message_are_left_out_and_said_so() {
        let value = || Bytes::from(vec![0; 8 << 20]);
        let result = |previous: bool, reply| {
            let previous = previous.then(|| Previous {
                value: value(),
                version: Version(1),
                expires_at_ms: 0,
            });
            Ok(WriteResult { applied: true, previous, reply, ..WriteResult::default() })
        };
        let outcomes = vec![
            result(true, Reply::None),
            result(true, Reply::Integer(7)),
            result(false, Reply::Bytes(value())),
            result(false, Reply::Integer(8)),
        ];
        let results = results_to(outcomes).results;
        assert!(results[0].previous.is_some() && !results[0].left_out);
        assert!(
            results[1].previous.is_none() && results[1].left_out && !results[1].reply.is_empty()
        );
        assert!(results[2].reply.is_empty() && results[2].left_out);
        assert!(!results[3].reply.is_empty() && !results[3].left_out);
    }

    #[test]
    fn answers_survive_the_way_over_the_wire() {
        let result = WriteResult {
            applied: true,
            version: Version(3),
            reply: Reply::List(vec![Reply::Integer(-4), Reply::Nil]),
            ..WriteResult::default()
        };
        let wrong = Err(Refusal::WrongValue(kvdb_model::wrong_value::NOT_A_FLOAT));
        let outcomes = vec![Ok(result), wrong];
        let sent = results_to(outcomes.clone()).results;
        let back: Vec<_> = sent.into_iter().map(outcome_from).collect();
        assert_eq!(back, outcomes);
        let damaged = proto::OperationResult { reply: vec![99].into(), ..Default::default() };
        assert!(matches!(outcome_from(damaged), Err(Refusal::OutcomeUnknown { .. })));
    }
}
