//! `kvdb-sim`: many seeds, or one again.

use clap::Parser;
use kvdb_sim::{Chosen, Failure, Report, Settings, run_with, shrink};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Simulate whole clusters under faults, one a seed, and check what they promise
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  kvdb-sim --seeds 1000\n  kvdb-sim --seeds 1000 --for 900\n  kvdb-sim --seed 42 --trace\n  \
                  kvdb-sim --seed 42 --shrink\n  kvdb-sim --seed 42 --only 3,17 --trace"
)]
struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 100, conflicts_with = "seed")]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1, conflicts_with = "seed")]
    first: u64,
    /// Go on with more seeds until so many seconds have passed
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 0, conflicts_with = "seed")]
    at_least_s: u64,
    /// Tell one seed's story
    #[arg(long)]
    seed: Option<u64>,
    /// Print all that happens, not only the end of what fails
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Carry out only these faults of the story, by number
    #[arg(long, requires = "seed", value_delimiter = ',', conflicts_with = "without")]
    only: Option<Vec<u64>>,
    /// Leave these faults out, by number
    #[arg(long, requires = "seed", value_delimiter = ',')]
    without: Option<Vec<u64>>,
    /// Find the few faults without which it doesn't fail
    #[arg(long, requires = "seed", conflicts_with_all = ["only", "without"])]
    shrink: bool,
    /// Stories that shrinking may tell
    #[arg(long, default_value_t = 400)]
    most_stories: u64,
    /// Simulated seconds with faults
    #[arg(long, default_value_t = 20)]
    storm: u64,
    /// Simulated seconds without, at the end
    #[arg(long, default_value_t = 20)]
    calm: u64,
    /// Threads [default: the cores]
    #[arg(long)]
    threads: Option<usize>,
}

/// What all seeds came to.
#[derive(Default)]
struct Totals {
    seeds: u64,
    failed: Vec<u64>,
    operations: usize,
    succeeded: u64,
    simulated_us: u64,
    faults: BTreeMap<&'static str, u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let settings = Settings { storm_s: args.storm, calm_s: args.calm, traces: args.trace };
    // The message of a panic is printed with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    if let (Some(seed), true) = (args.seed, args.shrink) {
        return show_smallest(seed, &settings, args.most_stories);
    }
    let chosen = chosen(&args);
    let seeds = match args.seed {
        Some(seed) => seed..seed + 1,
        None => args.first..args.first + args.seeds,
    };
    let began = Instant::now();
    let at_least = Duration::from_secs(args.at_least_s);
    let next = AtomicU64::new(seeds.start);
    let totals = Mutex::new(Totals::default());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = args.threads.unwrap_or(cores).clamp(1, 1024);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end && began.elapsed() >= at_least {
                        return;
                    }
                    let told = run_with(seed, &settings, &chosen);
                    let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                    count(&mut totals, seed, told);
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    let wall_s = began.elapsed().as_secs_f64();
    let simulated_s = totals.simulated_us as f64 / 1e6;
    println!("{} operations, {} answered", totals.operations, totals.succeeded);
    let faults: Vec<_> =
        totals.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    println!("faults: {}", faults.join(", "));
    let busy_s = wall_s * threads as f64;
    println!(
        "{simulated_s:.0} simulated seconds in {wall_s:.1} s on {threads} threads: {:.0} a \
         thread-second",
        simulated_s / busy_s.max(0.001)
    );
    println!("seeds={} failed={}", totals.seeds, totals.failed.len());
    if totals.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn chosen(args: &Args) -> Chosen {
    let set = |numbers: &[u64]| numbers.iter().copied().collect();
    match (&args.only, &args.without) {
        (Some(only), _) => Chosen::Only(set(only)),
        (None, Some(without)) => Chosen::Without(set(without)),
        (None, None) => Chosen::All,
    }
}

fn show_smallest(seed: u64, settings: &Settings, most_stories: u64) -> ExitCode {
    let Some(shrunk) = shrink(seed, settings, most_stories) else {
        println!("seed {seed} doesn't fail: there is nothing to shrink");
        return ExitCode::SUCCESS;
    };
    for line in &shrunk.failure.trace {
        println!("{line}");
    }
    let faults: Vec<String> = shrunk.faults.iter().map(u64::to_string).collect();
    println!("seed {seed} failed: {}", shrunk.failure.what);
    println!(
        "{} of {} faults are needed (found with {} stories)",
        faults.len(),
        shrunk.drawn,
        shrunk.stories
    );
    // No fault at all is `--only 0`: they are numbered from 1.
    let only = if faults.is_empty() { "0".to_owned() } else { faults.join(",") };
    println!(
        "replay: kvdb-sim --seed {seed} --storm {} --calm {} --only {only} --trace",
        settings.storm_s, settings.calm_s
    );
    ExitCode::FAILURE
}

fn count(totals: &mut Totals, seed: u64, told: Result<Report, Failure>) {
    totals.seeds += 1;
    match told {
        Ok(report) => {
            totals.operations += report.operations;
            totals.succeeded += report.succeeded;
            totals.simulated_us += report.simulated_us;
            for (kind, count) in report.faults {
                *totals.faults.entry(kind).or_default() += count;
            }
            for line in report.trace {
                println!("{line}");
            }
        }
        Err(failure) => {
            totals.failed.push(seed);
            for line in &failure.trace {
                println!("{line}");
            }
            println!("seed {seed} failed: {}", failure.what);
            println!("replay: make sim SEED={seed}   smaller: kvdb-sim --seed {seed} --shrink");
        }
    }
}
