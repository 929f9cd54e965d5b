//! The cluster's own API, served by coordinators and passed on by gateways.
//!
//! Only the coordinators' leader answers. A follower refuses and says who leads, if it knows; the
//! client then asks there, and stays there until it is refused again. Hints are trusted as the
//! coordinators are: they come from the cluster that the client was pointed at.

use crate::call::{Manner, attempt, is_worth_explaining, random};
use crate::error::Error;
use crate::options::Options;
use crate::outgoing::Outgoing;
use crate::pool::{Connection, Pool};
use crate::retry::{Next, Retries};
use crate::whois::explain;
use kvdb_model::{
    ClusterId, Generation, HistoryLimits, KeyspaceId, LogIndex, MapVersion, NewKeyspace, NodeId,
    NodeStatus, Partitioning, Refusal, RetryClass, Role, ShardId, ShardMap, Term,
};
use kvdb_wire::proto::{self, coordinator_client::CoordinatorClient};
use kvdb_wire::transport::{AddressError, MAX_MESSAGE_BYTES};
use kvdb_wire::{
    cluster_id_from, generation_from, history_to, new_keyspace_to, node_status_to, role_from,
    shard_map_from,
};
use parking_lot::Mutex;
use std::future::Future;
use tokio::time::{Instant, sleep};
use tonic::{Request, Response, Status};

/// Most hints that are followed without a pause: two members that each take the other for the
/// leader mustn't make a storm.
const HINTS_IN_A_ROW: u32 = 3;

/// A client of the cluster's own API.
pub struct AdminClient {
    pool: Pool,
    options: Options,
    /// Who led when last asked.
    leader: Mutex<Option<Connection>>,
}

/// The coordinators' own state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// The version of the shard map.
    pub map_version: MapVersion,
    /// The coordinator that leads, if one does.
    pub leader: Option<NodeId>,
    /// The term of the coordinators' group.
    pub term: Term,
    /// What the answering coordinator has applied of its log.
    pub applied: LogIndex,
    /// All coordinators.
    pub members: Vec<Member>,
    /// Shards with too few replicas, the first 100 of them.
    pub short_shards: Vec<ShortShard>,
    /// How many there are.
    pub short_shard_count: u64,
    /// Nodes that lead only where nobody else can.
    pub less_preferred_leaders: Vec<LessPreferredLeader>,
    /// Processes whose wall clock differs from cluster time by more than 500 ms.
    pub wrong_clocks: Vec<WrongClock>,
    /// How often the coordinators were recovered from one of them alone.
    pub generation: Generation,
    /// Nodes that have yet to report since then: nothing is planned before.
    pub awaited: Vec<NodeId>,
}

/// A node that leads only where nobody else can, and one reason for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LessPreferredLeader {
    /// The node.
    pub node: NodeId,
    /// In a word.
    pub reason: String,
    /// With the figures.
    pub description: String,
}

/// A process whose wall clock is wrong. Nothing relies on it; it is worth setting right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongClock {
    /// `node`, `gateway` or `coordinator`.
    pub process: String,
    /// Where it listens.
    pub address: String,
    /// Of a node.
    pub node: Option<NodeId>,
    /// How far it is ahead, in milliseconds; behind, if negative.
    pub ahead_ms: i64,
}

/// One coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// Where it listens.
    pub address: String,
    /// Whether it leads.
    pub is_leader: bool,
    /// Whether it votes: a learner doesn't yet, or doesn't any more.
    pub role: Role,
}

/// The answer to [`AdminClient::init_shards`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initialised {
    /// The version of the shard map.
    pub map_version: MapVersion,
    /// False if the shards were there already.
    pub created: bool,
    /// That each shard has at least.
    pub replicas: u32,
    /// That each is to have: it gets the rest when there are nodes for them.
    pub wanted_replicas: u32,
}

/// The answer to [`AdminClient::create_keyspace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreatedKeyspace {
    /// The id of the keyspace, never used before.
    pub keyspace_id: KeyspaceId,
    /// That each of its shards has.
    pub replicas: u32,
    /// That each is to have: it gets the rest when there are nodes for them.
    pub wanted_replicas: u32,
}

/// A shard with fewer replicas on nodes that are there than it is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShortShard {
    /// The shard.
    pub shard: ShardId,
    /// On nodes that aren't dead or removed.
    pub replicas: u32,
    /// That it is to have.
    pub wanted_replicas: u32,
    /// What is done about it, or what keeps it from being done.
    pub why: String,
}

/// The answer to [`AdminClient::register_node`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The id of the node, never used before.
    pub node_id: NodeId,
    /// The cluster that it belongs to from now on.
    pub cluster_id: ClusterId,
    /// The version of the shard map.
    pub map_version: MapVersion,
}

impl AdminClient {
    /// A client of gateways or coordinators. Nothing is sent yet.
    ///
    /// # Errors
    /// If an address isn't `host:port`, or there is none.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(options: Options) -> Result<Self, AddressError> {
        let pool = Pool::new(&options)?;
        Ok(AdminClient { pool, options, leader: Mutex::new(None) })
    }

    /// How the coordinators are.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn status(&self) -> Result<ClusterStatus, Error> {
        let message = proto::GetStatusRequest { figures: false };
        let answer = self
            .call(Manner::READ, &message, |mut coordinator, request| async move {
                coordinator.get_status(request).await
            })
            .await?;
        let members = answer.members.into_iter().map(|member| {
            Ok(Member {
                id: NodeId(member.id),
                role: role_from(member.role).map_err(|error| garbled(error.to_string()))?,
                address: member.address,
                is_leader: member.is_leader,
            })
        });
        Ok(ClusterStatus {
            cluster_id: cluster_id(&answer.cluster_id)?,
            map_version: MapVersion(answer.map_version),
            leader: (answer.leader_id != 0).then_some(NodeId(answer.leader_id)),
            term: Term(answer.term),
            applied: LogIndex(answer.applied_index),
            members: members.collect::<Result<_, Error>>()?,
            short_shards: answer.short_shards.into_iter().map(short_shard).collect(),
            short_shard_count: answer.short_shard_count,
            less_preferred_leaders: answer
                .less_preferred_leaders
                .into_iter()
                .map(|told| LessPreferredLeader {
                    node: NodeId(told.node_id),
                    reason: told.reason,
                    description: told.description,
                })
                .collect(),
            wrong_clocks: answer
                .wrong_clocks
                .into_iter()
                .map(|clock| WrongClock {
                    process: clock.process,
                    address: clock.address,
                    node: (clock.node_id != 0).then_some(NodeId(clock.node_id)),
                    ahead_ms: clock.ahead_ms,
                })
                .collect(),
            generation: generation_from(answer.generation)
                .map_err(|error| garbled(error.to_string()))?,
            awaited: answer.awaited_nodes.into_iter().map(NodeId).collect(),
        })
    }

    /// The whole shard map: nodes, keyspaces, shards.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn shard_map(&self) -> Result<ShardMap, Error> {
        let message = proto::GetShardMapRequest { if_newer_than: 0 };
        let answer = self
            .call(Manner::READ, &message, |mut coordinator, request| async move {
                coordinator.get_shard_map(request).await
            })
            .await?;
        shard_map_from(answer.map.unwrap_or_default()).map_err(|error| garbled(error.to_string()))
    }

    /// Makes the keyspace `default` with `shards` shards of `replication_factor` replicas (0 = 3; as
    /// many as nodes are alive at first). Done already: nothing happens.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn init_shards(
        &self,
        shards: u32,
        replication_factor: u32,
    ) -> Result<Initialised, Error> {
        let message = proto::InitShardsRequest { shards, replication_factor };
        let answer = self
            .call(Manner::write(true), &message, |mut coordinator, request| async move {
                coordinator.init_shards(request).await
            })
            .await?;
        let map_version = MapVersion(answer.map_version);
        Ok(Initialised {
            map_version,
            created: answer.created,
            replicas: answer.replicas,
            wanted_replicas: answer.wanted_replicas,
        })
    }

    /// Takes a keyspace away, with all that is in it; `default` stays. Returns the map version.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn drop_keyspace(&self, name: &str) -> Result<MapVersion, Error> {
        let message = proto::DropKeyspaceRequest { name: name.to_owned() };
        let answer = self
            .call(Manner::write(false), &message, |mut coordinator, request| async move {
                coordinator.drop_keyspace(request).await
            })
            .await?;
        Ok(MapVersion(answer.map_version))
    }

    /// Makes a keyspace. `shards` is for hash keyspaces (0 = 8); range keyspaces start with one.
    ///
    /// # Errors
    /// [`Error`], also if it exists.
    pub async fn create_keyspace(
        &self,
        name: &str,
        partitioning: Partitioning,
        shards: u32,
        replicas: u32,
    ) -> Result<CreatedKeyspace, Error> {
        let new = NewKeyspace { partitioning, shards, replicas, ..NewKeyspace::named(name) };
        self.create_keyspace_as(&new).await
    }

    /// Makes a keyspace. One with history keeps the changes of its shards: a watch can begin in the
    /// past, whatever has become of processes and shards since.
    ///
    /// # Errors
    /// [`Error`], also if it exists, its number is taken or a limit is out of bounds.
    pub async fn create_keyspace_as(&self, new: &NewKeyspace) -> Result<CreatedKeyspace, Error> {
        let message = new_keyspace_to(new);
        let answer = self
            .call(Manner::write(false), &message, |mut coordinator, request| async move {
                coordinator.create_keyspace(request).await
            })
            .await?;
        Ok(CreatedKeyspace {
            keyspace_id: KeyspaceId(answer.keyspace_id),
            replicas: answer.replicas,
            wanted_replicas: answer.wanted_replicas,
        })
    }

    /// Sets how much of its past a keyspace keeps for watches; `None` = nothing any more. Its shards
    /// follow within moments. Returns the map version.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn set_history(
        &self,
        keyspace: &str,
        history: Option<HistoryLimits>,
    ) -> Result<MapVersion, Error> {
        let history = history.as_ref().map(history_to);
        let message = proto::SetHistoryRequest { keyspace: keyspace.to_owned(), history };
        let answer = self
            .call(Manner::write(true), &message, |mut coordinator, request| async move {
                coordinator.set_history(request).await
            })
            .await?;
        Ok(MapVersion(answer.map_version))
    }

    /// Registers a node ahead of its first start. `token` is what the node will call itself by:
    /// the same token gets the same id again.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn register_node(
        &self,
        token: u128,
        address: &str,
        zone: &str,
    ) -> Result<Registered, Error> {
        let message = proto::RegisterNodeRequest {
            token: token.to_be_bytes().to_vec().into(),
            address: address.to_owned(),
            zone: zone.to_owned(),
            ..Default::default()
        };
        let answer = self
            .call(Manner::write(true), &message, |mut coordinator, request| async move {
                coordinator.register_node(request).await
            })
            .await?;
        Ok(Registered {
            node_id: NodeId(answer.node_id),
            cluster_id: cluster_id(&answer.cluster_id)?,
            map_version: MapVersion(answer.map_version),
        })
    }

    /// Sets a node's status by hand. [`NodeStatus::Removed`] is refused while the node is alive or
    /// holds replicas.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn set_node_status(
        &self,
        node: NodeId,
        status: NodeStatus,
    ) -> Result<MapVersion, Error> {
        self.set_status(node, status, false).await
    }

    /// Removes a node for good though it is alive or holds replicas; what it held is rebuilt
    /// elsewhere.
    ///
    /// # Errors
    /// [`Error`], also where a shard would have no majority without it.
    pub async fn remove_node_by_force(&self, node: NodeId) -> Result<MapVersion, Error> {
        self.set_status(node, NodeStatus::Removed, true).await
    }

    async fn set_status(
        &self,
        node: NodeId,
        status: NodeStatus,
        force: bool,
    ) -> Result<MapVersion, Error> {
        let status = node_status_to(status).into();
        let message = proto::SetNodeStatusRequest { node_id: node.0, status, force };
        let answer = self
            .call(Manner::write(true), &message, |mut coordinator, request| async move {
                coordinator.set_node_status(request).await
            })
            .await?;
        Ok(MapVersion(answer.map_version))
    }

    /// Has a coordinator join. It must run already, with an empty data directory, and wait for it.
    /// Answers when it is decided; [`AdminClient::status`] tells when it votes.
    ///
    /// # Errors
    /// [`Error`], also if it doesn't answer or its number was used before.
    pub async fn add_coordinator(&self, id: NodeId, address: &str) -> Result<MapVersion, Error> {
        let message = proto::AddCoordinatorRequest { id: id.0, address: address.to_owned() };
        let answer = self
            .call(Manner::write(false), &message, |mut coordinator, request| async move {
                coordinator.add_coordinator(request).await
            })
            .await?;
        Ok(MapVersion(answer.map_version))
    }

    /// Says where a coordinator is now. It must answer there.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn set_coordinator_address(
        &self,
        id: NodeId,
        address: &str,
    ) -> Result<MapVersion, Error> {
        let message = proto::SetCoordinatorAddressRequest { id: id.0, address: address.to_owned() };
        let answer = self
            .call(Manner::write(true), &message, |mut coordinator, request| async move {
                coordinator.set_coordinator_address(request).await
            })
            .await?;
        Ok(MapVersion(answer.map_version))
    }

    /// Has a coordinator leave for good; it may be dead. Its number stays taken. Answers when it is
    /// decided; [`AdminClient::status`] tells when it is gone.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn remove_coordinator(&self, id: NodeId) -> Result<MapVersion, Error> {
        let message = proto::RemoveCoordinatorRequest { id: id.0 };
        let answer = self
            .call(Manner::write(false), &message, |mut coordinator, request| async move {
                coordinator.remove_coordinator(request).await
            })
            .await?;
        Ok(MapVersion(answer.map_version))
    }

    /// Asks a shard's leader to hand over to the replica on `node`.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn set_shard_leader(
        &self,
        shard: ShardId,
        node: NodeId,
    ) -> Result<MapVersion, Error> {
        let message = proto::SetShardLeaderRequest { shard_id: shard.0, node_id: node.0 };
        let answer = self
            .call(Manner::write(true), &message, |mut coordinator, request| async move {
                coordinator.set_shard_leader(request).await
            })
            .await?;
        Ok(MapVersion(answer.map_version))
    }

    /// Asks whoever led last, else the next address, until there is an answer.
    pub(crate) async fn call<M, A, S, F>(
        &self,
        manner: Manner,
        message: &M,
        send: S,
    ) -> Result<A, Error>
    where
        M: Clone,
        S: Fn(CoordinatorClient<Outgoing>, Request<M>) -> F,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let send = |outgoing: Outgoing, request| {
            let client = CoordinatorClient::new(outgoing);
            send(client.max_decoding_message_size(MAX_MESSAGE_BYTES), request)
        };
        let began = Instant::now();
        let deadline = began + self.options.deadline;
        let mut retries = Retries::new(&self.options, manner.repeatable);
        let mut hints = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let connection = self.target(manner).await;
            let attempted = attempt(&self.pool, &connection, left, manner.effect, message, &send);
            let error = match attempted.await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let hinted = self.follow(&error);
            hints += u32::from(hinted);
            let left = deadline.saturating_duration_since(Instant::now());
            if is_worth_explaining(&self.pool, began, left, &error) {
                return Err(explain(&connection, retries.verdict(error)).await);
            }
            match retries.after(error, left, random()) {
                Next::GiveUp(error) => return Err(error),
                Next::Again(_) if hinted && hints <= HINTS_IN_A_ROW => {}
                Next::Again(pause) => sleep(pause).await,
            }
        }
    }

    async fn target(&self, manner: Manner) -> Connection {
        let leader = self.leader.lock().clone();
        match leader {
            Some(leader) => leader,
            None if manner.repeatable => self.pool.next().clone(),
            None => self.pool.next_proven().await.clone(),
        }
    }

    /// Turns to the leader that a refusal names; away from whoever failed otherwise.
    fn follow(&self, error: &Error) -> bool {
        if error.class() == RetryClass::Final {
            return false;
        }
        let hint = match error.refusal() {
            Some(Refusal::NotLeader { leader_hint, .. }) => leader_hint.as_deref(),
            _ => None,
        };
        let connection = hint.and_then(|address| Connection::to(address).ok());
        let hinted = connection.is_some();
        *self.leader.lock() = connection;
        hinted
    }
}

fn short_shard(short: proto::ShortShard) -> ShortShard {
    ShortShard {
        shard: ShardId(short.shard_id),
        replicas: short.replicas,
        wanted_replicas: short.wanted_replicas,
        why: short.why,
    }
}

fn cluster_id(bytes: &[u8]) -> Result<ClusterId, Error> {
    cluster_id_from(bytes).map_err(|error| garbled(error.to_string()))
}

fn garbled(message: String) -> Error {
    Error::Unexpected {
        address: "the coordinator".to_owned(),
        code: tonic::Code::DataLoss,
        message,
    }
}
