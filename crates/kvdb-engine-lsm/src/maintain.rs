//! The work in the background: what to flush, what to compact, and when.

use crate::engine::Shared;
use crate::volume::Volume;
use kvdb_engine::EngineError;
use std::sync::Arc;
use std::time::Instant;

/// Whether a piece of work was done. One that the disk has no room for is put off.
fn had_room<T>(worked: Result<T, EngineError>) -> Result<bool, EngineError> {
    match worked {
        Ok(_) => Ok(true),
        Err(EngineError::NoRoom { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Shared {
    /// One round. Flushes come first: writes wait for them.
    pub(crate) fn maintain(&self) -> Result<bool, EngineError> {
        self.work.take();
        self.remove_deleted()?;
        let mut worked = false;
        if let Some(volume) = self.due(|_| true) {
            worked |= had_room(volume.flush())?;
            self.relieve();
        }
        if let Some(volume) = self.find(|volume| volume.has_dropped()) {
            worked |= had_room(volume.free())?;
        }
        if let Some(volume) = self.most_restless() {
            worked |= had_room(volume.compact())?;
            self.relieve();
        }
        Ok(worked)
    }

    /// Between two items of a compaction that has read `bytes` since it was last here.
    pub(crate) fn between_items(&self, bytes: u64) -> Result<(), EngineError> {
        self.common.counts.compacting(bytes);
        self.work.take();
        // A crowded one would have to be compacted first, and this is a compaction already.
        while let Some(volume) = self.due(|volume| !volume.is_crowded()) {
            if !had_room(volume.flush_only())? {
                break;
            }
            self.relieve();
        }
        if !self.is_pressed() {
            let rest = self.pace.lock().rest(bytes, Instant::now());
            self.work.wait(rest);
        }
        Ok(())
    }

    /// What to flush next: over budget the largest, else the oldest that has waited too long.
    fn due(&self, may: impl Fn(&Volume) -> bool) -> Option<Arc<Volume>> {
        let volumes = self.volumes.read();
        let candidates = volumes.values().filter(|volume| may(volume));
        if self.common.budget.is_over() {
            return candidates
                .filter(|volume| volume.unflushed_bytes() > 0)
                .max_by_key(|volume| volume.unflushed_bytes())
                .cloned();
        }
        candidates
            .filter_map(|volume| Some((volume.oldest_change()?, volume)))
            .filter(|(since, _)| since.elapsed() >= self.config.flush_age)
            .min_by_key(|(since, _)| *since)
            .map(|(_, volume)| volume.clone())
    }

    fn find(&self, wanted: impl Fn(&Volume) -> bool) -> Option<Arc<Volume>> {
        self.volumes.read().values().find(|volume| wanted(volume)).cloned()
    }

    fn most_restless(&self) -> Option<Arc<Volume>> {
        let volumes = self.volumes.read();
        let restless = volumes.values().filter(|volume| volume.is_restless());
        restless.max_by_key(|volume| volume.level0_runs()).cloned()
    }

    /// Writes wait, or will soon: no time to rest.
    fn is_pressed(&self) -> bool {
        let many = self.config.stall_at_runs / 2;
        self.common.budget.is_over()
            || self.volumes.read().values().any(|volume| volume.level0_runs() >= many)
    }
}
