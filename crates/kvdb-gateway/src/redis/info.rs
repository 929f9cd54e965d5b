//! What `INFO` says of a gateway and of the keys behind it.

use super::clients::{CLIENTS_MAX, HELD_MAX_BYTES};
use bytes::Bytes;
use kvdb_redis::args::upper;
use kvdb_redis::server::REDIS_VERSION;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What is counted from the start, or from `CONFIG RESETSTAT`.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) commands: AtomicU64,
    pub(super) changes: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) input_bytes: AtomicU64,
    pub(super) output_bytes: AtomicU64,
}

impl Counters {
    /// Begins again, but for the changes: those count from the last save, which never is.
    pub(super) fn reset(&self) {
        let counters = [
            &self.commands,
            &self.connections,
            &self.rejected,
            &self.errors,
            &self.input_bytes,
            &self.output_bytes,
        ];
        counters.into_iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
    }
}

/// Keys of a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Keys {
    pub(crate) keys: u64,
    /// Those that expire.
    pub(crate) expiring: u64,
    /// Milliseconds that these have left, together.
    pub(crate) left_ms: u128,
}

impl Keys {
    pub(crate) fn and(self, other: Keys) -> Keys {
        Keys {
            keys: self.keys + other.keys,
            expiring: self.expiring + other.expiring,
            left_ms: self.left_ms + other.left_ms,
        }
    }
}

/// What the cluster around a gateway is like.
#[derive(Default)]
pub(crate) struct Around {
    /// Replicas beside the leader that have every answered write.
    pub(crate) replicas: u32,
    /// Of databases that have keys.
    pub(crate) keys: Vec<(u8, Keys)>,
}

/// Of the gateway itself.
pub(super) struct Facts {
    pub(super) port: u16,
    pub(super) uptime: Duration,
    pub(super) clients: usize,
    pub(super) held_bytes: usize,
}

const SECTIONS: [&str; 9] = [
    "SERVER",
    "CLIENTS",
    "MEMORY",
    "PERSISTENCE",
    "STATS",
    "REPLICATION",
    "CPU",
    "CLUSTER",
    "KEYSPACE",
];

/// The sections that are asked for; all if none is named. Those that don't exist say nothing.
pub(super) fn text(asked: &[Bytes], facts: &Facts, counters: &Counters, around: &Around) -> String {
    let asked: Vec<String> = asked.iter().map(|word| upper(word)).collect();
    let all = asked.is_empty()
        || asked.iter().any(|word| matches!(word.as_str(), "ALL" | "DEFAULT" | "EVERYTHING"));
    let wanted = SECTIONS.iter().filter(|name| all || asked.iter().any(|word| word == *name));
    let shown = wanted.map(|name| section(name, facts, counters, around).join("\r\n") + "\r\n");
    shown.collect::<Vec<String>>().join("\r\n")
}

/// Whether keys are asked for: they must be counted first.
pub(super) fn wants_keys(args: &[Bytes]) -> bool {
    let names = ["ALL", "DEFAULT", "EVERYTHING", "KEYSPACE"];
    args.len() == 1 || args[1..].iter().any(|word| names.contains(&upper(word).as_str()))
}

fn section(name: &str, facts: &Facts, counters: &Counters, around: &Around) -> Vec<String> {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    match name {
        "SERVER" => vec![
            "# Server".to_owned(),
            format!("redis_version:{REDIS_VERSION}"),
            "redis_mode:standalone".to_owned(),
            format!("kvdb_version:{}", env!("CARGO_PKG_VERSION")),
            format!("os:{} {}", std::env::consts::OS, std::env::consts::ARCH),
            format!("arch_bits:{}", usize::BITS),
            format!("process_id:{}", std::process::id()),
            format!("tcp_port:{}", facts.port),
            format!("uptime_in_seconds:{}", facts.uptime.as_secs()),
            format!("uptime_in_days:{}", facts.uptime.as_secs() / 86_400),
        ],
        "CLIENTS" => vec![
            "# Clients".to_owned(),
            format!("connected_clients:{}", facts.clients),
            format!("maxclients:{CLIENTS_MAX}"),
            "blocked_clients:0".to_owned(),
            "tracking_clients:0".to_owned(),
        ],
        "MEMORY" => {
            let (used, peak) = memory();
            vec![
                "# Memory".to_owned(),
                format!("used_memory:{used}"),
                format!("used_memory_human:{}", human(used)),
                format!("used_memory_rss:{used}"),
                format!("used_memory_rss_human:{}", human(used)),
                format!("used_memory_peak:{peak}"),
                format!("used_memory_peak_human:{}", human(peak)),
                "maxmemory:0".to_owned(),
                "maxmemory_human:0B".to_owned(),
                "maxmemory_policy:noeviction".to_owned(),
                format!("client_input_bytes:{}", facts.held_bytes),
                format!("client_input_bytes_max:{HELD_MAX_BYTES}"),
            ]
        }
        "PERSISTENCE" => vec![
            "# Persistence".to_owned(),
            "loading:0".to_owned(),
            format!("rdb_changes_since_last_save:{}", count(&counters.changes)),
            "rdb_bgsave_in_progress:0".to_owned(),
            "aof_enabled:1".to_owned(),
            "aof_rewrite_in_progress:0".to_owned(),
            "aof_last_write_status:ok".to_owned(),
        ],
        "STATS" => vec![
            "# Stats".to_owned(),
            format!("total_connections_received:{}", count(&counters.connections)),
            format!("total_commands_processed:{}", count(&counters.commands)),
            format!("total_net_input_bytes:{}", count(&counters.input_bytes)),
            format!("total_net_output_bytes:{}", count(&counters.output_bytes)),
            format!("rejected_connections:{}", count(&counters.rejected)),
            format!("total_error_replies:{}", count(&counters.errors)),
            "evicted_keys:0".to_owned(),
            "pubsub_channels:0".to_owned(),
            "pubsub_patterns:0".to_owned(),
        ],
        "REPLICATION" => vec![
            "# Replication".to_owned(),
            "role:master".to_owned(),
            format!("connected_slaves:{}", around.replicas),
        ],
        "CPU" => {
            let (system, user) = processor_seconds();
            vec![
                "# CPU".to_owned(),
                format!("used_cpu_sys:{system:.6}"),
                format!("used_cpu_user:{user:.6}"),
            ]
        }
        "CLUSTER" => vec!["# Cluster".to_owned(), "cluster_enabled:0".to_owned()],
        _ => {
            let line = |(db, keys): &(u8, Keys)| {
                let average = keys.left_ms / u128::from(keys.expiring.max(1));
                format!("db{db}:keys={},expires={},avg_ttl={average}", keys.keys, keys.expiring)
            };
            let filled = around.keys.iter().filter(|(_, keys)| keys.keys > 0);
            ["# Keyspace".to_owned()].into_iter().chain(filled.map(line)).collect()
        }
    }
}

/// Bytes in memory now, and at most so far; 0 where the system doesn't tell.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kibibytes = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    (kibibytes("VmRSS:") * 1024, kibibytes("VmHWM:") * 1024)
}

/// Seconds of processor time in the system and in the program, as far as the system tells: in
/// hundredths.
fn processor_seconds() -> (f64, f64) {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |place: usize| -> f64 {
        fields.get(place).and_then(|field| field.parse().ok()).unwrap_or(0.0)
    };
    (ticks(12) / 100.0, ticks(11) / 100.0)
}

fn human(bytes: u64) -> String {
    let units = ["K", "M", "G", "T"];
    let mut size = bytes as f64;
    let mut unit = "B";
    for larger in units {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, larger);
    }
    if unit == "B" { format!("{bytes}B") } else { format!("{size:.2}{unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(asked: &str) -> String {
        let asked: Vec<Bytes> =
            asked.split_whitespace().map(|word| Bytes::from(word.to_owned())).collect();
        let facts =
            Facts { port: 7, uptime: Duration::from_secs(200_000), clients: 3, held_bytes: 0 };
        let keys = Keys { keys: 5, expiring: 2, left_ms: 3000 };
        let around = Around { replicas: 1, keys: vec![(0, keys), (3, Keys::default())] };
        text(&asked, &facts, &Counters::default(), &around)
    }

    #[test]
    fn only_the_sections_that_are_asked_for_are_told() {
        assert_eq!(say("keyspace"), "# Keyspace\r\ndb0:keys=5,expires=2,avg_ttl=1500\r\n");
        assert_eq!(
            say("Cluster replication"),
            "# Replication\r\nrole:master\r\nconnected_slaves:1\r\n\r\n# Cluster\r\ncluster_enabled:0\r\n"
        );
        assert_eq!(say("nonsense"), "");
        for all in ["", "all", "everything", "default"] {
            assert_eq!(say(all).matches("# ").count(), SECTIONS.len());
        }
        assert!(say("server").contains("uptime_in_days:2\r\n"));
    }

    #[test]
    fn sizes_are_told_as_people_write_them() {
        assert_eq!(
            (human(12), human(1536), human(3 << 30)),
            ("12B".into(), "1.50K".into(), "3.00G".into())
        );
    }
}
