//! The state, and what each command does to it.

use crate::alone::Recovered;
use crate::command::{ControlCommand, ControlError, ControlResponse};
use crate::keyspaces::check_history;
use crate::members::CoordinatorRecord;
use crate::operator::{Operator, OperatorKind, OperatorRequest, OperatorState};
use crate::starts::{Copies, StartRecord};
use bytes::Bytes;
use kvdb_model::{
    KeyspaceId, MapDelta, MapVersion, NodeId, NodeStatus, OperatorId, Replica, ReplicaId, Role,
    ShardId, ShardMap,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What never comes back: the next ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub(crate) map_version: MapVersion,
    pub(crate) cluster_id: kvdb_model::ClusterId,
    pub(crate) next_node: NodeId,
    pub(crate) next_shard: ShardId,
    pub(crate) next_replica: ReplicaId,
    pub(crate) next_keyspace: KeyspaceId,
    pub(crate) next_operator: OperatorId,
}

/// The cluster as the coordinators know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlState {
    pub(crate) map: ShardMap,
    pub(crate) counters: Counters,
    /// Which node a registration token belongs to.
    pub(crate) tokens: BTreeMap<u128, NodeId>,
    /// Where leadership is wanted.
    pub(crate) wanted_leaders: BTreeMap<ShardId, NodeId>,
    /// How many replicas a shard is to have, where that isn't what its keyspace says.
    pub(crate) wanted_replicas: BTreeMap<ShardId, u32>,
    pub(crate) operators: BTreeMap<OperatorId, Operator>,
    /// Who the coordinators are, those that were removed included.
    pub(crate) coordinators: BTreeMap<NodeId, CoordinatorRecord>,
    /// Which start of each node counts.
    pub(crate) starts: BTreeMap<NodeId, StartRecord>,
    /// Older copies of nodes' directories that were accepted.
    pub(crate) copies: BTreeMap<NodeId, Copies>,
    /// Of the last time that the coordinators went on from one of them alone.
    pub(crate) recovered: Recovered,
}

/// What a command did.
#[derive(Clone, Debug)]
pub struct Applied {
    /// For whoever proposed it.
    pub result: Result<ControlResponse, ControlError>,
    /// For watchers; `None` if the map is as before.
    pub delta: Option<MapDelta>,
    /// Records that changed; `None` for a removal.
    pub records: Vec<(Bytes, Option<Bytes>)>,
}

impl Default for ControlState {
    fn default() -> Self {
        ControlState {
            map: ShardMap::default(),
            counters: Counters {
                map_version: MapVersion(0),
                cluster_id: kvdb_model::ClusterId::UNKNOWN,
                next_node: NodeId(1),
                next_shard: ShardId(1),
                next_replica: ReplicaId(1),
                next_keyspace: KeyspaceId(1),
                next_operator: OperatorId(1),
            },
            tokens: BTreeMap::new(),
            wanted_leaders: BTreeMap::new(),
            wanted_replicas: BTreeMap::new(),
            operators: BTreeMap::new(),
            coordinators: BTreeMap::new(),
            starts: BTreeMap::new(),
            copies: BTreeMap::new(),
            recovered: Recovered::default(),
        }
    }
}

impl ControlState {
    /// The map.
    pub fn map(&self) -> &ShardMap {
        &self.map
    }

    /// Where leadership is wanted and isn't yet.
    pub fn wanted_leaders(&self) -> &BTreeMap<ShardId, NodeId> {
        &self.wanted_leaders
    }

    /// The node that a data directory is, by what was made with it.
    pub fn node_of(&self, token: u128) -> Option<NodeId> {
        self.tokens.get(&token).copied()
    }

    /// What was made with the data directory of a node.
    pub fn token_of_node(&self, node: NodeId) -> Option<u128> {
        self.tokens.iter().find(|(_, known)| **known == node).map(|(token, _)| *token)
    }

    /// Whether a command would be carried out now.
    ///
    /// # Errors
    /// Why not.
    pub fn validate(&self, command: &ControlCommand) -> Result<(), ControlError> {
        self.clone().carry_out(command).map(|_| ())
    }

    /// Applies a command. An invalid one changes nothing.
    pub fn apply(&mut self, command: &ControlCommand) -> Applied {
        let mut next = self.clone();
        let response = match next.carry_out(command) {
            Ok(response) => response,
            Err(error) => return Applied { result: Err(error), delta: None, records: vec![] },
        };
        let changes = self.map.diff(&next.map);
        let mut delta = None;
        if next.map.generation != self.map.generation {
            // Whoever follows gets a snapshot.
            next.counters.map_version = next.map.version;
        } else if !changes.is_empty() {
            let version = next.map.version.next();
            delta = Some(MapDelta { version, changes });
            next.map.version = version;
            next.counters.map_version = version;
            next.counters.cluster_id = next.map.cluster_id;
        }
        let records = self.changed_records(&next);
        *self = next;
        Applied { result: Ok(with_version(response, self.map.version)), delta, records }
    }

    fn carry_out(&mut self, command: &ControlCommand) -> Result<ControlResponse, ControlError> {
        if command.needs_all_nodes() {
            self.check_all_reported()?;
        }
        Ok(match command {
            ControlCommand::Bootstrap { cluster_id } => {
                if !self.map.cluster_id.is_known() {
                    self.map.cluster_id = *cluster_id;
                }
                ControlResponse::Done(self.map.version)
            }
            ControlCommand::RegisterNode { token, address, zone } => {
                self.register(*token, address, zone)?
            }
            ControlCommand::ReportShards { node, led } => self.report(*node, led)?,
            ControlCommand::InitShards { shards, replication_factor } => {
                self.init_shards(*shards, *replication_factor)?
            }
            ControlCommand::CreateKeyspace(new) => {
                check_history(new.history.as_ref())?;
                let made = self.create_keyspace(new)?;
                if new.history.is_some() {
                    self.set_history(&new.name, new.history)?;
                }
                made
            }
            ControlCommand::SetHistory { name, history } => {
                check_history(history.as_ref())?;
                self.set_history(name, *history)?
            }
            ControlCommand::DropKeyspace { name } => self.drop_keyspace(name)?,
            ControlCommand::SetNodeStatus { node, status: NodeStatus::Removed } => {
                self.remove_node(*node, false)?
            }
            ControlCommand::RemoveNode { node } => self.remove_node(*node, true)?,
            ControlCommand::SetNodeStatus { node, status } => {
                if *status != NodeStatus::Draining {
                    self.check_not_drained(*node)?;
                }
                let record =
                    self.map.nodes.get_mut(node).ok_or(ControlError::UnknownNode(*node))?;
                if record.status == NodeStatus::Removed {
                    return Err(ControlError::NodeRemoved(*node));
                }
                record.status = *status;
                ControlResponse::Done(self.map.version)
            }
            ControlCommand::SetShardLeader { shard, node } => self.want_leader(*shard, *node)?,
            ControlCommand::StartOperator { request, reason, parent, now_ms, time_limit_ms } => {
                let id = self.start_operator(request, reason, *parent, *now_ms, *time_limit_ms)?;
                ControlResponse::OperatorStarted(id, self.map.version)
            }
            ControlCommand::CancelOperator { id, now_ms } => {
                self.end_operator(*id, OperatorState::Cancelled, *now_ms)?;
                ControlResponse::Done(self.map.version)
            }
            ControlCommand::FinishOperator { id, failure, now_ms } => {
                let state = failure.clone().map_or(OperatorState::Done, OperatorState::Failed);
                self.end_operator(*id, state, *now_ms)?;
                ControlResponse::Done(self.map.version)
            }
            ControlCommand::NoteStep { id, what, now_ms } => {
                self.note_step(*id, what, *now_ms)?;
                ControlResponse::Done(self.map.version)
            }
            ControlCommand::FoundCoordinators { founders } => self.found(founders),
            ControlCommand::AddCoordinator { id, address, token } => {
                self.add_coordinator(*id, address, *token)?
            }
            ControlCommand::RemoveCoordinator { id } => self.remove_coordinator(*id)?,
            ControlCommand::EnterNode { token, address, zone, is_reached, start } => {
                let entered = self.enter(*token, address, zone, *is_reached)?;
                if let (ControlResponse::Registered(node, _), Some(start)) = (&entered, start) {
                    self.take_start(*node, start)?;
                }
                entered
            }
            ControlCommand::NoteSynced { told } => self.note_synced(told),
            ControlCommand::SetCoordinatorAddress { id, address } => {
                self.set_coordinator_address(*id, address)?
            }
            ControlCommand::RecoverAlone { id, address, token, generation } => {
                self.recover_alone(*id, address, *token, *generation)?
            }
            ControlCommand::AcceptCopy { node } => self.accept_copy(*node)?,
            ControlCommand::TakeMap { map } => self.take_map(map)?,
            ControlCommand::AdoptNode { node, token } => self.adopt_node(*node, *token)?,
        })
    }

    /// The status of a node that is being drained is the drain's: otherwise both would go on.
    fn check_not_drained(&self, node: NodeId) -> Result<(), ControlError> {
        let is_drain = |one: &&Operator| one.kind == OperatorKind::Drain { node };
        match self.running().find(is_drain) {
            Some(drain) => Err(ControlError::NodeDrains { node, operator: drain.id }),
            None => Ok(()),
        }
    }

    /// Applies a request as if its operation were finished: for previews.
    pub(crate) fn simulate(&mut self, request: &OperatorRequest) {
        match request {
            OperatorRequest::Move { shard, from, to } => {
                if let Some(record) = self.map.shards.get_mut(shard) {
                    let replicas = &mut record.descriptor.replicas;
                    for replica in replicas.iter_mut().filter(|replica| replica.node_id == *from) {
                        replica.node_id = *to;
                    }
                    if record.leader == Some(*from) {
                        record.leader =
                            record.descriptor.replicas.first().map(|first| first.node_id);
                    }
                }
            }
            OperatorRequest::Lead { shard, node } => {
                if let Some(record) = self.map.shards.get_mut(shard) {
                    record.leader = Some(*node);
                }
            }
            OperatorRequest::Restore { shard, nodes } => {
                if let Some(record) = self.map.shards.get_mut(shard) {
                    let replicas = &mut record.descriptor.replicas;
                    for node_id in nodes {
                        if !replicas.iter().any(|replica| replica.node_id == *node_id) {
                            let replica_id = ReplicaId(u64::MAX);
                            replicas.push(Replica {
                                node_id: *node_id,
                                replica_id,
                                role: Role::Voter,
                            });
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn want_leader(
        &mut self,
        shard: ShardId,
        node: NodeId,
    ) -> Result<ControlResponse, ControlError> {
        let record = self.map.shards.get(&shard).ok_or(ControlError::UnknownShard(shard))?;
        self.may_lead(node)?;
        let votes =
            record.descriptor.replica_on(node).is_some_and(|replica| replica.role == Role::Voter);
        if !votes {
            let on: BTreeSet<NodeId> =
                record.descriptor.replicas.iter().map(|replica| replica.node_id).collect();
            return Err(ControlError::NotAReplica { shard, node, on: on.into_iter().collect() });
        }
        if record.leader == Some(node) {
            self.wanted_leaders.remove(&shard);
        } else {
            self.wanted_leaders.insert(shard, node);
        }
        Ok(ControlResponse::Done(self.map.version))
    }
}

fn with_version(response: ControlResponse, version: MapVersion) -> ControlResponse {
    match response {
        ControlResponse::Done(_) => ControlResponse::Done(version),
        ControlResponse::Registered(node, _) => ControlResponse::Registered(node, version),
        ControlResponse::ShardsInitialised(made, _) => {
            ControlResponse::ShardsInitialised(made, version)
        }
        ControlResponse::KeyspaceCreated(id, _) => ControlResponse::KeyspaceCreated(id, version),
        ControlResponse::OperatorStarted(id, _) => ControlResponse::OperatorStarted(id, version),
    }
}

#[cfg(test)]
mod tests;
