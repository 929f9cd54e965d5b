//! Commands, answers and errors, and their encoding (a format byte and postcard).

use crate::members::CoordinatorRecord;
use crate::operator::OperatorRequest;
use crate::starts::NodeStart;
use bytes::Bytes;
use kvdb_model::{
    ClusterId, Generation, HistoryLimits, KeyspaceId, MapVersion, MembershipEpoch, NewKeyspace,
    NodeId, NodeStatus, OperatorId, ShardDescriptor, ShardId, ShardMap, Term,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;

const FORMAT: u8 = 2;

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
        /// Replicas wanted of each; 0 for three.
        replication_factor: u32,
    },
    /// Makes a keyspace with its shards.
    CreateKeyspace(NewKeyspace),
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
    /// Begins a change of the cluster.
    StartOperator {
        /// What is wanted.
        request: OperatorRequest,
        /// Why.
        reason: String,
        /// The operator that asks for it.
        parent: Option<OperatorId>,
        /// The proposer's clock, in milliseconds since 1970.
        now_ms: u64,
        /// It fails after so long.
        time_limit_ms: u64,
    },
    /// Calls an operator off, with those that it has started. What was begun is tidied up.
    CancelOperator {
        /// Which.
        id: OperatorId,
        /// The proposer's clock.
        now_ms: u64,
    },
    /// An operator has ended.
    FinishOperator {
        /// Which.
        id: OperatorId,
        /// Why it has failed, if it has.
        failure: Option<String>,
        /// The proposer's clock.
        now_ms: u64,
    },
    /// An operator has come further.
    NoteStep {
        /// Which.
        id: OperatorId,
        /// How far.
        what: String,
        /// The proposer's clock.
        now_ms: u64,
    },
    /// Takes a keyspace away, with all that is in it.
    DropKeyspace {
        /// Its name.
        name: String,
    },
    /// Sets how much of its past a keyspace keeps.
    SetHistory {
        /// Its name.
        name: String,
        /// `None`: nothing.
        history: Option<HistoryLimits>,
    },
    /// Writes down who has founded the coordinators' group. The first one counts.
    FoundCoordinators {
        /// All of them.
        founders: BTreeMap<NodeId, CoordinatorRecord>,
    },
    /// Another coordinator is to join.
    AddCoordinator {
        /// Its number, never used before.
        id: NodeId,
        /// Its gRPC address.
        address: String,
        /// Made with its data directory.
        token: u128,
    },
    /// A coordinator is to go for good.
    RemoveCoordinator {
        /// Which.
        id: NodeId,
    },
    /// Takes a node out of the cluster by force, though it is alive or holds replicas.
    RemoveNode {
        /// Which.
        node: NodeId,
    },
    /// A node starts, or says where it is now.
    EnterNode {
        /// As in [`ControlCommand::RegisterNode`].
        token: u128,
        /// Where it is, as it says.
        address: String,
        /// Its failure domain.
        zone: String,
        /// Whether it was found there: then nobody else is.
        is_reached: bool,
        /// Which start of it this is; `None` where it doesn't say.
        start: Option<NodeStart>,
    },
    /// How far the logs of nodes are synced: node, nonce of its start, number of the frame.
    NoteSynced {
        /// Those of which there is news.
        told: Vec<(NodeId, u128, u64)>,
    },
    /// A coordinator was found at another address.
    SetCoordinatorAddress {
        /// Which.
        id: NodeId,
        /// Where it is.
        address: String,
    },
    /// The coordinators go on from one of them alone.
    RecoverAlone {
        /// Which.
        id: NodeId,
        /// Where it is.
        address: String,
        /// Made with its data directory.
        token: u128,
        /// The generation that begins.
        generation: Generation,
    },
    /// The map as a node has seen it before that.
    TakeMap {
        /// Without shards that are known as they are.
        map: ShardMap,
    },
    /// A node got its number from coordinators that were lost.
    AdoptNode {
        /// Its number.
        node: NodeId,
        /// Made with its data directory.
        token: u128,
    },
    /// The next start of a node is taken for an older copy, to recover shards from.
    AcceptCopy {
        /// Which.
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
    /// The operator's id.
    OperatorStarted(OperatorId, MapVersion),
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
    #[error("address `{0}` is not of the form host:port")]
    BadAddress(String),
    /// Another node has the address.
    #[error(
        "{0} belongs to node {1}; if the data of that node is lost, `kvdb admin replace {1}` makes \
         room for a new one, otherwise give this node another address"
    )]
    AddressTaken(String, NodeId),
    /// The shards were made before, in another number.
    #[error("the cluster has {0} shards already; split them instead")]
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
    /// More replicas of each shard than there are nodes.
    #[error(
        "{replicas} replicas need as many nodes; the cluster has {nodes}. Start more nodes first, or ask for \
         fewer replicas"
    )]
    TooFewForReplicas {
        /// How many replicas were asked for.
        replicas: u32,
        /// Nodes that the cluster has, those that are away included.
        nodes: u32,
    },
    /// A keyspace name that can't be one.
    #[error("keyspace name `{0}` is not 1 to 64 of a-z, 0-9, '-' and '_'")]
    BadName(String),
    /// A keyspace of this name exists.
    #[error("keyspace `{0}` exists already")]
    KeyspaceExists(String),
    /// Another keyspace is selected by this number.
    #[error("database {db} of Redis's protocol is keyspace `{name}` already")]
    DatabaseTaken {
        /// The number.
        db: u8,
        /// Its name.
        name: String,
    },
    /// The name stands for another number.
    #[error(
        "the name `{name}` is kept for database {db} of Redis's protocol; use another name, or that number"
    )]
    NameOfDatabase {
        /// The name.
        name: String,
        /// The number that it stands for.
        db: u8,
    },
    /// A colocated keyspace has one shard.
    #[error("keyspace `{0}` is colocated: all its keys are on one shard, which is never split")]
    Colocated(String),
    /// The node has no voting replica of the shard.
    #[error(
        "node {node} has no voting replica of shard {shard}; its replicas are on nodes {}",
        node_words(on)
    )]
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
    /// The caller has seen another state of the shard.
    #[error("the membership epoch of shard {shard} is {current} now: look again, then decide")]
    StaleEpoch {
        /// The shard.
        shard: ShardId,
        /// Its epoch.
        current: MembershipEpoch,
    },
    /// Two replicas on one node.
    #[error("a node is named twice; the replicas of shard {shard} must be on distinct nodes")]
    DuplicateNode {
        /// The shard.
        shard: ShardId,
    },
    /// The node can't take a replica.
    #[error("node {node} is {}: it can't take a replica", status_word(*status))]
    NodeUnusable {
        /// The node.
        node: NodeId,
        /// How it is.
        status: NodeStatus,
    },
    /// The node has a replica of the shard already.
    #[error("node {node} has a replica of shard {shard} already")]
    ReplicaThere {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// Another operator changes the shard.
    #[error(
        "operation {operator} changes shard {shard} now; wait for it, or `kvdb admin cancel {operator}`"
    )]
    ShardBusy {
        /// The shard.
        shard: ShardId,
        /// The operator.
        operator: OperatorId,
    },
    /// The shard has no leader yet, or its replicas are changing.
    #[error("shard {0} is not ready for it yet: its replicas are being made or changed")]
    ShardNotReady(ShardId),
    /// The shard can't be split there.
    #[error("shard {shard} can't be split: {why}")]
    NotSplittable {
        /// The shard.
        shard: ShardId,
        /// Why not.
        why: String,
    },
    /// All is as it should be.
    #[error("nothing to do: {0}")]
    NothingToDo(String),
    /// An operation moves everything off the node.
    #[error(
        "operation {operator} drains node {node} now; wait for it, or `kvdb admin cancel {operator}`"
    )]
    NodeDrains {
        /// The node.
        node: NodeId,
        /// The operation.
        operator: OperatorId,
    },
    /// The same is being done.
    #[error("operation {0} does that already; `kvdb admin operations` shows how far it is")]
    AlreadyUnderWay(OperatorId),
    /// No such operator.
    #[error("operation {0} does not exist, or ended long ago; `kvdb admin operations` lists them")]
    UnknownOperator(OperatorId),
    /// It has ended.
    #[error("operation {0} has ended")]
    OperatorEnded(OperatorId),
    /// No such keyspace.
    #[error("keyspace `{0}` does not exist; `kvdb admin keyspaces` lists those that do")]
    UnknownKeyspace(String),
    /// `default` stays.
    #[error("the keyspace \"default\" can't be dropped")]
    DefaultStays,
    /// The shard isn't lost.
    #[error(
        "shard {shard} has a majority: nodes {} are there, or may be. It needs no unsafe recovery. A node \
         that is gone for good counts as lost once it is DEAD",
        node_words(there)
    )]
    HasMajority {
        /// The shard.
        shard: ShardId,
        /// The nodes of its voters that are there.
        there: Vec<NodeId>,
    },
    /// A node is said to be gone and isn't.
    #[error("node {node} of shard {shard} has sent a heartbeat since: look again, then decide")]
    NodeIsThere {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// The replica to go on from is lost itself.
    #[error("node {node} is lost itself: shard {shard} can only go on from a node that is alive")]
    SurvivorIsGone {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// The replica to go on from wasn't heard lately.
    #[error(
        "node {node} has not reported its replica of shard {shard} lately. The node must run and reach the \
         coordinators; if it has just started, try again in some seconds"
    )]
    NotHeard {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// The replica to go on from has nothing.
    #[error(
        "the replica of shard {shard} on node {node} has no state of its own (its files are lost, or \
         it waits for its first snapshot). Choose another"
    )]
    WithoutState {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// The replica to go on from hasn't heard of a split.
    #[error(
        "the replica of shard {shard} on node {node} doesn't know yet that the shard was split: its \
         data belongs to two shards. Choose another"
    )]
    BeforeSplit {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// The command can't be read by this version.
    #[error("this version can't decode the command")]
    Unreadable,
    /// Another coordinator has the number or the address.
    #[error("coordinator {0} has that number, address or data directory already")]
    CoordinatorExists(NodeId),
    /// No such coordinator.
    #[error("coordinator {0} does not exist; `kvdb admin coordinators` lists those that do")]
    UnknownCoordinator(NodeId),
    /// Its number stays taken.
    #[error(
        "coordinator {0} was removed, and its number stays taken: start it with an empty data directory \
         under a new one"
    )]
    CoordinatorRemoved(NodeId),
    /// Without it there would be none.
    #[error("coordinator {0} is the last one: add another first")]
    LastCoordinator(NodeId),
    /// The node is alive, or holds replicas: it can't just be taken away.
    #[error(
        "node {node} is {} and holds {replicas} replicas. To empty a node that works: `kvdb admin drain {node}`, \
         then stop it. If it is gone for good: `kvdb admin replace {node}` rebuilds elsewhere what it held, and \
         removes it. `--force` removes it at once",
        status_word(*status)
    )]
    NodeInUse {
        /// The node.
        node: NodeId,
        /// How it is.
        status: NodeStatus,
        /// Replicas that it holds.
        replicas: u32,
    },
    /// Without the node shards would have no majority.
    #[error(
        "{} would have no majority without node {node}. If it works: `kvdb admin drain {node}`. If not, start \
         it again; if it is gone for good, see `kvdb admin force-recover --help`",
        shard_words(shards, *more)
    )]
    NeededForMajority {
        /// The node.
        node: NodeId,
        /// Some of the shards.
        shards: Vec<ShardId>,
        /// How many more there are.
        more: u32,
    },
    /// A directory that isn't the newest of its node.
    #[error(
        "node {0} has run on since this copy of its data directory was made: what it has promised after that isn't \
         here, and it must not run on it. Start it with its newest directory; if that is lost, `kvdb admin replace {0}` \
         and start a new node with an empty directory. Where shards have lost their majority that way: `kvdb admin \
         accept-copy --help`"
    )]
    OlderDirectory(NodeId),
    /// Nobody knows yet who the coordinators are.
    #[error("the coordinators have not formed their group yet: try again in some seconds")]
    NotFounded,
    /// Nodes have yet to report since the coordinators were recovered.
    #[error(
        "the coordinators were recovered from one of them alone, and {} has yet to report: nothing is changed before. \
         Start it; if it is gone for good, `kvdb admin replace NODE` says so",
        nodes_words(.0)
    )]
    AwaitsNodes(Vec<NodeId>),
    /// Its directory can't be an older one: it runs.
    #[error(
        "node {node} is {}: only the copy of a node that is refused can be accepted. It is DEAD some seconds after its \
         process has ended",
        status_word(*status)
    )]
    NodeRuns {
        /// The node.
        node: NodeId,
        /// How it is.
        status: NodeStatus,
    },
    /// A recovery that isn't newer than the last one.
    #[error("the coordinators are of generation {known} already; {told} isn't newer")]
    OldGeneration {
        /// The present one.
        known: Generation,
        /// The other.
        told: Generation,
    },
}

/// As `kvdb admin nodes` shows it.
pub(crate) fn status_word(status: NodeStatus) -> &'static str {
    match status {
        NodeStatus::Alive => "ALIVE",
        NodeStatus::Suspect => "SUSPECT",
        NodeStatus::Dead => "DEAD",
        NodeStatus::Draining => "DRAINING",
        NodeStatus::Removed => "REMOVED",
        NodeStatus::Unreachable => "UNREACHABLE",
    }
}

/// Nodes by number, and how they are called.
fn nodes_words(nodes: &[NodeId]) -> String {
    let word = if nodes.len() == 1 { "node" } else { "each of nodes" };
    format!("{word} {}", node_words(nodes))
}

/// Nodes by number.
fn node_words(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}

/// Shards by number, and how many more.
pub(crate) fn shard_words(shards: &[ShardId], more: u32) -> String {
    let ids: Vec<String> = shards.iter().map(ShardId::to_string).collect();
    let word = if shards.len() == 1 && more == 0 { "shard" } else { "shards" };
    match more {
        0 => format!("{word} {}", ids.join(", ")),
        more => format!("{word} {} and {more} more", ids.join(", ")),
    }
}

impl ControlCommand {
    /// Whether it must wait until all nodes have reported, after the coordinators were recovered.
    pub(crate) fn needs_all_nodes(&self) -> bool {
        match self {
            ControlCommand::InitShards { .. }
            | ControlCommand::CreateKeyspace(_)
            | ControlCommand::DropKeyspace { .. }
            | ControlCommand::SetHistory { .. }
            | ControlCommand::SetShardLeader { .. } => true,
            // It says that one of them is gone.
            ControlCommand::StartOperator { request, .. } => {
                !matches!(request, OperatorRequest::Replace { .. })
            }
            _ => false,
        }
    }

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
