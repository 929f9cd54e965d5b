//! What a run came to: as text, as JSON, and (in `html`) as a page.

use crate::html;
use crate::judge::Findings;
use crate::timeline::{ByFault, LeaderChange, Span};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// A run in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing lost, wrong or stale, and it recovered from every fault.
    Ok,
    /// Something was lost, wrong or stale, or couldn't be judged; or an operation failed where none
    /// may.
    Violated,
    /// A shard took no writes long after a fault was over.
    Stuck,
    /// Too little was asked of the cluster for the run to prove anything.
    Invalid,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Ok => "ok",
            Verdict::Violated => "violated",
            Verdict::Stuck => "stuck",
            Verdict::Invalid => "invalid",
        })
    }
}

/// What a run came to. Its [`fmt::Display`] is the report in text.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// In one word.
    pub verdict: Verdict,
    /// What was done to the cluster: `faults` or `duties`.
    pub what: &'static str,
    /// Names the schedule.
    pub seed: u64,
    /// How long the load went on.
    pub seconds: f64,
    /// Clients that asked at the same time.
    pub clients: u32,
    /// Shards of the cluster.
    pub shards: u32,
    /// Whether somebody ended it early.
    pub interrupted: bool,
    /// Operations of the clients that were answered.
    pub answered: u64,
    /// Writes beside them that measured the gaps.
    pub probes: u64,
    /// Operations answered a second before the first fault.
    pub calm_ops_per_second: f64,
    /// The same in seconds with a fault; `None` without faults.
    pub fault_ops_per_second: Option<f64>,
    /// Operations that were refused or unsettled, by reason.
    pub refusals: BTreeMap<String, u64>,
    /// What the judge found.
    pub findings: Findings,
    /// The longest write gap of all faults, in milliseconds.
    pub worst_gap_ms: u64,
    /// Write gaps by kind of fault.
    pub by_fault: Vec<ByFault>,
    /// Every fault.
    pub spans: Vec<Span>,
    /// Faults that this machine doesn't allow, with the reason.
    pub skipped: Vec<(&'static str, String)>,
    /// Every change of a leader that the coordinators knew of.
    pub leaders: Vec<LeaderChange>,
    /// Operations answered in each second.
    pub ops_by_second: Vec<u32>,
    /// Where logs and histories are.
    pub folder: PathBuf,
}

impl Report {
    /// The line that scripts look for.
    pub fn last_line(&self) -> String {
        format!("verdict={} {} worst_gap_ms={}", self.verdict, self.findings, self.worst_gap_ms)
    }

    /// A page that needs nothing else: the same facts, with a timeline.
    pub fn html(&self) -> String {
        html::page(self)
    }
}

/// A gap beside what is promised.
pub(crate) fn kept(by: &ByFault) -> &'static str {
    match by.promised_gap_ms {
        None => "",
        Some(promised) if by.worst_gap_ms <= promised => "kept",
        Some(_) => "missed",
    }
}

pub(crate) fn promised(by: &ByFault) -> String {
    by.promised_gap_ms.map_or_else(|| "-".to_owned(), |promised| promised.to_string())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        if self.interrupted {
            writeln!(f, "ended early, by hand")?;
        }
        let what = self.what;
        writeln!(
            f,
            "seed {}, {:.0} s, {} clients, {} shards: {} operations answered ({:.0}/s before the \
             {what}, {:.0}/s during them), {} probe writes",
            self.seed,
            self.seconds,
            self.clients,
            self.shards,
            self.answered,
            self.calm_ops_per_second,
            self.fault_ops_per_second.unwrap_or_default(),
            self.probes,
        )?;
        let found = &self.findings;
        writeln!(
            f,
            "judged: {} operations in {} windows, {} of unknown outcome, {} refused; {} \
             acknowledged writes looked for in the end",
            found.operations, found.windows, found.unknown, found.failed, found.verified
        )?;
        let refusals: Vec<_> =
            self.refusals.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        if !refusals.is_empty() {
            writeln!(f, "not answered: {}", refusals.join(", "))?;
        }
        let changes = self.leaders.len().saturating_sub(self.shards as usize);
        writeln!(f, "{what}: {}; changes of a leader: {changes}", self.spans.len())?;
        for (fault, reason) in &self.skipped {
            writeln!(f, "skipped: {fault} ({reason})")?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:<20} {:>5} {:>12} {:>11} {:>13} {:>9}",
            "write gap after", "times", "median (ms)", "worst (ms)", "slowest op", "promised"
        )?;
        for by in &self.by_fault {
            let (median, worst, slowest) = (by.median_gap_ms, by.worst_gap_ms, by.slowest_ms);
            let (fault, times, promised) = (by.fault, by.times, promised(by));
            let line = format!(
                "{fault:<20} {times:>5} {median:>12} {worst:>11} {slowest:>13} {promised:>9}  {}",
                kept(by)
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        writeln!(f)?;
        for problem in &found.problems {
            writeln!(f, "PROBLEM: {problem}")?;
        }
        write!(f, "{}", self.last_line())
    }
}

#[cfg(test)]
pub(crate) fn example() -> Report {
    let spans = vec![
        Span {
            fault: "kill-leader",
            target: "node-1".into(),
            from_ms: 2000,
            until_ms: 4000,
            recovered_ms: Some(4100),
            gap_ms: 310,
            slowest_ms: 320,
            note: "a <note>".into(),
        },
        Span {
            fault: "pause-node",
            target: "node-2".into(),
            from_ms: 5000,
            until_ms: 6000,
            recovered_ms: None,
            gap_ms: 900,
            slowest_ms: 0,
            note: String::new(),
        },
    ];
    Report {
        verdict: Verdict::Ok,
        what: "faults",
        seed: 7,
        seconds: 8.0,
        clients: 16,
        shards: 1,
        interrupted: false,
        answered: 4000,
        probes: 900,
        calm_ops_per_second: 500.0,
        fault_ops_per_second: Some(400.0),
        refusals: BTreeMap::from([("OUTCOME_UNKNOWN".to_owned(), 3)]),
        findings: Findings::default(),
        worst_gap_ms: 900,
        by_fault: crate::timeline::by_fault(&spans),
        spans,
        skipped: vec![("clock-jump", "faketime is not installed".into())],
        leaders: vec![LeaderChange { at_ms: 10, shard: 1, leader: "node-1".into() }],
        ops_by_second: vec![500, 510, 100, 400, 500, 20, 500, 480],
        folder: "/tmp/x".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_all_facts_and_ends_with_the_line_that_scripts_look_for() {
        let text = example().to_string();
        let last = text.lines().last().unwrap();
        assert_eq!(last, "verdict=ok lost=0 wrong=0 stale=0 worst_gap_ms=900");
        assert!(text.contains("skipped: clock-jump (faketime is not installed)"), "{text}");
        let kill = text.lines().find(|line| line.starts_with("kill-leader")).unwrap();
        assert!(kill.contains("310") && kill.contains("500") && kill.ends_with("kept"), "{kill}");
        let pause = text.lines().find(|line| line.starts_with("pause-node")).unwrap();
        assert!(pause.ends_with("missed"), "{pause}");
    }

    #[test]
    fn the_json_names_what_was_injected_and_found() {
        let json = serde_json::to_value(example()).unwrap();
        assert_eq!(json["verdict"], "ok");
        assert_eq!(json["findings"]["lost"], 0);
        assert_eq!(json["spans"][0]["fault"], "kill-leader");
        assert_eq!(json["by_fault"][0]["worst_gap_ms"], 310);
    }
}
