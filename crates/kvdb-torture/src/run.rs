//! A run, from the start of its cluster to the report.

mod duties;

use crate::Error;
use crate::cluster::{self, Cluster, Layout, PATIENCE};
use crate::fault::Fault;
use crate::inject;
use crate::judge::{self, Findings};
use crate::load::{self, Load};
use crate::network::Part;
use crate::probe::{self, Probe};
use crate::report::{Report, Verdict};
use crate::schedule::{Planned, Schedule};
use crate::timeline::{LeaderChange, Meter, Span, by_fault, longest};
use crate::tools::Tools;
use crate::window::{Window, Windows};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long a window takes.
const WINDOW: Duration = Duration::from_secs(10);
/// Longest that an operation of a client may take among faults.
const DEADLINE: Duration = Duration::from_secs(5);
/// The same during duties, where none may fail: what clients have if they ask for nothing else.
const USUAL_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at who leads.
const LEADERS_EVERY: Duration = Duration::from_millis(100);
/// A fault after which parts stop by themselves more often than this is one that the cluster doesn't
/// recover from.
const RESTARTS_MAX: u32 = 5;
/// A run whose clients got fewer answers a second than this, before or during the faults, doesn't
/// count.
const LEAST_RATE: f64 = 20.0;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `kvdb` binary to start.
    pub program: PathBuf,
    /// Where data, logs and histories go. Must be empty or not there.
    pub folder: PathBuf,
    /// How long the load and the faults go on.
    pub length: Duration,
    /// Names the schedule.
    pub seed: u64,
    /// What happens meanwhile.
    pub work: Work,
    /// Clients that ask at the same time.
    pub clients: u32,
    /// Operations a second that they aim at, all together.
    pub rate: u32,
    /// Shards of the cluster.
    pub shards: u32,
    /// Whether to keep every window's history as JSON lines, and not only those with a violation.
    pub keep_histories: bool,
}

/// What happens to the cluster while clients ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// These faults, so far as this machine allows them, for the length of the run.
    Faults(Vec<Fault>),
    /// An operator's duties, each once and to its end, however long that takes. No operation of a
    /// client may fail.
    Duties {
        /// How long one of them leaves the cluster without coordinators.
        without_coordinators: Duration,
    },
}

/// Tells somebody who watches what happens.
pub type Listener<'a> = &'a (dyn Fn(&str) + Sync);

/// Makes a run. `tell` is told what happens while it does; `interrupted` ends it early, in order.
///
/// # Errors
/// [`enum@Error`], if the cluster can't be started or a fault can't be injected.
pub async fn run(
    options: &Options,
    tell: Listener<'_>,
    interrupted: impl Future<Output = ()>,
) -> Result<Report, Error> {
    let tools = Tools::find();
    let mut skipped = Vec::new();
    let (mut faults, repair_after) = match &options.work {
        Work::Faults(faults) => (faults.clone(), None),
        Work::Duties { .. } => (Vec::new(), Some(duties::REPAIR_AFTER)),
    };
    faults.retain(|fault| match fault.missing(&tools) {
        Some(reason) => {
            tell(&format!("skipped: {fault} ({reason})"));
            skipped.push((fault.name(), reason));
            false
        }
        None => true,
    });
    prepare(&options.folder)?;
    tell("starting 3 coordinators, 3 nodes and 2 gateways");
    let cluster = Cluster::start(Layout {
        program: options.program.clone(),
        folder: options.folder.clone(),
        shards: options.shards,
        proxied: faults.iter().any(|fault| fault.is_of_the_network()),
        disks: faults.iter().any(|fault| fault.is_of_the_disk()),
        rebalance: true,
        repair_after,
    })
    .await?;
    let mut run = Run::begin(options, cluster, tell, skipped).await?;
    tokio::select! {
        result = run.work(&faults) => result?,
        () = interrupted => run.interrupted = true,
    }
    run.finish().await
}

fn prepare(folder: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(folder)?;
    if std::fs::read_dir(folder)?.next().is_some() {
        let folder = folder.display();
        return Err(Error::Options(format!(
            "{folder} isn't empty; the cluster of a run is a new one, in a directory of its own"
        )));
    }
    Ok(())
}

struct Run<'a> {
    options: &'a Options,
    tell: Listener<'a>,
    cluster: Cluster,
    start: Instant,
    meter: Arc<Meter>,
    probes: Vec<Arc<Probe>>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
    judging: tokio::task::JoinHandle<Judged>,
    watching: tokio::task::JoinHandle<Vec<LeaderChange>>,
    spans: Vec<Span>,
    skipped: Vec<(&'static str, String)>,
    findings: Findings,
    /// When the first fault began.
    calm_until: Option<Duration>,
    /// A shard took no writes long after a fault was over.
    stuck: bool,
    interrupted: bool,
}

/// What the judge has after all windows: findings, and acknowledged elements by window.
type Judged = (Findings, BTreeMap<usize, Vec<u64>>);

impl<'a> Run<'a> {
    async fn begin(
        options: &'a Options,
        cluster: Cluster,
        tell: Listener<'a>,
        skipped: Vec<(&'static str, String)>,
    ) -> Result<Self, Error> {
        let start = Instant::now();
        let (stop, stopped) = watch::channel(false);
        let capacity = options.clients + 1;
        let meter = Arc::new(Meter::new(start));
        let deadline = match options.work {
            Work::Faults(_) => DEADLINE,
            Work::Duties { .. } => USUAL_DEADLINE,
        };
        let pause = f64::from(options.clients) / f64::from(options.rate.max(1));
        let load = Arc::new(Load {
            client: cluster::client(&cluster.endpoints(), deadline)?,
            windows: Arc::new(Windows::new(capacity, start)),
            meter: Arc::clone(&meter),
            pause: Duration::from_secs_f64(pause),
            seed: options.seed,
            stop: stopped.clone(),
        });
        let probes = probe::probes(&cluster, start, probe::Pace::default()).await?;
        let mut clients = JoinSet::new();
        for number in 0..u64::from(options.clients) {
            clients.spawn(load::run_client(Arc::clone(&load), number));
        }
        clients.spawn(load::run_reader(Arc::clone(&load), u64::from(options.clients)));
        probe::all_write(&probes, &cluster, deadline, &stopped, &mut clients)?;
        let windows = Arc::clone(&load.windows);
        let keep = options.keep_histories;
        let judging = judge_windows(windows, options.folder.clone(), keep, stopped.clone());
        let watching = watch_leaders(cluster.watcher()?, start, stopped);
        Ok(Run {
            options,
            tell,
            cluster,
            start,
            meter,
            probes,
            stop,
            clients,
            judging: tokio::spawn(judging),
            watching: tokio::spawn(watching),
            spans: Vec::new(),
            skipped,
            findings: Findings::default(),
            calm_until: None,
            stuck: false,
            interrupted: false,
        })
    }

    async fn work(&mut self, faults: &[Fault]) -> Result<(), Error> {
        match self.options.work {
            Work::Faults(_) => self.torture(faults).await,
            Work::Duties { without_coordinators } => self.attend(without_coordinators).await,
        }
    }

    /// Fault after fault, until the time is over.
    async fn torture(&mut self, faults: &[Fault]) -> Result<(), Error> {
        let last = faults.contains(&Fault::LogDamage);
        let kinds: Vec<Fault> =
            faults.iter().copied().filter(|fault| *fault != Fault::LogDamage).collect();
        let length = self.options.length;
        let mut schedule = Schedule::new(self.options.seed, &kinds, length);
        let lead = (length / 8).min(Duration::from_secs(10));
        tokio::time::sleep(lead).await;
        self.calm_until = Some(self.start.elapsed());
        // Room for a last fault, and for some calm.
        let until = length.saturating_sub(lead);
        while self.start.elapsed() < until && !self.stuck {
            let Some(planned) = schedule.next_fault() else { break };
            self.inject(planned).await?;
            tokio::time::sleep(schedule.calm()).await;
        }
        if last && !self.stuck {
            self.damage_a_log(schedule.plan(Fault::LogDamage)).await?;
        }
        let left = length.saturating_sub(self.start.elapsed());
        tokio::time::sleep(left).await;
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    async fn inject(&mut self, planned: Planned) -> Result<(), Error> {
        let from_ms = self.now_ms();
        let mut injected = inject::begin(&mut self.cluster, &planned).await?;
        (self.tell)(&format!(
            "{:7.1} s  {} of {} for {:.1} s{}",
            from_ms as f64 / 1000.0,
            planned.fault,
            injected.target,
            planned.length.as_secs_f64(),
            remark(&injected.note),
        ));
        tokio::time::sleep(planned.length).await;
        let mut notes: Vec<String> = Vec::new();
        notes.extend(Some(injected.note.clone()).filter(|note| !note.is_empty()));
        self.note_ended(&mut notes);
        injected.end(&mut self.cluster, planned.fault)?;
        let until_ms = self.now_ms();
        let recovered = self.recover(&mut notes).await?;
        let recovered_ms = recovered.then(|| self.now_ms());
        let (gap_ms, slowest_ms) = self.longest_between(from_ms, self.now_ms());
        let span = Span {
            fault: planned.fault.name(),
            target: injected.target.clone(),
            from_ms,
            until_ms,
            recovered_ms,
            gap_ms,
            slowest_ms,
            note: notes.join("; "),
        };
        if !recovered {
            self.stuck = true;
            self.findings.tell(format!(
                "after {} of {} not every part was well again within {} s",
                span.fault,
                span.target,
                PATIENCE.as_secs()
            ));
        }
        (self.tell)(&format!(
            "{:7.1} s  recovered; longest write gap {gap_ms} ms{}",
            self.start.elapsed().as_secs_f64(),
            remark(&span.note),
        ));
        self.spans.push(span);
        Ok(())
    }

    /// Parts that have stopped by themselves, with their last words.
    fn note_ended(&mut self, notes: &mut Vec<String>) -> Vec<Part> {
        let ended = self.cluster.take_ended();
        for (part, status) in &ended {
            let part = &self.cluster.parts[*part];
            let words = part.last_words(20);
            // What a process ends with is marked; other threads may have logged after it.
            let marked = words.iter().rev().find(|line| line.starts_with("kvdb: "));
            let words = marked.or(words.last()).map_or("", String::as_str);
            let note = format!("{} stopped by itself ({status}): {words}", part.name);
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        ended.into_iter().map(|(part, _)| part).collect()
    }

    /// Waits until every shard takes writes. Whoever stops by itself meanwhile is started again.
    async fn recover(&mut self, notes: &mut Vec<String>) -> Result<bool, Error> {
        let deadline = Instant::now() + PATIENCE;
        let mut restarts = 0;
        let mut writes = probe::all_take_writes(&self.probes);
        loop {
            let all_written = async { while writes.join_next().await.is_some() {} };
            let look_again = Duration::from_millis(500);
            let all = tokio::time::timeout(look_again, all_written).await.is_ok();
            let ended = self.note_ended(notes);
            for part in &ended {
                restarts += 1;
                self.cluster.start_part(*part)?;
            }
            if all && ended.is_empty() {
                return Ok(true);
            }
            if !ended.is_empty() {
                writes = probe::all_take_writes(&self.probes);
            }
            if Instant::now() > deadline || restarts > RESTARTS_MAX {
                return Ok(false);
            }
        }
    }

    /// The longest gap between writes, and the slowest operation of the clients.
    fn longest_between(&self, from_ms: u64, until_ms: u64) -> (u64, u64) {
        let gaps = self.probes.iter().map(|probe| longest(&probe.gaps(), from_ms, until_ms));
        (gaps.max().unwrap_or_default(), self.meter.slowest(from_ms, until_ms))
    }

    /// A node whose log is damaged must not come up again, and says which file it is.
    async fn damage_a_log(&mut self, planned: Planned) -> Result<(), Error> {
        let from_ms = self.now_ms();
        let mut injected = inject::begin(&mut self.cluster, &planned).await?;
        (self.tell)(&format!(
            "{:7.1} s  {} of {}: {}",
            from_ms as f64 / 1000.0,
            planned.fault,
            injected.target,
            injected.note
        ));
        injected.end(&mut self.cluster, planned.fault)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut notes = vec![injected.note.clone()];
        let mut stayed_down = false;
        while Instant::now() < deadline && !stayed_down {
            stayed_down = !self.note_ended(&mut notes).is_empty();
            // A process that ends is no event of ours; it is asked for.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let named = notes.iter().any(|note| note.contains("is damaged at offset"));
        if stayed_down && !named {
            self.findings.wrong += 1;
            self.findings.tell(format!("a damaged log isn't named: {}", notes.join("; ")));
        }
        if !stayed_down {
            notes.push("it came up: the flip hit nothing that had been synced".to_owned());
        }
        let until_ms = self.now_ms();
        let (gap_ms, slowest_ms) = self.longest_between(from_ms, until_ms);
        self.spans.push(Span {
            fault: planned.fault.name(),
            target: injected.target.clone(),
            from_ms,
            until_ms,
            recovered_ms: Some(until_ms),
            gap_ms,
            slowest_ms,
            note: notes.join("; "),
        });
        (self.tell)(&format!("           {}", notes.join("; ")));
        Ok(())
    }

    async fn finish(mut self) -> Result<Report, Error> {
        let length = self.start.elapsed();
        if self.interrupted {
            self.cluster.network.heal();
            self.cluster.parts.iter().for_each(|part| part.pause(false));
        }
        (self.tell)("judging");
        let _ = self.stop.send(true);
        while self.clients.join_next().await.is_some() {}
        let (judged, acknowledged) =
            (&mut self.judging).await.map_err(|error| Error::Options(error.to_string()))?;
        self.findings.add(judged);
        let client = cluster::client(&self.cluster.endpoints(), PATIENCE)?;
        self.findings.add(judge::verify(&client, &acknowledged, &self.probes).await);
        if let Err(problem) = self.cluster.digests_agree().await {
            self.findings.wrong += 1;
            self.findings.tell(problem);
        }
        self.note_unexpected_end();
        let leaders = (&mut self.watching).await.unwrap_or_default();
        self.cluster.kill_all();
        Ok(self.report(length, leaders))
    }

    /// Somebody who stops outside of any fault.
    fn note_unexpected_end(&mut self) {
        let mut notes = Vec::new();
        self.note_ended(&mut notes);
        for note in notes {
            self.findings.wrong += 1;
            self.findings.tell(format!("outside of any fault: {note}"));
        }
    }

    fn report(self, length: Duration, leaders: Vec<LeaderChange>) -> Report {
        let by_second = self.meter.by_second();
        let (calm_rate, fault_rate) = self.rates(&by_second);
        let refusals = self.meter.refusals();
        let may_refuse = matches!(self.options.work, Work::Faults(_));
        let verdict = if !self.findings.is_clean() || !refusals.is_empty() && !may_refuse {
            Verdict::Violated
        } else if self.stuck {
            Verdict::Stuck
        } else if calm_rate < LEAST_RATE || fault_rate.is_some_and(|rate| rate < LEAST_RATE) {
            Verdict::Invalid
        } else {
            Verdict::Ok
        };
        Report {
            verdict,
            what: if may_refuse { "faults" } else { "duties" },
            seed: self.options.seed,
            seconds: length.as_secs_f64(),
            clients: self.options.clients,
            shards: self.options.shards,
            interrupted: self.interrupted,
            answered: self.meter.total(),
            probes: self.probes.iter().map(|probe| probe.count()).sum(),
            calm_ops_per_second: calm_rate,
            fault_ops_per_second: fault_rate,
            refusals,
            by_fault: by_fault(&self.spans),
            worst_gap_ms: self.spans.iter().map(|span| span.gap_ms).max().unwrap_or_default(),
            findings: self.findings,
            spans: self.spans,
            skipped: self.skipped,
            leaders,
            ops_by_second: by_second,
            folder: self.options.folder.clone(),
        }
    }

    /// Answers a second before the first fault, and during faults.
    fn rates(&self, by_second: &[u32]) -> (f64, Option<f64>) {
        let calm = self.calm_until.unwrap_or_else(|| self.start.elapsed());
        let calm_seconds = (calm.as_secs() as usize).min(by_second.len());
        let answered: u32 = by_second[..calm_seconds].iter().sum();
        let calm_rate = f64::from(answered) / calm_seconds.max(1) as f64;
        let mut under = vec![false; by_second.len()];
        for span in &self.spans {
            let (first, last) = (span.from_ms / 1000, span.until_ms / 1000);
            let touched = under.iter_mut().skip(first as usize);
            touched.take((last - first + 1) as usize).for_each(|second| *second = true);
        }
        let seconds = under.iter().filter(|second| **second).count();
        let during: u32 =
            by_second.iter().zip(&under).filter_map(|(count, under)| under.then_some(*count)).sum();
        (calm_rate, (seconds > 0).then(|| f64::from(during) / seconds as f64))
    }
}

fn remark(note: &str) -> String {
    if note.is_empty() { String::new() } else { format!(" ({note})") }
}

/// Turns the windows and judges each, until it is time to end.
async fn judge_windows(
    windows: Arc<Windows>,
    folder: PathBuf,
    keep: bool,
    mut stop: watch::Receiver<bool>,
) -> Judged {
    let mut findings = Findings::default();
    let mut acknowledged = BTreeMap::new();
    loop {
        let stopped = tokio::time::timeout(WINDOW, stop.wait_for(|stop| *stop)).await.is_ok();
        let window: Arc<Window> = windows.turn();
        let (history, elements) = window.close().await;
        let (number, folder) = (window.number, folder.clone());
        let judged =
            tokio::task::spawn_blocking(move || judge::judge(number, &history, &folder, keep));
        match judged.await {
            Ok(judged) => findings.add(judged),
            Err(error) => {
                findings.undecided += 1;
                findings.tell(format!("window {number} can't be judged: {error}"));
            }
        }
        acknowledged.insert(number, elements);
        if stopped {
            return (findings, acknowledged);
        }
    }
}

async fn watch_leaders(
    watcher: cluster::Watcher,
    start: Instant,
    mut stop: watch::Receiver<bool>,
) -> Vec<LeaderChange> {
    let mut changes = Vec::new();
    let mut known: BTreeMap<kvdb_model::ShardId, String> = BTreeMap::new();
    while !*stop.borrow() {
        for (shard, leader) in watcher.leaders().await {
            if known.insert(shard, leader.clone()).as_ref() != Some(&leader) {
                let at_ms = start.elapsed().as_millis() as u64;
                changes.push(LeaderChange { at_ms, shard: shard.0, leader });
            }
        }
        let _ = tokio::time::timeout(LEADERS_EVERY, stop.wait_for(|stop| *stop)).await;
    }
    changes
}
