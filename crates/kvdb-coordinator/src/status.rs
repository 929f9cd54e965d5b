//! What `GetStatus` answers: the group, and what is wrong with shards, leaders and clocks.

use crate::service::Member;
use kvdb_control::Reason;
use kvdb_model::{NodeId, ShardId};
use kvdb_wire::{cluster_id_to, generation_to, proto, role_to};
use tonic::Status;

/// Shards with too few replicas that a status names.
const MOST_SHORT_SHARDS: usize = 100;

impl Member {
    /// The cluster as this member knows it; of nodes and shards too, where `figures` are wanted and it
    /// leads.
    ///
    /// # Errors
    /// If another member leads: it knows better.
    pub(crate) async fn status(&self, figures: bool) -> Result<proto::GetStatusResponse, Status> {
        let state = self.view.state();
        // The leader knows best. Where nobody leads, any voter tells what it knows.
        let here = self.drive.views().get(ShardId::CONTROL);
        let is_led = here.as_ref().is_some_and(|here| here.leader.is_some() && !here.is_leader);
        if is_led || !self.votes() {
            return Err(self.not_leader());
        }
        let statuses = self.drive.statuses().await;
        let group = statuses.into_iter().find(|status| status.shard == ShardId::CONTROL);
        let leader = group.as_ref().and_then(|group| group.leader);
        let descriptor = group.as_ref().and_then(|group| group.descriptor.as_ref());
        let members = match descriptor {
            Some(descriptor) => descriptor.replicas.clone(),
            None => state.wanted_coordinators(),
        };
        let members = members.iter().map(|replica| proto::CoordinatorMember {
            id: replica.node_id.0,
            address: self.address_of(replica.node_id).unwrap_or_default(),
            is_leader: leader == Some(replica.node_id),
            role: role_to(replica.role).into(),
        });
        let members = members.collect();
        let shortages = state.shortages();
        let short_shard_count = shortages.len() as u64;
        let loads = self.standings.lock().loads(state.map());
        let short = shortages.into_iter().take(MOST_SHORT_SHARDS).map(|short| proto::ShortShard {
            shard_id: short.shard.0,
            replicas: short.replicas,
            wanted_replicas: short.wanted,
            why: self.planner.why_short(&state, &loads, short.shard),
        });
        let short_shards = short.collect();
        // Whoever doesn't lead has heard nothing.
        let wanted = figures && self.leads();
        let (node_figures, shard_figures) = match wanted {
            true => (crate::figures::of_nodes(self), crate::figures::of_shards(self)),
            false => Default::default(),
        };
        let said = |(node, reasons): (&NodeId, &Vec<Reason>)| -> Vec<_> {
            let said = |reason: &Reason| proto::LessPreferredLeader {
                node_id: node.0,
                reason: reason.name().to_owned(),
                description: reason.describe(),
            };
            reasons.iter().map(said).collect()
        };
        let less_preferred_leaders = loads.less_preferred.iter().flat_map(said).collect();
        let wrong_clocks = self.wrong_clocks(&state).into_iter().map(|clock| proto::WrongClock {
            process: clock.process,
            address: clock.address,
            node_id: clock.node.0,
            ahead_ms: clock.ahead_ms,
        });
        Ok(proto::GetStatusResponse {
            cluster_id: cluster_id_to(state.map().cluster_id),
            map_version: state.map().version.0,
            leader_id: leader.unwrap_or_default().0,
            term: group.as_ref().map_or(0, |group| group.term.0),
            applied_index: group.as_ref().map_or(0, |group| group.applied.0),
            members,
            short_shards,
            short_shard_count,
            node_figures,
            shard_figures,
            less_preferred_leaders,
            wrong_clocks: wrong_clocks.collect(),
            generation: generation_to(state.generation()),
            awaited_nodes: state.awaited().iter().map(|node| node.0).collect(),
        })
    }
}
