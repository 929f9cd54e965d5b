//! `kvdb import`
//!
//! One thread reads and parses lines (`read.rs`) and hands them, in batches, to a fixed number of
//! senders (`send.rs`), each of which has one batch on its way at a time. A row goes to the sender
//! that its key's hash slot belongs to. So two lines with the same key are written one after the
//! other, in the order of the file, and a batch touches few shards. What became of the rows is
//! counted in `tally.rs`.
//!
//! Memory: each sender has a batch on its way, one waiting, and one being filled; a batch ends at
//! its row limit or at a mebibyte. Whoever reads waits when a sender has its share.

mod read;
mod send;
mod tally;

use super::client_with;
use crate::cli::ClientArgs;
use crate::exit::Failure;
use crate::output::{Output, is_watched};
use crate::rows::{Format, Row};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use kvdb_client::{BatchOperation, Options};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tally::{Outcome, Tally};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Import rows from a file.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  kvdb import rows.tsv
  kvdb import rows.jsonl --skip-bad-lines
  zcat rows.tsv.gz | kvdb import - --format tsv

TSV is `key TAB value`; everything after the first tab is the value, byte for byte. Lines may end \
in CR LF, and a byte order mark at the start is left out. JSON lines are \
{\"key\":…,\"value\":…} with optional key_b64, value_b64 (base64) and ttl_ms; a hash, list, set or \
sorted set is {\"key\":…,\"type\":\"list\",\"items\":[…]}, of hashes and sorted sets in pairs.

A bad line ends the import with its number and exit code 3. However it ends, it says how many rows
are acknowledged, and from which line to go on. Importing a line again does no harm.")]
pub(crate) struct Args {
    /// File, or `-` for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Format [default: by the file's name, else by its first line]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Start at this line
    #[arg(long, value_name = "LINE", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    from_line: u64,
    /// Skip bad lines: show the first 10, count all
    #[arg(long)]
    skip_bad_lines: bool,
    /// Number of batches sent at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Maximum number of rows in a batch
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch: u16,
}

/// Rows that travel together.
#[derive(Default)]
struct Batch {
    /// Of each operation.
    lines: Vec<u64>,
    operations: Vec<BatchOperation>,
    size_bytes: usize,
    /// Instead of them a part of a collection, which travels alone.
    part: Option<Row>,
}

pub(super) async fn run(command: Args, args: &ClientArgs) -> Result<(), Failure> {
    let source = read::open(&command.file)?;
    let options = Options { connections: 4, exactly_once: true, ..args.options() };
    let client = client_with(args, options)?;
    let tally = Arc::new(Tally::default());
    let progress = progress(source.size_bytes);
    let started = Instant::now();

    let mut senders = JoinSet::new();
    let mut lanes = Vec::new();
    for _ in 0..command.concurrency {
        let (lane, batches) = mpsc::channel(1);
        lanes.push(lane);
        let (client, tally, progress) = (client.clone(), Arc::clone(&tally), progress.clone());
        senders.spawn(send::send_all(client, batches, tally, progress));
    }
    let reading = read::Reading::new(&command, lanes, Arc::clone(&tally), args.json);
    std::thread::spawn(move || reading.run(source));
    wait(senders, &tally).await;

    progress.finish_and_clear();
    report(&tally.outcome(), started.elapsed(), args.json)
}

/// Until all senders are done. Ctrl-C ends the reading; a second one ends everything.
async fn wait(mut senders: JoinSet<()>, tally: &Tally) {
    loop {
        tokio::select! {
            done = senders.join_next() => match done {
                None => return,
                Some(Ok(())) => {}
                Some(Err(panic)) => {
                    tally.stop(Failure::Unknown(format!("a sender stopped working: {panic}")));
                }
            },
            Ok(()) = tokio::signal::ctrl_c() => {
                if tally.is_stopped() {
                    return;
                }
                tally.stop(Failure::Interrupted("interrupted".into()));
            }
        }
    }
}

fn report(outcome: &Outcome, took: Duration, json: bool) -> Result<(), Failure> {
    let rows = outcome.acknowledged;
    let seconds = took.as_secs_f64();
    let mut output = Output::new();
    if json {
        output.json(&json!({
            "acknowledged": rows,
            "skipped": outcome.skipped,
            "seconds": seconds,
            "rows_per_second": rows as f64 / seconds,
            "complete": outcome.failure.is_none(),
            "go_on_from_line": outcome.first_open_line,
        }))?;
    } else {
        let rate = HumanCount((rows as f64 / seconds) as u64);
        output.line(format!("acknowledged {rows} rows in {seconds:.1} s ({rate} rows/s)"))?;
        if outcome.skipped > 0 {
            output.line(format!("skipped {} bad lines", outcome.skipped))?;
        }
        if let Some(line) = outcome.first_open_line {
            output.line(how_to_go_on(line, outcome.bad_line))?;
        }
    }
    output.finish()?;
    match &outcome.failure {
        Some(failure) => Err(failure.clone()),
        None if rows == 0 && outcome.skipped > 0 => Err(Failure::Refused(format!(
            "nothing was imported: all {} lines were skipped; is --format right?",
            outcome.skipped
        ))),
        None => Ok(()),
    }
}

/// What to type to import the rest. Going on from a bad line would fail there again.
fn how_to_go_on(line: u64, bad_line: Option<u64>) -> String {
    let done = format!("all rows before line {line} are in");
    match bad_line {
        Some(bad) if bad == line => format!(
            "{done}; correct line {bad} and go on with --from-line {line}, or leave bad lines out with \
             --from-line {line} --skip-bad-lines"
        ),
        Some(bad) => format!(
            "{done}; correct line {bad} and go on with --from-line {line}, or add --skip-bad-lines"
        ),
        None => format!("{done}; to go on: --from-line {line}"),
    }
}

fn progress(size_bytes: Option<u64>) -> ProgressBar {
    if !is_watched() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size_bytes {
        Some(size) => {
            (ProgressBar::new(size), "{wide_bar} {bytes}/{total_bytes}, {msg} rows, {eta} left")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {bytes}, {msg} rows"),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("the template is well formed"))
}
