//! One call: attempt after attempt, until it is answered or out of time.

use crate::error::{Effect, Error};
use crate::options::Options;
use crate::outgoing::Outgoing;
use crate::pool::{Connection, Hung, Pool};
use crate::retry::{Next, Retries};
use crate::whois::explain;
use kvdb_wire::refusal_from_status;
use std::error::Error as _;
use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Response, Status};

/// How a request may be treated.
#[derive(Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) effect: Effect,
    /// Whether sending it twice does no more than sending it once.
    pub(crate) repeatable: bool,
}

impl Manner {
    pub(crate) const READ: Manner = Manner { effect: Effect::Read, repeatable: true };

    pub(crate) const fn write(repeatable: bool) -> Self {
        Manner { effect: Effect::Write, repeatable }
    }
}

/// Sends `message` by `send` until it is answered or `deadline` has come.
pub(crate) async fn call<M, A, S, F>(
    pool: &Pool,
    options: &Options,
    deadline: Instant,
    manner: Manner,
    message: &M,
    send: S,
) -> Result<A, Error>
where
    M: Clone,
    S: Fn(Outgoing, Request<M>) -> F,
    F: Future<Output = Result<Response<A>, Status>>,
{
    let began = Instant::now();
    let mut retries = Retries::new(options, manner.repeatable);
    loop {
        let connection = if manner.repeatable { pool.next() } else { pool.next_proven().await };
        let left = deadline.saturating_duration_since(Instant::now());
        let error = match attempt(pool, connection, left, manner.effect, message, &send).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if is_worth_explaining(pool, began, left, &error) {
            return Err(explain(connection, retries.verdict(error)).await);
        }
        match retries.after(error, left, random()) {
            Next::Again(pause) => sleep(pause).await,
            Next::GiveUp(error) => return Err(error),
        }
    }
}

/// Whether an error ends a call because whoever was asked is no gateway, or nobody at all.
pub(crate) fn is_worth_explaining(
    pool: &Pool,
    began: Instant,
    left: Duration,
    error: &Error,
) -> bool {
    match error {
        _ if left.is_zero() => false,
        Error::Unexpected { code: Code::Unimplemented, .. } => true,
        Error::Unavailable { .. } => pool.is_hopeless(began),
        _ => false,
    }
}

/// Sends `message` once. What never left has had no effect, whatever it would have done.
pub(crate) async fn attempt<M, A, S, F>(
    pool: &Pool,
    connection: &Connection,
    left: Duration,
    effect: Effect,
    message: &M,
    send: &S,
) -> Result<A, Error>
where
    M: Clone,
    S: Fn(Outgoing, Request<M>) -> F,
    F: Future<Output = Result<Response<A>, Status>>,
{
    let began = Instant::now();
    let address = &connection.address;
    let mut request = Request::new(message.clone());
    request.set_timeout(left);
    let outgoing = Outgoing::new(connection.channel.clone());
    let fate = outgoing.fate();
    let status = match timeout(left, pool.listen(connection, send(outgoing, request))).await {
        Ok(Ok(Ok(answer))) => {
            pool.heard(connection);
            return Ok(answer.into_inner());
        }
        Ok(Ok(Err(status))) => Some(status),
        Ok(Err(Hung)) => None,
        Err(_) => None,
    };
    match &status {
        Some(status) if refusal_from_status(status).is_some() => pool.heard(connection),
        // The connection's, not the server's.
        Some(status) if status.source().is_some() => pool.suspect(connection),
        _ => {}
    }
    let withdrawn = fate.withdraw();
    let effect = if withdrawn { Effect::Read } else { effect };
    Err(match status {
        Some(status) => effect.failed(address, &status),
        None => {
            let what = if withdrawn { "connection" } else { "answer" };
            let waited = began.elapsed().as_millis();
            effect.unanswered(address, format!("no {what} within {waited} ms"))
        }
    })
}

/// For the spread of pauses. Without a source of randomness they don't vary, which is no more than
/// a pity.
pub(crate) fn random() -> u64 {
    getrandom::u64().unwrap_or_default()
}
