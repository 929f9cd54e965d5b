//! What nodes tell: that they are there, and what the shards that they lead have become.

use crate::command::{ControlError, ControlResponse, LedShard};
use crate::operator::OperatorKind;
use crate::state::ControlState;
use kvdb_model::{MapChange, NodeId, NodeRecord, NodeStatus, ShardDescriptor, ShardRecord, Term};

impl ControlState {
    pub(crate) fn register(
        &mut self,
        token: u128,
        address: &str,
        zone: &str,
    ) -> Result<ControlResponse, ControlError> {
        check_address(address)?;
        let known = self.tokens.get(&token).copied();
        let taken = self.map.nodes.values().find(|node| {
            node.address == address
                && Some(node.node_id) != known
                && node.status != NodeStatus::Removed
                && !self.is_being_replaced(node.node_id)
        });
        if let Some(other) = taken {
            return Err(ControlError::AddressTaken(address.to_owned(), other.node_id));
        }
        self.put_node(token, address, zone, true)
    }

    /// A node says where it is. Where it was found there, whoever was there before isn't any more:
    /// that one's address is unknown until it says where it is itself.
    pub(crate) fn enter(
        &mut self,
        token: u128,
        address: &str,
        zone: &str,
        is_reached: bool,
    ) -> Result<ControlResponse, ControlError> {
        check_address(address)?;
        let entered = self.put_node(token, address, zone, is_reached)?;
        let ControlResponse::Registered(node_id, _) = entered else { return Ok(entered) };
        if is_reached {
            let others = self.map.nodes.values().filter(|node| node.node_id != node_id);
            let former = others.filter(|node| node.address == address).cloned();
            for node in former.collect::<Vec<_>>() {
                self.map.change(MapChange::Node(NodeRecord { address: String::new(), ..node }));
            }
        }
        Ok(entered)
    }

    fn put_node(
        &mut self,
        token: u128,
        address: &str,
        zone: &str,
        is_reached: bool,
    ) -> Result<ControlResponse, ControlError> {
        let known = self.tokens.get(&token).copied();
        let node_id = match known {
            Some(node) => node,
            None => {
                let node = self.counters.next_node;
                self.counters.next_node = node.next();
                self.tokens.insert(token, node);
                node
            }
        };
        let status = match self.map.nodes.get(&node_id).map(|node| node.status) {
            Some(NodeStatus::Removed) => return Err(ControlError::NodeRemoved(node_id)),
            Some(NodeStatus::Draining) => NodeStatus::Draining,
            // One that was there is judged by more than one try.
            Some(NodeStatus::Alive | NodeStatus::Suspect) => NodeStatus::Alive,
            _ if !is_reached => NodeStatus::Unreachable,
            _ => NodeStatus::Alive,
        };
        let (address, zone) = (address.to_owned(), zone.to_owned());
        let known = self.map.nodes.get(&node_id);
        let least_replica = known.map(|known| known.least_replica).unwrap_or_default();
        let record = NodeRecord { node_id, address, zone, status, least_replica };
        self.map.change(MapChange::Node(record));
        Ok(ControlResponse::Registered(node_id, self.map.version))
    }

    /// A machine whose disk is new comes back at its old address as another node.
    fn is_being_replaced(&self, node: NodeId) -> bool {
        self.running().any(|operator| operator.kind == OperatorKind::Replace { node })
    }

    /// Whether a report may tell anything new. Most don't, and it is asked of each with every heartbeat.
    pub fn is_news(&self, node: NodeId, report: &LedShard) -> bool {
        let Some(record) = self.map.shards.get(&report.descriptor.shard_id) else { return true };
        let (told, known) = (&report.descriptor, &record.descriptor);
        let leads = record.leader == Some(node) && record.leader_term == report.term;
        told.range_epoch > known.range_epoch
            || told.membership_epoch > known.membership_epoch
            || report.term >= record.leader_term
                && known.replica_on(node).is_some()
                && (!leads
                    || record.creating
                    || self.wanted_leaders.get(&known.shard_id) == Some(&node))
    }

    /// Higher epochs win for the same shard; where ranges overlap the higher range epoch wins.
    pub(crate) fn report(
        &mut self,
        node: NodeId,
        led: &[LedShard],
    ) -> Result<ControlResponse, ControlError> {
        if !self.map.nodes.contains_key(&node) {
            return Err(ControlError::UnknownNode(node));
        }
        for report in led {
            self.fold(node, report);
        }
        self.is_no_longer_awaited(node);
        Ok(ControlResponse::Done(self.map.version))
    }

    fn fold(&mut self, node: NodeId, report: &LedShard) {
        let id = report.descriptor.shard_id;
        if !self.is_news(node, report) {
            return;
        }
        self.fold_split(&report.descriptor);
        self.adopt_shard(node, report);
        // Where the range is as known, nobody else has a part of it: the map says so.
        let as_known =
            self.map.shards.get(&id).is_some_and(|record| {
                record.descriptor.range_epoch == report.descriptor.range_epoch
            });
        let outranked = !as_known
            && self.map.shards.values().any(|other| {
                other.descriptor.shard_id != id
                    && other.descriptor.range.overlaps(&report.descriptor.range)
                    && other.descriptor.range_epoch >= report.descriptor.range_epoch
            });
        let Some(record) = self.map.shards.get_mut(&id).filter(|_| !outranked) else { return };
        if report.descriptor.range_epoch > record.descriptor.range_epoch {
            record.descriptor.range = report.descriptor.range.clone();
            record.descriptor.range_epoch = report.descriptor.range_epoch;
        }
        if report.descriptor.membership_epoch > record.descriptor.membership_epoch {
            record.descriptor.replicas = report.descriptor.replicas.clone();
            record.descriptor.membership_epoch = report.descriptor.membership_epoch;
        }
        if report.term >= record.leader_term && record.descriptor.replica_on(node).is_some() {
            record.leader = Some(node);
            record.leader_term = report.term;
            record.creating = false;
            if self.wanted_leaders.get(&id) == Some(&node) {
                self.wanted_leaders.remove(&id);
            }
        }
    }

    /// The first word of a split, from either side, puts both into the map: no key is without a
    /// shard in between, and none has two.
    fn fold_split(&mut self, report: &ShardDescriptor) {
        let id = report.shard_id;
        let split = match self.map.shards.get(&id) {
            None => self.split_of(|_, plan| plan.child == id),
            Some(record) if report.range_epoch > record.descriptor.range_epoch => {
                self.split_of(|shard, plan| shard == id && plan.at == report.range.end)
            }
            Some(_) => None,
        };
        let Some((parent, plan)) = split else { return };
        let Some(record) = self.map.shards.get_mut(&parent) else { return };
        let Some((after, child)) = plan.apply_to(&record.descriptor) else { return };
        if after.range_epoch > report.range_epoch {
            return;
        }
        record.descriptor = after;
        // Both sides are to have as many replicas.
        if let Some(count) = self.wanted_replicas.get(&parent).copied() {
            self.wanted_replicas.insert(plan.child, count);
        }
        self.map.change(MapChange::Shard(ShardRecord {
            descriptor: child,
            leader: None,
            leader_term: Term(0),
            creating: false,
        }));
    }
}

pub(crate) fn check_address(address: &str) -> Result<(), ControlError> {
    let good = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && host.len() <= 255
            && !host.contains(char::is_whitespace)
            && !host.contains('/')
            && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if good { Ok(()) } else { Err(ControlError::BadAddress(address.to_owned())) }
}
