//! Whether a request belongs here, and where else if not.

use crate::metrics::Metrics;
use arc_swap::ArcSwap;
use bytes::Bytes;
use kvdb_model::{
    Keyspace, KeyspaceId, Limits, Partitioning, RangeEpoch, Refusal, ShardDescriptor, ShardId,
    ShardTimes, unavailable,
};
use kvdb_router::{MapCache, Routes};
use kvdb_runtime::drive::{Drive, ShardView};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Descriptors in one refusal.
const NEIGHBOURS_TOLD: usize = 4;

/// What every request handler needs.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) drive: Drive,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    map: Arc<Mutex<MapCache>>,
    routes: Arc<ArcSwap<Routes>>,
    /// Expired records that were freed.
    pub(crate) reclaimed: Counter,
    /// When reads last had a shard's time pass.
    pub(crate) time_asked: Arc<Mutex<FxHashMap<ShardId, Instant>>>,
}

/// That of a keyspace. Records of keyspaces stay when these are dropped: one without a record is
/// new, and the map that tells of it is on its way.
fn partitioning_of(
    keyspaces: &BTreeMap<KeyspaceId, Keyspace>,
    shard_id: ShardId,
    id: KeyspaceId,
) -> Result<Partitioning, Refusal> {
    if id == KeyspaceId(0) {
        let problem = "is 0, which no keyspace has; it must be that of the shard";
        return Err(Refusal::invalid("keyspace_id", problem));
    }
    let reason = unavailable::KEYSPACE_UNHEARD;
    let unheard = Refusal::ShardUnavailable { shard_id, reason };
    keyspaces.get(&id).map(|keyspace| keyspace.partitioning).ok_or(unheard)
}

impl Access {
    /// Shard time and age by the clock here; zero if nothing is known of the shard.
    pub(crate) fn times(&self, shard: ShardId) -> ShardTimes {
        self.drive.views().get(shard).map_or_else(ShardTimes::default, |view| view.times())
    }

    pub(crate) fn new(
        drive: Drive,
        map: Arc<Mutex<MapCache>>,
        routes: Arc<ArcSwap<Routes>>,
        metrics: Metrics,
        registry: &mut Registry,
    ) -> Self {
        let reclaimed = Counter::default();
        let help = "Expired records freed, by this node as a leader";
        registry.register("kvdb_reclaimed_records", help, reclaimed.clone());
        let limits = Limits::default();
        Access { drive, limits, metrics, map, routes, reclaimed, time_asked: Arc::default() }
    }

    /// The routing key of a user key.
    pub(crate) fn routing_key(
        &self,
        shard: ShardId,
        keyspace: u32,
        key: &[u8],
    ) -> Result<Bytes, Refusal> {
        self.limits.check_key(key)?;
        let id = KeyspaceId(keyspace);
        Ok(self.partitioning(shard, id)?.routing_key(id, key))
    }

    pub(crate) fn partitioning(
        &self,
        shard: ShardId,
        id: KeyspaceId,
    ) -> Result<Partitioning, Refusal> {
        // Who asks may have slept since before it was dropped.
        if let Some(name) = self.routes.load().dropped(id) {
            return Err(Refusal::UnknownKeyspace { name: name.to_owned() });
        }
        partitioning_of(&self.map.lock().map().keyspaces, shard, id)
    }

    /// The replica that a request about `key` is for, if it is here and owns the key.
    pub(crate) fn replica(
        &self,
        shard_id: ShardId,
        epoch: RangeEpoch,
        key: &[u8],
    ) -> Result<Arc<ShardView>, Refusal> {
        let Some(view) = self.drive.views().get(shard_id) else {
            return Err(self.moved(shard_id, key));
        };
        let Some(descriptor) = &view.descriptor else {
            let reason = unavailable::NO_STATE;
            return Err(Refusal::ShardUnavailable { shard_id, reason });
        };
        if epoch != descriptor.range_epoch {
            return Err(Refusal::StaleEpoch {
                shard_id,
                current: descriptor.range_epoch,
                descriptors: self.with_right_neighbours(descriptor),
            });
        }
        if !descriptor.range.contains(key) {
            return Err(self.moved(shard_id, key));
        }
        Ok(view)
    }

    /// As [`Access::replica`], and it must lead.
    pub(crate) fn leader(
        &self,
        shard_id: ShardId,
        epoch: RangeEpoch,
        key: &[u8],
    ) -> Result<Arc<ShardView>, Refusal> {
        let view = self.replica(shard_id, epoch, key)?;
        if view.is_leader { Ok(view) } else { Err(self.not_leader(shard_id)) }
    }

    pub(crate) fn not_leader(&self, shard_id: ShardId) -> Refusal {
        let leader = self.drive.views().get(shard_id).and_then(|view| view.leader);
        let elsewhere = leader.filter(|node| *node != self.drive.node_id());
        let leader_hint = elsewhere
            .and_then(|node| self.routes.load().address(node).map(|address| address.to_string()));
        Refusal::NotLeader { shard_id, leader_hint }
    }

    /// A shard, and those that a split of it has left on this node: whoever was wrong about one
    /// learns all of them at once.
    fn with_right_neighbours(&self, descriptor: &ShardDescriptor) -> Vec<ShardDescriptor> {
        let views = self.drive.views().all();
        let mut found = vec![descriptor.clone()];
        let mut end = descriptor.range.end.clone();
        while found.len() < NEIGHBOURS_TOLD && !end.is_empty() {
            let next = views
                .values()
                .filter_map(|view| view.descriptor.as_ref())
                .find(|next| next.range.start == end && next.keyspace_id == descriptor.keyspace_id);
            let Some(next) = next else { break };
            end = next.range.end.clone();
            found.push((**next).clone());
        }
        found
    }

    /// A refusal of the shard itself knows of its own descriptor only.
    pub(crate) fn with_siblings(&self, mut refusal: Refusal) -> Refusal {
        if let Refusal::StaleEpoch { descriptors, .. } | Refusal::ShardMoved { descriptors, .. } =
            &mut refusal
            && let [own] = &descriptors[..]
        {
            *descriptors = self.with_right_neighbours(own);
        }
        refusal
    }

    fn moved(&self, shard_id: ShardId, key: &[u8]) -> Refusal {
        let route = self.routes.load().route(key, Some(self.drive.node_id()));
        let descriptors = route
            .as_ref()
            .and_then(|route| self.map.lock().map().shards.get(&route.shard_id).cloned())
            .map(|record| record.descriptor)
            .into_iter()
            .collect();
        let new_node_hint = route.map(|route| route.address.to_string());
        Refusal::ShardMoved { shard_id, new_node_hint, descriptors }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::RetryClass;

    #[test]
    fn what_this_node_has_not_heard_of_yet_is_worth_another_try() {
        let keyspace = Keyspace::new(KeyspaceId(4), "k", Partitioning::Range);
        let known = BTreeMap::from([(KeyspaceId(4), keyspace)]);
        let asked = |id| partitioning_of(&known, ShardId(7), KeyspaceId(id));
        let class = |id| asked(id).map_err(|refusal| refusal.class());
        assert_eq!(class(4), Ok(Partitioning::Range));
        assert_eq!(class(5), Err(RetryClass::RetryHere));
        assert_eq!(asked(5).unwrap_err().shard_id(), Some(ShardId(7)));
        let refusal = asked(0).unwrap_err();
        assert!(
            matches!(&refusal, Refusal::InvalidArgument { field: "keyspace_id", .. }),
            "{refusal}"
        );
    }
}
