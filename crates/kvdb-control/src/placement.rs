//! Where the first replicas of new shards go.

use kvdb_model::{NodeId, NodeRecord};
use std::collections::{BTreeMap, BTreeSet};

/// Nodes for each of `shards` new shards: `factor` distinct ones a shard, in distinct zones while
/// there are zones left, the least loaded first. `load` counts the replicas that nodes have
/// already. The first node of a shard is meant to lead it; that is balanced too.
///
/// The same input gives the same output. Fewer nodes than `factor` give fewer replicas.
pub fn place_replicas(
    nodes: &[&NodeRecord],
    load: &BTreeMap<NodeId, usize>,
    shards: usize,
    factor: usize,
) -> Vec<Vec<NodeId>> {
    let mut replicas: BTreeMap<NodeId, usize> = nodes
        .iter()
        .map(|node| (node.node_id, load.get(&node.node_id).copied().unwrap_or(0)))
        .collect();
    let mut leads: BTreeMap<NodeId, usize> = BTreeMap::new();
    let mut placed = Vec::with_capacity(shards);
    for _ in 0..shards {
        let mut chosen: Vec<NodeId> = Vec::new();
        let mut zones: BTreeSet<&str> = BTreeSet::new();
        while chosen.len() < factor.min(nodes.len()) {
            let best =
                nodes.iter().filter(|node| !chosen.contains(&node.node_id)).min_by_key(|node| {
                    let zone_taken = zones.contains(node.zone.as_str());
                    (zone_taken, replicas[&node.node_id], node.node_id)
                });
            let Some(best) = best else { break };
            chosen.push(best.node_id);
            zones.insert(&best.zone);
            *replicas.entry(best.node_id).or_default() += 1;
        }
        chosen.sort_by_key(|node| (leads.get(node).copied().unwrap_or(0), *node));
        if let Some(first) = chosen.first() {
            *leads.entry(*first).or_default() += 1;
        }
        placed.push(chosen);
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::NodeStatus;
    use proptest::prelude::*;

    fn node(id: u64, zone: &str) -> NodeRecord {
        NodeRecord {
            node_id: NodeId(id),
            least_replica: Default::default(),
            address: format!("127.0.0.1:{id}"),
            zone: zone.to_owned(),
            status: NodeStatus::Alive,
        }
    }

    proptest! {
        #[test]
        fn replicas_are_on_distinct_nodes_and_balanced(count in 1usize..7, shards in 1usize..40, factor in 1usize..6) {
            let nodes: Vec<_> = (1..=count as u64).map(|id| node(id, "")).collect();
            let refs: Vec<_> = nodes.iter().collect();
            let placed = place_replicas(&refs, &BTreeMap::new(), shards, factor);
            let mut replicas: BTreeMap<NodeId, usize> = nodes.iter().map(|node| (node.node_id, 0)).collect();
            let mut leads = replicas.clone();
            for shard in &placed {
                prop_assert_eq!(shard.len(), factor.min(count));
                prop_assert_eq!(shard.iter().collect::<BTreeSet<_>>().len(), shard.len());
                for node in shard { *replicas.get_mut(node).unwrap() += 1; }
                *leads.get_mut(&shard[0]).unwrap() += 1;
            }
            let spread = |counts: &BTreeMap<NodeId, usize>| {
                counts.values().max().unwrap() - counts.values().min().unwrap()
            };
            prop_assert!(spread(&replicas) <= 1, "{:?}", replicas);
            prop_assert!(spread(&leads) <= 2, "{:?}", leads);
        }

        #[test]
        fn zones_are_distinct_while_there_are_enough(shards in 1usize..20, per_zone in 1u64..4) {
            let nodes: Vec<_> = (0..3 * per_zone).map(|n| node(n + 1, ["a", "b", "c"][n as usize % 3])).collect();
            let refs: Vec<_> = nodes.iter().collect();
            for shard in place_replicas(&refs, &BTreeMap::new(), shards, 3) {
                let zones: BTreeSet<_> = shard.iter().map(|id| (id.0 - 1) % 3).collect();
                prop_assert_eq!(zones.len(), 3);
            }
        }
    }
}
