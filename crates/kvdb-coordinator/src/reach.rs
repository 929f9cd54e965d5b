//! Where the nodes are: an address is what its holder last said, and whoever is found there counts.
//!
//! The leader dials a node before it takes its word, and all nodes all the while. Those that it
//! can't reach are dialled by nodes as well, which tell with their heartbeats.

use crate::service::Member;
use futures_util::future::join_all;
use kvdb_control::ControlCommand;
use kvdb_model::{NodeId, NodeStatus};
use kvdb_runtime::clock;
use kvdb_runtime::dial;
use kvdb_runtime::identity::Role;
use kvdb_runtime::shutdown::Shutdown;
use std::time::Duration;
use tonic::Status;

/// Between two rounds of dialling.
const DIAL_EVERY: Duration = Duration::from_secs(1);
/// Most of what a heartbeat may say of others.
const MOST_TOLD: usize = 4096;

/// Why a node wasn't found.
pub(crate) enum Missed {
    /// Nobody answers there, as far as this process can tell.
    Nobody(String),
    /// Somebody else does.
    Another(String),
}

impl Missed {
    /// In words, where the node can be taken none the less: others may reach it.
    ///
    /// # Errors
    /// Where it can't be there.
    pub(crate) fn why(self) -> Result<String, Status> {
        match self {
            Missed::Nobody(why) => Ok(why),
            Missed::Another(why) => Err(Status::failed_precondition(why)),
        }
    }
}

impl Member {
    /// Looks whether the node of a data directory is at an address.
    pub(crate) async fn dial_node(&self, address: &str, token: u128) -> Result<(), Missed> {
        let state = self.view.state();
        let (cluster_id, generation) = (state.map().cluster_id, state.generation());
        let coordinators = self.all_addresses();
        let asking = dial::identify(address, cluster_id, &coordinators, generation);
        let found = asking.await.map_err(Missed::Nobody)?;
        if found.cluster_id == cluster_id {
            self.check_generation(&found.to_string(), found.about.generation)
                .map_err(|status| Missed::Nobody(status.message().to_owned()))?;
        }
        if found.role == Some(Role::Node) && found.token == token {
            return Ok(());
        }
        Err(Missed::Another(format!(
            "{address} is not where this node is reached, but {found}: start it with a --listen or --advertise of its \
             own"
        )))
    }

    /// Takes in whom a node reaches, and says whom it is to dial.
    pub(crate) fn hear_reach(&self, node: NodeId, reached: &[u64], unreached: &[u64]) -> Vec<u64> {
        let now_ms = clock::now().boot_us / 1000;
        let mut liveness = self.liveness.lock();
        liveness.heard(node, now_ms);
        for (others, is_reached) in [(reached, true), (unreached, false)] {
            for other in others.iter().take(MOST_TOLD) {
                liveness.reach.told(node, NodeId(*other), is_reached, now_ms);
            }
        }
        liveness.reach.missed().filter(|other| *other != node).map(|other| other.0).collect()
    }
}

/// A node says that it is elsewhere than the map has it.
pub(crate) async fn find_again(member: Member, node: NodeId, address: String) {
    let state = member.view.state();
    let Some(record) = state.map().nodes.get(&node) else { return };
    let Some(token) = state.token_of_node(node) else { return };
    let is_reached = member.dial_node(&address, token).await.is_ok();
    // What can't be checked isn't worth more than what is known, if anything is.
    if is_reached || record.address.is_empty() {
        let zone = record.zone.clone();
        tracing::info!(node = node.0, before = record.address, now = address, "a node has moved");
        let command = ControlCommand::EnterNode { token, address, zone, is_reached, start: None };
        if let Err(status) = member.propose(command).await {
            tracing::debug!(error = status.message(), "the address was not recorded");
        }
    }
}

/// Dials all nodes all the while, while this member leads.
pub(crate) async fn dial_all(member: Member, shutdown: Shutdown) {
    let mut interval = tokio::time::interval(DIAL_EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = shutdown.wait() => return,
        }
        if !member.leads() {
            continue;
        }
        let state = member.view.state();
        let nodes = state.map().nodes.values();
        let dials = nodes.filter(|node| node.status != NodeStatus::Removed).map(|node| {
            let (member, token) = (&member, state.token_of_node(node.node_id));
            async move {
                let missed = match token {
                    _ if node.address.is_empty() => Some("its address isn't known".to_owned()),
                    Some(token) => match member.dial_node(&node.address, token).await {
                        Ok(()) => None,
                        Err(Missed::Nobody(why) | Missed::Another(why)) => Some(why),
                    },
                    None => None,
                };
                (node.node_id, missed)
            }
        });
        let dialled = join_all(dials).await;
        let now_ms = clock::now().boot_us / 1000;
        let mut liveness = member.liveness.lock();
        for (node, missed) in dialled {
            liveness.reach.dialled(node, missed, now_ms);
        }
    }
}
