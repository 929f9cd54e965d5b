//! What clients notice of work that is done on purpose: hand-overs, restarts, splits, moves, a
//! drain; of coordinators that are gone; and of a processor that others use up.
//!
//! One writer a shard writes without pause through the gateways, at the default settings (but that
//! the coordinators spread nothing by themselves) and without proxies or faults. The gap of a change is the longest time in which any shard took no
//! write, from its beginning until a moment after its end; beside it stands the longest gap of as
//! many undisturbed periods, since a busy machine has gaps of its own. No write may fail.

use crate::Error;
use crate::cluster::{self, COORDINATORS, Cluster, Layout, NODES, PATIENCE};
use crate::probe::{self, Pace, Probe};
use crate::timeline::{longest, median};
use kvdb_model::{NodeId, ShardId};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Nothing, for two seconds.
    Nothing,
    /// A shard is led from another node.
    LeaderMove,
    /// A node is told to stop, and started again.
    Restart,
    /// A shard is cut in two.
    Split,
    /// A replica of a shard moves to another node.
    Move,
    /// A node is emptied.
    Drain,
}

impl Change {
    const ALL: [Change; 6] = [
        Change::Nothing,
        Change::LeaderMove,
        Change::Restart,
        Change::Split,
        Change::Move,
        Change::Drain,
    ];

    /// The longest gap that is promised, in milliseconds.
    pub fn promised_ms(self) -> Option<u64> {
        match self {
            Change::Nothing => None,
            Change::LeaderMove | Change::Restart => Some(10),
            Change::Split | Change::Move | Change::Drain => Some(100),
        }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Change::Nothing => "nothing",
            Change::LeaderMove => "leader move",
            Change::Restart => "restart of a node",
            Change::Split => "split",
            Change::Move => "replica move",
            Change::Drain => "drain",
        }
    }
}

/// What a kind of change was like.
#[derive(Clone, Debug, Serialize)]
pub struct Noticed {
    /// What was done.
    pub change: Change,
    /// The longest gap of each round, over all shards, in milliseconds.
    pub gaps_ms: Vec<u64>,
    /// The middle one.
    pub median_ms: u64,
    /// The longest.
    pub worst_ms: u64,
    /// Writes that failed meanwhile.
    pub failed_writes: u64,
}

/// How it went without coordinators.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Alone {
    /// For how long, in seconds; as long before.
    pub seconds: u64,
    /// Writes a second before they were killed.
    pub writes_before: f64,
    /// Writes a second without them.
    pub writes_without: f64,
    /// Writes that failed without them.
    pub failed_writes: u64,
}

/// How it went while others used up the processor.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Crowded {
    /// For how long, in seconds.
    pub seconds: u64,
    /// Threads that did nothing but count.
    pub threads: usize,
    /// Times that a replica became a leader.
    pub elections: u64,
    /// Writes a second.
    pub writes: f64,
    /// Writes that failed.
    pub failed_writes: u64,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedWork {
    /// By kind of change.
    pub noticed: Vec<Noticed>,
    /// Without coordinators.
    pub alone: Alone,
    /// With the processor used up.
    pub crowded: Crowded,
    /// Shards that don't hold what was acknowledged: none, or something is wrong.
    pub lost: usize,
}

impl PlannedWork {
    /// Writes that failed, all together.
    pub fn failed_writes(&self) -> u64 {
        let noticed: u64 = self.noticed.iter().map(|one| one.failed_writes).sum();
        noticed + self.alone.failed_writes + self.crowded.failed_writes
    }
}

const QUIET: Duration = Duration::from_secs(2);
/// What comes late after a change counts to it.
const AFTERWARDS: Duration = Duration::from_millis(300);
const ASK_AGAIN: Duration = Duration::from_millis(20);
const CLIENT_DEADLINE: Duration = Duration::from_secs(10);
/// The gaps of changes are noted from here.
const SHORTEST_GAP: Duration = Duration::from_millis(2);

struct Run<'a, T> {
    cluster: Cluster,
    probes: Vec<Arc<Probe>>,
    start: Instant,
    tell: &'a T,
}

/// Measures `rounds` changes of each kind, and `hold` without coordinators and with a processor
/// that is used up.
///
/// # Errors
/// [`enum@Error`], if the cluster can't be started, or a change doesn't come to its end.
pub async fn planned(
    program: PathBuf,
    folder: PathBuf,
    shards: u32,
    rounds: u32,
    hold: Duration,
    tell: impl Fn(&str),
) -> Result<PlannedWork, Error> {
    // Nothing is to happen but what is asked for.
    let layout = Layout { rebalance: false, ..Layout::plain(program, folder, shards) };
    let mut cluster = Cluster::start(layout).await?;
    cluster.add_node().await?;
    let start = Instant::now();
    let pace = Pace { pause: Duration::ZERO, shortest_gap: SHORTEST_GAP };
    let probes = probe::probes(&cluster, start, pace).await?;
    let (stop, stopped) = watch::channel(false);
    let mut writers = JoinSet::new();
    probe::all_write(&probes, &cluster, CLIENT_DEADLINE, &stopped, &mut writers)?;
    let mut run = Run { cluster, probes, start, tell: &tell };
    let mut noticed = Vec::new();
    for change in Change::ALL {
        noticed.push(run.measure(change, rounds).await?);
    }
    let alone = run.without_coordinators(hold).await?;
    let crowded = run.crowd(hold).await?;
    let _ = stop.send(true);
    while writers.join_next().await.is_some() {}
    let client = cluster::client(&run.cluster.endpoints(), CLIENT_DEADLINE)?;
    let mut lost = 0;
    for probe in &run.probes {
        lost += usize::from(!probe.verify(&client).await?);
    }
    Ok(PlannedWork { noticed, alone, crowded, lost })
}

impl<T: Fn(&str)> Run<'_, T> {
    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn failed(&self) -> u64 {
        self.probes.iter().map(|probe| probe.failed()).sum()
    }

    fn written(&self) -> u64 {
        self.probes.iter().map(|probe| probe.count()).sum()
    }

    async fn measure(&mut self, change: Change, rounds: u32) -> Result<Noticed, Error> {
        let mut gaps_ms = Vec::new();
        // A drain empties the node to which the moves have brought replicas: one is enough.
        let rounds = if change == Change::Drain { 1 } else { rounds };
        let failed_before = self.failed();
        for round in 0..rounds {
            self.settle().await?;
            let from_ms = self.now_ms();
            self.make(change, round as usize).await?;
            tokio::time::sleep(AFTERWARDS).await;
            let until_ms = self.now_ms();
            let longest = |probe: &Arc<Probe>| longest(&probe.gaps(), from_ms, until_ms);
            let gap = self.probes.iter().map(longest).max().unwrap_or_default();
            let took = until_ms - from_ms;
            (self.tell)(&format!("{} {}: gap {gap} ms in {took} ms", change.name(), round + 1));
            gaps_ms.push(gap);
        }
        let failed_writes = self.failed() - failed_before;
        let mut sorted = gaps_ms.clone();
        sorted.sort_unstable();
        let (median_ms, worst_ms) = (median(&sorted), sorted.last().copied().unwrap_or_default());
        Ok(Noticed { change, gaps_ms, median_ms, worst_ms, failed_writes })
    }

    /// Waits until every shard takes writes and nothing is under way.
    async fn settle(&mut self) -> Result<(), Error> {
        probe::take_writes_within(&self.probes, PATIENCE)
            .await
            .map_err(|problem| self.cluster.not_ready(&problem))?;
        self.cluster.operators_end(PATIENCE).await?;
        self.cluster.settle().await
    }

    async fn make(&mut self, change: Change, round: usize) -> Result<(), Error> {
        match change {
            Change::Nothing => tokio::time::sleep(QUIET).await,
            Change::LeaderMove => self.move_leader(round).await?,
            Change::Restart => {
                let part = COORDINATORS + round % NODES;
                self.cluster.parts[part].terminate().await;
                self.cluster.start_part(part)?;
                self.settle().await?;
            }
            Change::Split => {
                let shard = self.pick(round).await?;
                let operator = self.cluster.admin().split_shard(shard, None).await?;
                self.cluster.operator_done(operator, PATIENCE).await?;
            }
            Change::Move => self.move_replica(round).await?,
            Change::Drain => {
                let newest = self.newest_node().await?;
                let operator = self.cluster.admin().drain_node(newest).await?.operator;
                self.cluster.operator_done(operator, PATIENCE).await?;
            }
        }
        Ok(())
    }

    async fn pick(&self, round: usize) -> Result<ShardId, Error> {
        let map = self.cluster.map().await?;
        let shards: Vec<ShardId> = map.shards.keys().copied().collect();
        Ok(shards[round % shards.len()])
    }

    async fn newest_node(&self) -> Result<NodeId, Error> {
        let map = self.cluster.map().await?;
        map.nodes
            .keys()
            .next_back()
            .copied()
            .ok_or_else(|| self.cluster.not_ready("there are no nodes"))
    }

    async fn move_leader(&self, round: usize) -> Result<(), Error> {
        let shard = self.pick(round).await?;
        let map = self.cluster.map().await?;
        let record = &map.shards[&shard];
        let other = record
            .descriptor
            .replicas
            .iter()
            .map(|replica| replica.node_id)
            .find(|node| Some(*node) != record.leader);
        let Some(other) = other else { return Ok(()) };
        self.cluster.admin().set_shard_leader(shard, other).await?;
        let since = Instant::now();
        while self.cluster.map().await?.shards[&shard].leader != Some(other) {
            if since.elapsed() > PATIENCE {
                return Err(self.cluster.not_ready(&format!("shard {shard} isn't handed over")));
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Ok(())
    }

    /// To the newest node, or away from it where a replica is there already.
    async fn move_replica(&self, round: usize) -> Result<(), Error> {
        let shard = self.pick(round).await?;
        let newest = self.newest_node().await?;
        let map = self.cluster.map().await?;
        let descriptor = &map.shards[&shard].descriptor;
        let (from, to) = if descriptor.replica_on(newest).is_some() {
            let elsewhere = map.nodes.keys().find(|node| descriptor.replica_on(**node).is_none());
            (newest, elsewhere.copied().unwrap_or(newest))
        } else {
            (descriptor.replicas[0].node_id, newest)
        };
        let operator = self.cluster.admin().move_replica(shard, from, to).await?;
        self.cluster.operator_done(operator, PATIENCE).await
    }

    async fn without_coordinators(&mut self, hold: Duration) -> Result<Alone, Error> {
        self.settle().await?;
        (self.tell)(&format!("{} s as it is, and as long without coordinators", hold.as_secs()));
        let writes_before = self.writes_for(hold).await;
        let failed_before = self.failed();
        for part in 0..COORDINATORS {
            self.cluster.parts[part].kill();
        }
        let writes_without = self.writes_for(hold).await;
        let failed_writes = self.failed() - failed_before;
        for part in 0..COORDINATORS {
            self.cluster.start_part(part)?;
        }
        self.wait_for_coordinators().await?;
        self.settle().await?;
        Ok(Alone { seconds: hold.as_secs(), writes_before, writes_without, failed_writes })
    }

    async fn wait_for_coordinators(&self) -> Result<(), Error> {
        let since = Instant::now();
        while let Err(error) = self.cluster.map().await {
            if since.elapsed() > PATIENCE {
                return Err(error.into());
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Ok(())
    }

    async fn writes_for(&self, time: Duration) -> f64 {
        let (before, since) = (self.written(), Instant::now());
        tokio::time::sleep(time).await;
        (self.written() - before) as f64 / since.elapsed().as_secs_f64()
    }

    async fn crowd(&mut self, hold: Duration) -> Result<Crowded, Error> {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        (self.tell)(&format!("{} s beside {threads} threads that count", hold.as_secs()));
        let elections = self.cluster.elections().await?;
        let failed_before = self.failed();
        let stop = Arc::new(AtomicBool::new(false));
        let counting: Vec<_> = (0..threads).map(|_| std::thread::spawn(count(&stop))).collect();
        let writes = self.writes_for(hold).await;
        let elections = self.cluster.elections().await?.saturating_sub(elections);
        stop.store(true, Ordering::Relaxed);
        for thread in counting {
            // It does nothing that could panic.
            let _ = thread.join();
        }
        let failed_writes = self.failed() - failed_before;
        Ok(Crowded { seconds: hold.as_secs(), threads, elections, writes, failed_writes })
    }
}

/// Uses up a processor until it is told to stop.
fn count(stop: &Arc<AtomicBool>) -> impl FnOnce() + Send + 'static {
    let stop = Arc::clone(stop);
    move || {
        let mut counted = 0u64;
        while !stop.load(Ordering::Relaxed) {
            counted = std::hint::black_box(counted.wrapping_add(1));
        }
    }
}
