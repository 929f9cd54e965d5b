//! Judging heartbeats, on the leading coordinator.

use crate::reach::Reach;
use kvdb_model::{NodeId, NodeStatus, ShardMap};
use std::collections::BTreeMap;

/// When silence means something. Milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct LivenessConfig {
    /// After this a node is suspect. Several heartbeats long, or a busy machine looks dead.
    pub suspect_ms: u64,
    /// After this it is dead.
    pub dead_ms: u64,
}

impl Default for LivenessConfig {
    fn default() -> Self {
        LivenessConfig { suspect_ms: 3_000, dead_ms: 10_000 }
    }
}

/// When each node was last heard.
#[derive(Debug, Default)]
pub struct Liveness {
    config: LivenessConfig,
    heard: BTreeMap<NodeId, LastHeard>,
    /// Who reaches whom.
    pub reach: Reach,
}

/// Whether a node was heard lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// So long ago, in milliseconds.
    Lately {
        /// Since its last heartbeat.
        silent_ms: u64,
    },
    /// Not for a while.
    NotLately,
    /// This leader hasn't listened for long enough.
    NotKnown,
}

/// When a node was last heard.
#[derive(Clone, Copy, Debug)]
struct LastHeard {
    at_ms: u64,
    /// By a heartbeat: otherwise its silence only counts from there.
    really: bool,
}

impl Liveness {
    /// Nobody was heard yet.
    pub fn new(config: LivenessConfig) -> Self {
        Liveness { config, heard: BTreeMap::new(), reach: Reach::default() }
    }

    /// A new leader knows nothing: silence counts from now.
    pub fn reset(&mut self) {
        self.heard.clear();
        self.reach.reset();
    }

    /// A heartbeat arrived.
    pub fn heard(&mut self, node: NodeId, now_ms: u64) {
        self.heard.insert(node, LastHeard { at_ms: now_ms, really: true });
    }

    /// Whether a node was heard so lately that a process of it runs.
    pub fn heard_lately(&self, node: NodeId, now_ms: u64) -> Heard {
        match self.heard.get(&node) {
            Some(heard) => {
                let silent_ms = now_ms.saturating_sub(heard.at_ms);
                match silent_ms < self.config.suspect_ms {
                    true if heard.really => Heard::Lately { silent_ms },
                    true => Heard::NotKnown,
                    false => Heard::NotLately,
                }
            }
            // Nobody is missed before the first look at them.
            None => Heard::NotKnown,
        }
    }

    /// For how long each node that was ever heard (or missed) here is silent, in milliseconds.
    pub fn silent_ms(&self, now_ms: u64) -> BTreeMap<NodeId, u64> {
        let silent = |heard: &LastHeard| now_ms.saturating_sub(heard.at_ms);
        self.heard.iter().map(|(node, heard)| (*node, silent(heard))).collect()
    }

    /// Whether a node was heard not so long ago that it would be dead, or hasn't been missed for so
    /// long yet.
    pub fn may_live(&self, node: NodeId, now_ms: u64) -> bool {
        let silent = self.heard.get(&node).map(|heard| now_ms.saturating_sub(heard.at_ms));
        silent.is_none_or(|silent| silent < self.config.dead_ms)
    }

    /// The statuses that should change. What an operator has set (draining, removed) stays.
    pub fn judge(&mut self, map: &ShardMap, now_ms: u64) -> Vec<(NodeId, NodeStatus)> {
        let mut changes = Vec::new();
        for (id, node) in &map.nodes {
            if node.status == NodeStatus::Removed {
                continue;
            }
            let missed = LastHeard { at_ms: now_ms, really: false };
            let heard = *self.heard.entry(*id).or_insert(missed);
            if node.status == NodeStatus::Draining {
                continue;
            }
            let silence_ms = now_ms.saturating_sub(heard.at_ms);
            let status = if silence_ms >= self.config.dead_ms {
                NodeStatus::Dead
            } else if silence_ms >= self.config.suspect_ms {
                NodeStatus::Suspect
            } else {
                match self.reach.is_cut_off(*id, now_ms) {
                    Some(true) => NodeStatus::Unreachable,
                    Some(false) => NodeStatus::Alive,
                    // What was found out before holds.
                    None if node.status == NodeStatus::Unreachable => NodeStatus::Unreachable,
                    None => NodeStatus::Alive,
                }
            };
            // Only a heartbeat brings a node back; a new leader's ignorance doesn't.
            if status != node.status && (heard.really || is_worse(status, node.status)) {
                changes.push((*id, status));
            }
        }
        changes
    }
}

fn is_worse(status: NodeStatus, than: NodeStatus) -> bool {
    let rank = |status| match status {
        NodeStatus::Suspect | NodeStatus::Unreachable => 1,
        NodeStatus::Dead => 2,
        _ => 0,
    };
    rank(status) > rank(than)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::{MapChange, NodeRecord};

    fn map(status: NodeStatus) -> ShardMap {
        let mut map = ShardMap::default();
        map.change(MapChange::Node(NodeRecord {
            node_id: NodeId(1),
            address: "a:1".into(),
            zone: String::new(),
            status,
            least_replica: Default::default(),
        }));
        map
    }

    #[test]
    fn silence_makes_suspect_then_dead_and_a_heartbeat_alive_again() {
        let mut liveness = Liveness::new(LivenessConfig { suspect_ms: 100, dead_ms: 300 });
        liveness.heard(NodeId(1), 1000);
        assert_eq!(liveness.judge(&map(NodeStatus::Alive), 1099), []);
        assert_eq!(
            liveness.judge(&map(NodeStatus::Alive), 1100),
            [(NodeId(1), NodeStatus::Suspect)]
        );
        assert_eq!(
            liveness.judge(&map(NodeStatus::Suspect), 1300),
            [(NodeId(1), NodeStatus::Dead)]
        );
        liveness.heard(NodeId(1), 1400);
        assert_eq!(liveness.judge(&map(NodeStatus::Dead), 1401), [(NodeId(1), NodeStatus::Alive)]);
    }

    #[test]
    fn a_new_leader_waits_before_it_judges() {
        let mut liveness = Liveness::new(LivenessConfig { suspect_ms: 100, dead_ms: 300 });
        assert_eq!(liveness.judge(&map(NodeStatus::Alive), 5000), []);
        assert_eq!(liveness.judge(&map(NodeStatus::Alive), 5099), []);
    }

    #[test]
    fn a_dead_node_stays_dead_under_a_new_leader_until_it_is_heard() {
        let mut liveness = Liveness::new(LivenessConfig { suspect_ms: 100, dead_ms: 300 });
        for now_ms in [5000, 5001, 5100, 5299, 5300] {
            assert_eq!(liveness.judge(&map(NodeStatus::Dead), now_ms), [], "{now_ms}");
        }
        assert_eq!(
            liveness.judge(&map(NodeStatus::Suspect), 5300),
            [(NodeId(1), NodeStatus::Dead)]
        );
        liveness.heard(NodeId(1), 5400);
        assert_eq!(liveness.judge(&map(NodeStatus::Dead), 5401), [(NodeId(1), NodeStatus::Alive)]);
    }

    #[test]
    fn a_node_that_is_heard_and_not_reached_is_unreachable() {
        let mut liveness = Liveness::new(LivenessConfig { suspect_ms: 5000, dead_ms: 9000 });
        liveness.heard(NodeId(1), 0);
        liveness.reach.dialled(NodeId(1), Some("nobody is there".to_owned()), 0);
        assert_eq!(liveness.judge(&map(NodeStatus::Alive), 2999), []);
        let unreachable = [(NodeId(1), NodeStatus::Unreachable)];
        assert_eq!(liveness.judge(&map(NodeStatus::Alive), 3000), unreachable);
        // A new leader knows it from the map, until it has found out itself.
        liveness.reset();
        liveness.heard(NodeId(1), 3000);
        assert_eq!(liveness.judge(&map(NodeStatus::Unreachable), 3001), []);
        liveness.reach.dialled(NodeId(1), None, 3002);
        let alive = [(NodeId(1), NodeStatus::Alive)];
        assert_eq!(liveness.judge(&map(NodeStatus::Unreachable), 3003), alive);
        // Silence is worse.
        let dead = [(NodeId(1), NodeStatus::Dead)];
        assert_eq!(liveness.judge(&map(NodeStatus::Unreachable), 13_000), dead);
    }

    #[test]
    fn what_an_operator_has_set_stays() {
        let mut liveness = Liveness::new(LivenessConfig { suspect_ms: 100, dead_ms: 300 });
        liveness.heard(NodeId(1), 0);
        assert_eq!(liveness.judge(&map(NodeStatus::Draining), 9000), []);
        assert_eq!(liveness.judge(&map(NodeStatus::Removed), 9000), []);
    }
}
