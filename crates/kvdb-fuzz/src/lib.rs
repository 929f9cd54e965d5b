//! Every decoder that meets bytes from a disk, a peer or a client, as a function from bytes.
//!
//! Each target takes any bytes and must not panic, hang or fill the memory; what it takes for
//! good must mean the same when it is written and read again. Where a checksum guards a format,
//! the target also puts the right one over the bytes: a fuzzer doesn't find checksums, and
//! whoever forges a file or a frame has them too.
//!
//! The same functions run under `cargo fuzz` (`fuzz/`) and as a test over `fuzz/corpus` with
//! seeded mutations (`tests/corpus.rs`).

mod commands;
mod hyperloglogs;
mod mutate;
mod protobuf;
mod records;
mod redis;
#[path = "../../kvdb/src/rows/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    reason = "of the rows that the command line reads and writes, only reading"
)]
mod rows;
mod seeds;
mod snapshots;
mod wal;

pub use commands::commands;
pub use hyperloglogs::hyperloglogs;
pub use mutate::Mutator;
pub use protobuf::protobuf;
pub use records::engine_records;
pub use redis::{redis_dumps, redis_requests};
pub use snapshots::snapshots;
pub use wal::wal_frames;

/// A fuzz target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    /// What real data looks like: where mutations begin.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 9] = [
    Target { name: "wal_frames", run: wal_frames, seeds: seeds::wal_frames },
    Target { name: "engine_records", run: engine_records, seeds: seeds::engine_records },
    Target { name: "snapshots", run: snapshots, seeds: seeds::snapshots },
    Target { name: "commands", run: commands, seeds: seeds::commands },
    Target { name: "protobuf", run: protobuf, seeds: seeds::protobuf },
    Target { name: "import_files", run: import_files, seeds: seeds::import_files },
    Target { name: "redis_requests", run: redis_requests, seeds: seeds::redis_requests },
    Target { name: "hyperloglogs", run: hyperloglogs, seeds: seeds::hyperloglogs },
    Target { name: "redis_dumps", run: redis_dumps, seeds: seeds::redis_dumps },
];

/// Files that `kvdb import` reads. The first byte chooses the format, or to guess it.
pub fn import_files(data: &[u8]) {
    let Some((choice, file)) = data.split_first() else { return };
    let mut lines = rows::Lines::new(file, 4096);
    let mut format = match choice % 3 {
        0 => Some(rows::Format::Tsv),
        1 => Some(rows::Format::Jsonl),
        _ => None,
    };
    // A line that is too long ends the reading.
    while let Ok(Some(line)) = lines.next() {
        let format = *format.get_or_insert_with(|| rows::Format::of_line(&line.content));
        let Ok(row) = format.parse(&line.content) else { continue };
        assert!(!row.key.is_empty(), "a row without a key");
        let mut out = Vec::new();
        match format.write(&row, &mut out) {
            Ok(()) => {
                out.pop();
                let again = format.parse(&out.into());
                assert_eq!(again.as_ref(), Ok(&row), "a row comes back as another");
            }
            Err(_) => assert_eq!(format, rows::Format::Jsonl, "a line of TSV fits into one"),
        }
    }
}
