//! The maintenance thread: flushes and compactions, and telling the host what became durable.

use super::Shared;
use super::fatal::fatal;
use super::mailbox::Sender;
use super::replicate::Event;
use kvdb_engine::{Engine, EngineError};
use kvdb_replication::Input;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest pause between two looks at the engine; it wakes the thread earlier when work arrives.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// What became durable is told after each flush of this thread, and after so long in any case.
const TELL_EVERY: Duration = Duration::from_secs(1);

pub(crate) struct Maintainer {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) events: Sender<Event>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) stop: Arc<AtomicBool>,
}

impl Maintainer {
    pub(crate) fn run(self) {
        let (mut told_at, mut told_flushes) = (Instant::now(), 0);
        while !self.stop.load(Ordering::Relaxed) {
            match self.engine.maintain() {
                Ok(more) => {
                    let flushes = self.engine.totals().flushes;
                    if flushes != told_flushes || told_at.elapsed() >= TELL_EVERY {
                        self.report_flushed();
                        (told_at, told_flushes) = (Instant::now(), flushes);
                    }
                    if !more {
                        self.engine.wait_for_work(LOOK_EVERY);
                    }
                }
                Err(error) => fatal(&format!("the storage engine failed: {error}")),
            }
        }
    }

    fn report_flushed(&self) {
        for volume in self.shared.flushes.volumes() {
            let stats = match self.engine.stats(volume) {
                Ok(stats) => stats,
                Err(EngineError::VolumeMissing(_)) => {
                    self.shared.flushes.forget(volume);
                    continue;
                }
                Err(error) => fatal(&format!("the storage engine failed: {error}")),
            };
            for flushed in self.shared.flushes.take(volume, stats.flushed) {
                self.events.send(Event::Internal(Input::Flushed {
                    shard: flushed.shard,
                    replica: flushed.replica,
                    applied: flushed.applied,
                }));
            }
        }
    }
}
