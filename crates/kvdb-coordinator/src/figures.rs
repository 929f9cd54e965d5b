//! What nodes tell of themselves for people to see: nothing is decided by it. It is kept in the
//! leader's memory alone, one record a node of the map.

use crate::service::Member;
use kvdb_model::NodeId;
use kvdb_runtime::clock;
use kvdb_wire::proto;

/// Characters that are kept of the version of a node's program.
const MOST_VERSION: usize = 64;

/// What a node has told with its last heartbeat.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    version: String,
    disk_free_bytes: u64,
    uptime_ms: u64,
}

impl Told {
    pub(crate) fn of(request: &proto::HeartbeatRequest) -> Self {
        Told {
            version: request.version.chars().take(MOST_VERSION).collect(),
            disk_free_bytes: request.disk_free_bytes,
            uptime_ms: request.uptime_ms,
        }
    }
}

/// A node of the map tells of itself.
pub(crate) fn hear(member: &Member, node: NodeId, told: Told) {
    member.told.lock().insert(node, told);
}

/// Of all nodes of the map that were heard.
pub(crate) fn of_nodes(member: &Member) -> Vec<proto::NodeFigures> {
    let state = member.view.state();
    let silent_ms = member.liveness.lock().silent_ms(clock::now().boot_us / 1000);
    let mut told = member.told.lock();
    told.retain(|node, _| state.map().nodes.contains_key(node));
    let figures = |(node, told): (&NodeId, &Told)| {
        Some(proto::NodeFigures {
            node_id: node.0,
            silent_ms: *silent_ms.get(node)?,
            version: told.version.clone(),
            disk_free_bytes: told.disk_free_bytes,
            uptime_ms: told.uptime_ms,
        })
    };
    told.iter().filter_map(figures).collect()
}

/// Of all shards whose leaders have told of them.
pub(crate) fn of_shards(member: &Member) -> Vec<proto::ShardFigures> {
    let state = member.view.state();
    let loads = member.standings.lock().loads(state.map());
    let figures = loads.shards.into_iter().map(|(shard, load)| proto::ShardFigures {
        shard_id: shard.0,
        bytes: load.bytes,
        keys: load.keys,
        reads_per_second: load.reads_per_second,
        writes_per_second: load.writes_per_second,
    });
    figures.collect()
}
