//! The map as a router needs it.

use kvdb_model::{
    DeltaGap, KeyRange, Keyspace, KeyspaceId, MapDelta, MapVersion, NodeId, NodeStatus, RangeEpoch,
    Role, ShardDescriptor, ShardId, ShardMap,
};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where to send a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The shard.
    pub shard_id: ShardId,
    /// To be sent along.
    pub epoch: RangeEpoch,
    /// What the shard owns.
    pub range: KeyRange,
    /// The node to ask: the leader where one is known, else some replica.
    pub node: NodeId,
    /// Its address.
    pub address: Arc<str>,
}

/// An immutable view of the map.
#[derive(Debug, Default)]
pub struct Routes {
    version: MapVersion,
    /// Ascending by start; ranges don't overlap.
    shards: Vec<Routed>,
    nodes: BTreeMap<NodeId, (Arc<str>, NodeStatus)>,
    keyspaces: BTreeMap<String, Keyspace>,
    /// Names of those that are databases of Redis's protocol, by their numbers.
    databases: BTreeMap<u8, String>,
    /// Those that were dropped, with the names they had as far as they are known.
    dropped: BTreeMap<KeyspaceId, String>,
}

#[derive(Clone, Debug)]
struct Routed {
    descriptor: ShardDescriptor,
    leader: Option<NodeId>,
}

impl Routes {
    /// The map version that it was made from.
    pub fn version(&self) -> MapVersion {
        self.version
    }

    /// Whether there is any shard.
    pub fn has_shards(&self) -> bool {
        !self.shards.is_empty()
    }

    /// The keyspace of this name; the empty name is `default`.
    pub fn keyspace(&self, name: &str) -> Option<&Keyspace> {
        self.keyspaces.get(if name.is_empty() { "default" } else { name })
    }

    /// The name of a database of Redis's protocol: that which it will get if there is none yet.
    pub fn database_name(&self, db: u8) -> String {
        match self.databases.get(&db) {
            Some(name) => name.clone(),
            None if db == 0 => "default".to_owned(),
            None => format!("db{db}"),
        }
    }

    /// The name of the keyspace that a routing key belonged to, if it was dropped.
    pub fn dropped(&self, keyspace: KeyspaceId) -> Option<&str> {
        self.dropped.get(&keyspace).map(String::as_str)
    }

    /// The voters of the shard of a keyspace that has the fewest.
    pub fn fewest_voters(&self, keyspace: KeyspaceId) -> Option<usize> {
        let own = self.shards.iter().filter(|shard| shard.descriptor.keyspace_id == keyspace);
        own.map(|shard| {
            let replicas = shard.descriptor.replicas.iter();
            replicas.filter(|replica| replica.role == Role::Voter).count()
        })
        .min()
    }

    /// The address of a registered node.
    pub fn address(&self, node: NodeId) -> Option<&Arc<str>> {
        self.nodes.get(&node).map(|(address, _)| address)
    }

    /// All registered nodes whose addresses are known.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, Arc<str>)> {
        self.nodes.iter().map(|(node, (address, _))| (*node, address.clone()))
    }

    /// Whether an address is that of a registered node, and which.
    pub fn node_at(&self, address: &str) -> Option<NodeId> {
        self.nodes.iter().find(|(_, (known, _))| &**known == address).map(|(id, _)| *id)
    }

    /// The shard of a routing key, and whom to ask. `avoid` is a node that has just failed to
    /// answer: another one is taken where there is one.
    pub fn route(&self, routing_key: &[u8], avoid: Option<NodeId>) -> Option<Route> {
        let after = self
            .shards
            .partition_point(|shard| shard.descriptor.range.start.as_ref() <= routing_key);
        let shard = self.shards.get(after.checked_sub(1)?)?;
        if !shard.descriptor.range.contains(routing_key) {
            return None;
        }
        self.route_to(shard, avoid)
    }

    /// The shard that holds the keys just below `end` (below everything unbounded, if it is
    /// empty): where a backward scan goes on.
    pub fn route_before(&self, end: &[u8], avoid: Option<NodeId>) -> Option<Route> {
        let after = if end.is_empty() {
            self.shards.len()
        } else {
            self.shards.partition_point(|shard| shard.descriptor.range.start.as_ref() < end)
        };
        self.route_to(self.shards.get(after.checked_sub(1)?)?, avoid)
    }

    /// The shard of a routing key, and one of its replicas that is alive as far as is known, by
    /// turns: for reads that any may serve.
    pub fn route_to_any(&self, routing_key: &[u8], turn: u64) -> Option<Route> {
        let route = self.route(routing_key, None)?;
        let after = self
            .shards
            .partition_point(|shard| shard.descriptor.range.start.as_ref() <= routing_key);
        let shard = self.shards.get(after.checked_sub(1)?)?;
        let alive = |node: &NodeId| matches!(self.nodes.get(node), Some((_, NodeStatus::Alive)));
        let replicas = shard.descriptor.replicas.iter().map(|replica| replica.node_id);
        let able: Vec<NodeId> = replicas.filter(alive).collect();
        let Some(place) = turn.checked_rem(able.len() as u64) else { return Some(route) };
        let node = able[place as usize];
        Some(Route { node, address: self.address(node)?.clone(), ..route })
    }

    fn route_to(&self, shard: &Routed, avoid: Option<NodeId>) -> Option<Route> {
        let descriptor = &shard.descriptor;
        let leader = shard.leader.filter(|leader| Some(*leader) != avoid);
        let known = leader.filter(|leader| self.nodes.contains_key(leader));
        let node = known.or_else(|| self.some_replica(descriptor, avoid))?;
        Some(Route {
            shard_id: descriptor.shard_id,
            epoch: descriptor.range_epoch,
            range: descriptor.range.clone(),
            node,
            address: self.address(node)?.clone(),
        })
    }

    fn some_replica(&self, descriptor: &ShardDescriptor, avoid: Option<NodeId>) -> Option<NodeId> {
        let rank = |node: NodeId| {
            let alive = matches!(self.nodes.get(&node), Some((_, NodeStatus::Alive)));
            (Some(node) == avoid, !alive, node)
        };
        descriptor
            .replicas
            .iter()
            .map(|replica| replica.node_id)
            .filter(|node| self.nodes.contains_key(node))
            .min_by_key(|node| rank(*node))
    }
}

/// The map as it is known, with what refusals have taught.
#[derive(Debug, Default)]
pub struct MapCache {
    map: ShardMap,
    /// What refusals have taught and the map doesn't say yet: an older map must not undo it, or
    /// each refresh would send requests back to where they were refused.
    learnt: BTreeMap<ShardId, ShardDescriptor>,
    /// What keyspaces are called, or were: the map forgets the names of those that are dropped.
    names: BTreeMap<KeyspaceId, String>,
}

impl MapCache {
    /// The version of the map.
    pub fn version(&self) -> MapVersion {
        self.map.version
    }

    /// The map.
    pub fn map(&self) -> &ShardMap {
        &self.map
    }

    /// A snapshot came. One that is older than what is known, of the same cluster, is dropped.
    pub fn snapshot(&mut self, map: ShardMap) {
        if map.cluster_id != self.map.cluster_id {
            self.learnt.clear();
        } else if map.version < self.map.version {
            return;
        }
        self.map = map;
        self.learn_again();
    }

    /// A delta came.
    ///
    /// # Errors
    /// [`DeltaGap`]: a snapshot is needed.
    pub fn delta(&mut self, delta: &MapDelta) -> Result<(), DeltaGap> {
        self.map.apply(delta)?;
        self.learn_again();
        Ok(())
    }

    fn learn_again(&mut self) {
        self.names.retain(|id, _| self.map.keyspaces.contains_key(id));
        for keyspace in self.map.keyspaces.values().filter(|keyspace| !keyspace.is_dropped()) {
            if self.names.get(&keyspace.keyspace_id) != Some(&keyspace.name) {
                self.names.insert(keyspace.keyspace_id, keyspace.name.clone());
            }
        }
        if self.learnt.is_empty() {
            return;
        }
        let learnt: Vec<ShardDescriptor> = std::mem::take(&mut self.learnt).into_values().collect();
        self.learn(&learnt);
    }

    /// Descriptors came with a refusal: for the same shard the higher epochs win; where ranges
    /// overlap, the higher range epoch. Returns whether anything is new.
    pub fn learn(&mut self, descriptors: &[ShardDescriptor]) -> bool {
        let mut changed = false;
        for descriptor in descriptors {
            if self.learn_one(descriptor) {
                self.learnt.insert(descriptor.shard_id, descriptor.clone());
                changed = true;
            }
        }
        changed
    }

    fn learn_one(&mut self, descriptor: &ShardDescriptor) -> bool {
        let id = descriptor.shard_id;
        let keyspace = self.map.keyspaces.get(&descriptor.keyspace_id);
        if keyspace.is_none_or(Keyspace::is_dropped) {
            return false;
        }
        if let Some(known) = self.map.shards.get_mut(&id) {
            let newer = (descriptor.range_epoch, descriptor.membership_epoch)
                > (known.descriptor.range_epoch, known.descriptor.membership_epoch);
            if newer {
                known.descriptor = descriptor.clone();
            }
            return newer;
        }
        let overlapping: Vec<ShardId> = self
            .map
            .shards
            .values()
            .filter(|other| other.descriptor.range.overlaps(&descriptor.range))
            .map(|other| other.descriptor.shard_id)
            .collect();
        let outranks = overlapping
            .iter()
            .all(|other| self.map.shards[other].descriptor.range_epoch < descriptor.range_epoch);
        if outranks {
            self.map.shards.insert(
                id,
                kvdb_model::ShardRecord {
                    descriptor: descriptor.clone(),
                    leader: None,
                    leader_term: kvdb_model::Term(0),
                    creating: false,
                },
            );
        }
        outranks
    }

    /// A node has proved to lead a shard, or (with `None`) not to. Returns whether that is new.
    pub fn learn_leader(&mut self, shard: ShardId, leader: Option<NodeId>) -> bool {
        match self.map.shards.get_mut(&shard) {
            Some(record) if record.leader != leader => {
                record.leader = leader;
                true
            }
            _ => false,
        }
    }

    /// The view for requests.
    pub fn routes(&self) -> Routes {
        let mut shards: Vec<Routed> = self
            .map
            .shards
            .values()
            .map(|shard| Routed { descriptor: shard.descriptor.clone(), leader: shard.leader })
            .collect();
        shards.sort_by(|a, b| a.descriptor.range.start.cmp(&b.descriptor.range.start));
        Routes {
            version: self.map.version,
            shards,
            nodes: self
                .map
                .nodes
                .values()
                .filter(|node| node.status != NodeStatus::Removed && !node.address.is_empty())
                .map(|node| (node.node_id, (Arc::from(node.address.as_str()), node.status)))
                .collect(),
            keyspaces: self
                .map
                .keyspaces
                .values()
                .filter(|keyspace| !keyspace.is_dropped())
                .map(|keyspace| (keyspace.name.clone(), keyspace.clone()))
                .collect(),
            databases: self
                .map
                .keyspaces
                .values()
                .filter(|keyspace| !keyspace.is_dropped() && keyspace.redis_db > 0)
                .map(|keyspace| (keyspace.redis_db, keyspace.name.clone()))
                .collect(),
            dropped: self
                .map
                .keyspaces
                .values()
                .filter(|keyspace| keyspace.is_dropped())
                .map(|keyspace| keyspace.keyspace_id)
                .map(|id| {
                    let name = self.names.get(&id).cloned();
                    (id, name.unwrap_or_else(|| format!("of id {}", id.0)))
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use kvdb_model::{
        MapChange, MembershipEpoch, NodeRecord, Replica, ReplicaId, ShardRecord, Term,
    };
    use proptest::prelude::*;

    fn descriptor(id: u64, start: u8, end: u8, epoch: u64) -> ShardDescriptor {
        ShardDescriptor {
            shard_id: ShardId(id),
            keyspace_id: KeyspaceId(1),
            range: KeyRange::new(vec![start], vec![end]),
            range_epoch: RangeEpoch(epoch),
            membership_epoch: MembershipEpoch(1),
            replicas: (1..=3)
                .map(|node| Replica {
                    node_id: NodeId(node),
                    replica_id: ReplicaId(id * 10 + node),
                    role: Role::Voter,
                })
                .collect(),
        }
    }

    fn cache(bounds: &[u8]) -> MapCache {
        let mut map = ShardMap::default();
        map.change(MapChange::Keyspace(Keyspace::new(
            KeyspaceId(1),
            "default",
            kvdb_model::Partitioning::Range,
        )));
        for id in 1..=3 {
            map.change(MapChange::Node(NodeRecord {
                node_id: NodeId(id),
                least_replica: Default::default(),
                address: format!("n{id}:1"),
                zone: String::new(),
                status: if id == 1 { NodeStatus::Dead } else { NodeStatus::Alive },
            }));
        }
        for (place, pair) in bounds.windows(2).enumerate() {
            map.change(MapChange::Shard(ShardRecord {
                descriptor: descriptor(place as u64 + 1, pair[0], pair[1], 1),
                leader: None,
                leader_term: Term(0),
                creating: false,
            }));
        }
        let mut cache = MapCache::default();
        cache.snapshot(map);
        cache
    }

    #[test]
    fn a_dropped_keyspace_is_known_by_the_name_it_had() {
        let keyspace =
            |name: &str| Keyspace::new(KeyspaceId(7), name, kvdb_model::Partitioning::Hash);
        let mut cache = MapCache::default();
        let map = |version, name: &str| ShardMap {
            version: MapVersion(version),
            keyspaces: [(KeyspaceId(7), keyspace(name))].into(),
            ..ShardMap::default()
        };
        cache.snapshot(map(1, "orders"));
        assert_eq!(cache.routes().dropped(KeyspaceId(7)), None);
        cache.snapshot(map(2, ""));
        assert_eq!(cache.routes().dropped(KeyspaceId(7)), Some("orders"));
        assert_eq!(cache.routes().dropped(KeyspaceId(8)), None);
        // Who has never heard the name says which id it had.
        let mut late = MapCache::default();
        late.snapshot(map(2, ""));
        assert_eq!(late.routes().dropped(KeyspaceId(7)), Some("of id 7"));
    }

    proptest! {
        #[test]
        fn a_key_goes_to_the_shard_whose_range_holds_it(mut bounds in prop::collection::btree_set(0u8..=255, 2..10), key in any::<u8>()) {
            let bounds: Vec<u8> = std::mem::take(&mut bounds).into_iter().collect();
            let routes = cache(&bounds).routes();
            let expected = bounds.windows(2).position(|pair| pair[0] <= key && key < pair[1]);
            let found = routes.route(&[key], None).map(|route| route.shard_id.0 as usize - 1);
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_leader_is_asked_and_where_none_is_known_a_live_replica() {
        let mut cache = cache(&[0, 100]);
        assert_eq!(cache.routes().route(&[5], None).unwrap().node, NodeId(2));
        assert_eq!(cache.routes().route(&[5], Some(NodeId(2))).unwrap().node, NodeId(3));
        assert!(cache.learn_leader(ShardId(1), Some(NodeId(1))));
        assert_eq!(cache.routes().route(&[5], None).unwrap().node, NodeId(1));
        assert_eq!(cache.routes().route(&[5], Some(NodeId(1))).unwrap().node, NodeId(2));
    }

    #[test]
    fn descriptors_of_a_split_replace_the_wider_one_only_if_newer() {
        let mut cache = cache(&[0, 100]);
        let halves = [descriptor(1, 0, 50, 2), descriptor(9, 50, 100, 2)];
        assert!(cache.learn(&halves));
        assert_eq!(cache.routes().route(&[60], None).unwrap().shard_id, ShardId(9));
        assert_eq!(cache.routes().route(&[10], None).unwrap().epoch, RangeEpoch(2));
        assert!(!cache.learn(&halves));
        assert!(!cache.learn(&[descriptor(1, 0, 100, 1), descriptor(8, 0, 100, 1)]));
    }

    #[test]
    fn an_older_map_does_not_undo_what_was_learnt_and_a_newer_one_does() {
        let mut cache = cache(&[0, 100]);
        let old = cache.map().clone();
        cache.learn(&[descriptor(1, 0, 50, 2), descriptor(9, 50, 100, 2)]);
        cache.snapshot(ShardMap { version: old.version.next(), ..old.clone() });
        assert_eq!(cache.routes().route(&[60], None).unwrap().shard_id, ShardId(9));
        assert_eq!(cache.routes().route(&[10], None).unwrap().epoch, RangeEpoch(2));

        // Another split, of which only the map tells.
        let mut newer = cache.map().clone();
        newer.version = newer.version.next();
        for (id, start, end) in [(9, 50, 70), (11, 70, 100)] {
            let descriptor = descriptor(id, start, end, 3);
            let mut record = newer.shards[&ShardId(1)].clone();
            record.descriptor = descriptor;
            newer.change(MapChange::Shard(record));
        }
        cache.snapshot(newer);
        assert_eq!(cache.routes().route(&[80], None).unwrap().shard_id, ShardId(11));

        let mut dropped = cache.map().clone();
        let keyspace = dropped.keyspaces[&KeyspaceId(1)].clone();
        dropped.change(MapChange::Keyspace(Keyspace { name: String::new(), ..keyspace }));
        for shard in [1, 9, 11] {
            dropped.change(MapChange::ShardGone(ShardId(shard)));
        }
        cache.snapshot(dropped);
        assert!(!cache.learn(&[descriptor(1, 0, 50, 2)]));
        assert!(!cache.routes().has_shards());
        assert_eq!(cache.routes().keyspace("default"), None);
    }

    #[test]
    fn reads_that_any_replica_may_serve_go_round_those_that_are_alive() {
        let routes = cache(&[0, 100]).routes();
        let asked: Vec<_> =
            (0..4).map(|turn| routes.route_to_any(&[5], turn).unwrap().node.0).collect();
        assert_eq!(asked, [2, 3, 2, 3]);
    }

    #[test]
    fn an_address_is_that_of_a_registered_node_or_of_none() {
        let routes = cache(&[0, 100]).routes();
        assert_eq!(routes.node_at("n3:1"), Some(NodeId(3)));
        assert_eq!(routes.node_at("evil:1"), None);
        assert_eq!(Bytes::from(routes.address(NodeId(2)).unwrap().to_string()), "n2:1");
    }
}
