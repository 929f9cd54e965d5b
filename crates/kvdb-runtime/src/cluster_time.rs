//! Cluster time in a process: told by the leading coordinator, going on by the boot clock. See
//! [`kvdb_model::time`] for what it is.
//!
//! The machine's own wall clock is compared with it: one that is wrong harms nobody, but is worth
//! knowing of. It is named in the log, in metrics, and by the coordinators in `kvdb admin status`.

use crate::clock;
use crate::coordinators::Coordinators;
use crate::shutdown::Shutdown;
use kvdb_model::ClusterClock;
use kvdb_model::time::MAX_CLOCK_SKEW_MS;
use kvdb_wire::proto;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tonic::Request;

/// Between two questions after the time.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// An answer that took longer says too little of what time it is.
const LONGEST_ROUND_TRIP_US: u64 = 200_000;

/// Cluster time as this process knows it. Clones share it.
#[derive(Clone, Default)]
pub struct ClusterTime {
    clock: Arc<Mutex<ClusterClock>>,
    own_offset: Gauge<f64, AtomicU64>,
    is_off: Arc<Mutex<bool>>,
}

impl ClusterTime {
    /// With a metric of how far this machine's wall clock is off.
    pub fn new(registry: &mut Registry) -> Self {
        let time = ClusterTime::default();
        registry.register(
            "kvdb_clock_offset_seconds",
            "How far the wall clock of this machine is ahead of cluster time (behind, if negative)",
            time.own_offset.clone(),
        );
        time
    }

    /// Milliseconds since 1970, if they are known.
    pub fn now_ms(&self) -> Option<u64> {
        self.clock.lock().now_ms(clock::boot_us())
    }

    /// As [`ClusterTime::now_ms`]; what this machine's wall clock says while nothing else is known.
    pub fn now_or_wall_ms(&self) -> u64 {
        self.now_ms().unwrap_or_else(clock::wall_ms)
    }

    /// Looks at the clock, or changes it.
    pub fn with<T>(&self, use_clock: impl FnOnce(&mut ClusterClock) -> T) -> T {
        use_clock(&mut self.clock.lock())
    }

    /// A coordinator has answered what time it is: asked and answered at these boot times here. Returns
    /// cluster time as of the answer, if that says enough.
    pub fn told(&self, cluster_ms: u64, asked_us: u64, answered_us: u64) -> Option<u64> {
        let took_us = answered_us.saturating_sub(asked_us);
        if cluster_ms == 0 || took_us > LONGEST_ROUND_TRIP_US {
            return None;
        }
        let now_ms = cluster_ms + took_us / 2000;
        self.clock.lock().told(now_ms, answered_us);
        self.compare_own();
        Some(now_ms)
    }

    /// Compares the wall clock of this machine, and says so when it goes wrong or right.
    pub fn compare_own(&self) {
        let now = clock::now();
        let ahead_ms = self.clock.lock().wall_ahead_ms(now.wall_ms, now.boot_us);
        let Some(ahead_ms) = ahead_ms else { return };
        self.own_offset.set(ahead_ms as f64 / 1000.0);
        let is_off = ahead_ms.unsigned_abs() > MAX_CLOCK_SKEW_MS;
        if std::mem::replace(&mut *self.is_off.lock(), is_off) == is_off {
            return;
        }
        if is_off {
            tracing::warn!(
                ahead_ms,
                "the wall clock of this machine is wrong; nothing relies on it, but set it right"
            );
        } else {
            tracing::info!(ahead_ms, "the wall clock of this machine is right again");
        }
    }
}

/// Asks the leading coordinator for the time again and again, and tells it this process's wall clock.
/// `answered` hears cluster time with each answer. `is_wanted` says whether to ask now.
pub async fn follow(
    coordinators: Coordinators,
    process: impl Fn() -> proto::SyncClockRequest,
    time: ClusterTime,
    is_wanted: impl Fn() -> bool,
    answered: impl Fn(u64),
    shutdown: Shutdown,
) {
    let mut interval = tokio::time::interval(ASK_EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = shutdown.wait() => return,
        }
        if !is_wanted() {
            continue;
        }
        let asked_us = AtomicU64::new(0);
        let ask = async |mut client: kvdb_wire::proto::coordinator_client::CoordinatorClient<
            tonic::transport::Channel,
        >| {
            asked_us.store(clock::boot_us(), std::sync::atomic::Ordering::Relaxed);
            let request = proto::SyncClockRequest { wall_ms: clock::wall_ms(), ..process() };
            client.sync_clock(Request::new(request)).await
        };
        if let Ok(answer) = coordinators.call(ask).await {
            let asked_us = asked_us.load(std::sync::atomic::Ordering::Relaxed);
            let cluster_ms = answer.into_inner().cluster_time_ms;
            if let Some(now_ms) = time.told(cluster_ms, asked_us, clock::boot_us()) {
                answered(now_ms);
            }
        }
    }
}
