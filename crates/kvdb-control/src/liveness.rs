//! Judging heartbeats, on the leading coordinator.

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
    heard: BTreeMap<NodeId, u64>,
}

impl Liveness {
    /// Nobody was heard yet.
    pub fn new(config: LivenessConfig) -> Self {
        Liveness { config, heard: BTreeMap::new() }
    }

    /// A new leader knows nothing: silence counts from now.
    pub fn reset(&mut self) {
        self.heard.clear();
    }

    /// A heartbeat arrived.
    pub fn heard(&mut self, node: NodeId, now_ms: u64) {
        self.heard.insert(node, now_ms);
    }

    /// For how long each node that was ever heard (or missed) here is silent, in milliseconds.
    pub fn silent_ms(&self, now_ms: u64) -> BTreeMap<NodeId, u64> {
        self.heard.iter().map(|(node, last)| (*node, now_ms.saturating_sub(*last))).collect()
    }

    /// The statuses that should change. What an operator has set (draining, removed) stays.
    pub fn judge(&mut self, map: &ShardMap, now_ms: u64) -> Vec<(NodeId, NodeStatus)> {
        let mut changes = Vec::new();
        for (id, node) in &map.nodes {
            if matches!(node.status, NodeStatus::Draining | NodeStatus::Removed) {
                continue;
            }
            let last = *self.heard.entry(*id).or_insert(now_ms);
            let silence_ms = now_ms.saturating_sub(last);
            let status = if silence_ms >= self.config.dead_ms {
                NodeStatus::Dead
            } else if silence_ms >= self.config.suspect_ms {
                NodeStatus::Suspect
            } else {
                NodeStatus::Alive
            };
            // Only a heartbeat brings a node back; a new leader's ignorance doesn't.
            let unheard_here = silence_ms > 0 || last == now_ms;
            if status != node.status && (status != NodeStatus::Alive || unheard_here) {
                changes.push((*id, status));
            }
        }
        changes
    }
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
    fn what_an_operator_has_set_stays() {
        let mut liveness = Liveness::new(LivenessConfig { suspect_ms: 100, dead_ms: 300 });
        liveness.heard(NodeId(1), 0);
        assert_eq!(liveness.judge(&map(NodeStatus::Draining), 9000), []);
        assert_eq!(liveness.judge(&map(NodeStatus::Removed), 9000), []);
    }
}
