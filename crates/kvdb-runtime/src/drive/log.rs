//! The log thread: appends what waits, syncs once, says so.

use super::Shared;
use super::fatal::fatal;
use super::mailbox::{Nothing, Receiver, Sender};
use super::replicate::{Event, LogBatch};
use crate::clock;
use kvdb_engine::{Engine, EngineError};
use kvdb_replication::Input;
use kvdb_wal::{FileDisk, Wal, volumes_to_flush};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long after the last sync an idle log gets the marker that protects its tail.
const IDLE_AFTER: Duration = Duration::from_millis(200);
/// How often an idle log looks whether the disk is filling up.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(crate) struct LogWriter {
    pub(crate) wal: Wal<FileDisk>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) batches: Receiver<LogBatch>,
    pub(crate) events: Sender<Event>,
    pub(crate) shared: Arc<Shared>,
}

impl LogWriter {
    pub(crate) fn run(mut self) {
        let mut marked = true;
        loop {
            let patience = if marked { LOOK_EVERY } else { IDLE_AFTER };
            match self.batches.receive(Some(Instant::now() + patience)) {
                Ok(batch) => {
                    self.write(batch);
                    marked = false;
                }
                Err(Nothing::Yet) => {
                    if !marked {
                        self.mark_idle();
                        marked = true;
                    }
                    if self.shared.room.is_tight() {
                        self.wal.keep_spare();
                    }
                }
                Err(Nothing::Ever) => {
                    if !marked {
                        self.mark_idle();
                    }
                    return;
                }
            }
        }
    }

    fn write(&mut self, batch: LogBatch) {
        for volume in volumes_to_flush(self.wal.live(), &batch.records) {
            loop {
                match self.engine.flush(volume) {
                    // Gone already: nobody is left in it.
                    Ok(_) | Err(EngineError::VolumeMissing(_)) => break,
                    Err(EngineError::NoRoom { .. }) if self.shared.room.pause() => {}
                    Err(error) => fatal(&format!("volume {volume} can't be flushed: {error}")),
                }
            }
        }
        let started = Instant::now();
        self.shared.log_health.begins(clock::boot_us());
        if let Err(error) = self.wal.append(&batch.records) {
            if self.shared.room.is_stopped() {
                // It waited for room. Nobody was told that these records are in the log.
                return tracing::warn!(%error, "stopping while the log waits for disk space");
            }
            fatal(&format!("the write-ahead log can't be written: {error}"));
        }
        self.shared.room.log_goes_on();
        if let Err(error) = self.wal.sync() {
            fatal(&format!("the write-ahead log can't be synced: {error}"));
        }
        self.shared.log_health.ends(clock::boot_us());
        self.shared.synced.store(self.wal.synced_through(), Ordering::Relaxed);
        self.shared.metrics.log_syncs.observe(started.elapsed().as_secs_f64());
        let stats = self.wal.stats();
        let metrics = &self.shared.metrics;
        metrics.log_segments.set(stats.segments as i64);
        metrics.log_bytes.inner().store(stats.appended_bytes, Ordering::Relaxed);
        metrics.log_rewrites.inner().store(stats.rewrites, Ordering::Relaxed);
        self.events.send(Event::Internal(Input::Persisted(batch.number)));
    }

    fn mark_idle(&mut self) {
        if let Err(error) = self.wal.mark_idle() {
            if self.shared.room.is_stopped() {
                return tracing::warn!(%error, "stopping while the log waits for disk space");
            }
            fatal(&format!("the write-ahead log can't be written: {error}"));
        }
    }
}
