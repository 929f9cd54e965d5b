//! Commands that show the cluster. JSON has the names of the protos; tables are for people.

use super::coordinators;
use crate::exit::Failure;
use crate::output::{Output, insert_bytes, printable, table};
use crate::units::{about_size, about_time};
use kvdb_client::{
    AdminClient, ClusterStatus, Figures, LessPreferredLeader, NodeFigures, ShardFigures,
    ShortShard, WrongClock,
};
use kvdb_model::{
    KeyRange, NodeRecord, NodeStatus, Partitioning, Replica, Role, SLOT_COUNT, ShardMap,
    ShardRecord,
};
use serde_json::{Map, Value, json};

fn print(json: bool, document: &Value, text: impl FnOnce() -> String) -> Result<(), Failure> {
    let mut output = Output::new();
    match json {
        true => output.document(document)?,
        false => output.line(text())?,
    }
    output.finish()
}

pub(super) async fn status(admin: &AdminClient, json: bool) -> Result<(), Failure> {
    let status = admin.status().await?;
    let map = admin.shard_map().await?;
    let with = |status: NodeStatus| map.nodes.values().filter(|one| one.status == status).count();
    let draining = with(NodeStatus::Draining);
    // A node that is being emptied serves until it is.
    let alive = with(NodeStatus::Alive) + draining;
    let nodes = map.nodes.len() - with(NodeStatus::Removed);
    let led = map
        .shards
        .values()
        .filter(|shard| shard.leader.is_some() && map.has_majority(&shard.descriptor))
        .count();
    let members: Vec<Value> = status.members.iter().map(coordinators::document).collect();
    let document = json!({
        "cluster_id": status.cluster_id.to_string(),
        "map_version": status.map_version.0,
        "leader_id": status.leader.map(|id| id.0),
        "term": status.term.0,
        "applied_index": status.applied.0,
        "members": members,
        "nodes": nodes,
        "nodes_alive": alive,
        "nodes_draining": draining,
        "shards": map.shards.len(),
        "shards_with_leader": led,
        "under_replicated_shards": status.short_shard_count,
        "less_preferred_leaders": status.less_preferred_leaders.iter().map(poor).collect::<Vec<_>>(),
        "short_shards": status.short_shards.iter().map(short_shard).collect::<Vec<_>>(),
        "wrong_clocks": status.wrong_clocks.iter().map(clock_document).collect::<Vec<_>>(),
        "generation": {
            "number": status.generation.number,
            "nonce": format!("{:032x}", status.generation.nonce),
        },
        "awaited_nodes": status.awaited.iter().map(|node| node.0).collect::<Vec<_>>(),
    });
    print(json, &document, || {
        let shards = map.shards.len();
        let draining = match draining {
            0 => String::new(),
            number => format!(", {number} draining"),
        };
        format!(
            "{}\nnodes         {alive} of {nodes} alive{draining}\nshards        {led} of {shards} with a leader{}\n\n{}{}{}",
            heading(&status),
            match status.short_shard_count {
                0 => String::new(),
                some => format!(", {some} with too few replicas"),
            },
            coordinators::rows(&status.members),
            [short(&status), poor_leaders(&status)].concat(),
            lost(&map) + &awaited(&status) + &wrong_clocks(&status.wrong_clocks)
        )
    })
}

fn short_shard(short: &ShortShard) -> Value {
    json!({
        "shard_id": short.shard.0,
        "replicas": short.replicas,
        "wanted_replicas": short.wanted_replicas,
        "why": short.why,
    })
}

fn poor(poor: &LessPreferredLeader) -> Value {
    json!({
        "node_id": poor.node.0,
        "reason": poor.reason,
        "description": poor.description,
    })
}

/// Which nodes should rather not lead, and why.
fn poor_leaders(status: &ClusterStatus) -> String {
    let line = |poor: &LessPreferredLeader| {
        format!("\nnode {} is a less preferred leader: {}", poor.node, poor.description)
    };
    let lines: Vec<String> = status.less_preferred_leaders.iter().map(line).collect();
    match lines.is_empty() {
        true => String::new(),
        false => format!("\n{}", lines.concat()),
    }
}

/// Shards that a table of them shows.
const MOST_SHORT: usize = 20;

/// Which shards have too few replicas, and why.
fn short(status: &ClusterStatus) -> String {
    if status.short_shards.is_empty() {
        return String::new();
    }
    let row = |short: &ShortShard| {
        let replicas = format!("{} of {}", short.replicas, short.wanted_replicas);
        vec![short.shard.to_string(), replicas, short.why.clone()]
    };
    let rows: Vec<Vec<String>> = status.short_shards.iter().take(MOST_SHORT).map(row).collect();
    let more = match status.short_shard_count.saturating_sub(rows.len() as u64) {
        0 => String::new(),
        more => format!("\nand {more} more"),
    };
    let rows = table(&["TOO FEW REPLICAS: SHARD", "HAS", "BECAUSE"], &rows);
    format!("\n\n{rows}{more}")
}

fn clock_document(clock: &WrongClock) -> Value {
    json!({
        "process": clock.process,
        "address": clock.address,
        "node_id": clock.node.map(|node| node.0),
        "ahead_ms": clock.ahead_ms,
    })
}

fn wrong_clocks(clocks: &[WrongClock]) -> String {
    if clocks.is_empty() {
        return String::new();
    }
    let line = |clock: &WrongClock| {
        let by = about_time(clock.ahead_ms.unsigned_abs());
        let way = if clock.ahead_ms < 0 { "behind" } else { "ahead" };
        format!("{} {}: {} {way}", clock.process, clock.address, by)
    };
    let lines: Vec<String> = clocks.iter().map(line).collect();
    format!(
        "\n\nWall clocks that are wrong (nothing relies on them, but set them right):\n  {}",
        lines.join("\n  ")
    )
}

/// Who has yet to report since the coordinators were recovered.
fn awaited(status: &ClusterStatus) -> String {
    if status.awaited.is_empty() {
        return String::new();
    }
    let nodes: Vec<String> = status.awaited.iter().map(ToString::to_string).collect();
    format!(
        "\n\nThe coordinators were recovered from one of them alone. Nothing is planned before these nodes have \
         reported, or are declared gone (`kvdb admin replace NODE`): {}",
        nodes.join(", ")
    )
}

fn heading(status: &ClusterStatus) -> String {
    let generation = match status.generation.number {
        0 => String::new(),
        _ => format!("\ngeneration    {}", status.generation),
    };
    format!(
        "cluster       {}\nmap version   {}\nterm, applied {}, {}{generation}",
        status.cluster_id, status.map_version, status.term, status.applied
    )
}

/// What a node has, does and tells.
struct NodeRow<'a> {
    record: &'a NodeRecord,
    replicas: usize,
    leaders: usize,
    /// Of all its replicas.
    bytes: u64,
    /// Of all its replicas; unknown while a leader hasn't counted.
    keys: Option<u64>,
    /// Of the shards that it leads.
    operations_per_second: u64,
    told: Option<&'a NodeFigures>,
}

impl<'a> NodeRow<'a> {
    fn new(map: &ShardMap, figures: &'a Figures, record: &'a NodeRecord) -> Self {
        let node = record.node_id;
        let figures_of = |shard: &ShardRecord| {
            figures.shards.get(&shard.descriptor.shard_id).copied().unwrap_or_default()
        };
        let hosted = map.shards.values().filter(|one| one.descriptor.replica_on(node).is_some());
        let led = map.shards.values().filter(|one| one.leader == Some(node));
        NodeRow {
            record,
            replicas: hosted.clone().count(),
            leaders: led.clone().count(),
            bytes: hosted.clone().map(|shard| figures_of(shard).bytes).sum(),
            keys: hosted.map(|shard| figures_of(shard).keys).sum(),
            operations_per_second: led.map(|one| figures_of(one).operations_per_second()).sum(),
            told: figures.nodes.get(&node),
        }
    }

    fn document(&self) -> Value {
        json!({
            "node_id": self.record.node_id.0,
            "address": self.record.address,
            "zone": self.record.zone,
            "status": status_name(self.record.status),
            "replicas": self.replicas,
            "leaders": self.leaders,
            "bytes": self.bytes,
            "keys": self.keys,
            "operations_per_second": self.operations_per_second,
            "disk_free_bytes": self.told.map(|told| told.disk_free_bytes),
            "version": self.told.map(|told| &told.version),
            "uptime_ms": self.told.map(|told| told.uptime_ms),
            "silent_ms": self.told.map(|told| told.silent_ms),
        })
    }

    fn cells(&self) -> Vec<String> {
        let told = |show: &dyn Fn(&NodeFigures) -> String| self.told.map_or("-".into(), show);
        vec![
            self.record.node_id.to_string(),
            self.record.address.clone(),
            self.record.zone.clone(),
            status_name(self.record.status).to_owned(),
            self.replicas.to_string(),
            self.leaders.to_string(),
            self.operations_per_second.to_string(),
            count(self.keys),
            about_size(self.bytes),
            told(&|told| about_size(told.disk_free_bytes)),
            told(&|told| told.version.clone()),
            told(&|told| about_time(told.uptime_ms)),
            told(&|told| format!("{} ago", about_time(told.silent_ms))),
        ]
    }
}

pub(super) async fn nodes(admin: &AdminClient, json: bool) -> Result<(), Failure> {
    let map = admin.shard_map().await?;
    let figures = admin.figures().await?;
    let status = admin.status().await?;
    let rows: Vec<NodeRow<'_>> =
        map.nodes.values().map(|record| NodeRow::new(&map, &figures, record)).collect();
    let nodes: Vec<Value> = rows.iter().map(NodeRow::document).collect();
    let document = json!({
        "map_version": map.version.0,
        "nodes": nodes,
        "less_preferred_leaders": status.less_preferred_leaders.iter().map(poor).collect::<Vec<_>>(),
    });
    print(json, &document, || {
        let head = [
            "NODE",
            "ADDRESS",
            "ZONE",
            "STATUS",
            "REPLICAS",
            "LEADERS",
            "OPS/S",
            "KEYS",
            "SIZE",
            "DISK FREE",
            "VERSION",
            "UP",
            "HEARD",
        ];
        let rows = table(&head, &rows.iter().map(NodeRow::cells).collect::<Vec<_>>());
        format!("{rows}{}", poor_leaders(&status))
    })
}

pub(super) fn status_name(status: NodeStatus) -> &'static str {
    match status {
        NodeStatus::Alive => "ALIVE",
        NodeStatus::Suspect => "SUSPECT",
        NodeStatus::Dead => "DEAD",
        NodeStatus::Draining => "DRAINING",
        NodeStatus::Removed => "REMOVED",
        NodeStatus::Unreachable => "UNREACHABLE",
    }
}

pub(super) async fn keyspaces(admin: &AdminClient, json: bool) -> Result<(), Failure> {
    let map = admin.shard_map().await?;
    let shards = |id| map.shards.values().filter(|s| s.descriptor.keyspace_id == id).count();
    let there = || map.keyspaces.values().filter(|keyspace| !keyspace.is_dropped());
    let keyspaces: Vec<Value> = there()
        .map(|keyspace| {
            json!({
                "keyspace_id": keyspace.keyspace_id.0,
                "name": keyspace.name,
                "partitioning": layout_name(keyspace.partitioning),
                "shards": shards(keyspace.keyspace_id),
                "replicas": keyspace.replicas,
                "colocated": keyspace.colocated,
                "redis_db": database(keyspace),
                "history": keyspace.history.limits.map(|limits| json!({
                    "max_age_ms": limits.max_age_ms,
                    "max_bytes": limits.max_bytes,
                })),
            })
        })
        .collect();
    let document = json!({ "map_version": map.version.0, "keyspaces": keyspaces });
    print(json, &document, || {
        let row = |keyspace: &kvdb_model::Keyspace| {
            vec![
                keyspace.keyspace_id.to_string(),
                keyspace.name.clone(),
                match keyspace.colocated {
                    true => format!("{}, COLOCATED", layout_name(keyspace.partitioning)),
                    false => layout_name(keyspace.partitioning).to_owned(),
                },
                database(keyspace).map_or("-".to_owned(), |db| db.to_string()),
                shards(keyspace.keyspace_id).to_string(),
                keyspace.replicas.to_string(),
                super::history::words(keyspace.history.limits.as_ref()),
            ]
        };
        let rows: Vec<Vec<String>> = there().map(row).collect();
        table(
            &["KEYSPACE", "NAME", "PARTITIONING", "REDIS DB", "SHARDS", "REPLICAS", "HISTORY"],
            &rows,
        )
    })
}

/// The number by which clients of Redis's protocol select it.
fn database(keyspace: &kvdb_model::Keyspace) -> Option<u8> {
    (keyspace.redis_db > 0 || keyspace.name == "default").then_some(keyspace.redis_db)
}

fn layout_name(partitioning: Partitioning) -> &'static str {
    match partitioning {
        Partitioning::Hash => "HASH",
        Partitioning::Range => "RANGE",
    }
}

pub(super) async fn shards(admin: &AdminClient, json: bool) -> Result<(), Failure> {
    let map = admin.shard_map().await?;
    let figures = admin.figures().await?;
    let of = |shard: &ShardRecord| figures.shards.get(&shard.descriptor.shard_id).copied();
    let shards: Vec<Value> =
        map.shards.values().map(|shard| shard_object(&map, shard, of(shard))).collect();
    let document = json!({ "map_version": map.version.0, "shards": shards });
    print(json, &document, || {
        let rows: Vec<Vec<String>> =
            map.shards.values().map(|shard| shard_row(&map, shard, of(shard))).collect();
        let head = [
            "SHARD",
            "KEYSPACE",
            "RANGE",
            "LEADER",
            "REPLICAS",
            "OPS/S",
            "KEYS",
            "SIZE",
            "RANGE EPOCH",
            "MEMBER EPOCH",
        ];
        format!("{}{}", table(&head, &rows), lost(&map))
    })
}

/// Which shards can't go on by themselves, and what can be done.
fn lost(map: &ShardMap) -> String {
    let lost = map.shards.values().filter(|shard| !map.has_majority(&shard.descriptor));
    let ids: Vec<String> = lost.map(|shard| shard.descriptor.shard_id.to_string()).collect();
    if ids.is_empty() {
        return String::new();
    }
    format!(
        "\n\nWithout a majority of their nodes: shards {}. Start those nodes again; if they are gone for \
         good, see\n`kvdb admin force-recover --help`.",
        ids.join(", ")
    )
}

fn keyspace_name(map: &ShardMap, shard: &ShardRecord) -> String {
    let id = shard.descriptor.keyspace_id;
    map.keyspaces.get(&id).map_or_else(|| id.to_string(), |keyspace| keyspace.name.clone())
}

fn shard_object(map: &ShardMap, shard: &ShardRecord, figures: Option<ShardFigures>) -> Value {
    let descriptor = &shard.descriptor;
    let replicas: Vec<Value> = descriptor
        .replicas
        .iter()
        .map(|replica| {
            json!({
                "node_id": replica.node_id.0,
                "replica_id": replica.replica_id.0,
                "role": role_name(replica.role),
            })
        })
        .collect();
    let mut object = Map::new();
    object.insert("shard_id".into(), descriptor.shard_id.0.into());
    object.insert("keyspace".into(), keyspace_name(map, shard).into());
    insert_bytes(&mut object, "start", &descriptor.range.start);
    insert_bytes(&mut object, "end", &descriptor.range.end);
    if let Some((first, last)) = slots(map, shard) {
        object.insert("first_slot".into(), first.into());
        object.insert("last_slot".into(), last.into());
    }
    object.insert("leader_node_id".into(), shard.leader.map(|node| node.0).into());
    object.insert("leader_term".into(), shard.leader_term.0.into());
    object.insert("range_epoch".into(), descriptor.range_epoch.0.into());
    object.insert("membership_epoch".into(), descriptor.membership_epoch.0.into());
    object.insert("creating".into(), shard.creating.into());
    object.insert("has_majority".into(), map.has_majority(descriptor).into());
    object.insert("replicas".into(), replicas.into());
    let told = |figure: fn(ShardFigures) -> u64| Value::from(figures.map(figure));
    object.insert("bytes".into(), told(|figures| figures.bytes));
    object.insert("keys".into(), figures.and_then(|figures| figures.keys).into());
    object.insert("reads_per_second".into(), told(|figures| figures.reads_per_second));
    object.insert("writes_per_second".into(), told(|figures| figures.writes_per_second));
    Value::Object(object)
}

pub(super) fn role_name(role: Role) -> &'static str {
    match role {
        Role::Voter => "VOTER",
        Role::Learner => "LEARNER",
        Role::Incoming => "INCOMING",
        Role::Outgoing => "OUTGOING",
    }
}

fn shard_row(map: &ShardMap, shard: &ShardRecord, figures: Option<ShardFigures>) -> Vec<String> {
    let descriptor = &shard.descriptor;
    let range = match slots(map, shard) {
        Some((first, last)) => format!("slots {first}-{last}"),
        None => keys(&descriptor.range),
    };
    let replicas: Vec<String> = descriptor.replicas.iter().map(replica_cell).collect();
    let unknown = || "-".to_owned();
    vec![
        descriptor.shard_id.to_string(),
        keyspace_name(map, shard),
        range,
        shard.leader.map_or_else(|| "-".to_owned(), |node| node.to_string()),
        replicas.join(","),
        figures.map_or_else(unknown, |figures| figures.operations_per_second().to_string()),
        count(figures.and_then(|figures| figures.keys)),
        figures.map_or_else(unknown, |figures| about_size(figures.bytes)),
        descriptor.range_epoch.to_string(),
        descriptor.membership_epoch.to_string(),
    ]
}

fn count(known: Option<u64>) -> String {
    known.map_or_else(|| "-".to_owned(), |keys| keys.to_string())
}

/// The node, and the role where it isn't the usual one.
fn replica_cell(replica: &Replica) -> String {
    match replica.role {
        Role::Voter => replica.node_id.to_string(),
        role => format!("{} ({})", replica.node_id, role_name(role).to_lowercase()),
    }
}

/// The first and last slot of a shard of a hash keyspace.
fn slots(map: &ShardMap, shard: &ShardRecord) -> Option<(u16, u16)> {
    let keyspace = map.keyspaces.get(&shard.descriptor.keyspace_id)?;
    if keyspace.partitioning != Partitioning::Hash {
        return None;
    }
    let slot = |key: &[u8]| Some(u16::from_be_bytes(key.get(4..6)?.try_into().ok()?));
    let range = &shard.descriptor.range;
    let first = slot(&range.start).unwrap_or(0);
    let after = slot(&range.end).unwrap_or(SLOT_COUNT);
    Some((first, after.saturating_sub(1)))
}

/// User keys of a range keyspace: without the keyspace id in front.
fn keys(range: &KeyRange) -> String {
    let bound = |key: &[u8]| printable(key.get(4..).unwrap_or_default());
    let end = bound(&range.end);
    let end = if end.is_empty() { "end".to_owned() } else { end };
    format!("[{}, {end})", bound(&range.start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::key::slot_start;
    use kvdb_model::{Keyspace, KeyspaceId, MapChange, ShardDescriptor, ShardId};

    fn shard(range: KeyRange) -> ShardRecord {
        ShardRecord {
            descriptor: ShardDescriptor {
                shard_id: ShardId(1),
                keyspace_id: KeyspaceId(1),
                range,
                range_epoch: Default::default(),
                membership_epoch: Default::default(),
                replicas: vec![],
            },
            leader: None,
            leader_term: Default::default(),
            creating: false,
        }
    }

    fn map(partitioning: Partitioning) -> ShardMap {
        let mut map = ShardMap::default();
        map.change(MapChange::Keyspace(Keyspace::new(KeyspaceId(1), "default", partitioning)));
        map
    }

    #[test]
    fn hash_shards_are_shown_by_their_slots() {
        let map = map(Partitioning::Hash);
        let id = KeyspaceId(1);
        let range = |from, to| shard(KeyRange::new(slot_start(id, from), slot_start(id, to)));
        assert_eq!(shard_row(&map, &range(0, 2048), None)[2], "slots 0-2047");
        assert_eq!(shard_row(&map, &range(14336, SLOT_COUNT), None)[2], "slots 14336-16383");
        let whole = shard(KeyRange::of_keyspace(id));
        assert_eq!(shard_row(&map, &whole, None)[2], "slots 0-16383");
    }

    #[test]
    fn range_shards_are_shown_by_their_keys() {
        let map = map(Partitioning::Range);
        let range = KeyRange::new(&b"\0\0\0\x01a"[..], &b"\0\0\0\x01m"[..]);
        assert_eq!(shard_row(&map, &shard(range), None)[2], "[a, m)");
        let whole = shard(KeyRange::of_keyspace(KeyspaceId(1)));
        assert_eq!(shard_row(&map, &whole, None)[2], "[, end)");
    }
}
