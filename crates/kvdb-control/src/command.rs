//! Commands, answers and errors, and their encoding (a format byte and postcard).

use bytes::Bytes;
use kvdb_model::{
    ClusterId, KeyspaceId, MapVersion, NodeId, NodeStatus, Partitioning, ShardDescriptor, ShardId,
    Term,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

const FORMAT: u8 = 1;

/// A shard as its leader reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedShard {
    /// As applied.
    pub descriptor: ShardDescriptor,
    /// In which it leads.
    pub term: Term,
}

/// A change of the cluster. New kinds are added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlCommand {
    /// Gives the cluster its id. The first one counts.
    Bootstrap {
        /// Chosen at random by the first leader.
        cluster_id: ClusterId,
    },
    /// A node starts.
    RegisterNode {
        /// Made by the node at its first start: the same token is the same node.
        token: u128,
        /// Its gRPC address.
        address: String,
        /// Its failure domain.
        zone: String,
    },
    /// A node tells of shards that it leads.
    ReportShards {
        /// The node.
        node: NodeId,
        /// The shards.
        led: Vec<LedShard>,
    },
    /// Makes the shards of the keyspace `default`.
    InitShards {
        /// How many.
        shards: u32,
        /// Replicas of each; 0 for three, or fewer on fewer nodes.
        replication_factor: u32,
    },
    /// Makes a keyspace with its shards.
    CreateKeyspace {
        /// 1 to 64 of `a-z 0-9 - _`.
        name: String,
        /// Its layout.
        partitioning: Partitioning,
        /// How many shards; range keyspaces begin with one.
        shards: u32,
        /// As for [`ControlCommand::InitShards`].
        replication_factor: u32,
    },
    /// Sets how a node is.
    SetNodeStatus {
        /// The node.
        node: NodeId,
        /// How it is.
        status: NodeStatus,
    },
    /// Asks for a shard to be led by a node.
    SetShardLeader {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlResponse {
    /// Done; the map version now.
    Done(MapVersion),
    /// The node's id.
    Registered(NodeId, MapVersion),
    /// Whether shards were made (they may have been there).
    ShardsInitialised(bool, MapVersion),
    /// The keyspace's id.
    KeyspaceCreated(KeyspaceId, MapVersion),
}

/// Why a command is invalid. Nothing is changed.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum ControlError {
    /// No such node.
    #[error("node {0} does not exist; `kvdb admin nodes` lists those that do")]
    UnknownNode(NodeId),
    /// No such shard.
    #[error("shard {0} does not exist; `kvdb admin shards` lists those that do")]
    UnknownShard(ShardId),
    /// An address that can't be one.
    #[error("address {0:?} is not of the form host:port")]
    BadAddress(String),
    /// Another node has the address.
    #[error("address {0} belongs to node {1}")]
    AddressTaken(String, NodeId),
    /// The shards were made before, in another number.
    #[error("the cluster has {0} shards already; they can be split, not made anew")]
    AlreadyInitialised(u32),
    /// A number out of its range.
    #[error("{field} is {value}; it must be {accepted}")]
    OutOfRange {
        /// The field.
        field: String,
        /// What it is.
        value: u64,
        /// What it may be.
        accepted: String,
    },
    /// Too few nodes are alive.
    #[error("{needed} nodes must be alive; {alive} are")]
    TooFewNodes {
        /// How many are needed.
        needed: u32,
        /// How many there are.
        alive: u32,
    },
    /// A keyspace name that can't be one.
    #[error("keyspace name {0:?} is not 1 to 64 of a-z, 0-9, '-' and '_'")]
    BadName(String),
    /// A keyspace of this name exists.
    #[error("keyspace {0:?} exists already")]
    KeyspaceExists(String),
    /// The node has no voting replica of the shard.
    #[error("node {node} has no voting replica of shard {shard}; its replicas are on nodes {on:?}")]
    NotAReplica {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
        /// Where it has replicas.
        on: Vec<NodeId>,
    },
    /// The node was removed for good.
    #[error(
        "node {0} was removed from the cluster; start it with an empty data directory to join as a new node"
    )]
    NodeRemoved(NodeId),
    /// The command can't be read by this version.
    #[error("the command can't be read by this version")]
    Unreadable,
}

impl ControlCommand {
    /// The encoding that travels in the log.
    pub fn to_bytes(&self) -> Bytes {
        encode(self)
    }

    /// Reads a command.
    ///
    /// # Errors
    /// [`ControlError::Unreadable`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ControlError> {
        decode(bytes)
    }
}

/// The encoding of an answer.
pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    let out = postcard::to_extend(value, vec![FORMAT]).expect("plain data encodes");
    Bytes::from(out)
}

pub(crate) fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, ControlError> {
    let Some((&FORMAT, content)) = bytes.split_first() else {
        return Err(ControlError::Unreadable);
    };
    postcard::from_bytes(content).map_err(|_| ControlError::Unreadable)
}

/// The encoding of a command's result, for whoever proposed it.
pub fn encode_result(result: &Result<ControlResponse, ControlError>) -> Bytes {
    encode(result)
}

/// Reads a command's result.
///
/// # Errors
/// The command's own error, or [`ControlError::Unreadable`].
pub fn decode_result(bytes: &[u8]) -> Result<ControlResponse, ControlError> {
    decode::<Result<ControlResponse, ControlError>>(bytes)?
}
