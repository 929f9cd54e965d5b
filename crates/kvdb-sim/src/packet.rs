//! What travels between the parts of a simulated cluster.

use crate::machine::News;
use crate::streams::Greeting;
use bytes::Bytes;
use kvdb_control::{Greeted, LedShard, NodeStart, NotCounted};
use kvdb_model::{
    MapVersion, NodeId, OperatorId, RangeEpoch, Refusal, ReplicaId, ShardDescriptor, ShardId,
    ShardTask, ShardTimes, TimeMark, Version, Write, WriteResult,
};
use kvdb_replication::PeerMessage;
use kvdb_replication::entry::Word;
use kvdb_replication::message::Message;
use kvdb_replication::starts::{NotVouched, Said};

/// Something on its way.
#[derive(Clone)]
pub(crate) enum Packet {
    /// Between replication hosts. Nobody else at the same place takes it.
    Raft {
        /// Of nodes.
        stream: u64,
        from: NodeId,
        to: NodeId,
        wall_ms: u64,
        /// How far the sender's log is synced.
        synced: u64,
        messages: Vec<PeerMessage>,
    },
    /// A node opens a stream.
    Hello { number: u64, hello: Hello },
    /// What is said to that.
    Greeting { number: u64, greeting: Greeting },
    /// Nothing is known of a stream.
    Closed { stream: u64 },
    /// A start asks to be vouched for, or says that it is heard.
    Vouch {
        number: u64,
        node: NodeId,
        said: Said,
        shown: Vec<u128>,
        succeeds: bool,
        only_asks: bool,
        is_heard: bool,
    },
    /// And back.
    Vouched { number: u64, node: NodeId, answer: Result<(), NotVouched> },
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

/// Who speaks to whom.
#[derive(Clone)]
pub(crate) struct Hello {
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) said: Said,
}

#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) transfer: u64,
    pub(crate) shard: ShardId,
    pub(crate) hello: Hello,
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
    /// A start asks to be accepted, or whether it would be.
    Enter {
        number: u64,
        token: u128,
        address: String,
        start: NodeStart,
        only_asks: bool,
    },
    Heartbeat {
        round: u64,
        node: NodeId,
        nonce: u128,
        synced: u64,
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
    /// Of a start.
    Word {
        number: u64,
        nonce: u128,
        /// Whose it is, if it was accepted.
        node: Option<NodeId>,
        word: Word,
    },
    /// To a heartbeat of a start that doesn't count.
    NotCounted {
        nonce: u128,
        why: NotCounted,
    },
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
