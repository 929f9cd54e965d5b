//! What nodes and shards do and hold, as the coordinators have heard it.

use crate::admin::AdminClient;
use crate::call::Manner;
use crate::error::Error;
use kvdb_model::{NodeId, ShardId};
use kvdb_wire::proto;
use std::collections::BTreeMap;

/// What the leading coordinator has heard since it leads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Of nodes that have sent a heartbeat.
    pub nodes: BTreeMap<NodeId, NodeFigures>,
    /// Of shards whose leader has told of them.
    pub shards: BTreeMap<ShardId, ShardFigures>,
}

/// What a node has told with its last heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFigures {
    /// Since that heartbeat.
    pub silent_ms: u64,
    /// The version of its program; empty if it doesn't tell.
    pub version: String,
    /// Bytes that are free on the file system of its data.
    pub disk_free_bytes: u64,
    /// How long the process ran then.
    pub uptime_ms: u64,
}

/// What a shard holds, and what it is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardFigures {
    /// Of keys and values, or about as many.
    pub bytes: u64,
    /// Keys that haven't expired, as the leader has last counted them: exact if the shard is left alone,
    /// of some time ago if it changes.
    pub keys: Option<u64>,
    /// Strong reads a second, lately.
    pub reads_per_second: u64,
    /// Changes of keys a second, lately.
    pub writes_per_second: u64,
}

impl ShardFigures {
    /// Reads and writes a second.
    pub fn operations_per_second(&self) -> u64 {
        self.reads_per_second.saturating_add(self.writes_per_second)
    }
}

impl AdminClient {
    /// What nodes and shards do and hold. A coordinator that has just come to lead knows little.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn figures(&self) -> Result<Figures, Error> {
        let message = proto::GetStatusRequest { figures: true };
        let answer = self
            .call(Manner::READ, &message, |mut coordinator, request| async move {
                coordinator.get_status(request).await
            })
            .await?;
        let of_node = |told: proto::NodeFigures| {
            let figures = NodeFigures {
                silent_ms: told.silent_ms,
                version: told.version,
                disk_free_bytes: told.disk_free_bytes,
                uptime_ms: told.uptime_ms,
            };
            (NodeId(told.node_id), figures)
        };
        let of_shard = |told: proto::ShardFigures| {
            let figures = ShardFigures {
                bytes: told.bytes,
                keys: told.keys,
                reads_per_second: told.reads_per_second,
                writes_per_second: told.writes_per_second,
            };
            (ShardId(told.shard_id), figures)
        };
        Ok(Figures {
            nodes: answer.node_figures.into_iter().map(of_node).collect(),
            shards: answer.shard_figures.into_iter().map(of_shard).collect(),
        })
    }
}
