//! The shard map: nodes, keyspaces and shards, with one version for all of it, and the deltas by
//! which watchers follow it.
//!
//! Invariant: for any two versions of a map, applying the deltas between them to the older gives
//! the newer. A watcher therefore never needs to trust more than the snapshot it started from.

use crate::descriptor::{Replica, ShardDescriptor};
use crate::generation::Generation;
use crate::history::{HistoryLimits, HistoryPolicy};
use crate::id::{ClusterId, KeyspaceId, MapVersion, NodeId, ReplicaId, ShardId, Term};
use crate::key::{KeyRange, Partitioning};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use thiserror::Error;

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NodeStatus {
    /// Its heartbeats arrive.
    Alive,
    /// Some were missed.
    Suspect,
    /// None for long.
    Dead,
    /// An operator asked for it to be emptied.
    Draining,
    /// It is no longer part of the cluster.
    Removed,
    /// Its heartbeats arrive, and most of the others can't reach it.
    Unreachable,
}

/// A storage node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node.
    pub node_id: NodeId,
    /// Where its gRPC listener is reached, `host:port`. Empty if that isn't known: another node was
    /// found where this one was, and it has yet to say where it is.
    pub address: String,
    /// The failure domain; empty if none was given.
    pub zone: String,
    /// How it is.
    pub status: NodeStatus,
    /// Replicas with lower ids take no part: the node runs on an older copy of its directory, which somebody
    /// has accepted, and they have forgotten what they promised.
    pub least_replica: ReplicaId,
}

/// A keyspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyspace {
    /// The first four bytes of its routing keys.
    pub keyspace_id: KeyspaceId,
    /// What clients call it. Empty once it is dropped: its record stays, as the word for nodes that
    /// its shards are gone for good, and its id is never used again.
    pub name: String,
    /// How its keys are laid out.
    pub partitioning: Partitioning,
    /// How much of its past its shards keep.
    pub history: HistoryPolicy,
    /// Replicas that each of its shards is to have. It has fewer while there are too few nodes.
    pub replicas: u32,
    /// It has one shard, which is never split: a command or a transaction may name any of its keys.
    pub colocated: bool,
    /// The number by which clients of Redis's protocol select it; 0 for none. (Their 0 is `default`.)
    pub redis_db: u8,
}

/// The last number of a database of Redis's protocol.
pub const LAST_REDIS_DB: u8 = 15;

/// The number of a database of Redis's protocol that a name stands for: `db1` to `db15`.
pub fn redis_db_named(name: &str) -> Option<u8> {
    let db = name.strip_prefix("db")?.parse().ok()?;
    ((1..=LAST_REDIS_DB).contains(&db) && name == format!("db{db}")).then_some(db)
}

/// A keyspace that is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewKeyspace {
    /// 1 to 64 of `a-z 0-9 - _`.
    pub name: String,
    /// How its keys are laid out.
    pub partitioning: Partitioning,
    /// How many shards it begins with; 0 = 8. One that is in ranges or colocated begins with one.
    pub shards: u32,
    /// Replicas wanted of each shard, 1 to 7; 0 = 3.
    pub replicas: u32,
    /// How much of its past its shards keep.
    pub history: Option<HistoryLimits>,
    /// As [`Keyspace::colocated`].
    pub colocated: bool,
    /// As [`Keyspace::redis_db`]. The names `db1` to `db15` imply theirs.
    pub redis_db: u8,
}

impl NewKeyspace {
    /// One with 8 shards by hash, no history and no number.
    pub fn named(name: impl Into<String>) -> Self {
        NewKeyspace {
            name: name.into(),
            partitioning: Partitioning::Hash,
            shards: 0,
            replicas: 0,
            history: None,
            colocated: false,
            redis_db: 0,
        }
    }
}

impl Keyspace {
    /// One that is neither colocated nor selected by a number, and without history.
    pub fn new(keyspace_id: KeyspaceId, name: &str, partitioning: Partitioning) -> Self {
        Keyspace {
            keyspace_id,
            name: name.to_owned(),
            partitioning,
            history: HistoryPolicy::default(),
            replicas: 3,
            colocated: false,
            redis_db: 0,
        }
    }

    /// Whether it was dropped.
    pub fn is_dropped(&self) -> bool {
        self.name.is_empty()
    }
}

/// A shard as the coordinators know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    /// The latest descriptor that its leader reported (or that it was created with).
    pub descriptor: ShardDescriptor,
    /// The node of its leader, once one has reported.
    pub leader: Option<NodeId>,
    /// The term in which that leader leads: a report from an earlier term is stale.
    pub leader_term: Term,
    /// True until its first leader has reported: only then may nodes create its replicas.
    pub creating: bool,
}

/// The whole map.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardMap {
    /// The cluster.
    pub cluster_id: ClusterId,
    /// Of the coordinators whose map it is. No delta changes it: with the next generation a watcher gets a
    /// snapshot.
    pub generation: Generation,
    /// Raised by one with each change, and leaps with a generation.
    pub version: MapVersion,
    /// By id.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// By id.
    pub keyspaces: BTreeMap<KeyspaceId, Keyspace>,
    /// By id.
    pub shards: BTreeMap<ShardId, ShardRecord>,
}

/// One change of the map: the new state of one thing, or its removal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MapChange {
    /// The cluster got its id.
    Cluster(ClusterId),
    /// A node is new or changed.
    Node(NodeRecord),
    /// A node's record is gone.
    NodeGone(NodeId),
    /// A keyspace is new or changed.
    Keyspace(Keyspace),
    /// A keyspace is gone.
    KeyspaceGone(KeyspaceId),
    /// A shard is new or changed.
    Shard(ShardRecord),
    /// A shard is gone.
    ShardGone(ShardId),
}

/// What one command did to the map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapDelta {
    /// The version after it; it applies to the version before this one.
    pub version: MapVersion,
    /// In order.
    pub changes: Vec<MapChange>,
}

/// A delta that doesn't follow the map it was applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("delta {delta} does not follow map version {map}")]
pub struct DeltaGap {
    /// The map's version.
    pub map: MapVersion,
    /// The delta's version.
    pub delta: MapVersion,
}

impl ShardMap {
    /// Whether enough nodes of a shard's voters are there, as far as their statuses tell.
    pub fn has_majority(&self, descriptor: &ShardDescriptor) -> bool {
        descriptor.has_majority(|node| {
            let is_there = self.nodes.get(&node).is_some_and(|record| {
                !matches!(record.status, NodeStatus::Dead | NodeStatus::Removed)
            });
            is_there && descriptor.replica_on(node).is_some_and(|replica| self.takes_part(replica))
        })
    }

    /// Whether a replica isn't one of an older copy that was accepted.
    pub fn takes_part(&self, replica: &Replica) -> bool {
        let node = self.nodes.get(&replica.node_id);
        node.is_none_or(|record| replica.replica_id >= record.least_replica)
    }

    /// Applies the next delta. One that is already contained changes nothing.
    ///
    /// # Errors
    /// [`DeltaGap`] if deltas are missing in between; the map is untouched.
    pub fn apply(&mut self, delta: &MapDelta) -> Result<(), DeltaGap> {
        if delta.version <= self.version {
            return Ok(());
        }
        if delta.version != self.version.next() {
            return Err(DeltaGap { map: self.version, delta: delta.version });
        }
        for change in &delta.changes {
            self.change(change.clone());
        }
        self.version = delta.version;
        Ok(())
    }

    /// Makes one change, without touching the version.
    pub fn change(&mut self, change: MapChange) {
        match change {
            MapChange::Cluster(id) => self.cluster_id = id,
            MapChange::Node(node) => {
                self.nodes.insert(node.node_id, node);
            }
            MapChange::NodeGone(id) => {
                self.nodes.remove(&id);
            }
            MapChange::Keyspace(keyspace) => {
                self.keyspaces.insert(keyspace.keyspace_id, keyspace);
            }
            MapChange::KeyspaceGone(id) => {
                self.keyspaces.remove(&id);
            }
            MapChange::Shard(shard) => {
                self.shards.insert(shard.descriptor.shard_id, shard);
            }
            MapChange::ShardGone(id) => {
                self.shards.remove(&id);
            }
        }
    }

    /// The changes that turn `self` into `other`, whatever lies between them.
    pub fn diff(&self, other: &ShardMap) -> Vec<MapChange> {
        let mut changes = Vec::new();
        if self.cluster_id != other.cluster_id {
            changes.push(MapChange::Cluster(other.cluster_id));
        }
        diff_table(&self.nodes, &other.nodes, &mut changes, MapChange::Node, MapChange::NodeGone);
        diff_table(
            &self.keyspaces,
            &other.keyspaces,
            &mut changes,
            MapChange::Keyspace,
            MapChange::KeyspaceGone,
        );
        diff_table(
            &self.shards,
            &other.shards,
            &mut changes,
            MapChange::Shard,
            MapChange::ShardGone,
        );
        changes
    }

    /// The keyspace with this name; the empty name is `default`.
    pub fn keyspace_named(&self, name: &str) -> Option<&Keyspace> {
        let name = if name.is_empty() { "default" } else { name };
        self.keyspaces.values().find(|keyspace| keyspace.name == name)
    }

    /// The keyspace that clients of Redis's protocol select by a number.
    pub fn keyspace_of_redis_db(&self, db: u8) -> Option<&Keyspace> {
        let is_it = |keyspace: &&Keyspace| !keyspace.is_dropped() && keyspace.redis_db == db;
        match db {
            0 => self.keyspace_named("default"),
            _ => self.keyspaces.values().find(is_it),
        }
    }

    /// Shards whose ranges overlap `range`, by start of range.
    pub fn shards_in(&self, range: &KeyRange) -> Vec<&ShardRecord> {
        let mut found: Vec<_> =
            self.shards.values().filter(|shard| shard.descriptor.range.overlaps(range)).collect();
        found.sort_by(|a, b| a.descriptor.range.start.cmp(&b.descriptor.range.start));
        found
    }
}

fn diff_table<K: Ord + Copy, V: PartialEq + Clone>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    changes: &mut Vec<MapChange>,
    changed: impl Fn(V) -> MapChange,
    gone: impl Fn(K) -> MapChange,
) {
    changes.extend(old.keys().filter(|key| !new.contains_key(key)).map(|key| gone(*key)));
    changes.extend(
        new.iter()
            .filter(|(key, value)| old.get(key) != Some(value))
            .map(|(_, value)| changed(value.clone())),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{MembershipEpoch, RangeEpoch};
    use proptest::prelude::*;

    fn any_change() -> impl Strategy<Value = MapChange> {
        prop_oneof![
            (0u64..4, 0u8..5).prop_map(|(id, port)| MapChange::Node(NodeRecord {
                node_id: NodeId(id),
                address: format!("127.0.0.1:{port}"),
                zone: String::new(),
                status: NodeStatus::Alive,
                least_replica: ReplicaId(u64::from(port)),
            })),
            (0u64..4).prop_map(|id| MapChange::NodeGone(NodeId(id))),
            (0u32..3, "[a-c]", 0u8..3).prop_map(|(id, name, db)| {
                let keyspace = Keyspace::new(KeyspaceId(id), &name, Partitioning::Hash);
                MapChange::Keyspace(Keyspace { colocated: db == 1, redis_db: db, ..keyspace })
            }),
            (0u32..3).prop_map(|id| MapChange::KeyspaceGone(KeyspaceId(id))),
            (0u64..4, 0u64..5, prop::option::of(0u64..3)).prop_map(|(id, epoch, leader)| {
                MapChange::Shard(ShardRecord {
                    descriptor: ShardDescriptor {
                        shard_id: ShardId(id),
                        keyspace_id: KeyspaceId(0),
                        range: KeyRange::ALL,
                        range_epoch: RangeEpoch(epoch),
                        membership_epoch: MembershipEpoch(1),
                        replicas: vec![],
                    },
                    leader: leader.map(NodeId),
                    leader_term: Term(epoch),
                    creating: false,
                })
            }),
            (0u64..4).prop_map(|id| MapChange::ShardGone(ShardId(id))),
        ]
    }

    proptest! {
        #[test]
        fn deltas_lead_to_the_snapshot(steps in prop::collection::vec(prop::collection::vec(any_change(), 0..4), 0..20), from in 0usize..20) {
            let mut map = ShardMap::default();
            let mut history = vec![map.clone()];
            let mut deltas = Vec::new();
            for changes in steps {
                let delta = MapDelta { version: map.version.next(), changes };
                map.apply(&delta).unwrap();
                deltas.push(delta);
                history.push(map.clone());
            }
            let from = from.min(history.len() - 1);
            let mut follower = history[from].clone();
            for delta in &deltas {
                follower.apply(delta).unwrap();
            }
            prop_assert_eq!(&follower, &map);

            let mut jumped = history[from].clone();
            for change in history[from].diff(&map) { jumped.change(change); }
            jumped.version = map.version;
            prop_assert_eq!(&jumped, &map);
        }

        #[test]
        fn a_gap_is_refused_and_changes_nothing(change in any_change(), ahead in 2u64..9) {
            let mut map = ShardMap::default();
            let delta = MapDelta { version: MapVersion(ahead), changes: vec![change] };
            prop_assert!(map.apply(&delta).is_err());
            prop_assert_eq!(map, ShardMap::default());
        }
    }
}
