//! Figures of a node's requests. Handles are made once; an operation only counts.

use kvdb_model::Refusal;
use kvdb_wire::proto::node_operation::Operation as Asked;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::time::Instant;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Call {
    method: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Class {
    class: &'static str,
}

/// Reads and writes differ by orders of magnitude: each has its own distribution.
#[derive(Clone, Copy)]
enum Kind {
    Read,
    Write,
}

/// A request that is being carried out.
#[derive(Clone, Copy)]
pub(crate) struct Begun {
    method: &'static str,
    kind: Kind,
    at: Instant,
}

impl Begun {
    /// `at` is when it was taken in; requests of one message share it.
    pub(crate) fn new(asked: &Asked, at: Instant) -> Self {
        let (method, kind) = match asked {
            Asked::Get(_) => ("get", Kind::Read),
            Asked::BatchGet(_) => ("batch_get", Kind::Read),
            Asked::Scan(_) => ("scan", Kind::Read),
            Asked::Query(_) => ("query", Kind::Read),
            Asked::Execute(_) => ("execute", Kind::Write),
        };
        Begun { method, kind, at }
    }

    /// A write by a method of its own.
    pub(crate) fn write(method: &'static str, at: Instant) -> Self {
        Begun { method, kind: Kind::Write, at }
    }
}

#[derive(Clone)]
pub(crate) struct Metrics {
    requests: Family<Call, Counter>,
    reads: Histogram,
    writes: Histogram,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let seconds = Family::<Class, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.000_05, 2.0, 18))
        });
        let of = |class| seconds.get_or_create(&Class { class }).clone();
        let metrics =
            Metrics { requests: Family::default(), reads: of("read"), writes: of("write") };
        let help = "Requests by method and result";
        registry.register("kvdb_requests", help, metrics.requests.clone());
        let help = "Time from a request to its answer, in this process";
        registry.register("kvdb_request_seconds", help, seconds);
        metrics
    }

    /// Notes that a request is answered.
    pub(crate) fn answered(&self, begun: Begun, refusal: Option<&Refusal>) {
        let result = refusal.map_or("OK", Refusal::code);
        self.requests.get_or_create(&Call { method: begun.method, result }).inc();
        let seconds = begun.at.elapsed().as_secs_f64();
        match begun.kind {
            Kind::Read => self.reads.observe(seconds),
            Kind::Write => self.writes.observe(seconds),
        }
    }
}
