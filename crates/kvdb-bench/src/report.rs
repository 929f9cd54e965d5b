//! What a run found, as text and as JSON.

use crate::measure::{Latencies, Measured, empty};
use crate::options::Options;
use crate::target::Failed;
use crate::usage::Usage;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

/// What a run found. Its JSON has these names.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How operations were put.
    pub target: &'static str,
    /// Clients.
    pub clients: u32,
    /// Requests that a client had on its way at once.
    pub pipeline: u32,
    /// Connections to each address.
    pub connections: u32,
    /// Requests a second that were asked for; none in a closed loop.
    pub rate: Option<f64>,
    /// Different keys.
    pub keys: u64,
    /// Which of them came how often.
    pub spread: &'static str,
    /// Bytes of a value, at most.
    pub value_bytes: u32,
    /// Bytes of a value, at least.
    pub value_bytes_min: u32,
    /// Requests that were answered.
    pub requests: u64,
    /// Requests that failed.
    pub errors: u64,
    /// They by kind.
    pub errors_by_kind: BTreeMap<String, ErrorKind>,
    /// Requests of an open loop that were due and weren't sent in twice the time.
    pub unsent: u64,
    /// Reads of keys that weren't there.
    pub missing: u64,
    /// Keys that scans found.
    pub scanned_keys: u64,
    /// Attempts of read-modify-write that another write got in the way of.
    pub conflicts: u64,
    /// Length of the measurement.
    pub seconds: f64,
    /// Answered requests a second.
    pub ops_per_second: f64,
    /// Latencies of all operations.
    #[serde(flatten)]
    pub latency: Latency,
    /// Latencies of each kind of operation, where there is more than one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub by_operation: BTreeMap<&'static str, Latency>,
    /// Processor time of the servers for a million answered requests, if their processes were named.
    pub server_cpu_seconds_per_million: Option<f64>,
    /// The same of this process.
    pub client_cpu_seconds_per_million: f64,
    /// Sum of the servers' peaks of resident memory since each was started.
    pub server_peak_memory_bytes: Option<u64>,
    /// The first failure.
    #[serde(skip)]
    pub first_error: Option<Failed>,
}

/// Failed requests of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorKind {
    /// How many.
    pub count: u64,
    /// The words of the first.
    pub example: String,
}

/// Latencies in microseconds, exact to three digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Requests.
    pub count: u64,
    /// On average.
    pub mean_us: f64,
    /// Half of the requests took no longer.
    pub p50_us: u64,
    /// Nine of ten took no longer.
    pub p90_us: u64,
    /// 99 of 100 took no longer.
    pub p99_us: u64,
    /// 999 of 1,000 took no longer.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl From<&Latencies> for Latency {
    fn from(all: &Latencies) -> Self {
        Latency {
            count: all.len(),
            mean_us: (all.mean() * 10.0).round() / 10.0,
            p50_us: all.value_at_quantile(0.5),
            p90_us: all.value_at_quantile(0.9),
            p99_us: all.value_at_quantile(0.99),
            p999_us: all.value_at_quantile(0.999),
            max_us: all.max(),
        }
    }
}

impl Report {
    pub(crate) fn new(
        options: &Options,
        clients: Vec<Measured>,
        unsent: u64,
        took: Duration,
        servers: Usage,
        own: Usage,
    ) -> Self {
        let by_action = Measured::latencies(&clients);
        let mut all: Latencies = empty();
        for (_, latencies) in &by_action {
            all.add(latencies).expect("both have the same bounds");
        }
        let mut counts = Measured::default();
        for client in clients {
            counts.add_counts(client);
        }
        let answered = all.len();
        let per_million = |usage: Usage| usage.cpu.as_secs_f64() * 1e6 / answered.max(1) as f64;
        let watched = !options.server_pids.is_empty();
        let by_operation = match by_action.len() {
            0 | 1 => BTreeMap::new(),
            _ => by_action.iter().map(|(name, latencies)| (*name, latencies.into())).collect(),
        };
        let kind = |(kind, (count, example))| (kind, ErrorKind { count, example });
        Report {
            target: options.target.name(),
            clients: options.clients,
            pipeline: options.pipeline,
            connections: options.connections,
            rate: options.rate,
            keys: options.keys,
            spread: options.spread.name(),
            value_bytes: *options.value_bytes.end(),
            value_bytes_min: *options.value_bytes.start(),
            requests: answered,
            errors: counts.errors.values().map(|(count, _)| count).sum(),
            errors_by_kind: counts.errors.into_iter().map(kind).collect(),
            unsent,
            missing: counts.missing,
            scanned_keys: counts.scanned,
            conflicts: counts.conflicts,
            seconds: took.as_secs_f64(),
            ops_per_second: answered as f64 / took.as_secs_f64(),
            latency: (&all).into(),
            by_operation,
            server_cpu_seconds_per_million: watched.then(|| per_million(servers)),
            client_cpu_seconds_per_million: per_million(own),
            server_peak_memory_bytes: watched.then_some(servers.peak_memory_bytes),
            first_error: counts.first_error,
        }
    }

    /// The report under the name of what was asked, as a few lines.
    pub fn text(&self, name: &str) -> String {
        Text { name, report: self }.to_string()
    }
}

struct Text<'a> {
    name: &'a str,
    report: &'a Report,
}

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Text { name, report } = self;
        let values = match report.value_bytes_min == report.value_bytes {
            true => format!("{} B values", report.value_bytes),
            false => format!("{} to {} B values", report.value_bytes_min, report.value_bytes),
        };
        let pipeline = match report.pipeline {
            1 => String::new(),
            pipeline => format!(" x {pipeline}"),
        };
        write!(
            f,
            "{name}: {} ops/s ({} in {:.1} s, {}{pipeline} clients, {values})",
            grouped(report.ops_per_second as u64),
            report.requests,
            report.seconds,
            report.clients,
        )?;
        if let Some(rate) = report.rate {
            write!(f, "\nrate: {rate} a second asked for")?;
            if report.unsent > 0 {
                write!(f, "; {} requests weren't sent in twice the time", report.unsent)?;
            }
        }
        write!(f, "\nlatency: {}; errors: {}", report.latency, report.errors)?;
        for (operation, latency) in &report.by_operation {
            write!(f, "\n  {operation}: {} requests, {latency}", latency.count)?;
        }
        let counts = [
            (report.missing, "reads of keys that aren't there (--fill writes all of them first)"),
            (report.scanned_keys, "keys came from scans"),
            (report.conflicts, "read-modify-writes were overtaken and tried again"),
        ];
        for (count, what) in counts.iter().filter(|(count, _)| *count > 0) {
            write!(f, "\n{} {what}", grouped(*count))?;
        }
        write!(
            f,
            "\nprocessor seconds a million: client {:.1}",
            self.report.client_cpu_seconds_per_million
        )?;
        if let Some(cpu) = report.server_cpu_seconds_per_million {
            write!(f, ", servers {cpu:.1}")?;
        }
        if let Some(bytes) = report.server_peak_memory_bytes {
            write!(f, "; servers' peak memory {} MiB", bytes / (1024 * 1024))?;
        }
        for (kind, error) in &report.errors_by_kind {
            write!(f, "\n{} x {kind}, for example: {}", error.count, error.example)?;
        }
        Ok(())
    }
}

impl Display for Latency {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| us as f64 / 1000.0;
        write!(
            f,
            "p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, max {:.2} ms",
            ms(self.p50_us),
            ms(self.p99_us),
            ms(self.p999_us),
            ms(self.max_us)
        )
    }
}

/// A number with its digits in groups of three.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
