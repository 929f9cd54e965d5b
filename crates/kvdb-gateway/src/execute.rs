//! `Kv.Execute`: a command by its name, with Redis's arguments and answers.
//!
//! It is planned as a command of a Redis connection is and carried out as a wave of its own. What the
//! command itself answers, errors included, is the reply; what kept the cluster from carrying it out is the
//! refusal of the call.

use crate::redis::wave::Wave;
use crate::route::Gateway;
use bytes::Bytes;
use kvdb_model::{Refusal, RequestTag};
use kvdb_redis::session::Step;
use kvdb_redis::{Plan, Reply, Session};
use kvdb_wire::transport::MAX_MESSAGE_BYTES;
use kvdb_wire::{client_tag_from, proto};
use proto::reply::Kind;
use std::time::Instant;
use xxhash_rust::xxh3::Xxh3;

/// A client's own request id, and what tells its command from another one under the same id.
pub(crate) struct Own {
    pub(crate) tag: RequestTag,
    /// A hash of the words of the command, its name in small letters. Not of what it was encoded to: a
    /// command that leaves something to chance is another one each time.
    pub(crate) fingerprint: u64,
}

impl Gateway {
    pub(crate) async fn execute_one(
        &self,
        request: proto::ExecuteRequest,
        deadline: Instant,
    ) -> Result<proto::ExecuteResponse, Refusal> {
        let keyspace = self.current_keyspace(&request.keyspace).await?;
        let tag = client_tag_from(request.request_id, &self.limits)?;
        let mut words = vec![Bytes::from(request.command.to_ascii_lowercase())];
        words.extend(request.arguments);
        let own = tag.map(|tag| Own { tag, fingerprint: fingerprint(&words) });
        let reply = match plan(words, self.now_ms())? {
            Ok(plan) => {
                let mut wave_plan = plan;
                let steps = std::mem::take(&mut wave_plan.steps);
                let wave = Wave::new(self, &keyspace, steps).until(deadline).identified(own);
                carry_out(wave, wave_plan).await?
            }
            Err(error) => error,
        };
        if reply.size_bytes() > MAX_MESSAGE_BYTES {
            return Err(Refusal::ResponseTooLarge { limit_bytes: MAX_MESSAGE_BYTES as u64 });
        }
        Ok(proto::ExecuteResponse { reply: Some(reply_to(reply)) })
    }
}

/// What a command does, or what is wrong with its arguments.
fn plan(words: Vec<Bytes>, now_ms: u64) -> Result<Result<Plan, Reply>, Refusal> {
    let name = String::from_utf8_lossy(&words[0]).to_uppercase();
    let mut session = Session::new(0);
    session.resp3 = true;
    match session.take(words, now_ms).0 {
        Step::Plan(plan) => Ok(Ok(plan)),
        Step::Reply(error) if error.is_error() => Ok(Err(error)),
        _ => {
            let problem = format!("{name} is not about keys; Execute takes commands on keys alone");
            Err(Refusal::invalid("command", problem))
        }
    }
}

async fn carry_out(mut wave: Wave<'_>, plan: Plan) -> Result<Reply, Refusal> {
    let all = 0..wave.len();
    if plan.atomic {
        wave.together().await?;
    } else {
        wave.start().await;
        while !wave.is_done(all.clone()) {
            if wave.size_bytes(all.clone()) > MAX_MESSAGE_BYTES {
                return Err(Refusal::ResponseTooLarge { limit_bytes: MAX_MESSAGE_BYTES as u64 });
            }
            wave.go_on(all.clone()).await;
        }
    }
    let now_ms = wave.now_ms(&all);
    let outcomes = wave.take(all);
    let refused = outcomes.iter().find_map(|outcome| match outcome {
        Err(Refusal::WrongValue(_)) | Ok(_) => None,
        Err(refusal) => Some(refusal.clone()),
    });
    match refused {
        Some(refusal) => Err(refusal),
        None => Ok(plan.finish(outcomes, now_ms)),
    }
}

fn fingerprint(words: &[Bytes]) -> u64 {
    let mut hash = Xxh3::new();
    for word in words {
        hash.update(&(word.len() as u64).to_le_bytes());
        hash.update(word);
    }
    // 0 stands for none.
    hash.digest().max(1)
}

fn reply_to(reply: Reply) -> proto::Reply {
    let list =
        |items: Vec<Reply>| proto::ReplyList { items: items.into_iter().map(reply_to).collect() };
    let kind = match reply {
        Reply::Simple(text) => Kind::Status(text.to_owned()),
        Reply::Status(text) => Kind::Status(text),
        Reply::Error(text) => Kind::Error(text),
        Reply::Integer(number) => Kind::Integer(number),
        Reply::Bulk(bytes) => Kind::Bytes(bytes),
        Reply::Nil | Reply::NilArray => Kind::Nil(proto::ReplyNil {}),
        Reply::Array(items) => Kind::List(list(items)),
        Reply::Set(items) => Kind::Set(list(items)),
        Reply::Map(pairs) => {
            let pair = |(key, value)| proto::ReplyPair {
                key: Some(reply_to(key)),
                value: Some(reply_to(value)),
            };
            Kind::Map(proto::ReplyMap { pairs: pairs.into_iter().map(pair).collect() })
        }
        Reply::Pairs(pairs) => {
            let pair = |(one, other)| Reply::Array(vec![one, other]);
            Kind::List(list(pairs.into_iter().map(pair).collect()))
        }
        Reply::Double(number) => Kind::Number(number),
        Reply::Decimal(text) => Kind::Number(text.parse().unwrap_or_default()),
        Reply::Verbatim(text) => Kind::Bytes(text.into()),
    };
    proto::Reply { kind: Some(kind) }
}
