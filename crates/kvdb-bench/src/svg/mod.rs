//! Bars, and [lines](Lines), as SVG.

mod lines;

pub(crate) use lines::{Line, Lines};
use std::fmt::Write as _;

/// A chart of bars in groups: a group a row, a bar a system.
pub(crate) struct Bars<'a> {
    pub(crate) title: &'a str,
    /// What a bar's length means; shorter or longer is better.
    pub(crate) unit: &'a str,
    pub(crate) groups: Vec<Group>,
}

/// Bars that belong together.
pub(crate) struct Group {
    pub(crate) name: String,
    /// System and value.
    pub(crate) bars: Vec<(String, f64)>,
}

const WIDTH: f64 = 760.0;
const LABELS: f64 = 190.0;
/// Room for the figure after the longest bar.
const FIGURES: f64 = 90.0;
const BAR: f64 = 16.0;
const GAP: f64 = 12.0;
const HEAD: f64 = 62.0;

/// A colour for each system, told apart also by those who see fewer of them.
fn colour(system: &str) -> &'static str {
    match system {
        "kvdb" => "#0072b2",
        "etcd" => "#e69f00",
        "redis" => "#cc3311",
        _ => "#888888",
    }
}

impl Bars<'_> {
    /// The chart as a file.
    pub(crate) fn svg(&self) -> String {
        let bars: usize = self.groups.iter().map(|group| group.bars.len()).sum();
        let height = HEAD + bars as f64 * BAR + (self.groups.len() + 1) as f64 * GAP;
        let mut out = opened(height, self.title, self.unit);
        self.legend(&mut out);
        let values = self.groups.iter().flat_map(|group| &group.bars).map(|(_, value)| *value);
        let most = values.fold(f64::MIN_POSITIVE, f64::max);
        let mut y = HEAD;
        for group in &self.groups {
            let middle = y + group.bars.len() as f64 * BAR / 2.0 + 4.0;
            text(&mut out, LABELS - 8.0, middle, "end", &group.name, "");
            for (system, value) in &group.bars {
                let length = value / most * (WIDTH - LABELS - FIGURES);
                let fill = colour(system);
                let _ = writeln!(
                    out,
                    "<rect x=\"{LABELS}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{}\" fill=\"{fill}\"/>",
                    BAR - 2.0
                );
                text(&mut out, LABELS + length + 5.0, y + 11.0, "start", &figure(*value), "");
                y += BAR;
            }
            y += GAP;
        }
        out.push_str("</svg>\n");
        out
    }

    fn legend(&self, out: &mut String) {
        let mut systems: Vec<&str> = Vec::new();
        for (system, _) in self.groups.iter().flat_map(|group| &group.bars) {
            if !systems.contains(&system.as_str()) {
                systems.push(system);
            }
        }
        let mut x = WIDTH - 70.0 * systems.len() as f64;
        for system in systems {
            let fill = colour(system);
            let _ = writeln!(
                out,
                "<rect x=\"{x}\" y=\"12\" width=\"12\" height=\"12\" fill=\"{fill}\"/>"
            );
            text(out, x + 16.0, 22.0, "start", system, "");
            x += 70.0;
        }
    }
}

/// The beginning of a chart.
fn opened(height: f64, title: &str, unit: &str) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut out, 12.0, 22.0, "start", title, " font-size=\"15\" font-weight=\"bold\"");
    text(&mut out, 12.0, 42.0, "start", unit, " fill=\"#555\"");
    out
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, words: &str, more: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{more}>{words}</text>"
    );
}

fn figure(value: f64) -> String {
    match value {
        value if value >= 10_000.0 => format!("{:.1}k", value / 1000.0),
        value if value >= 100.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values() {
        let group = Group {
            name: "put <c=64>".to_owned(),
            bars: vec![("kvdb".to_owned(), 30_000.0), ("etcd".to_owned(), 7_500.0)],
        };
        let svg = Bars { title: "a & b", unit: "ops/s", groups: vec![group] }.svg();
        assert!(svg.contains("a &amp; b") && svg.contains("put &lt;c=64>"), "{svg}");
        assert!(svg.contains("width=\"480.0\"") && svg.contains("width=\"120.0\""), "{svg}");
        assert!(svg.contains("30.0k") && svg.contains("7500"), "{svg}");
    }
}
