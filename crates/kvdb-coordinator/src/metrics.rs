//! What a coordinator's map and log say of the cluster, read off them when somebody asks. Every
//! coordinator shows it, as far as it has followed the log.

use crate::view::View;
use kvdb_control::OperatorState;
use kvdb_model::NodeStatus;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub(crate) struct ClusterFigures {
    pub(crate) view: Arc<View>,
}

impl fmt::Debug for ClusterFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterFigures")
    }
}

/// The label of a status, as `kvdb admin nodes` shows it.
const STATUSES: [(NodeStatus, &str); 6] = [
    (NodeStatus::Alive, "ALIVE"),
    (NodeStatus::Suspect, "SUSPECT"),
    (NodeStatus::Dead, "DEAD"),
    (NodeStatus::Draining, "DRAINING"),
    (NodeStatus::Removed, "REMOVED"),
    (NodeStatus::Unreachable, "UNREACHABLE"),
];

/// The kinds of operations.
const KINDS: [&str; 7] =
    ["drain", "force-recover", "rebalance", "replace", "set-leader", "set-replicas", "split"];

impl Collector for ClusterFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let state = self.view.state();
        let map = state.map();

        let help = "Nodes of the cluster by status";
        let mut nodes = encoder.encode_descriptor("kvdb_nodes", help, None, MetricType::Gauge)?;
        for (status, label) in STATUSES {
            let count = map.nodes.values().filter(|node| node.status == status).count();
            let labels = [("status", label)];
            ConstGauge::new(count as i64).encode(nodes.encode_family(&labels)?)?;
        }

        // All kinds from the start: a series that comes and goes can't be alerted on.
        let mut running: BTreeMap<&str, i64> = KINDS.map(|kind| (kind, 0)).into();
        for operation in state.operators() {
            let count = running.entry(operation.kind.name()).or_default();
            *count += i64::from(matches!(operation.state, OperatorState::Running));
        }
        let help = "Operations that are running, by kind";
        let name = "kvdb_operations_running";
        let mut operations = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (kind, count) in running {
            let labels = [("kind", kind)];
            ConstGauge::new(count).encode(operations.encode_family(&labels)?)?;
        }

        let shards = map.shards.values();
        let led = shards.clone().filter(|shard| shard.leader.is_some()).count();
        let whole = shards.clone().filter(|shard| map.has_majority(&shard.descriptor)).count();
        let all = shards.count();
        let gauges = [
            ("kvdb_shards", "Shards of the cluster", all),
            ("kvdb_shards_without_leader", "Shards that have no leader", all - led),
            (
                "kvdb_shards_without_majority",
                "Shards of which too few nodes are there to read or write",
                all - whole,
            ),
            (
                "kvdb_under_replicated_shards",
                "Shards with fewer replicas on nodes that are there than are wanted",
                state.shortages().len(),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}
