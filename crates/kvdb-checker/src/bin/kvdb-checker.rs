//! Judges a history, as [`kvdb_checker::json`] describes it: `kvdb-checker FILE [STEPS_PER_KEY]`, `-` for standard input.
//!
//! Prints what was found, then `verdict=ok`, `verdict=violated` or `verdict=unknown` as the last line.
//! Exit codes: 0 ok, 1 violated, 2 usage or an input that can't be read, 3 unknown.

use kvdb_checker::{Options, Verdict, check_all, json};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(Verdict::Ok) => ExitCode::SUCCESS,
        Ok(Verdict::Violated) => ExitCode::from(1),
        Ok(Verdict::Unknown) => ExitCode::from(3),
        Err(message) => {
            eprintln!("kvdb-checker: {message}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<Verdict, String> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: kvdb-checker FILE [STEPS_PER_KEY]; FILE - reads standard input";
    let path = arguments.next().ok_or(usage)?;
    let mut options = Options::default();
    if let Some(steps) = arguments.next() {
        options.steps_per_key =
            steps.parse().map_err(|_| format!("{steps:?} is no number of steps; {usage}"))?;
    }
    let input: Box<dyn BufRead> = if path == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        let file = File::open(&path).map_err(|error| format!("{path}: {error}"))?;
        Box::new(BufReader::new(file))
    };
    let history = json::read(input).map_err(|error| format!("{path}: {error}"))?;
    let report = check_all(&history, &options);
    print!("{report}");
    println!("verdict={}", report.verdict());
    Ok(report.verdict())
}
