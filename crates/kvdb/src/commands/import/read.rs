//! Reading: lines become rows, rows become batches, batches go to the sender of their keys.

use super::tally::Tally;
use super::{Args, Batch};
use crate::exit::Failure;
use crate::rows::{BYTE_ORDER_MARK, Content, Format, Line, Lines, Row};
use kvdb_client::{BatchAction, BatchOperation};
use kvdb_model::{Limits, SLOT_COUNT, slot_of};
use serde_json::json;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write as _};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Longest line: the largest row, each byte escaped as JSON does it at worst (`\u0000`).
const LINE_MAX_BYTES: usize = 6 * (8 * 1024 * 1024 + 16 * 1024) + 256;
/// A batch that holds this much goes.
const BATCH_BYTES: usize = 1024 * 1024;
/// Bad lines that are told one by one; the others are only counted.
const BAD_LINES_TOLD: u64 = 10;

/// Where rows come from.
pub(super) struct Source {
    name: String,
    content: Box<dyn BufRead + Send>,
    format: Option<Format>,
    pub(super) size_bytes: Option<u64>,
}

/// Opens the file, or standard input for `-`.
pub(super) fn open(path: &Path) -> Result<Source, Failure> {
    if path.as_os_str() == "-" {
        let content = Box::new(BufReader::new(io::stdin()));
        let name = "standard input".to_owned();
        return Ok(Source { name, content, format: None, size_bytes: None });
    }
    let name = path.display().to_string();
    let failed = |error: io::Error| Failure::reading(&name, &error);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(Failure::Usage(format!("cannot read {name}: it is a directory")));
    }
    Ok(Source {
        content: Box::new(BufReader::with_capacity(256 * 1024, file)),
        format: Format::of_name(path),
        size_bytes: metadata.is_file().then_some(metadata.len()),
        name,
    })
}

/// Reads one source to its end, or until the tally says to stop.
pub(super) struct Reading {
    format: Option<Format>,
    from_line: u64,
    skip_bad_lines: bool,
    rows_a_batch: usize,
    limits: Limits,
    lanes: Vec<Lane>,
    tally: Arc<Tally>,
    bad_lines: u64,
    json: bool,
}

/// What goes to one sender.
struct Lane {
    filling: Batch,
    sender: mpsc::Sender<Batch>,
}

impl Reading {
    pub(super) fn new(
        args: &Args,
        senders: Vec<mpsc::Sender<Batch>>,
        tally: Arc<Tally>,
        json: bool,
    ) -> Self {
        let lane = |sender| Lane { filling: Batch::default(), sender };
        Reading {
            format: args.format,
            from_line: args.from_line,
            skip_bad_lines: args.skip_bad_lines,
            rows_a_batch: usize::from(args.batch),
            limits: Limits::default(),
            lanes: senders.into_iter().map(lane).collect(),
            tally,
            bad_lines: 0,
            json,
        }
    }

    /// Blocks while senders are behind.
    pub(super) fn run(mut self, source: Source) {
        self.format = self.format.or(source.format);
        let mut lines = Lines::new(source.content, LINE_MAX_BYTES);
        let mut next_line = 1;
        while !self.tally.is_stopped() {
            match lines.next() {
                Ok(Some(line)) => {
                    next_line = line.number + 1;
                    self.tally.read_through(line.end);
                    if !self.take(line) {
                        return self.send_rest();
                    }
                }
                Ok(None) => return self.send_rest(),
                Err(error) => {
                    self.tally.stop(Failure::reading(&source.name, &error));
                    break;
                }
            }
        }
        self.tally.leave_open(next_line);
        // The senders note what is in these that won't be sent.
        self.send_rest();
    }

    /// Returns whether to go on with the next line.
    fn take(&mut self, mut line: Line) -> bool {
        if line.number == 1 && line.content.starts_with(BYTE_ORDER_MARK) {
            line.content = line.content.slice(BYTE_ORDER_MARK.len()..);
        }
        if line.number < self.from_line {
            return true;
        }
        let format = *self.format.get_or_insert_with(|| Format::of_line(&line.content));
        match self.parse(format, &line) {
            Ok(row) => {
                self.add(line.number, row);
                true
            }
            Err(problem) => self.refuse(line.number, &problem),
        }
    }

    fn parse(&self, format: Format, line: &Line) -> Result<Row, String> {
        let row = format.parse(&line.content).map_err(|error| error.to_string())?;
        self.limits.check_key(&row.key).map_err(|refusal| refusal.to_string())?;
        match &row.content {
            Content::Value(value) => self.limits.check_value(value),
            Content::Part(part) => {
                part.items.iter().try_for_each(|item| self.limits.check_value(item))
            }
        }
        .map_err(|refusal| refusal.to_string())?;
        Ok(row)
    }

    fn add(&mut self, line: u64, row: Row) {
        let index = usize::from(slot_of(&row.key)) * self.lanes.len() / usize::from(SLOT_COUNT);
        let lane = &mut self.lanes[index];
        let value = match row.content {
            Content::Value(value) => value,
            Content::Part(_) => {
                // After what stands before it.
                lane.send(&self.tally);
                lane.filling.lines.push(line);
                lane.filling.part = Some(row);
                return lane.send(&self.tally);
            }
        };
        lane.filling.size_bytes += row.key.len() + value.len();
        lane.filling.lines.push(line);
        lane.filling.operations.push(BatchOperation {
            key: row.key,
            action: BatchAction::Put { value, ttl_ms: row.ttl_ms },
            condition: None,
            return_previous: false,
        });
        let full = lane.filling.operations.len() >= self.rows_a_batch
            || lane.filling.size_bytes >= BATCH_BYTES;
        if full {
            lane.send(&self.tally);
        }
    }

    /// Returns whether to go on all the same.
    fn refuse(&mut self, line: u64, problem: &str) -> bool {
        if !self.skip_bad_lines {
            self.tally.refuse(line, Failure::Refused(format!("line {line}: {problem}")));
            return false;
        }
        self.tally.skip();
        self.bad_lines += 1;
        // Counted all the same if nobody can be told.
        let tell = |words: String| {
            let _ = match self.json {
                true => writeln!(io::stderr(), "{}", json!({ "warning": words, "line": line })),
                false => writeln!(io::stderr(), "kvdb: {words}"),
            };
        };
        if self.bad_lines <= BAD_LINES_TOLD {
            tell(format!("skipped line {line}: {problem}"));
        } else if self.bad_lines == BAD_LINES_TOLD + 1 {
            tell(format!(
                "more bad lines are skipped, from line {line} on; only the first {BAD_LINES_TOLD} are shown"
            ));
        }
        true
    }

    fn send_rest(mut self) {
        for lane in &mut self.lanes {
            lane.send(&self.tally);
        }
    }
}

impl Lane {
    fn send(&mut self, tally: &Tally) {
        let batch = std::mem::take(&mut self.filling);
        if batch.lines.is_empty() {
            return;
        }
        // A sender is gone only if it panicked.
        if let Err(unsent) = self.sender.blocking_send(batch) {
            unsent.0.lines.iter().for_each(|line| tally.leave_open(*line));
        }
    }
}
