//! Torture: a cluster of real processes under load and faults, with a judge.
//!
//! [`run`] starts a disposable cluster of the binary that it is given, lets clients write and read
//! through its gateways, kills, pauses, cuts off and starves parts of it by a schedule that a seed
//! names, and judges everything that the clients saw with `kvdb-checker`. It hands back a
//! [`Report`]; [`failover`] measures one thing alone: for how long a shard takes no writes when the
//! node that leads it dies or stands still; [`planned`] what clients notice of work done on purpose. Instead of faults a run can do the
//! [`Duty`]s of an operator, of which no client may notice more than a short wait.
//!
//! | module | is about |
//! |---|---|
//! | `cluster`, `process`, `disk` | the processes, their files, and ending them whatever happens |
//! | `network`, `dialer` | the proxies between them, which need no rights |
//! | `fault`, `schedule`, `tools` | what can be done, what comes when, what this machine allows |
//! | `inject` | doing it and undoing it |
//! | `duty` | what operators do instead, one thing after another |
//! | `load`, `window`, `probe` | clients, their history in windows, one writer a shard for gaps |
//! | `judge` | lost, wrong, stale |
//! | `run`, `failover`, `planned` | a run from start to end |
//! | `timeline`, `report`, `html` | what is told |
//!
//! A run whose clients did next to nothing proves next to nothing: it ends as invalid. A fault that
//! can't be injected on this machine is named with the reason, never passed over.

mod cluster;
mod dialer;
mod disk;
mod duty;
mod failover;
mod fault;
mod html;
mod inject;
mod judge;
mod load;
mod network;
mod planned;
mod ports;
mod probe;
mod process;
mod report;
mod run;
mod schedule;
mod timeline;
mod tools;
mod window;

pub use duty::Duty;
pub use failover::{Failover, How, failover};
pub use fault::{Fault, parse_list};
pub use judge::Findings;
pub use planned::{Alone, Change, Crowded, Noticed, PlannedWork, planned};
pub use ports::{free_offset, free_ports};
pub use report::{Report, Verdict};
pub use run::{Options, Work, run};
pub use schedule::{Planned, Schedule};
pub use timeline::{ByFault, LeaderChange, Span};
pub use tools::Tools;

use std::path::PathBuf;
use thiserror::Error;

/// Why a run couldn't be made. What it finds is no error but its [`Report`].
#[derive(Debug, Error)]
pub enum Error {
    /// A process, file, socket or mount.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The cluster doesn't come up.
    #[error("the cluster isn't ready: {problem}; its logs are in {}", folder.display())]
    NotReady {
        /// What is missing.
        problem: String,
        /// Where the logs are.
        folder: PathBuf,
    },
    /// The cluster doesn't answer.
    #[error(transparent)]
    Client(#[from] kvdb_client::Error),
    /// An address that isn't one.
    #[error("{0}")]
    Address(String),
    /// An option.
    #[error("{0}")]
    Options(String),
}
