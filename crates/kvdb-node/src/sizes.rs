//! How large the shards here are, and where a large one could be cut.
//!
//! What a volume takes on disk and in memory is known at once and good enough for most: a shard's
//! share of its volume. Only of a shard that is led here and may be larger than the coordinators
//! want shards to be, every key is looked at: then its size is known, and its middle. That is done
//! one shard after the other, a bounded number of bytes a second, and again when it has grown by a
//! tenth.
//!
//! The keys of shards that are led here are counted by the same walk, for people to see. A shard is
//! counted again after it has changed, the less often the larger it is, and all of that takes at
//! most a bounded share of one core: writes pay nothing for it. So a count is exact for a shard
//! that is left alone, and that of a moment ago for one that changes.

use bytes::Bytes;
use kvdb_engine::SequenceNumber;
use kvdb_model::{Partitioning, RangeEpoch, ReplicaId, ShardId, VolumeId};
use kvdb_runtime::drive::{Drive, ShardView, ViewTable};
use kvdb_runtime::map::ClusterMap;
use kvdb_runtime::shutdown::Shutdown;
use kvdb_store::Measure;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Pause between two looks at what has grown.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Bytes read before a pause. With [`PAUSE`] that is 40 MiB a second at most.
const PAGE_BYTES: u64 = 2 << 20;
const PAUSE: Duration = Duration::from_millis(50);
/// A shard is looked through again after so long even if it has grown by less than a tenth.
const STALE_AFTER: Duration = Duration::from_secs(600);
/// A shard that changes is counted once in as many seconds as it would take to read at this rate.
const COUNT_BYTES_PER_SECOND: u64 = 1 << 20;
/// Of the time, at most one part in so many is spent on counting.
const COUNT_SHARE: u32 = 20;
/// Time that may be saved up for counting: what is spent at once.
const COUNT_MOST_SAVED: Duration = Duration::from_millis(200);
/// Bytes of a routing key that say keyspace and slot.
const SLOT_BYTES: usize = 6;

/// What a shard holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// Bytes of keys and values, or their share of a volume.
    pub(crate) bytes: u64,
    /// Where half of them come before, if every key was looked at.
    pub(crate) middle: Option<Bytes>,
    /// Keys that hadn't expired when they were counted last.
    pub(crate) keys: Option<u64>,
}

struct Measured {
    replica: ReplicaId,
    range_epoch: RangeEpoch,
    volume_bytes: u64,
    /// The last batch that the volume had before.
    published: SequenceNumber,
    at: Instant,
    /// Its bytes and its middle count, not only its keys.
    is_large: bool,
    size: Size,
}

/// The replicas here as of a moment, and how many of them each volume holds.
pub(crate) struct Here {
    views: Arc<ViewTable>,
    sharing: HashMap<VolumeId, u64>,
}

impl Here {
    pub(crate) fn now(drive: &Drive) -> Self {
        let views = drive.views().all();
        let mut sharing = HashMap::new();
        for volume in views.values().filter_map(|view| view.volume) {
            *sharing.entry(volume).or_default() += 1;
        }
        Here { views, sharing }
    }

    pub(crate) fn has(&self, shard: ShardId) -> bool {
        self.views.contains_key(&shard)
    }
}

/// The sizes of the shards here.
#[derive(Default)]
pub(crate) struct Sizes {
    measured: Mutex<BTreeMap<ShardId, Measured>>,
    /// Beyond which the coordinators split a shard; 0 for never.
    limit_bytes: AtomicU64,
}

impl Sizes {
    /// What the coordinators want.
    pub(crate) fn set_limit(&self, limit_bytes: u64) {
        self.limit_bytes.store(limit_bytes, Ordering::Relaxed);
    }

    /// How large a shard is, as far as that is known.
    pub(crate) fn of(&self, drive: &Drive, here: &Here, shard: ShardId) -> Size {
        let Some(view) = here.views.get(&shard) else { return Size::default() };
        let measured = self.measured.lock();
        let known = measured.get(&shard).filter(|known| known.fits(view));
        if let Some(large) = known.filter(|known| known.is_large) {
            return large.size.clone();
        }
        let Some(volume) = view.volume else { return Size::default() };
        let sharing = here.sharing.get(&volume).copied().unwrap_or(1);
        let bytes = volume_bytes(drive, volume) / sharing;
        Size { bytes, middle: None, keys: known.and_then(|known| known.size.keys) }
    }

    /// Shards that may be too large and aren't measured, or were smaller then.
    fn due(&self, drive: &Drive) -> Vec<ShardId> {
        let limit_bytes = self.limit_bytes.load(Ordering::Relaxed);
        let views = drive.views().all();
        let mut measured = self.measured.lock();
        measured.retain(|shard, known| views.get(shard).is_some_and(|view| known.fits(view)));
        if limit_bytes == 0 {
            return Vec::new();
        }
        let is_due = |(shard, view): &(&ShardId, &Arc<ShardView>)| {
            let Some(volume) = view.volume.filter(|_| view.is_leader) else { return false };
            let bytes = volume_bytes(drive, volume);
            // Files are compressed: what is small there may be large.
            bytes >= limit_bytes / 4
                && measured.get(shard).filter(|known| known.is_large).is_none_or(|known| {
                    bytes > known.volume_bytes + known.volume_bytes / 10
                        || known.at.elapsed() > STALE_AFTER
                })
        };
        views.iter().filter(is_due).map(|(shard, _)| *shard).collect()
    }

    /// Shards whose keys have never been counted, or have changed since and may be counted again:
    /// first those that have waited longest.
    fn uncounted(&self, drive: &Drive) -> Vec<ShardId> {
        let measured = self.measured.lock();
        let counted_at = |(shard, view): (&ShardId, &Arc<ShardView>)| {
            let volume = view.volume.filter(|_| view.is_leader)?;
            let Some(known) = measured.get(shard) else { return Some((None, *shard)) };
            let published = drive.engine().stats(volume).ok()?.published;
            let pause = Duration::from_secs(known.size.bytes / COUNT_BYTES_PER_SECOND);
            let is_due = published != known.published && known.at.elapsed() >= pause;
            is_due.then_some((Some(known.at), *shard))
        };
        let views = drive.views().all();
        let mut due: Vec<(Option<Instant>, ShardId)> =
            views.iter().filter_map(counted_at).collect();
        due.sort_unstable();
        due.into_iter().map(|(_, shard)| shard).collect()
    }
}

impl Measured {
    /// Both are of one replica in one range, and the earlier one was looked at as a large one.
    fn is_the_same(&self, later: &Measured) -> bool {
        self.is_large && self.replica == later.replica && self.range_epoch == later.range_epoch
    }

    fn fits(&self, view: &ShardView) -> bool {
        let epoch = view.descriptor.as_ref().map(|descriptor| descriptor.range_epoch);
        self.replica == view.replica && epoch == Some(self.range_epoch) && view.is_leader
    }
}

fn volume_bytes(drive: &Drive, volume: VolumeId) -> u64 {
    // One that is gone meanwhile holds nothing.
    drive.engine().stats(volume).map_or(0, |stats| stats.memtable_bytes + stats.disk_bytes)
}

/// Time that may be spent on counting: it comes at a bounded rate, and only a little is saved.
struct Allowance {
    left: Duration,
    /// What was spent and isn't there yet.
    owed: Duration,
    at: Instant,
}

impl Allowance {
    fn begin(at: Instant) -> Self {
        Allowance { left: COUNT_MOST_SAVED, owed: Duration::ZERO, at }
    }

    fn is_left(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at) / COUNT_SHARE;
        self.at = now;
        let kept = earned.saturating_sub(self.owed);
        self.owed = self.owed.saturating_sub(earned);
        self.left = (self.left + kept).min(COUNT_MOST_SAVED);
        !self.left.is_zero()
    }

    fn spend(&mut self, spent: Duration) {
        self.owed += spent.saturating_sub(self.left);
        self.left = self.left.saturating_sub(spent);
    }
}

/// Measures what may be too large, and counts keys, until it is time to stop.
pub(crate) async fn run(drive: Drive, map: ClusterMap, sizes: Arc<Sizes>, shutdown: Shutdown) {
    let mut allowance = Allowance::begin(Instant::now());
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.wait() => return,
        }
        for shard in sizes.due(&drive) {
            tokio::select! {
                _ = look(&drive, &map, &sizes, shard, true) => {}
                () = shutdown.wait() => return,
            }
        }
        for shard in sizes.uncounted(&drive) {
            if !allowance.is_left(Instant::now()) {
                break;
            }
            tokio::select! {
                spent = look(&drive, &map, &sizes, shard, false) => allowance.spend(spent),
                () = shutdown.wait() => return,
            }
        }
    }
}

/// Looks through a shard, remembers what it holds, and returns how long reading took.
async fn look(
    drive: &Drive,
    map: &ClusterMap,
    sizes: &Sizes,
    shard: ShardId,
    is_large: bool,
) -> Duration {
    let mut spent = Duration::ZERO;
    if let Some(mut measured) = measure(drive, map, shard, &mut spent).await {
        let mut known = sizes.measured.lock();
        // One that was large stays so until it is looked at as such, or is another shard.
        let was_large = known.get(&shard).is_some_and(|before| before.is_the_same(&measured));
        measured.is_large = is_large || was_large;
        known.insert(shard, measured);
    }
    spent
}

/// Looks through a shard; nothing if it is elsewhere before the end. Adds how long reading took.
async fn measure(
    drive: &Drive,
    map: &ClusterMap,
    shard: ShardId,
    spent: &mut Duration,
) -> Option<Measured> {
    let view = drive.views().get(shard)?;
    let (descriptor, volume) = (view.descriptor.clone()?, view.volume?);
    let stats = drive.engine().stats(volume).ok()?;
    let partitioning = {
        let cache = map.cache.lock();
        cache.map().keyspaces.get(&descriptor.keyspace_id)?.partitioning
    };
    let together = (partitioning == Partitioning::Hash).then_some(SLOT_BYTES);
    let mut measure = Measure::new(together);
    let mut from = descriptor.range.start.clone();
    loop {
        let engine = drive.engine().clone();
        let range = descriptor.range.clone();
        let now_ms = view.times().time_ms;
        let reading = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let snapshot = engine.snapshot_of_lasting(volume)?;
            let next = measure.read(&*snapshot, &range, &from, now_ms, PAGE_BYTES)?;
            Ok::<_, kvdb_runtime::drive::VolumeError>((measure, next, began.elapsed()))
        });
        // A volume that is gone, or damaged: others find and tell that.
        let (so_far, next, took) = reading.await.ok()?.ok()?;
        measure = so_far;
        *spent += took;
        match next {
            Some(next) => from = next,
            None => break,
        }
        tokio::time::sleep(PAUSE).await;
        if drive.views().get(shard).is_none_or(|now| now.volume != Some(volume)) {
            return None;
        }
    }
    let middle = measure
        .middle()
        .filter(|middle| *middle > descriptor.range.start && descriptor.range.contains(middle));
    Some(Measured {
        replica: view.replica,
        range_epoch: descriptor.range_epoch,
        volume_bytes: stats.memtable_bytes + stats.disk_bytes,
        published: stats.published,
        at: Instant::now(),
        is_large: false,
        size: Size { bytes: measure.bytes(), middle, keys: Some(measure.keys()) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_takes_a_bounded_share_of_the_time_whatever_a_shard_costs() {
        for cost_ms in [1, 40, 3000] {
            let start = Instant::now();
            let mut allowance = Allowance::begin(start);
            let cost = Duration::from_millis(cost_ms);
            let mut spent = Duration::ZERO;
            for second in 1..=1000 {
                for _ in 0..1000 {
                    if !allowance.is_left(start + Duration::from_secs(second)) {
                        break;
                    }
                    allowance.spend(cost);
                    spent += cost;
                }
            }
            let most = Duration::from_secs(1000) / COUNT_SHARE + COUNT_MOST_SAVED + cost;
            assert!(spent <= most, "{cost_ms}: {spent:?}");
            assert!(spent >= Duration::from_secs(990) / COUNT_SHARE, "{cost_ms}: {spent:?}");
        }
    }
}
