//! `Kv.Execute`: a command by its name, with Redis's arguments and answers.
//!
//! It is planned as a command of a Redis connection is and carried out as a wave of its own. What the
//! command itself answers, errors included, is the reply; what kept the cluster from carrying it out is the
//! refusal of the call.

use crate::redis::wave::Wave;
use crate::route::Gateway;
use crate::service::Freshness;
use bytes::Bytes;
use kvdb_model::{Refusal, RequestTag};
use kvdb_redis::session::Step;
use kvdb_redis::{Plan, Reply, Session};
use kvdb_wire::transport::MAX_MESSAGE_BYTES;
use kvdb_wire::{client_tag_from, proto, requests};
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
        requests::consistency_from(request.consistency)?;
        let fresh = Freshness {
            consistency: request.consistency,
            max_staleness_ms: request.max_staleness_ms,
            min_version: request.min_version,
        };
        let tag = client_tag_from(request.request_id, &self.limits)?;
        let mut words = vec![Bytes::from(request.command.to_ascii_lowercase())];
        words.extend(request.arguments);
        let own = tag.map(|tag| Own { tag, fingerprint: fingerprint(&words) });
        let mut plan = match plan(words, self.now_ms())? {
            Ok(plan) => plan,
            Err(error) => {
                let reply = Some(reply_to(error));
                return Ok(proto::ExecuteResponse { reply, ..Default::default() });
            }
        };
        let steps = std::mem::take(&mut plan.steps);
        let wave = Wave::new(self, &keyspace, steps).until(deadline).identified(own).fresh(fresh);
        if !wave.only_reads() {
            refuse_freshness(&request.command, fresh)?;
        }
        let Executed { reply, version, seen: (served_by, as_of_version) } =
            carry_out(wave, plan).await?;
        if reply.size_bytes() > MAX_MESSAGE_BYTES {
            return Err(Refusal::ResponseTooLarge { limit_bytes: MAX_MESSAGE_BYTES as u64 });
        }
        let reply = Some(reply_to(reply));
        Ok(proto::ExecuteResponse { reply, version, served_by, as_of_version })
    }
}

/// What a command came to.
struct Executed {
    reply: Reply,
    /// The latest of the versions that its keys have now; 0 if it only reads.
    version: u64,
    /// [`Wave::seen`].
    seen: (u64, u64),
}

/// A command that may change something goes through its shard's log: it can't be carried out on an older state.
fn refuse_freshness(command: &str, fresh: Freshness) -> Result<(), Refusal> {
    let field = if fresh.consistency != Freshness::STRONG.consistency {
        "consistency"
    } else if fresh.max_staleness_ms > 0 {
        "max_staleness_ms"
    } else if fresh.min_version > 0 {
        "min_version"
    } else {
        return Ok(());
    };
    let name = command.to_uppercase();
    let problem =
        format!("is for commands that only read, and {name} may change something; leave it out");
    Err(Refusal::invalid(field, problem))
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

async fn carry_out(mut wave: Wave<'_>, plan: Plan) -> Result<Executed, Refusal> {
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
    let (seen, only_reads) = (wave.seen(), wave.only_reads());
    let outcomes = wave.take(all);
    let versions = outcomes.iter().flatten().map(|result| result.version.0);
    let version = versions.max().filter(|_| !only_reads).unwrap_or_default();
    let refused = outcomes.iter().find_map(|outcome| match outcome {
        Err(Refusal::WrongValue(_)) | Ok(_) => None,
        Err(refusal) => Some(refusal.clone()),
    });
    match refused {
        Some(refusal) => Err(refusal),
        None => Ok(Executed { reply: plan.finish(outcomes, now_ms), version, seen }),
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
