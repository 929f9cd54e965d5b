//! Has shards keep the change history that the map says their keyspaces ask for.
//!
//! Whether a shard keeps one is its own, replicated state. The leader compares it with the map,
//! whenever either changes, and proposes what is new. Decisions are numbered: an old map undoes
//! nothing.

use kvdb_model::{EntryCommand, HistoryPolicy, ShardId};
use kvdb_replication::Input;
use kvdb_runtime::drive::{Drive, Outcome, Ticket};
use kvdb_runtime::map::ClusterMap;
use kvdb_runtime::shutdown::Shutdown;
use std::time::Duration;

/// After a proposal that came to nothing.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(100);

pub(crate) async fn run(drive: Drive, map: ClusterMap, shutdown: Shutdown) {
    let mut maps = map.changes();
    let mut roles = drive.role_changes();
    loop {
        maps.mark_unchanged();
        roles.mark_unchanged();
        let mut is_open = false;
        for (shard, policy) in due(&drive, &map) {
            tokio::select! {
                decided = decide(&drive, shard, policy) => is_open |= !decided,
                () = shutdown.wait() => return,
            }
        }
        tokio::select! {
            changed = maps.changed() => if changed.is_err() { return },
            changed = roles.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(TRY_AGAIN_AFTER), if is_open => {}
            () = shutdown.wait() => return,
        }
    }
}

/// Shards led here whose keyspaces ask for something else than what they have heard of.
fn due(drive: &Drive, map: &ClusterMap) -> Vec<(ShardId, HistoryPolicy)> {
    let cache = map.cache.lock();
    let keyspaces = &cache.map().keyspaces;
    let views = drive.views().all();
    let led = views.iter().filter(|(_, view)| view.is_leader);
    led.filter_map(|(shard, view)| {
        let keyspace = keyspaces.get(&view.descriptor.as_ref()?.keyspace_id)?;
        let is_new = keyspace.history.revision > view.history.revision;
        is_new.then_some((*shard, keyspace.history))
    })
    .collect()
}

async fn decide(drive: &Drive, shard: ShardId, policy: HistoryPolicy) -> bool {
    let (ticket, receiver) = Ticket::oneshot();
    let command = EntryCommand::History(policy).to_bytes();
    if drive.submit(Input::Propose { shard, command, version_count: 1, ticket }).is_err() {
        return false;
    }
    let decided = matches!(receiver.await, Ok(Outcome::HistoryDecided));
    if decided {
        tracing::info!(
            shard = shard.0,
            revision = policy.revision,
            "change history settings changed"
        );
    }
    decided
}
