//! etcd's version 3 interface, and the echo that answers the same messages.

use super::{Answer, ConnectError, Failed, Unary, attempts};
use crate::load::{Action, Operation};
use crate::options::Options;
use bytes::Bytes;
use kvdb_wire::transport::{MAX_MESSAGE_BYTES, endpoint};
use proto::kv_client::KvClient;
use std::time::Duration;
use tonic::Request;
use tonic::transport::Channel;

/// The generated code.
#[allow(missing_docs, clippy::all, rustdoc::all)]
pub(crate) mod proto {
    tonic::include_proto!("etcdserverpb");
}

/// One client; it shares a connection with others.
#[derive(Clone)]
pub(crate) struct Session {
    client: KvClient<Channel>,
    timeout: Duration,
}

pub(super) async fn connect(options: &Options) -> Result<Vec<super::Session>, ConnectError> {
    let mut channels = Vec::new();
    for _ in 0..options.connections {
        for address in &options.addresses {
            channels.push(endpoint(address)?.connect_lazy());
        }
    }
    let session = |channel: &Channel| Session {
        client: KvClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES),
        timeout: options.timeout,
    };
    let clients = options.clients as usize;
    let sessions: Vec<Session> = channels.iter().cycle().take(clients).map(session).collect();
    if let Some(session) = sessions.first() {
        session.read(Bytes::from_static(b"bench:")).await?;
    }
    Ok(sessions.into_iter().map(super::Session::Etcd).collect())
}

impl Unary for Session {
    async fn call(&self, operation: &Operation) -> Result<Answer, Failed> {
        let key = operation.key.clone();
        match operation.action {
            Action::Read => Ok(Answer::read(self.read(key).await?.is_some())),
            Action::Update | Action::Insert => {
                let message = proto::PutRequest { key, value: operation.value.clone() };
                self.client.clone().put(self.request(message)).await?;
                Ok(Answer::default())
            }
            Action::Scan(keys) => self.scan(key, keys).await,
            Action::Modify => self.modify(operation).await,
        }
    }
}

impl Session {
    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    async fn read(&self, key: Bytes) -> Result<Option<proto::KeyValue>, Failed> {
        let message = proto::RangeRequest { key, ..Default::default() };
        let answer = self.client.clone().range(self.request(message)).await?;
        Ok(answer.into_inner().kvs.pop())
    }

    async fn scan(&self, key: Bytes, keys: u32) -> Result<Answer, Failed> {
        // A range end of one zero byte is etcd's word for "no end".
        let range_end = Bytes::from_static(b"\0");
        let message = proto::RangeRequest { key, range_end, limit: keys.into() };
        let answer = self.client.clone().range(self.request(message)).await?;
        Ok(Answer { scanned: answer.into_inner().kvs.len() as u32, ..Answer::default() })
    }

    /// Reads, and writes if the revision is still the one that was read (0: not there).
    async fn modify(&self, operation: &Operation) -> Result<Answer, Failed> {
        for conflicts in attempts(self.timeout) {
            let read = self.read(operation.key.clone()).await?;
            let revision = read.as_ref().map_or(0, |found| found.mod_revision);
            let message = put_if(operation, revision);
            let answer = self.client.clone().txn(self.request(message)).await?;
            if answer.into_inner().succeeded {
                return Ok(Answer { missing: read.is_none(), scanned: 0, conflicts });
            }
        }
        Err(Failed::Overtaken(self.timeout))
    }
}

fn put_if(operation: &Operation, revision: i64) -> proto::TxnRequest {
    let unchanged = proto::Compare {
        result: proto::compare::Result::Equal.into(),
        target: proto::compare::Target::Mod.into(),
        key: operation.key.clone(),
        wanted: Some(proto::compare::Wanted::ModRevision(revision)),
    };
    let put = proto::PutRequest { key: operation.key.clone(), value: operation.value.clone() };
    let put = proto::RequestOp { request: Some(proto::request_op::Request::RequestPut(put)) };
    proto::TxnRequest { compare: vec![unchanged], success: vec![put] }
}
