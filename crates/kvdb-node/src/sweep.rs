//! Freeing the records of expired keys, and expired elements of collections.
//!
//! What has expired is invisible already; this only gives its space back. The leader looks through
//! a shard for records that have expired, a bounded number a second, and proposes to free them;
//! replicas free those that have expired by the version of the entry, so all of them free the
//! same. A shard in which nothing can have expired since the last look isn't looked through.

use crate::access::Access;
use bytes::Bytes;
use kvdb_model::{EntryCommand, ShardId};
use kvdb_replication::Input;
use kvdb_runtime::drive::{Outcome, ShardChanges, Ticket};
use kvdb_runtime::shutdown::Shutdown;
use kvdb_store::{FREED_MOST as ELEMENTS, GarbagePage, SweepPage};
use std::time::Duration;

/// Pause between two looks at what is due.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Records examined before a pause. With [`PAUSE`] that is 40,000 a second at most: more frees
/// space sooner, and takes more from the disk and from whoever uses it.
const PAGE_RECORDS: usize = 2000;
const PAUSE: Duration = Duration::from_millis(50);
/// Bytes of keys in one entry.
const ENTRY_BYTES: usize = 256 * 1024;

/// Frees expired records of the shards that this node leads, until it is time to stop.
pub(crate) async fn run(access: Access, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.wait() => return,
        }
        let views = access.drive.views().all();
        for (shard, _) in views.iter().filter(|(_, view)| view.is_leader) {
            tokio::select! {
                () = sweep(&access, *shard) => {}
                () = shutdown.wait() => return,
            }
        }
    }
}

async fn sweep(access: &Access, shard: ShardId) {
    let Some(changes) = access.drive.changes().get(shard) else { return };
    if changes.take_garbage() && free_garbage(access, shard).await.is_none() {
        changes.note_garbage();
    }
    if !changes.may_have_expired(access.times(shard).time_ms) {
        return;
    }
    changes.begin_sweep();
    if sweep_through(access, shard, &changes).await.is_none() {
        // It couldn't be finished: look again later, if it is still ours.
        changes.note_expiry(0);
    }
}

/// Frees the elements of collections that are over; `None` if it was cut short.
async fn free_garbage(access: &Access, shard: ShardId) -> Option<()> {
    while let Some(GarbagePage { key, incarnation, end }) = garbage(access, shard).await? {
        free(access, shard, EntryCommand::Free { key, incarnation, end }).await?;
        tokio::time::sleep(PAUSE).await;
    }
    Some(())
}

async fn garbage(access: &Access, shard: ShardId) -> Option<Option<GarbagePage>> {
    let access = access.clone();
    let read = move || {
        let page = access.reader(shard).ok()?.view().and_then(|view| view.garbage(PAGE_RECORDS));
        page.map_err(|error| access.unread(shard, error)).ok()
    };
    tokio::task::spawn_blocking(read).await.ok()?
}

/// One look through a shard; `None` if it was cut short.
async fn sweep_through(access: &Access, shard: ShardId, changes: &ShardChanges) -> Option<()> {
    let mut from = Bytes::new();
    loop {
        let page = page(access, shard, from).await?;
        if let Some(soonest_ms) = page.soonest_ms {
            changes.note_expiry(soonest_ms);
        }
        let mut expired = page.expired;
        while !expired.is_empty() {
            let mut size_bytes = 0;
            let fits = |key: &&Bytes| {
                size_bytes += key.len();
                size_bytes <= ENTRY_BYTES
            };
            let count = expired.iter().take_while(fits).count().max(1);
            let rest = expired.split_off(count.min(expired.len()));
            let keys = std::mem::replace(&mut expired, rest);
            free(access, shard, EntryCommand::Reclaim(keys)).await?;
        }
        for key in page.due {
            // A bounded number in an entry; those that are left are due still.
            while free(access, shard, EntryCommand::Reclaim(vec![key.clone()])).await? >= ELEMENTS {
                tokio::time::sleep(PAUSE).await;
            }
        }
        from = match page.next {
            Some(next) => next,
            None => return Some(()),
        };
        tokio::time::sleep(PAUSE).await;
    }
}

async fn page(access: &Access, shard: ShardId, from: Bytes) -> Option<SweepPage> {
    let access = access.clone();
    let read = move || {
        let reader = access.reader(shard).ok()?;
        let now_ms = reader.now_ms();
        let page = reader.view().and_then(|view| view.sweep(&from, now_ms, PAGE_RECORDS));
        page.map_err(|error| access.unread(shard, error)).ok()
    };
    tokio::task::spawn_blocking(read).await.ok()?
}

/// Returns how much was freed.
async fn free(access: &Access, shard: ShardId, command: EntryCommand) -> Option<u64> {
    let (ticket, receiver) = Ticket::oneshot();
    let command = command.to_bytes();
    access.drive.submit(Input::Propose { shard, command, version_count: 1, ticket }).ok()?;
    match receiver.await.ok()? {
        Outcome::Reclaimed(freed) => {
            access.reclaimed.inc_by(freed);
            Some(freed)
        }
        _ => None,
    }
}
