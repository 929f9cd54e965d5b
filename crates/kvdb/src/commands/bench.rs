//! `kvdb bench`: a closed loop. Each client sends a request, waits for its answer, and sends the
//! next, so the figures are those of a service whose users wait; a stall shows in them once for
//! each client, not once for each request that would have come meanwhile.
//!
//! Every request counts, also those that were retried (with the time that took); those that failed
//! count as errors and have no latency.

use super::client_with;
use crate::cli::ClientArgs;
use crate::exit::Failure;
use crate::output::{Output, is_watched};
use bytes::Bytes;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use kvdb_client::{Client, Error, Options};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Measure puts or gets.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb bench
  kvdb bench --mode get --clients 256 --requests 500000
  kvdb bench --json

Keys are `bench:` and a number, spread evenly over --keys of them. Run puts before gets.")]
pub(crate) struct Args {
    /// What to measure
    #[arg(long, value_enum, default_value_t = Mode::Put)]
    mode: Mode,
    /// Requests on their way at a time
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: u32,
    /// Requests in all
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Connections to each gateway
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Different keys
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    keys: u32,
    /// Bytes of each value
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=8_388_608))]
    value_bytes: u32,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Mode {
    Put,
    Get,
}

/// What all clients share.
struct Plan {
    client: Client,
    mode: Mode,
    requests: u64,
    keys: u64,
    value: Bytes,
    started: AtomicU64,
    progress: ProgressBar,
}

/// What one client, or all of them, measured.
#[derive(Default)]
struct Measured {
    /// Of each request that was answered, in microseconds.
    latencies_us: Vec<u32>,
    errors: u64,
    first_error: Option<Error>,
}

pub(super) async fn run(command: Args, args: &ClientArgs) -> Result<(), Failure> {
    let connections = usize::from(command.connections);
    let plan = Arc::new(Plan {
        client: client_with(args, Options { connections, ..args.options() })?,
        mode: command.mode,
        requests: command.requests.into(),
        keys: command.keys.into(),
        value: Bytes::from(vec![b'v'; command.value_bytes as usize]),
        started: AtomicU64::new(0),
        progress: progress(command.requests.into()),
    });
    plan.client.ping().await?;
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..command.clients {
        clients.spawn(run_client(Arc::clone(&plan)));
    }
    let mut all = Measured::default();
    for measured in clients.join_all().await {
        all.add(measured);
    }
    let took = started.elapsed();
    plan.progress.finish_and_clear();
    all.latencies_us.sort_unstable();
    all.report(&command, took, args.json)
}

async fn run_client(plan: Arc<Plan>) -> Measured {
    let mut measured = Measured::default();
    loop {
        let number = plan.started.fetch_add(1, Ordering::Relaxed);
        if number >= plan.requests {
            return measured;
        }
        let key = key_of(number, plan.keys);
        let sent = Instant::now();
        let result = match plan.mode {
            Mode::Put => plan.client.put(key, plan.value.clone()).await.map(drop),
            Mode::Get => plan.client.get(key).await.map(drop),
        };
        match result {
            Ok(()) => measured.latencies_us.push(micros(sent.elapsed())),
            Err(error) => {
                measured.errors += 1;
                measured.first_error.get_or_insert(error);
            }
        }
        plan.progress.inc(1);
    }
}

/// Neighbouring requests get keys that are far apart (by a step that is prime to most counts).
fn key_of(number: u64, keys: u64) -> String {
    format!("bench:{:010}", number.wrapping_mul(2_654_435_761) % keys)
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

/// The latency that `per_mille` of all requests didn't exceed, in microseconds. The latencies are
/// sorted.
fn percentile(latencies_us: &[u32], per_mille: usize) -> u32 {
    let rank = (latencies_us.len() * per_mille).div_ceil(1000);
    latencies_us.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

impl Measured {
    fn add(&mut self, other: Measured) {
        self.latencies_us.extend(other.latencies_us);
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }

    fn report(self, command: &Args, took: Duration, json: bool) -> Result<(), Failure> {
        let answered = self.latencies_us.len();
        let rate = answered as f64 / took.as_secs_f64();
        let [p50, p99, p999] = [500, 990, 999].map(|rank| percentile(&self.latencies_us, rank));
        let mode = match command.mode {
            Mode::Put => "put",
            Mode::Get => "get",
        };
        let mut output = Output::new();
        if json {
            output.json(&json!({
                "mode": mode,
                "clients": command.clients,
                "value_bytes": command.value_bytes,
                "requests": answered,
                "errors": self.errors,
                "seconds": took.as_secs_f64(),
                "ops_per_second": rate,
                "p50_us": p50,
                "p99_us": p99,
                "p999_us": p999,
            }))?;
        } else {
            let ms = |us: u32| f64::from(us) / 1000.0;
            let clients = command.clients;
            output.line(format!(
                "{mode}: {} ops/s ({answered} in {:.1} s, {clients} clients, {} B values)",
                HumanCount(rate as u64),
                took.as_secs_f64(),
                command.value_bytes,
            ))?;
            output.line(format!(
                "latency: p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms; errors: {}",
                ms(p50),
                ms(p99),
                ms(p999),
                self.errors
            ))?;
        }
        output.finish()?;
        self.first_error.map_or(Ok(()), |error| Err(error.into()))
    }
}

fn progress(requests: u64) -> ProgressBar {
    if !is_watched() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {human_pos}/{human_len}, {per_sec}")
        .expect("the template is well formed");
    ProgressBar::new(requests).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_latency_that_was_measured() {
        let latencies: Vec<u32> = (1..=1000).collect();
        assert_eq!(percentile(&latencies, 500), 500);
        assert_eq!(percentile(&latencies, 990), 990);
        assert_eq!(percentile(&latencies, 999), 999);
        assert_eq!(percentile(&[7], 999), 7);
        assert_eq!(percentile(&[], 500), 0);
    }

    #[test]
    fn all_keys_are_used() {
        let keys: std::collections::BTreeSet<_> = (0..1000).map(|n| key_of(n, 1000)).collect();
        assert_eq!(keys.len(), 1000);
    }
}
