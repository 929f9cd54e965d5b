//! What travels between the parts of a simulated cluster.

use crate::machine::News;
use bytes::Bytes;
use kvdb_control::{Greeted, LedShard};
use kvdb_model::{
    MapVersion, NodeId, OperatorId, RangeEpoch, Refusal, ReplicaId, ShardDescriptor, ShardId,
    ShardTask, ShardTimes, TimeMark, Version, Write, WriteResult,
};
use kvdb_replication::PeerMessage;
use kvdb_replication::message::Message;

/// Something on its way.
#[derive(Clone)]
pub(crate) enum Packet {
    /// Between replication hosts. Nobody else at the same place takes it.
    Raft { from: NodeId, to: NodeId, wall_ms: u64, messages: Vec<PeerMessage> },
    /// A whole snapshot.
    Snapshot(Box<Snapshot>),
    /// Whether a snapshot was taken in.
    SnapshotAnswer { transfer: u64, delivered: bool },
    /// From a client to a node.
    Ask { attempt: u64, shard: ShardId, ask: Ask },
    /// And back.
    Answer { attempt: u64, times: ShardTimes, result: Result<Found, Refusal> },
    /// To a coordinator.
    Call(Call),
    /// And back.
    Reply(Reply),
}

#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) transfer: u64,
    pub(crate) shard: ShardId,
    pub(crate) from_node: NodeId,
    pub(crate) to_node: NodeId,
    pub(crate) to: ReplicaId,
    pub(crate) message: Message,
    pub(crate) descriptor: ShardDescriptor,
    pub(crate) time: TimeMark,
    pub(crate) chunks: Vec<Bytes>,
}

/// A data operation, as a gateway sends it.
#[derive(Clone)]
pub(crate) enum Ask {
    Get { epoch: RangeEpoch, key: Bytes },
    Write(Write),
}

/// Its answer.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    Record(Option<(Bytes, Version)>),
    Written(WriteResult),
}

#[derive(Clone)]
pub(crate) enum Call {
    Register {
        token: u128,
        address: String,
    },
    Heartbeat {
        round: u64,
        node: NodeId,
        led: Vec<LedShard>,
        impossible: Vec<(OperatorId, &'static str)>,
        wall_ms: u64,
    },
    Map {
        since: MapVersion,
    },
    /// Another coordinator asks what it is.
    Greet {
        round: u64,
        id: NodeId,
        token: u128,
    },
}

#[derive(Clone)]
pub(crate) enum Reply {
    Registered(NodeId),
    /// Leaderships that are wanted elsewhere, and what else there is to do.
    Heard {
        round: u64,
        wanted: Vec<(ShardId, NodeId)>,
        tasks: Vec<ShardTask>,
        /// 0 while it isn't known.
        cluster_ms: u64,
    },
    Map(News),
    Greeted {
        round: u64,
        token: u128,
        greeted: Greeted,
    },
    /// Ask another one.
    NotLeader,
}
