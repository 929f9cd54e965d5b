//! How operations are put to a target: one session a client. All sessions are driven by the same
//! loop, in waves: a wave is what a client has on its way at once.

mod etcd;
mod kvdb;
mod redis;

pub(crate) use etcd::proto as etcd_proto;

use crate::load::Operation;
use crate::options::{Options, OptionsError, TargetKind};
use futures_util::future::join_all;
use std::future::Future;
use std::io;
use std::time::{Duration, Instant};
use thiserror::Error;
use tonic::Status;

/// What an operation found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// A read of a key that wasn't there.
    pub(crate) missing: bool,
    /// Keys that a scan brought.
    pub(crate) scanned: u32,
    /// Attempts of a read-modify-write that another write got in the way of.
    pub(crate) conflicts: u32,
}

impl Answer {
    fn read(found: bool) -> Self {
        Answer { missing: !found, ..Answer::default() }
    }
}

/// Why an operation has no answer.
#[derive(Debug, Error)]
pub enum Failed {
    /// KvDB's client says why.
    #[error(transparent)]
    Kvdb(#[from] kvdb_client::Error),
    /// etcd, or the echo.
    #[error("{}: {}", .0.code(), .0.message())]
    Grpc(Box<Status>),
    /// An error answer of the Redis protocol.
    #[error("{0}")]
    Redis(String),
    /// A connection.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What came back is no answer to what was asked.
    #[error("the target answered something else than was asked: {0}")]
    Unlike(String),
    /// No answer came in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// A key that others write all the time.
    #[error("a read-modify-write was overtaken by others for {0:?}")]
    Overtaken(Duration),
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Failed::Grpc(Box::new(status))
    }
}

impl Failed {
    /// What errors are counted by.
    pub(crate) fn kind(&self) -> String {
        match self {
            Failed::Kvdb(kvdb_client::Error::Refused { refusal, .. }) => refusal.code().to_owned(),
            Failed::Kvdb(kvdb_client::Error::Unavailable { .. }) => "unavailable".to_owned(),
            Failed::Kvdb(kvdb_client::Error::OutcomeUnknown { .. }) => "outcome unknown".to_owned(),
            Failed::Kvdb(
                kvdb_client::Error::Unexpected { .. } | kvdb_client::Error::WrongPort { .. },
            ) => "not KvDB".to_owned(),
            Failed::Grpc(status) => format!("{:?}", status.code()),
            // By their custom they begin with a word in capitals.
            Failed::Redis(words) => words.split(' ').next().unwrap_or_default().to_owned(),
            Failed::Io(error) => error.kind().to_string(),
            Failed::Unlike(_) => "strange answer".to_owned(),
            Failed::Late(_) => "late".to_owned(),
            Failed::Overtaken(_) => "overtaken".to_owned(),
        }
    }
}

/// An operation that has ended.
pub(crate) struct Done {
    pub(crate) at: Instant,
    pub(crate) result: Result<Answer, Failed>,
}

impl Done {
    fn now(result: Result<Answer, Failed>) -> Self {
        Done { at: Instant::now(), result }
    }
}

/// A target that takes one operation a call.
trait Unary: Sync {
    fn call(&self, operation: &Operation) -> impl Future<Output = Result<Answer, Failed>> + Send;

    /// All operations at once, each with the moment of its own answer.
    fn wave(&self, operations: &[Operation]) -> impl Future<Output = Vec<Done>> + Send {
        async move {
            match operations {
                [one] => vec![Done::now(self.call(one).await)],
                many => {
                    let call = |one| async move { Done::now(self.call(one).await) };
                    join_all(many.iter().map(call)).await
                }
            }
        }
    }
}

/// One client's way to the target.
pub(crate) enum Session {
    Kvdb(kvdb::Single),
    Batch(kvdb::Batches),
    Redis(redis::Session),
    Etcd(etcd::Session),
}

impl Session {
    /// Puts the operations and waits for what becomes of each, in order.
    pub(crate) async fn wave(&mut self, operations: &[Operation]) -> Vec<Done> {
        match self {
            Session::Kvdb(session) => session.wave(operations).await,
            Session::Batch(session) => session.wave(operations).await,
            Session::Redis(session) => session.wave(operations).await,
            Session::Etcd(session) => session.wave(operations).await,
        }
    }
}

/// Why there are no sessions.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    Failed(#[from] Failed),
}

impl From<kvdb_client::AddressError> for ConnectError {
    fn from(error: kvdb_client::AddressError) -> Self {
        ConnectError::Options(OptionsError(error.to_string()))
    }
}

/// Connects all clients, and asks whether there is somebody at the other end.
pub(crate) async fn connect(options: &Options) -> Result<Vec<Session>, ConnectError> {
    match options.target {
        TargetKind::KvdbGrpc | TargetKind::KvdbBatch => kvdb::connect(options).await,
        TargetKind::Redis => redis::connect(options).await,
        TargetKind::Etcd | TargetKind::Echo => etcd::connect(options).await,
    }
}

/// The attempts of one read-modify-write, by their number, for as long as a request may take.
/// Whoever is overtaken tries again at once, as YCSB's clients do.
fn attempts(timeout: Duration) -> impl Iterator<Item = u32> {
    let end = Instant::now() + timeout;
    (0..).take_while(move |_| Instant::now() < end)
}
