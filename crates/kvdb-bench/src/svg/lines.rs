//! Lines over an axis of powers, as SVG.

use super::{WIDTH, figure, opened, text};
use std::fmt::Write as _;

/// A chart of lines: how a figure grows with something.
pub(crate) struct Lines<'a> {
    pub(crate) title: &'a str,
    /// What the height means.
    pub(crate) unit: &'a str,
    /// What grows to the right.
    pub(crate) axis: &'a str,
    pub(crate) lines: Vec<Line>,
}

/// One line.
pub(crate) struct Line {
    pub(crate) name: String,
    /// Ascending, above 0.
    pub(crate) points: Vec<(f64, f64)>,
}

const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 46.0;

/// Told apart also by those who see fewer colours (Okabe and Ito's palette).
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];

impl Lines<'_> {
    /// The chart as a file.
    pub(crate) fn svg(&self) -> String {
        let mut out = opened(HEIGHT, self.title, self.unit);
        let points = || self.lines.iter().flat_map(|line| line.points.iter().copied());
        let least = points().map(|(x, _)| x).fold(f64::MAX, f64::min).max(f64::MIN_POSITIVE);
        let most = points().map(|(x, _)| x).fold(least, f64::max);
        let highest = points().map(|(_, y)| y).fold(f64::MIN_POSITIVE, f64::max);
        let span = (most / least).ln().max(f64::MIN_POSITIVE);
        let across = |x: f64| LEFT + (x / least).ln() / span * (WIDTH - LEFT - RIGHT);
        let up = |y: f64| HEIGHT - BOTTOM - y / highest * (HEIGHT - TOP - BOTTOM);
        for part in 0..=4 {
            let y = highest * f64::from(part) / 4.0;
            let _ = writeln!(
                out,
                "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>",
                WIDTH - RIGHT,
                up(y)
            );
            text(&mut out, LEFT - 6.0, up(y) + 4.0, "end", &figure(y), "");
        }
        let mut marks: Vec<f64> = points().map(|(x, _)| x).collect();
        marks.sort_by(f64::total_cmp);
        marks.dedup();
        for x in marks {
            text(&mut out, across(x), HEIGHT - BOTTOM + 16.0, "middle", &counted(x), "");
        }
        text(&mut out, WIDTH / 2.0, HEIGHT - 8.0, "middle", self.axis, " fill=\"#555\"");
        for (place, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[place % COLOURS.len()];
            let path: Vec<String> = line
                .points
                .iter()
                .map(|(x, y)| format!("{:.1},{:.1}", across(*x), up(*y)))
                .collect();
            let path = path.join(" ");
            let _ = writeln!(
                out,
                "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
            );
            for (x, y) in &line.points {
                let (x, y) = (across(*x), up(*y));
                let _ = writeln!(
                    out,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
                );
            }
            let x = LEFT + 130.0 * place as f64;
            let _ = writeln!(
                out,
                "<rect x=\"{x}\" y=\"50\" width=\"12\" height=\"4\" fill=\"{colour}\"/>"
            );
            text(&mut out, x + 16.0, 56.0, "start", &line.name, "");
        }
        out.push_str("</svg>\n");
        out
    }
}

fn counted(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e4 => format!("{}k", value / 1e3),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_by_the_power_of_one_figure_and_the_height_of_the_other() {
        let line = Line {
            name: "put & get".to_owned(),
            points: vec![(10.0, 50.0), (100.0, 100.0), (1000.0, 0.0)],
        };
        let chart = Lines { title: "t", unit: "u", axis: "shards", lines: vec![line] };
        let svg = chart.svg();
        // Left, middle and right; half way up, at the top and at the bottom.
        assert!(svg.contains("points=\"70.0,172.0 395.0,70.0 720.0,274.0\""), "{svg}");
        assert!(svg.contains(">1000<") && svg.contains("put &amp; get"), "{svg}");
    }
}
