//! Reports of several runs side by side: a table of what was measured, and whether the goals are
//! met; as text, Markdown and plots.
//!
//! A row is a JSON object with the `system` that was measured, the name of the `row`, and figures
//! by name: what `kvdb bench --json --row NAME` prints. Rows that the benchmark doesn't make itself
//! (the time of a restart) need only the figures that a goal asks for.
//!
//! Rows whose names differ only after an `@`, such as `put@shards=8` and `put@shards=64`, are points
//! of a curve.

use crate::goals::{self, Judged, number};
use crate::svg::{Bars, Group, Line, Lines};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use thiserror::Error;

/// Rows of one comparison, in the order in which they were measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows(Vec<Row>);

#[derive(Clone, Debug, PartialEq)]
struct Row {
    system: String,
    name: String,
    figures: Map<String, Value>,
}

impl Row {
    /// As a point of a curve of KvDB: the curve, its axis and where on it.
    fn point(&self) -> Option<(&str, &str, f64)> {
        let (name, place) = self.name.split_once('@').filter(|_| self.system == "kvdb")?;
        let (axis, x) = place.split_once('=')?;
        let is_name = !axis.is_empty() && axis.bytes().all(|byte| byte.is_ascii_lowercase());
        let x: f64 = x.parse().ok().filter(|x| *x > 0.0 && is_name)?;
        Some((name, axis, x))
    }
}

/// A line that isn't a row.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {problem}; a row is an object with \"system\", \"row\" and figures")]
pub struct RowError {
    line: usize,
    problem: String,
}

/// A plot and the name of its file.
pub struct Plot {
    /// Without a folder.
    pub file: String,
    /// The file.
    pub svg: String,
}

const COLUMNS: [(&str, &str); 7] = [
    ("ops/s", "ops_per_second"),
    ("p50 us", "p50_us"),
    ("p99 us", "p99_us"),
    ("p99.9 us", "p999_us"),
    ("server CPU s/M", "server_cpu_seconds_per_million"),
    ("client CPU s/M", "client_cpu_seconds_per_million"),
    ("server peak MiB", "server_peak_memory_bytes"),
];

impl Rows {
    /// Reads a row a line; empty lines are none.
    ///
    /// # Errors
    /// [`RowError`] names the line.
    pub fn parse(text: &str) -> Result<Self, RowError> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let row = |(place, line): (usize, &str)| {
            let refused = |problem: String| RowError { line: place + 1, problem };
            let figures: Map<String, Value> =
                serde_json::from_str(line).map_err(|error| refused(error.to_string()))?;
            let word = |name: &str| {
                let word = figures.get(name).and_then(Value::as_str);
                word.map(str::to_owned).ok_or_else(|| refused(format!("`{name}` is missing")))
            };
            Ok(Row { system: word("system")?, name: word("row")?, figures: figures.clone() })
        };
        lines.map(row).collect::<Result<_, _>>().map(Rows)
    }

    /// A figure of a row. The last row of that name counts, so that a row can be measured again.
    pub(crate) fn figure(&self, system: &str, row: &str, name: &str) -> Option<f64> {
        let mut rows = self.0.iter().rev();
        rows.find(|one| one.system == system && one.name == row)?.figures.get(name)?.as_f64()
    }

    /// Everything as one document.
    pub fn json(&self, about: &str) -> Value {
        let rows: Vec<&Map<String, Value>> = self.0.iter().map(|row| &row.figures).collect();
        let goals: Vec<Value> = goals::judge(self).iter().map(goal_json).collect();
        json!({ "about": about, "goals": goals, "rows": rows })
    }

    /// Goals and rows as tables that line up.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let (head, lines) = self.goal_cells();
        aligned(&mut out, &head, &lines);
        out.push('\n');
        let (head, lines) = self.row_cells();
        aligned(&mut out, &head, &lines);
        out
    }

    /// Goals, rows and plots as a page.
    pub fn markdown(&self, title: &str, about: &str, plots: &[Plot]) -> String {
        let mut out = format!("# {title}\n\n{about}\n\n## Targets\n\n");
        let (head, lines) = self.goal_cells();
        pipes(&mut out, &head, &lines);
        out.push_str("\n## Rows\n\n");
        let (head, lines) = self.row_cells();
        pipes(&mut out, &head, &lines);
        out.push('\n');
        for plot in plots {
            let _ = writeln!(out, "![{0}]({0})\n", plot.file);
        }
        out
    }

    /// Plots of the figures that most people ask for.
    pub fn plots(&self, name: &str) -> Vec<Plot> {
        let kinds = [
            ("throughput", "Throughput", "operations a second; longer is better", "ops_per_second"),
            ("p99", "Latency, 99th percentile", "microseconds; shorter is better", "p99_us"),
            (
                "cpu",
                "Processor time of the servers",
                "seconds a million operations; shorter is better",
                "server_cpu_seconds_per_million",
            ),
        ];
        let plot = |(kind, title, unit, figure): (&str, _, _, &str)| {
            let groups = self.groups(figure);
            let svg = (!groups.is_empty()).then(|| Bars { title, unit, groups }.svg())?;
            Some(Plot { file: format!("{name}-{kind}.svg"), svg })
        };
        kinds.into_iter().filter_map(plot).chain(self.curves(name)).collect()
    }

    /// How figures of KvDB grow with keys, shards, nodes and so on.
    fn curves(&self, name: &str) -> Vec<Plot> {
        let mut axes: Vec<&str> = Vec::new();
        for row in &self.0 {
            if let Some((_, axis, _)) = row.point()
                && !axes.contains(&axis)
            {
                axes.push(axis);
            }
        }
        let plot = |axis: &str, (kind, title, unit): (&str, &str, &str)| {
            let lines = self.lines(axis, kind);
            let title = format!("{title} by {axis}");
            let chart = Lines { title: &title, unit, axis, lines };
            let file = format!("{name}-{}-by-{axis}.svg", kind.replace('_', "-"));
            (!chart.lines.is_empty()).then(|| Plot { file, svg: chart.svg() })
        };
        let kinds = [
            ("ops_per_second", "Throughput", "operations a second; higher is better"),
            ("p99_us", "Latency, 99th percentile", "microseconds; lower is better"),
            ("kib_each", "Memory", "KiB each, all nodes (or the gateway); lower is better"),
        ];
        axes.iter().flat_map(|axis| kinds.iter().filter_map(|kind| plot(axis, *kind))).collect()
    }

    fn lines(&self, axis: &str, figure: &str) -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        for row in &self.0 {
            let Some((name, _, x)) = row.point().filter(|(_, of, _)| *of == axis) else { continue };
            let Some(y) = row.figures.get(figure).and_then(Value::as_f64) else { continue };
            let place = lines.iter().position(|line| line.name == name).unwrap_or_else(|| {
                lines.push(Line { name: name.to_owned(), points: Vec::new() });
                lines.len() - 1
            });
            // The last measurement counts.
            lines[place].points.retain(|(known, _)| *known != x);
            lines[place].points.push((x, y));
        }
        for line in &mut lines {
            line.points.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        }
        // One point alone is no curve.
        lines.retain(|line| line.points.len() > 1);
        lines
    }

    /// Names of rows in the order in which they were first measured, KvDB's own order where it has
    /// them.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for row in &self.0 {
            if !names.contains(&row.name.as_str()) {
                names.push(&row.name);
            }
        }
        names
    }

    fn systems(&self, name: &str) -> Vec<&str> {
        let mut systems: Vec<&str> = Vec::new();
        for row in self.0.iter().filter(|row| row.name == name) {
            if !systems.contains(&row.system.as_str()) {
                systems.push(&row.system);
            }
        }
        systems.sort_by_key(|system| (*system != "kvdb", *system));
        systems
    }

    /// Only rows that several systems have: one bar alone is no comparison.
    fn groups(&self, figure: &str) -> Vec<Group> {
        let group = |name: &str| {
            let bars: Vec<(String, f64)> = self
                .systems(name)
                .into_iter()
                .filter_map(|system| Some((system.to_owned(), self.figure(system, name, figure)?)))
                .collect();
            (bars.len() > 1).then(|| Group { name: name.to_owned(), bars })
        };
        self.names().into_iter().filter_map(group).collect()
    }

    fn goal_cells(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let head = ["#", "target", "bound", "KvDB", "other", "ratio", ""];
        let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
        let line = |one: &Judged| {
            vec![
                one.goal.number.to_owned(),
                one.goal.about.to_owned(),
                one.bound(),
                cell(one.ours),
                cell(one.theirs),
                cell(one.ratio),
                one.verdict().to_owned(),
            ]
        };
        (head.map(str::to_owned).to_vec(), goals::judge(self).iter().map(line).collect())
    }

    fn row_cells(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let mut head = vec!["row".to_owned(), "system".to_owned()];
        head.extend(COLUMNS.map(|(title, _)| title.to_owned()));
        head.push("else".to_owned());
        let mut lines = Vec::new();
        for name in self.names() {
            for system in self.systems(name) {
                let mut line = vec![name.to_owned(), system.to_owned()];
                line.extend(COLUMNS.map(|(_, figure)| {
                    let scale = if figure.ends_with("_bytes") { 1048576.0 } else { 1.0 };
                    let value = self.figure(system, name, figure);
                    value.map_or_else(|| "-".to_owned(), |value| number(value / scale))
                }));
                line.push(self.remarks(system, name));
                lines.push(line);
            }
        }
        (head, lines)
    }

    /// What has no column: figures of rows that the benchmark doesn't make, and errors.
    fn remarks(&self, system: &str, name: &str) -> String {
        let mut remarks = Vec::new();
        if self.figure(system, name, "errors").is_some_and(|errors| errors > 0.0) {
            let errors = self.figure(system, name, "errors").unwrap_or_default();
            remarks.push(format!("errors {}", number(errors)));
        }
        if self.figure(system, name, "ops_per_second").is_none() {
            let row = self.0.iter().rev().find(|one| one.system == system && one.name == name);
            let figures = row.into_iter().flat_map(|row| &row.figures);
            for (figure, value) in figures.filter_map(|(name, value)| Some((name, value.as_f64()?)))
            {
                remarks.push(format!("{} {}", figure.replace('_', " "), number(value)));
            }
        }
        remarks.join(", ")
    }
}

fn goal_json(judged: &Judged) -> Value {
    json!({
        "number": judged.goal.number,
        "target": judged.goal.about,
        "bound": judged.bound(),
        "kvdb": judged.ours,
        "other": judged.theirs,
        "ratio": judged.ratio,
        "verdict": judged.verdict(),
    })
}

fn aligned(out: &mut String, head: &[String], lines: &[Vec<String>]) {
    let all = || std::iter::once(head).chain(lines.iter().map(Vec::as_slice));
    let width = |column: usize| all().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).filter_map(width).collect();
    for line in all() {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
}

fn pipes(out: &mut String, head: &[String], lines: &[Vec<String>]) {
    let _ = writeln!(out, "| {} |\n|{}", head.join(" | "), "---|".repeat(head.len()));
    for line in lines {
        let _ = writeln!(out, "| {} |", line.join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &str = r#"
{"system":"etcd","row":"put-c64","ops_per_second":7999.6,"p50_us":7000,"p99_us":9000}
{"system":"kvdb","row":"put-c64","ops_per_second":1,"p50_us":1,"p99_us":1,"errors":3}
{"system":"kvdb","row":"put-c64","ops_per_second":24000,"p50_us":2000,"p99_us":4000,"errors":3}
{"system":"kvdb","row":"restart","seconds":3.5}
"#;

    #[test]
    fn rows_stand_side_by_side_and_the_last_measurement_counts() {
        let text = Rows::parse(ROWS).unwrap().text();
        let line = |words: &str| {
            let found = text.lines().find(|line| line.contains(words));
            found.unwrap_or_else(|| panic!("{words} in {text}")).split_whitespace().collect()
        };
        let put: Vec<&str> = line("gRPC put, c=64: ops/s");
        assert_eq!(put[put.len() - 5..], ["3.00", "24,000", "8,000", "3.00", "met"]);
        let kvdb: Vec<&str> = line("put-c64  kvdb");
        assert_eq!(kvdb[2..5], ["24,000", "2,000", "4,000"]);
        assert!(text.contains("errors 3") && text.contains("seconds 3.50"), "{text}");
    }

    #[test]
    fn only_what_several_systems_have_is_plotted() {
        let rows = Rows::parse(ROWS).unwrap();
        let plots = rows.plots("today");
        let files: Vec<&str> = plots.iter().map(|plot| plot.file.as_str()).collect();
        assert_eq!(files, ["today-throughput.svg", "today-p99.svg"]);
        assert!(plots.iter().all(|plot| !plot.svg.contains("restart")));
        let page = rows.markdown("Title", "About.", &plots);
        assert!(page.contains("| put-c64 | kvdb | 24,000 |") && page.contains("today-p99.svg"));
    }

    #[test]
    fn rows_that_differ_by_one_number_make_a_curve() {
        let rows = r#"
{"system":"kvdb","row":"put@shards=64","ops_per_second":70}
{"system":"kvdb","row":"put@shards=8","ops_per_second":1}
{"system":"kvdb","row":"put@shards=8","ops_per_second":100,"kib_each":3}
{"system":"kvdb","row":"get@keys=10","ops_per_second":5}
{"system":"kvdb","row":"put@../x=8","ops_per_second":1}
{"system":"kvdb","row":"put@../x=9","ops_per_second":1}
"#;
        let rows = Rows::parse(rows).unwrap();
        let lines = rows.lines("shards", "ops_per_second");
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].points, [(8.0, 100.0), (64.0, 70.0)]);
        let plots = rows.plots("n");
        let files: Vec<&str> = plots.iter().map(|plot| plot.file.as_str()).collect();
        assert_eq!(files, ["n-ops-per-second-by-shards.svg"], "one point is no curve");
    }

    #[test]
    fn what_isnt_a_row_is_refused_with_its_line() {
        let error = Rows::parse("\n{\"system\":\"kvdb\"}").unwrap_err().to_string();
        assert!(error.starts_with("line 2: `row` is missing"), "{error}");
        assert!(Rows::parse("nonsense").is_err());
    }
}
