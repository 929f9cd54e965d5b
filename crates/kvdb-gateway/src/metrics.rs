//! Figures of a gateway. Handles are made once; an operation only counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

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

#[derive(Clone)]
pub(crate) struct Metrics {
    requests: Family<Call, Counter>,
    retries: Family<Cause, Counter>,
    pub(crate) seconds: Histogram,
    pub(crate) map_version: Gauge,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Metrics {
            requests: Family::default(),
            retries: Family::default(),
            seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 18)),
            map_version: Gauge::default(),
        };
        registry.register(
            "kvdb_requests",
            "Requests by method and result",
            metrics.requests.clone(),
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

    pub(crate) fn retry(&self, cause: &'static str) {
        self.retries.get_or_create(&Cause { cause }).inc();
    }
}
