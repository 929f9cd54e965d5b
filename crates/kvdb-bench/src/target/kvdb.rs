//! KvDB by its Rust client: what a service gets that uses it, with its deadlines and retries.

use super::{Answer, ConnectError, Done, Failed, Session, Unary, attempts};
use crate::load::{Action, Operation};
use crate::options::{Options, OptionsError, TargetKind};
use bytes::Bytes;
use kvdb_client::{AdminClient, BatchOperation, Client, ReadOptions, ScanOptions, WriteOptions};
use kvdb_model::{Condition, Partitioning};
use std::time::Duration;

/// A call an operation.
pub(crate) struct Single {
    client: Client,
    timeout: Duration,
}

/// A batch for the writes of a wave and one for the reads.
pub(crate) struct Batches(Client);

pub(super) async fn connect(options: &Options) -> Result<Vec<Session>, ConnectError> {
    let client_options = kvdb_client::Options {
        addresses: options.addresses.clone(),
        connections: options.connections as usize,
        deadline: options.timeout,
        exactly_once: options.exactly_once,
        ..kvdb_client::Options::default()
    };
    let client = Client::new(client_options.clone())?.keyspace(options.keyspace.clone());
    client.ping().await.map_err(Failed::from)?;
    if options.mix.scan > 0 {
        check_order(&AdminClient::new(client_options)?, &options.keyspace).await?;
    }
    let session = |client: Client| match options.target {
        TargetKind::KvdbBatch => Session::Batch(Batches(client)),
        _ => Session::Kvdb(Single { client, timeout: options.timeout }),
    };
    Ok((0..options.clients).map(|_| session(client.clone())).collect())
}

/// A scan from a key on means something only where keys are in order.
async fn check_order(admin: &AdminClient, keyspace: &str) -> Result<(), ConnectError> {
    let name = if keyspace.is_empty() { "default" } else { keyspace };
    let map = admin.shard_map().await.map_err(Failed::from)?;
    let found = map.keyspaces.values().find(|one| one.name == name);
    if found.is_some_and(|one| one.partitioning == Partitioning::Range) {
        return Ok(());
    }
    Err(ConnectError::Options(OptionsError(format!(
        "workload e scans keys in order, which keyspace {name:?} doesn't keep; make one that does \
         with `kvdb admin create-keyspace ordered --partitioning range` and add --keyspace ordered"
    ))))
}

impl Unary for Single {
    async fn call(&self, operation: &Operation) -> Result<Answer, Failed> {
        let Single { client, .. } = self;
        let key = operation.key.clone();
        match operation.action {
            Action::Read => Ok(Answer::read(client.get(key).await?.is_some())),
            Action::Update | Action::Insert => {
                client.put(key, operation.value.clone()).await?;
                Ok(Answer::default())
            }
            Action::Scan(keys) => self.scan(key, keys).await,
            Action::Modify => self.modify(operation).await,
        }
    }
}

impl Single {
    async fn scan(&self, start: Bytes, keys: u32) -> Result<Answer, Failed> {
        let limit = Some(keys.into());
        let mut scan = self.client.scan(ScanOptions { start, limit, ..ScanOptions::default() });
        let mut answer = Answer::default();
        while let Some(chunk) = scan.next_chunk().await? {
            answer.scanned += chunk.len() as u32;
        }
        Ok(answer)
    }

    /// Reads, and writes if the version is still the one that was read.
    async fn modify(&self, operation: &Operation) -> Result<Answer, Failed> {
        for conflicts in attempts(self.timeout) {
            let read = self.client.get(operation.key.clone()).await?;
            let condition = match &read {
                Some(record) => Condition::IfVersion(record.version),
                None => Condition::IfAbsent,
            };
            let options = WriteOptions { condition: Some(condition), ..WriteOptions::default() };
            let key = operation.key.clone();
            let written = self.client.put_with(key, operation.value.clone(), options).await?;
            if written.applied {
                return Ok(Answer { missing: read.is_none(), scanned: 0, conflicts });
            }
        }
        Err(Failed::Overtaken(self.timeout))
    }
}

impl Batches {
    pub(super) async fn wave(&self, operations: &[Operation]) -> Vec<Done> {
        let (reads, writes): (Vec<_>, Vec<_>) =
            operations.iter().partition(|operation| operation.action.is_read());
        let (reads, writes) = tokio::join!(self.read(&reads), self.write(&writes));
        let (mut reads, mut writes) = (reads.into_iter(), writes.into_iter());
        let done = operations.iter().map(|operation| match operation.action.is_read() {
            true => reads.next(),
            false => writes.next(),
        });
        done.map(|done| done.expect("each operation has one answer")).collect()
    }

    async fn read(&self, operations: &[&Operation]) -> Vec<Done> {
        if operations.is_empty() {
            return Vec::new();
        }
        let keys = operations.iter().map(|operation| operation.key.clone()).collect();
        let answers = self.0.batch_get(keys, ReadOptions::default()).await;
        spread(operations.len(), answers, |record| Answer::read(record.is_some()))
    }

    async fn write(&self, operations: &[&Operation]) -> Vec<Done> {
        if operations.is_empty() {
            return Vec::new();
        }
        let put = |one: &&Operation| BatchOperation::put(one.key.clone(), one.value.clone());
        let puts: Vec<BatchOperation> = operations.iter().map(put).collect();
        spread(operations.len(), self.0.batch_write(&puts, false).await, |_| Answer::default())
    }
}

/// The answer of a batch, or its failure, as one for each of its `count` operations.
fn spread<T>(
    count: usize,
    answers: Result<Vec<Result<T, kvdb_client::Error>>, kvdb_client::Error>,
    answer: impl Fn(T) -> Answer,
) -> Vec<Done> {
    match answers {
        Ok(answers) => {
            let done = |one: Result<T, _>| Done::now(one.map(&answer).map_err(Failed::Kvdb));
            answers.into_iter().map(done).collect()
        }
        Err(error) => (0..count).map(|_| Done::now(Err(error.clone().into()))).collect(),
    }
}
