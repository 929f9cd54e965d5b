//! Does one hot piece so many times, for `scripts/instructions.sh` and for profilers:
//! `hot PIECE TIMES`.

#[path = "../benches/pieces/mod.rs"]
mod pieces;

use kvdb_wal::sim_disk::SimDisk;
use pieces::{Append, Apply, Codec, Resp, Routing};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let piece = words.next().unwrap_or_default();
    let times: Option<u64> = words.next().and_then(|word| word.parse().ok());
    let known = times.is_some_and(|times| run(&piece, times));
    if known {
        return ExitCode::SUCCESS;
    }
    eprintln!("usage: hot routing|codec|resp|wal|apply TIMES");
    ExitCode::from(2)
}

/// False for a piece that there isn't.
fn run(piece: &str, times: u64) -> bool {
    match piece {
        "routing" => repeat(times, Routing::new(), Routing::step),
        "codec" => repeat(times, Codec::new(), Codec::step),
        "resp" => repeat(times, Resp::new(), Resp::step),
        "wal" => repeat(times, Append::new(SimDisk::new()), Append::step),
        "apply" => {
            let folder = tempfile::tempdir().expect("there is room");
            repeat(times, Apply::new(folder.path()), Apply::step);
        }
        _ => return false,
    }
    true
}

fn repeat<P>(times: u64, mut piece: P, step: impl Fn(&mut P)) {
    for _ in 0..times {
        step(&mut piece);
    }
}
