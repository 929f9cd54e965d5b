//! Figures of the process, under the names that every Prometheus exporter has, and of the build.

use crate::{clock, files};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use rustix::time::{ClockId, clock_gettime};
use std::fmt;
use std::fs;

/// Makes them known. All that runs in one process (`kvdb dev`) shows the same.
pub fn register(registry: &mut Registry) {
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("kvdb_build", "The version that runs", build);
    let start_seconds = (clock::wall_ms() as f64 - age_ms()) / 1000.0;
    registry.register_collector(Box::new(Process { start_seconds }));
}

#[derive(Debug)]
struct Process {
    start_seconds: f64,
}

/// For how long the process has been running.
fn age_ms() -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    // What follows the name, which may hold anything but ends with the last parenthesis.
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, after)| after);
    // The 22nd field: ticks after the machine's start. The first one here is the 3rd.
    let start_ticks = after_name.split_whitespace().nth(19).and_then(|field| field.parse().ok());
    let now_ms = clock::boot_us() as f64 / 1000.0;
    start_ticks.map_or(0.0, |ticks: f64| (now_ms - ticks / TICKS_PER_SECOND * 1000.0).max(0.0))
}

/// A figure of `/proc/self/status`, such as `VmRSS`.
fn status(text: &str, name: &str) -> i64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0)
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = ConstCounter::new(cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9);
        let help = "Processor time used, user and system";
        let kind = seconds.metric_type();
        seconds.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, kind)?)?;

        let start = ConstGauge::new(self.start_seconds);
        let help = "When the process started, in seconds since 1970";
        let kind = start.metric_type();
        start.encode(encoder.encode_descriptor(
            "process_start_time_seconds",
            help,
            None,
            kind,
        )?)?;

        let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let open_files = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        let gauges = [
            (
                "process_resident_memory_bytes",
                "Memory that is resident",
                status(&text, "VmRSS").saturating_mul(1024),
            ),
            ("process_threads", "Threads", status(&text, "Threads")),
            ("process_open_fds", "Open files and connections", open_files as i64),
            (
                "kvdb_client_connections",
                "Connections to the gRPC and Redis listeners of the process",
                files::clients() as i64,
            ),
            (
                "kvdb_client_connections_limit",
                "The most connections that the gRPC and Redis listeners take together",
                i64::try_from(files::most_clients()).unwrap_or(i64::MAX),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_this_process() {
        let mut registry = Registry::default();
        register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
        };
        let resident = value("process_resident_memory_bytes");
        assert!((1e6..1e12).contains(&resident), "{resident}");
        assert!(value("process_cpu_seconds_total") > 0.0);
        assert!(value("process_threads") >= 1.0 && value("process_open_fds") >= 3.0);
        let age_seconds = clock::wall_ms() as f64 / 1000.0 - value("process_start_time_seconds");
        assert!((-1.0..3600.0).contains(&age_seconds), "{age_seconds}");
        assert!(text.contains("kvdb_build_info{version=\""), "{text}");
    }
}
