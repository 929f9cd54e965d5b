//! For how long a shard takes no writes when the node that leads it dies, or stands still.
//!
//! Nothing but the probes runs, one writer a shard, through a gateway, at the default settings and
//! without proxies. Each round takes a node that leads a shard, and ends when it is back and has
//! caught up, so that every round begins alike.

use crate::Error;
use crate::cluster::{Cluster, Layout, PATIENCE};
use crate::fault::Fault;
use crate::inject;
use crate::probe;
use crate::schedule::Schedule;
use crate::timeline::{longest, median};
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What is done to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// `kill -9`.
    Kill,
    /// `SIGSTOP`, and `SIGCONT` after two seconds.
    Pause,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Failover {
    /// What was done.
    pub how: How,
    /// The longest gap of each round, over all shards, in milliseconds, in order of the rounds.
    pub gaps_ms: Vec<u64>,
    /// The middle one.
    pub median_ms: u64,
    /// The longest.
    pub worst_ms: u64,
}

/// How long the leader is gone.
const GONE: Duration = Duration::from_secs(2);
const CLIENT_DEADLINE: Duration = Duration::from_secs(10);

/// Measures `rounds` failovers.
///
/// # Errors
/// [`enum@Error`], if the cluster can't be started or doesn't recover.
pub async fn failover(
    program: PathBuf,
    folder: PathBuf,
    shards: u32,
    how: How,
    rounds: u32,
    tell: impl Fn(&str),
) -> Result<Failover, Error> {
    std::fs::create_dir_all(&folder)?;
    let layout = Layout::plain(program, folder, shards);
    let mut cluster = Cluster::start(layout).await?;
    let start = Instant::now();
    let probes = probe::probes(&cluster, start, probe::Pace::default()).await?;
    let (stop, stopped) = watch::channel(false);
    let mut writers = JoinSet::new();
    probe::all_write(&probes, &cluster, CLIENT_DEADLINE, &stopped, &mut writers)?;
    let fault = if how == How::Kill { Fault::KillLeader } else { Fault::PauseLeader };
    let mut schedule = Schedule::new(1, &[fault], GONE * 6);
    let mut gaps_ms = Vec::new();
    for round in 1..=rounds {
        probe::take_writes_within(&probes, PATIENCE)
            .await
            .map_err(|problem| cluster.not_ready(&problem))?;
        cluster.settle().await?;
        let planned = schedule.plan(fault);
        let from_ms = start.elapsed().as_millis() as u64;
        let mut injected = inject::begin(&mut cluster, &planned).await?;
        // Measured while it is gone: what it does when it comes back is another matter.
        tokio::time::sleep(GONE).await;
        let until_ms = start.elapsed().as_millis() as u64;
        let gap = probes.iter().map(|probe| longest(&probe.gaps(), from_ms, until_ms)).max();
        let gap = gap.unwrap_or_default();
        tell(&format!("round {round}: {fault} of {}: {gap} ms", injected.target));
        gaps_ms.push(gap);
        injected.end(&mut cluster, fault)?;
    }
    let _ = stop.send(true);
    while writers.join_next().await.is_some() {}
    let mut sorted = gaps_ms.clone();
    sorted.sort_unstable();
    let (median_ms, worst_ms) = (median(&sorted), sorted.last().copied().unwrap_or_default());
    Ok(Failover { how, gaps_ms, median_ms, worst_ms })
}
