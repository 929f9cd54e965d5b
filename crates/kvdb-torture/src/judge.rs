//! The judge: every window's history through the checkers, and the whole data in the end.

use crate::load::{elements, set_prefix};
use crate::probe::Probe;
use kvdb_checker::counter::CounterAnomaly;
use kvdb_checker::set::SetAnomaly;
use kvdb_checker::{History, Outcome, Report, Verdict, check_all};
use kvdb_client::Client;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Problems that are told in full; all are counted.
const TOLD_MAX: usize = 50;

/// What the judge found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Findings {
    /// Operations judged.
    pub operations: u64,
    /// Of these: those whose outcome nobody knows.
    pub unknown: u64,
    /// Of these: those that certainly did nothing.
    pub failed: u64,
    /// Acknowledged writes that are gone.
    pub lost: u64,
    /// Answers that can't be right, and replicas that differ.
    pub wrong: u64,
    /// Reads that missed what was there already, though a later one saw it.
    pub stale: u64,
    /// Keys whose history was too hard to judge.
    pub undecided: u64,
    /// Acknowledged unique elements that were looked for in the end.
    pub verified: u64,
    /// Windows judged.
    pub windows: u64,
    /// What is wrong, in words.
    pub problems: Vec<String>,
}

impl Findings {
    /// Says what is wrong.
    pub(crate) fn tell(&mut self, problem: String) {
        if self.problems.len() < TOLD_MAX {
            self.problems.push(problem);
        }
    }

    /// Whether nothing was lost, wrong, stale or undecided.
    pub fn is_clean(&self) -> bool {
        self.lost + self.wrong + self.stale + self.undecided == 0
    }

    pub(crate) fn add(&mut self, other: Findings) {
        self.operations += other.operations;
        self.unknown += other.unknown;
        self.failed += other.failed;
        self.lost += other.lost;
        self.wrong += other.wrong;
        self.stale += other.stale;
        self.undecided += other.undecided;
        self.verified += other.verified;
        self.windows += other.windows;
        other.problems.into_iter().for_each(|problem| self.tell(problem));
    }
}

/// Judges one window. Its history is kept as JSON lines in `folder` where that is asked for, and in
/// any case where something is wrong.
pub(crate) fn judge(number: usize, history: &History, folder: &Path, keep: bool) -> Findings {
    let report = check_all(history, &Default::default());
    let mut findings = count(&report);
    findings.windows = 1;
    findings.operations = history.operations().len() as u64;
    for operation in history.operations() {
        match operation.outcome {
            Outcome::Unknown => findings.unknown += 1,
            Outcome::Failed => findings.failed += 1,
            Outcome::Returned { .. } => {}
        }
    }
    if keep || report.verdict() != Verdict::Ok {
        let path = folder.join(format!("window-{number:05}.jsonl"));
        match write(&path, history) {
            Ok(()) if keep => {}
            Ok(()) => findings.tell(format!("window {number}: its history is {}", path.display())),
            Err(error) => findings.tell(format!("{}: {error}", path.display())),
        }
    }
    findings
}

fn write(path: &Path, history: &History) -> std::io::Result<()> {
    let mut output = std::io::BufWriter::new(std::fs::File::create(path)?);
    kvdb_checker::json::write(&mut output, history)?;
    std::io::Write::flush(&mut output)
}

fn count(report: &Report) -> Findings {
    let mut findings = Findings::default();
    for violation in &report.register.violations {
        findings.wrong += 1;
        let ids: Vec<_> = violation.operations.iter().map(|one| one.id.to_string()).collect();
        let (key, kind) = (&violation.key, &violation.kind);
        findings.tell(format!("key {key}: {kind:?}, operations {}", ids.join(", ")));
    }
    findings.undecided += report.register.undecided.len() as u64;
    for key in &report.register.undecided {
        findings.tell(format!("key {key}: too hard to judge"));
    }
    for (key, anomaly) in &report.counter.anomalies {
        match anomaly {
            CounterAnomaly::OutOfBounds { value, least, .. } if i128::from(*value) < *least => {
                findings.lost += 1;
            }
            CounterAnomaly::ToldTwice { .. } => findings.lost += 1,
            _ => findings.wrong += 1,
        }
        findings.tell(format!("counter {key}: {anomaly}"));
    }
    for (key, anomaly) in &report.set.anomalies {
        match anomaly {
            SetAnomaly::Lost { .. } => findings.lost += 1,
            SetAnomaly::Stale { .. } => findings.stale += 1,
            SetAnomaly::NeverAdded { .. } | SetAnomaly::Doubled { .. } => findings.wrong += 1,
        }
        findings.tell(format!("set {key}: {anomaly:?}"));
    }
    findings
}

/// Looks for every acknowledged element of the run, and for what the probes wrote last.
pub(crate) async fn verify(
    client: &Client,
    acknowledged: &BTreeMap<usize, Vec<u64>>,
    probes: &[Arc<Probe>],
) -> Findings {
    let mut findings = Findings::default();
    for (window, wanted) in acknowledged {
        let prefix = set_prefix(*window);
        match elements(client, &prefix).await {
            Ok(found) => find_lost(&prefix, wanted, found, &mut findings),
            Err(error) => {
                findings.undecided += 1;
                findings.tell(format!("{prefix} can't be read in the end: {error}"));
            }
        }
    }
    for probe in probes {
        match probe.verify(client).await {
            Ok(true) => findings.verified += 1,
            Ok(false) => {
                findings.lost += 1;
                findings.tell(format!("the last write of shard {} is lost", probe.shard));
            }
            Err(error) => {
                findings.undecided += 1;
                findings.tell(format!("shard {} can't be read in the end: {error}", probe.shard));
            }
        }
    }
    findings
}

fn find_lost(prefix: &str, wanted: &[u64], found: Vec<u64>, findings: &mut Findings) {
    let found: HashSet<u64> = found.into_iter().collect();
    findings.verified += wanted.len() as u64;
    for element in wanted.iter().filter(|element| !found.contains(element)) {
        findings.lost += 1;
        findings.tell(format!("{prefix}{element:016x} was acknowledged and is lost"));
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lost={} wrong={} stale={}", self.lost, self.wrong, self.stale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvdb_checker::{Answer, Call, ClientId, Element, Recorder, Time};

    fn set_history(members: Vec<Vec<u64>>) -> History {
        let mut recorder = Recorder::new();
        let call = Call::Add { key: "s".into(), element: Element(1) };
        let add = recorder.call(ClientId(1), call, Time(1));
        recorder.ok(add, Answer::Done, Time(2));
        for (place, members) in members.into_iter().enumerate() {
            let time = 10 * (place as u64 + 1);
            let read = recorder.call(ClientId(2), Call::Members { key: "s".into() }, Time(time));
            let members = members.into_iter().map(Element).collect();
            recorder.ok(read, Answer::Members(members), Time(time + 1));
        }
        recorder.finish()
    }

    #[test]
    fn lost_stale_and_wrong_are_told_apart_and_the_history_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let judged = |members| judge(3, &set_history(members), folder.path(), false).to_string();
        assert_eq!(judged(vec![vec![1], vec![1]]), "lost=0 wrong=0 stale=0");
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
        assert_eq!(judged(vec![vec![], vec![]]), "lost=1 wrong=0 stale=0");
        assert_eq!(judged(vec![vec![], vec![1]]), "lost=0 wrong=0 stale=1");
        assert_eq!(judged(vec![vec![1, 2]]), "lost=0 wrong=1 stale=0");
        let file = std::fs::File::open(folder.path().join("window-00003.jsonl")).unwrap();
        let history = kvdb_checker::json::read(std::io::BufReader::new(file)).unwrap();
        assert_eq!(history.operations().len(), 2);
    }

    #[test]
    fn what_was_acknowledged_and_is_not_there_is_lost() {
        let mut findings = Findings::default();
        find_lost("s/", &[1, 2, 3], vec![3, 1, 9], &mut findings);
        assert_eq!((findings.lost, findings.verified), (1, 3));
        assert!(findings.problems[0].contains("0002"), "{:?}", findings.problems);
        assert!(!findings.is_clean());
    }
}
