//! How large the shards here are, and where a large one could be cut.
//!
//! What a volume takes on disk and in memory is known at once and good enough for most: a shard's
//! share of its volume. Only of a shard that is led here and may be larger than the coordinators
//! want shards to be, every key is looked at: then its size is known, and its middle. That is done
//! one shard after the other, a bounded number of bytes a second, and again when it has grown by a
//! tenth.

use bytes::Bytes;
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
/// Bytes of a routing key that say keyspace and slot.
const SLOT_BYTES: usize = 6;

/// What a shard holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// Bytes of keys and values, or their share of a volume.
    pub(crate) bytes: u64,
    /// Where half of them come before, if every key was looked at.
    pub(crate) middle: Option<Bytes>,
}

struct Measured {
    replica: ReplicaId,
    range_epoch: RangeEpoch,
    volume_bytes: u64,
    at: Instant,
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
        if let Some(known) = self.measured.lock().get(&shard).filter(|known| known.fits(view)) {
            return known.size.clone();
        }
        let Some(volume) = view.volume else { return Size::default() };
        let sharing = here.sharing.get(&volume).copied().unwrap_or(1);
        Size { bytes: volume_bytes(drive, volume) / sharing, middle: None }
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
                && measured.get(shard).is_none_or(|known| {
                    bytes > known.volume_bytes + known.volume_bytes / 10
                        || known.at.elapsed() > STALE_AFTER
                })
        };
        views.iter().filter(is_due).map(|(shard, _)| *shard).collect()
    }
}

impl Measured {
    fn fits(&self, view: &ShardView) -> bool {
        let epoch = view.descriptor.as_ref().map(|descriptor| descriptor.range_epoch);
        self.replica == view.replica && epoch == Some(self.range_epoch) && view.is_leader
    }
}

fn volume_bytes(drive: &Drive, volume: VolumeId) -> u64 {
    // One that is gone meanwhile holds nothing.
    drive.engine().stats(volume).map_or(0, |stats| stats.memtable_bytes + stats.disk_bytes)
}

/// Measures what may be too large, until it is time to stop.
pub(crate) async fn run(drive: Drive, map: ClusterMap, sizes: Arc<Sizes>, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.wait() => return,
        }
        for shard in sizes.due(&drive) {
            let measured = tokio::select! {
                measured = measure(&drive, &map, shard) => measured,
                () = shutdown.wait() => return,
            };
            if let Some(measured) = measured {
                sizes.measured.lock().insert(shard, measured);
            }
        }
    }
}

/// Looks through a shard; nothing if it is elsewhere before the end.
async fn measure(drive: &Drive, map: &ClusterMap, shard: ShardId) -> Option<Measured> {
    let view = drive.views().get(shard)?;
    let (descriptor, volume) = (view.descriptor.clone()?, view.volume?);
    let volume_bytes = volume_bytes(drive, volume);
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
        let reading = tokio::task::spawn_blocking(move || {
            let snapshot = engine.snapshot_of_lasting(volume)?;
            let next = measure.read(&*snapshot, &range, &from, PAGE_BYTES)?;
            Ok::<_, kvdb_runtime::drive::VolumeError>((measure, next))
        });
        // A volume that is gone, or damaged: others find and tell that.
        let (so_far, next) = reading.await.ok()?.ok()?;
        measure = so_far;
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
        volume_bytes,
        at: Instant::now(),
        size: Size { bytes: measure.bytes(), middle },
    })
}
