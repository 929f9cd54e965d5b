//! `kvdb-planted`: each bug that can be planted, and how many seeds it takes to be caught.

use clap::Parser;
use kvdb_model::planted::{Bug, plant};
use kvdb_sim::{Settings, run};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Plant bugs one by one and see that the simulator catches each
#[derive(Parser)]
#[command(after_help = "Examples:\n  kvdb-planted\n  kvdb-planted --seeds 1000 --only lease")]
struct Args {
    /// Seeds within which a bug must be caught
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// Only bugs with this in what they are
    #[arg(long)]
    only: Option<String>,
    /// Threads [default: the cores]
    #[arg(long)]
    threads: Option<usize>,
}

struct Caught {
    seed: u64,
    by: String,
}

fn hunt(bug: Bug, seeds: u64) -> Option<Caught> {
    plant(Some(bug));
    let settings = Settings::default();
    let caught = (1..=seeds).find_map(|seed| match run(seed, &settings) {
        Ok(_) => None,
        Err(failure) => Some(Caught { seed, by: failure.what }),
    });
    plant(None);
    // A seed that fails without the bug too has caught something else.
    caught.filter(|caught| run(caught.seed, &settings).is_ok())
}

fn main() -> ExitCode {
    let args = Args::parse();
    std::panic::set_hook(Box::new(|_| {}));
    let wanted = |bug: &Bug| args.only.as_ref().is_none_or(|part| bug.what().contains(part));
    let bugs: Vec<Bug> = Bug::ALL.into_iter().filter(wanted).collect();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..args.threads.unwrap_or(cores) {
            scope.spawn(|| {
                while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let caught = hunt(*bug, args.seeds);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((*bug, caught));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(bug, _)| bug.what());
    let width = results.iter().map(|(bug, _)| bug.what().len()).max().unwrap_or_default();
    println!("{:<width$} {:>5}  caught by", "bug", "seeds");
    let mut caught = 0;
    let mut worst = 0;
    for (bug, result) in &results {
        match result {
            Some(Caught { seed, by }) => {
                caught += 1;
                worst = worst.max(*seed);
                let by: String = by.chars().take(90).collect();
                println!("{:<width$} {seed:>5}  {by}", bug.what());
            }
            None => println!("{:<width$} {:>5}  NOT CAUGHT", bug.what(), "-"),
        }
    }
    println!("caught={caught} of={} worst_seeds={worst}", results.len());
    if caught == results.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
