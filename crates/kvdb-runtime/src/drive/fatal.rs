//! Stopping when going on would be wrong.
//!
//! A failed sync, a damaged file or an engine that can't be read leaves the process unable to say
//! what it holds. Nothing is acknowledged after that: the process says what happened and ends,
//! and its peers carry on.

use std::io::Write as _;

/// Logs `what` and ends the process with exit code 70 (an internal failure, as in `sysexits.h`).
pub fn fatal(what: &str) -> ! {
    tracing::error!(target: "kvdb", "stopping: {what}");
    // Standard error may be on the very disk that failed.
    let _ = writeln!(std::io::stderr(), "kvdb: stopping: {what}");
    std::process::exit(70);
}

/// As [`fatal`], for what a start can't mend: the exit code is 4, as that of a process that can't start.
pub fn stop_for_good(what: &str) -> ! {
    tracing::error!(target: "kvdb", "stopping for good: {what}");
    let _ = writeln!(std::io::stderr(), "kvdb: {what}");
    std::process::exit(4);
}
