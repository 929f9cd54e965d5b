//! The speed that KvDB is held to: ratios between rows of one comparison, measured side by side.

use crate::compare::Rows;

/// One goal.
pub(crate) struct Goal {
    /// Its number in `docs/performance.md`.
    pub(crate) number: &'static str,
    pub(crate) about: &'static str,
    /// What is measured of KvDB.
    ours: Figure,
    /// What it is divided by; on its own if `None`.
    theirs: Option<Figure>,
    bound: Bound,
}

/// A figure of a row.
#[derive(Clone, Copy)]
struct Figure {
    system: &'static str,
    row: &'static str,
    name: &'static str,
}

#[derive(Clone, Copy)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// What became of a goal.
pub(crate) struct Judged {
    pub(crate) goal: &'static Goal,
    pub(crate) ours: Option<f64>,
    pub(crate) theirs: Option<f64>,
    /// What is held against the bound.
    pub(crate) ratio: Option<f64>,
}

const fn figure(system: &'static str, row: &'static str, name: &'static str) -> Figure {
    Figure { system, row, name }
}

const OPS: &str = "ops_per_second";
const P50: &str = "p50_us";
const CPU: &str = "server_cpu_seconds_per_million";

/// KvDB's figure of a row beside the same figure of another system.
const fn beside(
    number: &'static str,
    about: &'static str,
    (row, name): (&'static str, &'static str),
    other: &'static str,
    bound: Bound,
) -> Goal {
    let (ours, theirs) = (figure("kvdb", row, name), Some(figure(other, row, name)));
    Goal { number, about, ours, theirs, bound }
}

/// A row of KvDB beside another of its own.
const fn growth(
    number: &'static str,
    about: &'static str,
    (row, base): (&'static str, &'static str),
    bound: Bound,
) -> Goal {
    let (ours, theirs) = (figure("kvdb", row, OPS), Some(figure("kvdb", base, OPS)));
    Goal { number, about, ours, theirs, bound }
}

const fn alone(
    number: &'static str,
    about: &'static str,
    (row, name): (&'static str, &'static str),
    bound: Bound,
) -> Goal {
    Goal { number, about, ours: figure("kvdb", row, name), theirs: None, bound }
}

use Bound::{AtLeast, AtMost};

/// All goals, in order.
pub(crate) static GOALS: [Goal; 16] = [
    beside("1", "gRPC put, c=1: p50 of etcd's", ("put-c1", P50), "etcd", AtMost(0.5)),
    beside("2", "gRPC put, c=64: ops/s of etcd's", ("put-c64", OPS), "etcd", AtLeast(3.0)),
    beside("2", "gRPC put, c=256: ops/s of etcd's", ("put-c256", OPS), "etcd", AtLeast(3.0)),
    beside(
        "3",
        "gRPC strong get, c=64: ops/s of the echo's",
        ("get-c64", OPS),
        "echo",
        AtLeast(0.6),
    ),
    beside(
        "3",
        "gRPC strong get, c=256: ops/s of the echo's",
        ("get-c256", OPS),
        "echo",
        AtLeast(0.6),
    ),
    beside("4", "Redis SET, c=64: ops/s of Redis's", ("SET-c64", OPS), "redis", AtLeast(1.0)),
    beside(
        "5",
        "Redis SET, 64 x 16: ops/s of Redis's",
        ("SET-c64-p16", OPS),
        "redis",
        AtLeast(1.0),
    ),
    beside("6", "Redis GET, c=64: ops/s of Redis's", ("GET-c64", OPS), "redis", AtLeast(0.8)),
    beside(
        "6",
        "Redis GET, 64 x 16: ops/s of Redis's",
        ("GET-c64-p16", OPS),
        "redis",
        AtLeast(0.8),
    ),
    beside(
        "7",
        "gRPC put, c=64: servers' processor time of etcd's",
        ("put-c64", CPU),
        "etcd",
        AtMost(1.0 / 3.0),
    ),
    beside(
        "7",
        "gRPC put, c=256: servers' processor time of etcd's",
        ("put-c256", CPU),
        "etcd",
        AtMost(1.0 / 3.0),
    ),
    growth(
        "8",
        "puts after ten times the keys: ops/s of before",
        ("put-c64-10x-keys", "put-c64-1x-keys"),
        AtLeast(0.75),
    ),
    growth(
        "8",
        "puts with 1,000 shards: ops/s of those with 8",
        ("put-c64-1000-shards", "put-c64"),
        AtLeast(0.9),
    ),
    alone(
        "8",
        "1,000 idle shards: part of a core a node",
        ("idle-1000-shards", "cores_per_node"),
        AtMost(0.03),
    ),
    alone(
        "9",
        "restart with the keys of the growth row: seconds",
        ("restart", "seconds"),
        AtMost(5.0),
    ),
    alone("10", "import of TSV: rows/s", ("import", "rows_per_second"), AtLeast(200_000.0)),
];

impl Goal {
    fn judge(&'static self, rows: &Rows) -> Judged {
        let find = |figure: Figure| rows.figure(figure.system, figure.row, figure.name);
        let ours = find(self.ours);
        let theirs = self.theirs.and_then(find);
        let ratio = match self.theirs {
            None => ours,
            Some(_) => ours.zip(theirs).map(|(ours, theirs)| ours / theirs),
        };
        Judged { goal: self, ours, theirs, ratio }
    }
}

/// Holds rows against all goals.
pub(crate) fn judge(rows: &Rows) -> Vec<Judged> {
    GOALS.iter().map(|goal| goal.judge(rows)).collect()
}

impl Judged {
    pub(crate) fn is_met(&self) -> Option<bool> {
        Some(match (self.ratio?, self.goal.bound) {
            (ratio, Bound::AtLeast(bound)) => ratio >= bound,
            (ratio, Bound::AtMost(bound)) => ratio <= bound,
        })
    }

    pub(crate) fn verdict(&self) -> &'static str {
        match self.is_met() {
            Some(true) => "met",
            Some(false) => "missed",
            None => "not measured",
        }
    }

    pub(crate) fn bound(&self) -> String {
        match self.goal.bound {
            Bound::AtLeast(bound) => format!(">= {}", number(bound)),
            Bound::AtMost(bound) => format!("<= {}", number(bound)),
        }
    }
}

/// A figure with as many digits as say something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => crate::report::grouped(value.round() as u64),
        middle if middle >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 0.1 || small == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(lines: &str) -> Vec<(&'static str, &'static str)> {
        let rows = Rows::parse(lines).unwrap();
        let judged = judge(&rows);
        judged.iter().map(|one| (one.goal.about, one.verdict())).collect()
    }

    #[test]
    fn a_goal_is_a_ratio_of_two_rows() {
        let row = |system, ops| {
            format!(r#"{{"system":"{system}","row":"put-c64","ops_per_second":{ops}}}"#)
        };
        let verdict =
            |kvdb, etcd| verdicts(&[row("kvdb", kvdb), row("etcd", etcd)].join("\n"))[1].1;
        assert_eq!(verdict(30_000, 10_000), "met");
        assert_eq!(verdict(29_000, 10_000), "missed");
    }

    #[test]
    fn a_latency_must_not_be_longer() {
        let row = |system, p50| format!(r#"{{"system":"{system}","row":"put-c1","p50_us":{p50}}}"#);
        let verdict =
            |kvdb, etcd| verdicts(&[row("kvdb", kvdb), row("etcd", etcd)].join("\n"))[0].1;
        assert_eq!(verdict(500, 1000), "met");
        assert_eq!(verdict(501, 1000), "missed");
    }

    #[test]
    fn what_is_missing_is_neither_met_nor_missed() {
        assert!(verdicts("").iter().all(|(_, verdict)| *verdict == "not measured"));
        let alone = r#"{"system":"kvdb","row":"import","rows_per_second":250000}"#;
        assert_eq!(verdicts(alone).last().unwrap().1, "met");
    }
}
