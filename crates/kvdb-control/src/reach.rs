//! Whom the others can't reach, on the leading coordinator.
//!
//! The leader dials each node all the while, and has nodes dial those that it can't reach. A node
//! that more of them miss than reach is cut off, whatever its own heartbeats say.

use kvdb_model::NodeId;
use std::collections::BTreeMap;

/// What a node says of another holds for so long.
const HOLDS_MS: u64 = 5_000;
/// Missed for so long, a node that was reached before is cut off. Several dials long.
const PATIENCE_MS: u64 = 3_000;

/// What is known of one node.
#[derive(Debug, Default)]
struct Seen {
    /// Since when the leader misses it; `None` if it was reached last.
    missed_since_ms: Option<u64>,
    /// Whether it was ever reached.
    reached: bool,
    /// Why not.
    why: String,
    /// What nodes say: when, and whether they reach it.
    told: BTreeMap<NodeId, (u64, bool)>,
}

/// Who was reached by whom.
#[derive(Debug, Default)]
pub struct Reach {
    nodes: BTreeMap<NodeId, Seen>,
}

impl Reach {
    /// A new leader knows nothing.
    pub fn reset(&mut self) {
        self.nodes.clear();
    }

    /// The leader has dialled a node.
    pub fn dialled(&mut self, node: NodeId, missed: Option<String>, now_ms: u64) {
        let seen = self.nodes.entry(node).or_default();
        match missed {
            None => *seen = Seen { reached: true, ..Seen::default() },
            Some(why) => {
                seen.missed_since_ms.get_or_insert(now_ms);
                seen.why = why;
            }
        }
    }

    /// A node says whether it reaches another.
    pub fn told(&mut self, by: NodeId, node: NodeId, reached: bool, now_ms: u64) {
        // What the leader reaches itself needs no other word.
        if let Some(seen) = self.nodes.get_mut(&node).filter(|_| by != node) {
            seen.told.insert(by, (now_ms, reached));
        }
    }

    /// Whom nodes are asked to dial.
    pub fn missed(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.iter().filter(|(_, seen)| seen.missed_since_ms.is_some()).map(|(id, _)| *id)
    }

    /// Whether a node is cut off from most; `None` while that isn't known.
    pub fn is_cut_off(&self, node: NodeId, now_ms: u64) -> Option<bool> {
        let seen = self.nodes.get(&node)?;
        let Some(since_ms) = seen.missed_since_ms else {
            return seen.reached.then_some(false);
        };
        let lately =
            seen.told.values().filter(|(at_ms, _)| now_ms.saturating_sub(*at_ms) < HOLDS_MS);
        let (mut reach, mut miss) = (0, 1);
        for (_, reached) in lately {
            *(if *reached { &mut reach } else { &mut miss }) += 1;
        }
        if reach >= miss {
            return Some(false);
        }
        let is_sure = now_ms.saturating_sub(since_ms) >= PATIENCE_MS;
        is_sure.then_some(true)
    }

    /// For how long nodes that are cut off have been missed, in milliseconds.
    pub fn missed_ms(&self, now_ms: u64) -> BTreeMap<NodeId, u64> {
        let cut_off =
            self.nodes.iter().filter(|(node, _)| self.is_cut_off(**node, now_ms) == Some(true));
        let missed = cut_off.filter_map(|(node, seen)| Some((*node, seen.missed_since_ms?)));
        missed.map(|(node, since_ms)| (node, now_ms.saturating_sub(since_ms))).collect()
    }

    /// Why the leader can't reach a node, if it can't.
    pub fn why(&self, node: NodeId) -> Option<&str> {
        let seen = self.nodes.get(&node)?;
        seen.missed_since_ms.map(|_| seen.why.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(4);

    fn missed() -> Option<String> {
        Some("nobody is there".to_owned())
    }

    #[test]
    fn a_node_that_most_miss_for_long_is_cut_off_until_it_is_reached() {
        let mut reach = Reach::default();
        assert_eq!(reach.is_cut_off(NODE, 0), None);
        reach.dialled(NODE, None, 0);
        assert_eq!(reach.is_cut_off(NODE, 10), Some(false));
        reach.dialled(NODE, missed(), 1000);
        assert_eq!(reach.missed().collect::<Vec<_>>(), [NODE]);
        assert_eq!(reach.is_cut_off(NODE, 3999), None);
        reach.dialled(NODE, missed(), 4000);
        assert_eq!(reach.is_cut_off(NODE, 4000), Some(true));
        assert_eq!(reach.missed_ms(4000), [(NODE, 3000)].into());
        assert_eq!(reach.why(NODE), Some("nobody is there"));
        reach.dialled(NODE, None, 4001);
        assert_eq!(reach.is_cut_off(NODE, 4001), Some(false));
        assert_eq!(reach.missed().count(), 0);
    }

    #[test]
    fn a_node_that_others_reach_is_not_cut_off() {
        let mut reach = Reach::default();
        reach.dialled(NODE, missed(), 0);
        reach.told(NodeId(1), NODE, true, 3000);
        reach.told(NodeId(2), NODE, true, 3000);
        reach.told(NodeId(3), NODE, false, 3000);
        assert_eq!(reach.is_cut_off(NODE, 4000), Some(false));
        // Words grow old.
        assert_eq!(reach.is_cut_off(NODE, 8000), Some(true));
        reach.told(NodeId(1), NODE, true, 8000);
        reach.told(NodeId(2), NODE, false, 8000);
        assert_eq!(reach.is_cut_off(NODE, 8000), Some(true));
        // Nobody speaks for itself.
        reach.told(NODE, NODE, true, 8000);
        assert_eq!(reach.is_cut_off(NODE, 8000), Some(true));
    }
}
