//! Whether a request belongs here, and where else if not.

use crate::metrics::Metrics;
use arc_swap::ArcSwap;
use bytes::Bytes;
use kvdb_model::{KeyspaceId, Limits, Partitioning, RangeEpoch, Refusal, ShardId};
use kvdb_router::{MapCache, Routes};
use kvdb_runtime::drive::{Drive, ShardView};
use parking_lot::Mutex;
use std::sync::Arc;

/// What every request handler needs.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) drive: Drive,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    map: Arc<Mutex<MapCache>>,
    routes: Arc<ArcSwap<Routes>>,
}

impl Access {
    pub(crate) fn new(
        drive: Drive,
        map: Arc<Mutex<MapCache>>,
        routes: Arc<ArcSwap<Routes>>,
        metrics: Metrics,
    ) -> Self {
        Access { drive, limits: Limits::default(), metrics, map, routes }
    }

    /// The routing key of a user key.
    pub(crate) fn routing_key(&self, keyspace: u32, key: &[u8]) -> Result<Bytes, Refusal> {
        self.limits.check_key(key)?;
        let id = KeyspaceId(keyspace);
        Ok(self.partitioning(id)?.routing_key(id, key))
    }

    pub(crate) fn partitioning(&self, id: KeyspaceId) -> Result<Partitioning, Refusal> {
        let map = self.map.lock();
        let keyspace = map.map().keyspaces.get(&id);
        keyspace
            .map(|keyspace| keyspace.partitioning)
            .ok_or_else(|| Refusal::UnknownKeyspace { name: format!("number {id}") })
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
            let reason = "the replica waits for its first snapshot";
            return Err(Refusal::ShardUnavailable { shard_id, reason });
        };
        if epoch != descriptor.range_epoch {
            return Err(Refusal::StaleEpoch {
                shard_id,
                current: descriptor.range_epoch,
                descriptors: vec![(**descriptor).clone()],
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
