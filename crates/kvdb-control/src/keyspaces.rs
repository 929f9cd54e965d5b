//! Keyspaces and their first shards.

use crate::command::{ControlError, ControlResponse};
use crate::counts::USUAL_REPLICAS;
use crate::placement::place_replicas;
use crate::state::ControlState;
use kvdb_model::key::slot_start;
use kvdb_model::{
    HistoryLimits, HistoryPolicy, KeyRange, Keyspace, KeyspaceId, LAST_REDIS_DB, MapChange,
    MembershipEpoch, NewKeyspace, NodeId, NodeRecord, NodeStatus, Partitioning, RangeEpoch,
    Replica, Role, SLOT_COUNT, ShardDescriptor, ShardRecord, Term, redis_db_named,
};
use std::collections::BTreeMap;

/// The keyspace that exists once shards were initialised.
pub(crate) const DEFAULT_KEYSPACE: KeyspaceId = KeyspaceId(1);
/// Most replicas of a shard.
const MOST_REPLICAS: u32 = 7;

impl ControlState {
    pub(crate) fn init_shards(
        &mut self,
        shards: u32,
        factor: u32,
    ) -> Result<ControlResponse, ControlError> {
        let existing = self
            .map
            .shards
            .values()
            .filter(|shard| shard.descriptor.keyspace_id == DEFAULT_KEYSPACE)
            .count() as u32;
        if self.map.keyspaces.contains_key(&DEFAULT_KEYSPACE) {
            // More than were asked for may have come about by splits.
            if existing >= shards {
                return Ok(ControlResponse::ShardsInitialised(false, self.map.version));
            }
            return Err(ControlError::AlreadyInitialised(existing));
        }
        let new = NewKeyspace { shards, replicas: factor, ..NewKeyspace::named("default") };
        self.make_keyspace(&new)?;
        Ok(ControlResponse::ShardsInitialised(true, self.map.version))
    }

    pub(crate) fn create_keyspace(
        &mut self,
        new: &NewKeyspace,
    ) -> Result<ControlResponse, ControlError> {
        let name = &new.name;
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
            return Err(ControlError::BadName(name.clone()));
        }
        if self.map.keyspace_named(name).is_some() || name == "default" {
            return Err(ControlError::KeyspaceExists(name.clone()));
        }
        let redis_db = self.free_database(new)?;
        if new.colocated && new.shards > 1 {
            return Err(ControlError::Colocated(name.clone()));
        }
        if self.counters.next_keyspace == DEFAULT_KEYSPACE {
            // The first id is kept for `default`.
            self.counters.next_keyspace = DEFAULT_KEYSPACE.next();
        }
        let shards = match new.partitioning {
            _ if new.colocated => 1,
            Partitioning::Range => 1,
            Partitioning::Hash if new.shards == 0 => 8,
            Partitioning::Hash => new.shards,
        };
        let id = self.make_keyspace(&NewKeyspace { shards, redis_db, ..new.clone() })?;
        Ok(ControlResponse::KeyspaceCreated(id, self.map.version))
    }

    /// The number of the database that a new keyspace is to be; 0 for none.
    fn free_database(&self, new: &NewKeyspace) -> Result<u8, ControlError> {
        if new.redis_db > LAST_REDIS_DB {
            return Err(ControlError::OutOfRange {
                field: "redis_db".to_owned(),
                value: new.redis_db.into(),
                accepted: format!("1 to {LAST_REDIS_DB}, or 0 for none"),
            });
        }
        let db = match redis_db_named(&new.name) {
            Some(db) if new.redis_db != 0 && new.redis_db != db => {
                return Err(ControlError::NameOfDatabase { name: new.name.clone(), db });
            }
            Some(db) => db,
            None => new.redis_db,
        };
        match self.map.keyspace_of_redis_db(db).filter(|_| db != 0) {
            Some(other) => Err(ControlError::DatabaseTaken { db, name: other.name.clone() }),
            None => Ok(db),
        }
    }

    /// A keyspace, if its shard is never split.
    pub(crate) fn colocated(&self, keyspace: KeyspaceId) -> Option<&Keyspace> {
        self.map.keyspaces.get(&keyspace).filter(|keyspace| keyspace.colocated)
    }

    pub(crate) fn set_history(
        &mut self,
        name: &str,
        limits: Option<HistoryLimits>,
    ) -> Result<ControlResponse, ControlError> {
        let known = self.map.keyspace_named(name).filter(|known| !known.is_dropped()).cloned();
        let keyspace = known.ok_or_else(|| ControlError::UnknownKeyspace(name.to_owned()))?;
        if keyspace.history.limits != limits {
            let history = HistoryPolicy { revision: keyspace.history.revision + 1, limits };
            self.map.change(MapChange::Keyspace(Keyspace { history, ..keyspace }));
        }
        Ok(ControlResponse::Done(self.map.version))
    }

    /// The shards leave the map at once; nodes clean up when they hear that the keyspace is dropped.
    /// Operators of its shards fail by themselves, as for any shard that is gone.
    pub(crate) fn drop_keyspace(&mut self, name: &str) -> Result<ControlResponse, ControlError> {
        if name.is_empty() || name == "default" {
            return Err(ControlError::DefaultStays);
        }
        let known = self.map.keyspace_named(name).cloned();
        let keyspace = known.ok_or_else(|| ControlError::UnknownKeyspace(name.to_owned()))?;
        let id = keyspace.keyspace_id;
        self.map.shards.retain(|_, shard| shard.descriptor.keyspace_id != id);
        let shards = &self.map.shards;
        self.wanted_leaders.retain(|shard, _| shards.contains_key(shard));
        self.wanted_replicas.retain(|shard, _| shards.contains_key(shard));
        self.map.change(MapChange::Keyspace(Keyspace { name: String::new(), ..keyspace }));
        Ok(ControlResponse::Done(self.map.version))
    }

    fn make_keyspace(&mut self, new: &NewKeyspace) -> Result<KeyspaceId, ControlError> {
        let NewKeyspace { ref name, partitioning, shards, replicas: factor, .. } = *new;
        if shards == 0 || shards > u32::from(SLOT_COUNT) {
            return Err(ControlError::OutOfRange {
                field: "shards".to_owned(),
                value: shards.into(),
                accepted: format!("1 to {SLOT_COUNT}"),
            });
        }
        if factor > MOST_REPLICAS {
            return Err(ControlError::OutOfRange {
                field: "replication_factor".to_owned(),
                value: factor.into(),
                accepted: format!("1 to {MOST_REPLICAS}, or 0 for {USUAL_REPLICAS}"),
            });
        }
        let members = || self.map.nodes.values().filter(|node| node.status != NodeStatus::Removed);
        // As many nodes may come yet where nothing was said, or be away now; a number beyond those
        // that there are at all is a mistake.
        if factor > members().count() as u32 {
            let nodes = members().count() as u32;
            return Err(ControlError::TooFewForReplicas { replicas: factor, nodes });
        }
        let nodes: Vec<NodeRecord> =
            members().filter(|node| node.status == NodeStatus::Alive).cloned().collect();
        if nodes.is_empty() {
            return Err(ControlError::TooFewNodes { needed: 1, alive: 0 });
        }
        let replicas = if factor == 0 { USUAL_REPLICAS } else { factor };
        let keyspace_id =
            if name == "default" { DEFAULT_KEYSPACE } else { self.counters.next_keyspace };
        self.counters.next_keyspace = self.counters.next_keyspace.max(keyspace_id.next());
        let keyspace = Keyspace {
            replicas,
            colocated: new.colocated,
            redis_db: new.redis_db,
            ..Keyspace::new(keyspace_id, name, partitioning)
        };
        self.map.change(MapChange::Keyspace(keyspace));
        let refs: Vec<&NodeRecord> = nodes.iter().collect();
        let placed =
            place_replicas(&refs, &self.replica_counts(), shards as usize, replicas as usize);
        for (place, nodes) in placed.into_iter().enumerate() {
            let range = range_of(keyspace_id, partitioning, place as u32, shards);
            self.make_shard(keyspace_id, range, &nodes);
        }
        Ok(keyspace_id)
    }

    fn replica_counts(&self) -> BTreeMap<NodeId, usize> {
        let mut load = BTreeMap::new();
        for shard in self.map.shards.values() {
            for replica in &shard.descriptor.replicas {
                *load.entry(replica.node_id).or_default() += 1;
            }
        }
        load
    }

    fn make_shard(&mut self, keyspace_id: KeyspaceId, range: KeyRange, nodes: &[NodeId]) {
        let shard_id = self.counters.next_shard;
        self.counters.next_shard = shard_id.next();
        let mut replicas = Vec::with_capacity(nodes.len());
        for node_id in nodes {
            let replica_id = self.counters.next_replica;
            self.counters.next_replica = replica_id.next();
            replicas.push(Replica { node_id: *node_id, replica_id, role: Role::Voter });
        }
        let descriptor = ShardDescriptor {
            shard_id,
            keyspace_id,
            range,
            range_epoch: RangeEpoch(1),
            membership_epoch: MembershipEpoch(1),
            replicas,
        };
        self.map.change(MapChange::Shard(ShardRecord {
            descriptor,
            leader: None,
            leader_term: Term(0),
            creating: true,
        }));
    }
}

pub(crate) fn check_history(history: Option<&HistoryLimits>) -> Result<(), ControlError> {
    match history.and_then(HistoryLimits::problem) {
        Some((field, value, accepted)) => {
            Err(ControlError::OutOfRange { field: field.to_owned(), value, accepted })
        }
        None => Ok(()),
    }
}

/// One of `count` equal parts of a keyspace.
fn range_of(id: KeyspaceId, partitioning: Partitioning, place: u32, count: u32) -> KeyRange {
    let whole = KeyRange::of_keyspace(id);
    if partitioning == Partitioning::Range {
        return whole;
    }
    let slot = |place: u32| (u64::from(place) * u64::from(SLOT_COUNT) / u64::from(count)) as u16;
    let start = if place == 0 { whole.start } else { slot_start(id, slot(place)) };
    let end = if place + 1 == count { whole.end } else { slot_start(id, slot(place + 1)) };
    KeyRange { start, end }
}
