//! Figures of a drive: what its threads count, and what is read off it when somebody asks.

use super::Shared;
use super::mailbox::Depth;
use kvdb_engine::Engine;
use kvdb_replication::Rejection;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Cause {
    cause: &'static str,
}

/// What the threads count. Cheap: a counter is one addition.
#[derive(Default)]
pub(crate) struct Metrics {
    pub(crate) log_syncs: LogSyncs,
    pub(crate) log_segments: Gauge,
    pub(crate) log_bytes: Counter,
    pub(crate) log_rewrites: Counter,
    pub(crate) applied_entries: Counter,
    pub(crate) applied_commands: Counter,
    pub(crate) proposals: Counter,
    pub(crate) reads: Counter,
    pub(crate) reads_by_lease: Counter,
    rejections: Family<Cause, Counter>,
    pub(crate) elections_won: Counter,
    pub(crate) role_changes: Counter,
    pub(crate) peer_messages_sent: Counter,
    pub(crate) peer_messages_received: Counter,
    pub(crate) peer_messages_dropped: Counter,
    pub(crate) snapshots_sent: Counter,
    pub(crate) snapshots_received: Counter,
    pub(crate) replicas_hibernating: Gauge,
    pub(crate) log_stalled: Gauge,
}

pub(crate) struct LogSyncs(Histogram);

impl Default for LogSyncs {
    fn default() -> Self {
        LogSyncs(Histogram::new(exponential_buckets(0.000_05, 2.0, 16)))
    }
}

impl LogSyncs {
    pub(crate) fn observe(&self, seconds: f64) {
        self.0.observe(seconds);
    }
}

fn cause_of(why: Rejection) -> Cause {
    let cause = match why {
        Rejection::NoSuchShard => "no_such_shard",
        Rejection::NotLeader(_) => "not_leader",
        Rejection::Unavailable => "unavailable",
        Rejection::InvalidMembership => "invalid_membership",
        Rejection::Overloaded => "overloaded",
        Rejection::Superseded => "superseded",
        Rejection::OutcomeUnknown => "outcome_unknown",
    };
    Cause { cause }
}

impl Metrics {
    pub(crate) fn rejected(&self, why: Rejection) {
        self.rejections.get_or_create(&cause_of(why)).inc();
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        let counters = [
            ("kvdb_log_bytes", "Bytes appended to the write-ahead log", &self.log_bytes),
            (
                "kvdb_log_rewrites",
                "Replicas written again to free a segment of the log",
                &self.log_rewrites,
            ),
            ("kvdb_applied_entries", "Log entries applied", &self.applied_entries),
            ("kvdb_applied_commands", "Commands applied", &self.applied_commands),
            ("kvdb_raft_proposals", "Commands proposed to the groups here", &self.proposals),
            ("kvdb_raft_reads", "Strong reads that asked for leadership", &self.reads),
            (
                "kvdb_raft_reads_by_lease",
                "Those of them that a lease answered, so that no other replica was asked",
                &self.reads_by_lease,
            ),
            (
                "kvdb_raft_elections_won",
                "Times that a replica here became the leader of its shard",
                &self.elections_won,
            ),
            (
                "kvdb_raft_role_changes",
                "Changes of role, term or known leader of the replicas here",
                &self.role_changes,
            ),
            (
                "kvdb_peer_messages_sent",
                "Raft messages for other processes",
                &self.peer_messages_sent,
            ),
            (
                "kvdb_peer_messages_received",
                "Raft messages from other processes",
                &self.peer_messages_received,
            ),
            (
                "kvdb_peer_messages_dropped",
                "Raft messages dropped because a queue was full",
                &self.peer_messages_dropped,
            ),
            ("kvdb_snapshots_sent", "Snapshots delivered to other replicas", &self.snapshots_sent),
            ("kvdb_snapshots_received", "Snapshots taken in", &self.snapshots_received),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        // What never happened is 0, and not missing.
        for why in [
            Rejection::NoSuchShard,
            Rejection::NotLeader(None),
            Rejection::Unavailable,
            Rejection::InvalidMembership,
            Rejection::Overloaded,
            Rejection::Superseded,
            Rejection::OutcomeUnknown,
        ] {
            drop(self.rejections.get_or_create(&cause_of(why)));
        }
        registry.register(
            "kvdb_raft_rejections",
            "Proposals and reads that were not taken, by cause",
            self.rejections.clone(),
        );
        registry.register(
            "kvdb_log_sync_seconds",
            "Time that one append and sync of the write-ahead log took",
            self.log_syncs.0.clone(),
        );
        registry.register(
            "kvdb_log_stalled",
            "1 while the log can't be synced, and for a while after",
            self.log_stalled.clone(),
        );
        registry.register(
            "kvdb_replicas_hibernating",
            "Replicas of idle shards: they neither tick nor send heartbeats",
            self.replicas_hibernating.clone(),
        );
        registry.register(
            "kvdb_log_segments",
            "Segments of the write-ahead log",
            self.log_segments.clone(),
        );
    }
}

/// What is read off a drive when its figures are asked for.
pub(crate) struct Gathered {
    pub(crate) shared: Arc<Shared>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) queues: Vec<(&'static str, Depth)>,
}

impl std::fmt::Debug for Gathered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gathered")
    }
}

impl Collector for Gathered {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let shared = &self.shared;
        let counted = [
            ("clients", shared.submitted.load(Ordering::Relaxed)),
            ("peer_frames", shared.peer_frames.load(Ordering::Relaxed)),
        ];
        let queues = self.queues.iter().map(|(name, depth)| (*name, depth())).chain(counted);
        let depths: Vec<_> = queues.collect();
        let mut family = encoder.encode_descriptor(
            "kvdb_queue_depth",
            "What waits in each queue of the process",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        for (queue, depth) in depths {
            let labels = [("queue", queue)];
            ConstGauge::new(depth as i64).encode(family.encode_family(&labels)?)?;
        }
        let views = shared.views.all();
        let leads = views.values().filter(|view| view.is_leader).count();
        let gauges = [
            ("kvdb_replicas", "Replicas in this process", views.len()),
            ("kvdb_leaders", "Replicas in this process that lead their shard", leads),
            (
                "kvdb_disk_level",
                "Room on the disk: 0 enough, 1 deletes only, 2 no writes",
                shared.room.level() as usize,
            ),
            (
                "kvdb_disk_free_bytes",
                "Bytes free on the disk, without the reserve",
                shared.room.free_bytes() as usize,
            ),
        ];
        for (name, help, value) in gauges {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        let totals = self.engine.totals();
        let mut family = encoder.encode_descriptor(
            "kvdb_memory_bytes",
            "Memory for what grows with use: memtables, written bytes that aren't flushed (the log is as large), \
             blocks of tables, the latest changes for watchers",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        let uses = [
            ("memtables", totals.memtable_bytes),
            ("unflushed", totals.unflushed_bytes),
            ("cache", totals.cache_bytes),
            ("changes", shared.changes.size_bytes() as u64),
        ];
        for (name, bytes) in uses {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            ConstGauge::new(bytes).encode(family.encode_family(&[("use", name)])?)?;
        }
        let counters = [
            ("kvdb_engine_flushes", "Memtables written to disk", totals.flushes),
            ("kvdb_engine_compactions", "Compactions that changed something", totals.compactions),
            ("kvdb_engine_compacted_bytes", "Bytes that compactions read", totals.compacted_bytes),
            (
                "kvdb_engine_stalls",
                "Writes that had to wait for flushes or compactions",
                totals.stalls,
            ),
        ];
        for (name, help, value) in counters {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        let stalled = ConstCounter::new(totals.stalled_ms as f64 / 1000.0);
        let (name, help) =
            ("kvdb_engine_stalled_seconds", "How long these writes waited, together");
        stalled.encode(encoder.encode_descriptor(name, help, None, stalled.metric_type())?)?;
        Ok(())
    }
}
