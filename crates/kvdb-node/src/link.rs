//! What the map asks of this node, and what is kept of map and coordinators for the next start.

use crate::tasks;
use kvdb_model::{ShardDescriptor, ShardId};
use kvdb_runtime::coordinators::Coordinators;
use kvdb_runtime::drive::Drive;
use kvdb_runtime::generations::Generations;
use kvdb_runtime::identity::DataDirectory;
use kvdb_runtime::map::ClusterMap;
use kvdb_runtime::shutdown::Shutdown;
use kvdb_wire::{proto, shard_map_from, shard_map_to, transport};
use parking_lot::Mutex;
use prost::Message as _;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Until what was refused under overload is submitted once more.
const TAKE_AGAIN: Duration = Duration::from_millis(100);
/// Threads that create replicas of new shards.
const CREATORS: usize = 4;
/// So many new shards are made one after the other, before the next ones are begun.
const SHARDS_AT_A_TIME: u64 = 16;
/// Where the coordinators are, as they have told.
const COORDINATORS_FILE: &str = "coordinators.txt";
const MOST_COORDINATORS: usize = 64;
/// Between two looks at what they have told.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// The map as last seen, so that a node finds its peers while no coordinator can be reached.
const MAP_FILE: &str = "shard-map.bin";

/// Creates the first replicas of new shards, and keeps the map for the next start.
pub(crate) async fn follow_map(
    drive: Drive,
    map: ClusterMap,
    data: std::path::PathBuf,
    shutdown: Shutdown,
) {
    let mut changes = map.changes();
    let mut room = drive.room().changes();
    let mut arrivals = drive.views().arrivals();
    let mut saved = None;
    let mut births = Births::default();
    loop {
        changes.mark_unchanged();
        arrivals.mark_unchanged();
        births.take_in(&drive, &map);
        let all_taken = tasks::destroy_gone(&drive, &map).await;
        let current = map.cache.lock().map().clone();
        let parts = (current.nodes.clone(), current.keyspaces.clone());
        if saved.as_ref() != Some(&parts) && current.cluster_id.is_known() {
            let path = data.join(MAP_FILE);
            let content = shard_map_to(&current).encode_to_vec();
            let written = tokio::task::spawn_blocking(move || save(&path, &content)).await;
            if matches!(written, Ok(Ok(()))) {
                saved = Some(parts);
            }
        }
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                births.try_again();
            }
            // One that a leader has sent here may be gone by now for whoever made it.
            Ok(()) = arrivals.changed() => {}
            () = births.done() => {}
            // What there was no room for can be made now.
            Ok(()) = room.changed() => births.try_again(),
            () = tokio::time::sleep(TAKE_AGAIN), if !all_taken => {}
            () = shutdown.wait() => return,
        }
    }
}

/// The first replicas of new shards that are to be created here.
///
/// A shard is new until its first leader is heard of, which may be sooner than a busy node gets to
/// it. So each is written down when the map says that it is new, and created in its turn, while the
/// map goes on being looked at.
#[derive(Default)]
struct Births {
    /// Whether this node's replica is the first of its shard, and the shard.
    due: Vec<(bool, ShardDescriptor)>,
    /// New shards that were written down.
    known: BTreeSet<ShardId>,
    /// Gives back what couldn't be created.
    creating: Option<JoinHandle<Vec<ShardId>>>,
    /// What there was no room for: worth another try when something has changed.
    failed: Vec<ShardId>,
}

impl Births {
    /// Writes down what is new, and begins if nobody is at work.
    fn take_in(&mut self, drive: &Drive, map: &ClusterMap) {
        let own = drive.node_id();
        // The first of its replicas stands at once; where it doesn't come up, another does later.
        let is_first = |descriptor: &ShardDescriptor| {
            descriptor.replicas.first().map(|replica| replica.node_id) == Some(own)
        };
        let mut new = Vec::new();
        {
            let cache = map.cache.lock();
            let views = drive.views().all();
            let is_new = |shard: &ShardId| {
                cache.map().shards.get(shard).is_some_and(|record| record.creating)
            };
            self.known.retain(is_new);
            for record in cache.map().shards.values().filter(|record| record.creating) {
                let descriptor = &record.descriptor;
                let shard = descriptor.shard_id;
                // One that a leader has spoken to is there, without a state.
                let has_state = views.get(&shard).is_some_and(|view| view.volume.is_some());
                if descriptor.replica_on(own).is_some() && !has_state && self.known.insert(shard) {
                    new.push((is_first(descriptor), descriptor.clone()));
                }
            }
        }
        if !new.is_empty() {
            let shards = new.iter().map(|(_, descriptor)| descriptor.shard_id).collect();
            drive.expect_replicas(shards);
            self.due.extend(new);
        }
        if self.creating.is_none() && !self.due.is_empty() {
            let due = std::mem::take(&mut self.due);
            let drive = drive.clone();
            self.creating = Some(tokio::task::spawn_blocking(move || create(&drive, due)));
        }
    }

    /// When those at work are done; never, if nobody is.
    async fn done(&mut self) {
        let Some(creating) = &mut self.creating else { return std::future::pending().await };
        let created = creating.await;
        self.creating = None;
        match created {
            Ok(failed) => self.failed.extend(failed),
            Err(error) => {
                tracing::error!(%error, "not all replicas of new shards were created");
                self.failed.extend(&self.known);
            }
        }
    }

    /// Something has changed.
    fn try_again(&mut self) {
        for shard in self.failed.drain(..) {
            self.known.remove(&shard);
        }
    }
}

/// Creates replicas, several at a time: each syncs a few files. Returns the shards of those that
/// couldn't be.
fn create(drive: &Drive, mut due: Vec<(bool, ShardDescriptor)>) -> Vec<ShardId> {
    // Of a few shards each, those that stand come last: the others, everywhere, are mostly there by
    // then to hear them, and have not waited for so long that they stand themselves.
    due.sort_by_key(|(first, descriptor)| (descriptor.shard_id.0 / SHARDS_AT_A_TIME, *first));
    let (count, first_shard) = (due.len(), due.first().map_or(0, |(_, first)| first.shard_id.0));
    let due = Mutex::new(due.into_iter());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..CREATORS {
            scope.spawn(|| {
                let next = || due.lock().next();
                while let Some((first, descriptor)) = next() {
                    let shard = descriptor.shard_id;
                    match drive.create_replica(descriptor, first) {
                        Ok(()) => tracing::debug!(shard = shard.0, "replica created"),
                        Err(error) => {
                            tracing::error!(shard = shard.0, %error, "replica can't be created");
                            failed.lock().push(shard);
                        }
                    }
                }
            });
        }
    });
    // Those that can't be created have said so.
    tracing::info!(count, first_shard, "replicas created");
    failed.into_inner()
}

/// Keeps where the coordinators are for the next start: what it is told then may be older.
pub(crate) async fn keep_coordinators(
    coordinators: Coordinators,
    data: std::path::PathBuf,
    shutdown: Shutdown,
) {
    let mut saved = load_coordinators(&data).unwrap_or_default();
    let mut interval = tokio::time::interval(KEEP_EVERY);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = shutdown.wait() => return,
        }
        let told = coordinators.told();
        if told.is_empty() || told == saved {
            continue;
        }
        let (path, content) = (data.join(COORDINATORS_FILE), told.join("\n"));
        let written = tokio::task::spawn_blocking(move || save(&path, content.as_bytes())).await;
        if matches!(written, Ok(Ok(()))) {
            saved = told;
        }
    }
}

/// Where the coordinators were, as they have told at an earlier start. A hint.
pub(crate) fn load_coordinators(data: &Path) -> Option<Vec<String>> {
    let content = std::fs::read_to_string(data.join(COORDINATORS_FILE)).ok()?;
    let usable = content.lines().filter(|address| transport::endpoint(address).is_ok());
    Some(usable.take(MOST_COORDINATORS).map(str::to_owned).collect())
}

fn save(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, content)?;
    std::fs::rename(&temporary, path)
}

/// The map of an earlier start, if it is there and can be read. It is a hint, never the truth.
pub(crate) fn load_map(
    directory: &DataDirectory,
    generations: &Generations,
) -> Option<kvdb_model::ShardMap> {
    let content = std::fs::read(directory.path().join(MAP_FILE)).ok()?;
    let map = shard_map_from(proto::ShardMap::decode(&content[..]).ok()?).ok()?;
    (map.cluster_id == directory.identity().cluster_id).then(|| {
        generations.remember(map.clone());
        as_a_hint(map)
    })
}

/// An old map: its version must not keep a fresher one away, and which shards were new then says
/// nothing about now. First replicas are created only on the word of the coordinators.
fn as_a_hint(mut map: kvdb_model::ShardMap) -> kvdb_model::ShardMap {
    map.version = kvdb_model::MapVersion(0);
    for shard in map.shards.values_mut() {
        shard.creating = false;
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_model::{
        KeyRange, KeyspaceId, MapVersion, MembershipEpoch, RangeEpoch, ShardDescriptor, ShardMap,
        ShardRecord, Term,
    };

    #[test]
    fn an_old_map_never_says_that_a_shard_is_new() {
        let descriptor = ShardDescriptor {
            shard_id: ShardId(4),
            keyspace_id: KeyspaceId(1),
            range: KeyRange::ALL,
            range_epoch: RangeEpoch(1),
            membership_epoch: MembershipEpoch(1),
            replicas: Vec::new(),
        };
        let shard = ShardRecord { descriptor, leader: None, leader_term: Term(0), creating: true };
        let map = ShardMap {
            version: MapVersion(9),
            shards: [(ShardId(4), shard)].into(),
            ..ShardMap::default()
        };
        let hint = as_a_hint(map);
        assert_eq!(hint.version, MapVersion(0));
        assert!(!hint.shards[&ShardId(4)].creating);
    }
}
