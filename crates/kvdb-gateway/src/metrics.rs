//! Figures of a gateway. Handles are made once; an operation only counts.

use kvdb_redis::table::COMMANDS;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::{Arc, OnceLock};

/// Why requests are tried again, mostly.
const CAUSES: [&str; 7] = [
    "NOT_LEADER",
    "SHARD_MOVED",
    "STALE_EPOCH",
    "SHARD_UNAVAILABLE",
    "OVERLOADED",
    "NOT_SENT",
    "NO_ANSWER",
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Cause {
    cause: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Call {
    method: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct RedisCommand {
    command: &'static str,
    result: &'static str,
}

/// Answers to commands of Redis connections. A command has its counters from the first time on that it
/// comes.
#[derive(Clone)]
struct RedisCommands {
    family: Family<RedisCommand, Counter>,
    /// Answered, and answered with an error; by the command's place among all.
    handles: Arc<[OnceLock<[Counter; 2]>]>,
}

impl RedisCommands {
    fn new() -> Self {
        let handles = (0..=COMMANDS.len()).map(|_| OnceLock::new()).collect();
        RedisCommands { family: Family::default(), handles }
    }

    fn count(&self, place: Option<usize>, has_failed: bool) {
        // What isn't known comes last.
        let place = place.unwrap_or(COMMANDS.len());
        let Some(handles) = self.handles.get(place) else { return };
        let handles = handles.get_or_init(|| {
            let command = COMMANDS.get(place).map_or("unknown", |spec| spec.name);
            ["OK", "ERROR"]
                .map(|result| self.family.get_or_create(&RedisCommand { command, result }).clone())
        });
        handles[usize::from(has_failed)].inc();
    }
}

#[derive(Clone)]
pub(crate) struct Metrics {
    requests: Family<Call, Counter>,
    retries: Family<Cause, Counter>,
    redis: RedisCommands,
    pub(crate) seconds: Histogram,
    pub(crate) map_version: Gauge,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Metrics {
            requests: Family::default(),
            retries: Family::default(),
            redis: RedisCommands::new(),
            seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 18)),
            map_version: Gauge::default(),
        };
        registry.register(
            "kvdb_requests",
            "Requests by method and result",
            metrics.requests.clone(),
        );
        registry.register(
            "kvdb_redis_commands",
            "Commands of Redis connections by name and result; inside MULTI as they are queued",
            metrics.redis.family.clone(),
        );
        // What never happened is 0, and not missing.
        for cause in CAUSES {
            drop(metrics.retries.get_or_create(&Cause { cause }));
        }
        registry.register("kvdb_retries", "Retries by cause", metrics.retries.clone());
        registry.register(
            "kvdb_request_seconds",
            "Time from a routed request to its answer",
            metrics.seconds.clone(),
        );
        registry.register(
            "kvdb_map_version",
            "Version of the shard map",
            metrics.map_version.clone(),
        );
        metrics
    }

    pub(crate) fn request(&self, method: &'static str, result: &'static str) {
        self.requests.get_or_create(&Call { method, result }).inc();
    }

    /// A command of a Redis connection was answered; `place` is its place in the table of commands.
    pub(crate) fn redis_command(&self, place: Option<usize>, has_failed: bool) {
        self.redis.count(place, has_failed);
    }

    pub(crate) fn retry(&self, cause: &'static str) {
        self.retries.get_or_create(&Cause { cause }).inc();
    }
}
