//! The report as a page: one file, no scripts, nothing fetched.

use crate::report::{Report, kept, promised};
use std::fmt::Write as _;

const WIDTH: f64 = 1100.0;
const PLOT_HEIGHT: f64 = 220.0;
const LANE_HEIGHT: f64 = 16.0;
const LEFT: f64 = 130.0;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1240px;padding:0 1rem;color:#1c2430}\
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}\
table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #dde3ea}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
.ok,.kept{color:#17803d}.violated,.stuck,.missed,.invalid{color:#c02626}\
svg{width:100%;height:auto;background:#fafbfc;border:1px solid #dde3ea}\
svg text{font:11px system-ui,sans-serif;fill:#556070}code{background:#f1f4f7;padding:.1rem .3rem}";

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The whole page.
pub(crate) fn page(report: &Report) -> String {
    let mut out = String::new();
    let verdict = report.verdict;
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>KvDB torture: \
         {verdict}</title><style>{STYLE}</style><h1>KvDB torture: <span \
         class=\"{verdict}\">{verdict}</span></h1><p><code>{}</code></p>",
        escaped(&report.last_line())
    );
    facts(&mut out, report);
    out.push_str("<h2>Timeline</h2>");
    timeline(&mut out, report);
    gaps(&mut out, report);
    spans(&mut out, report);
    list(&mut out, "Problems", &report.findings.problems);
    let skipped: Vec<String> =
        report.skipped.iter().map(|(fault, reason)| format!("{fault}: {reason}")).collect();
    list(&mut out, "Skipped on this machine", &skipped);
    out.push_str("</html>\n");
    out
}

fn facts(out: &mut String, report: &Report) {
    let found = &report.findings;
    let rows = [
        ("Seed", report.seed.to_string()),
        ("Length", format!("{:.0} s", report.seconds)),
        ("Clients, shards", format!("{}, {}", report.clients, report.shards)),
        ("Operations answered", report.answered.to_string()),
        (&format!("Before the {}", report.what), format!("{:.0}/s", report.calm_ops_per_second)),
        (
            &format!("During {}", report.what),
            format!("{:.0}/s", report.fault_ops_per_second.unwrap_or_default()),
        ),
        ("Judged", format!("{} in {} windows", found.operations, found.windows)),
        ("Of unknown outcome", found.unknown.to_string()),
        ("Acknowledged writes looked for in the end", found.verified.to_string()),
    ];
    out.push_str("<table>");
    for (name, value) in rows {
        let _ = write!(out, "<tr><td>{name}</td><td class=\"n\">{value}</td></tr>");
    }
    out.push_str("</table>");
}

/// Throughput by the second; below it a lane a kind of fault, and one for changes of leaders.
fn timeline(out: &mut String, report: &Report) {
    let seconds = (report.ops_by_second.len() as f64).max(1.0);
    let x = |ms: f64| LEFT + ms / 1000.0 / seconds * (WIDTH - LEFT);
    let most = f64::from(report.ops_by_second.iter().copied().max().unwrap_or(1).max(1));
    let lanes: Vec<&str> = report.by_fault.iter().map(|by| by.fault).collect();
    let height = PLOT_HEIGHT + (lanes.len() as f64 + 2.0) * LANE_HEIGHT + 10.0;
    let _ = write!(out, "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">");
    for span in &report.spans {
        let (from, until) = (x(span.from_ms as f64), x(span.until_ms as f64));
        let lane = lanes.iter().position(|lane| *lane == span.fault).unwrap_or_default();
        let top = PLOT_HEIGHT + (lane as f64 + 1.0) * LANE_HEIGHT;
        let wide = (until - from).max(1.5);
        let title = format!(
            "{} of {} at {:.1} s, gap {} ms",
            span.fault,
            span.target,
            span.from_ms as f64 / 1000.0,
            span.gap_ms
        );
        let title = escaped(&title);
        let _ = write!(
            out,
            "<rect x=\"{from:.1}\" y=\"0\" width=\"{wide:.1}\" height=\"{PLOT_HEIGHT}\" \
             fill=\"#c02626\" opacity=\".08\"/><rect x=\"{from:.1}\" y=\"{top:.1}\" \
             width=\"{wide:.1}\" height=\"{:.1}\" fill=\"#c02626\"><title>{title}</title></rect>",
            LANE_HEIGHT - 4.0
        );
    }
    let points = report.ops_by_second.iter().enumerate().map(|(second, count)| {
        let y = PLOT_HEIGHT - f64::from(*count) / most * (PLOT_HEIGHT - 15.0);
        format!("{:.1},{y:.1}", x((second as f64 + 0.5) * 1000.0))
    });
    let points: Vec<String> = points.collect();
    let _ = write!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#2563b8\" stroke-width=\"1.5\"/>\
         <text x=\"4\" y=\"14\">{most:.0} ops/s</text><text x=\"4\" y=\"{PLOT_HEIGHT}\">0</text>",
        points.join(" ")
    );
    for (lane, name) in lanes.iter().enumerate() {
        let y = PLOT_HEIGHT + (lane as f64 + 2.0) * LANE_HEIGHT - 6.0;
        let _ = write!(out, "<text x=\"4\" y=\"{y:.1}\">{name}</text>");
    }
    leaders(out, report, height - LANE_HEIGHT, x);
    out.push_str("</svg>");
}

fn leaders(out: &mut String, report: &Report, y: f64, x: impl Fn(f64) -> f64) {
    let _ = write!(out, "<text x=\"4\" y=\"{:.1}\">new leaders</text>", y + 6.0);
    for change in &report.leaders {
        let title = format!("shard {}: {}", change.shard, change.leader);
        let at = x(change.at_ms as f64);
        let _ = write!(
            out,
            "<circle cx=\"{at:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#2563b8\" \
             opacity=\".6\"><title>{}</title></circle>",
            escaped(&title)
        );
    }
}

fn gaps(out: &mut String, report: &Report) {
    out.push_str(
        "<h2>Longest time without a write, worst shard</h2><table><tr><th>Fault</th><th \
         class=\"n\">Times</th><th class=\"n\">Median (ms)</th><th class=\"n\">Worst (ms)</th><th \
         class=\"n\">Promised (ms)</th><th></th></tr>",
    );
    for by in &report.by_fault {
        let kept = kept(by);
        let _ = write!(
            out,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td \
             class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"{kept}\">{kept}</td></tr>",
            by.fault,
            by.times,
            by.median_gap_ms,
            by.worst_gap_ms,
            promised(by)
        );
    }
    out.push_str("</table>");
}

fn spans(out: &mut String, report: &Report) {
    out.push_str(
        "<h2>Faults</h2><table><tr><th class=\"n\">At (s)</th><th>Fault</th><th>Target</th><th \
         class=\"n\">Lasted (s)</th><th class=\"n\">Gap (ms)</th><th>Seen</th></tr>",
    );
    for span in &report.spans {
        let lasted = (span.until_ms - span.from_ms) as f64 / 1000.0;
        let note = match span.recovered_ms {
            Some(_) => escaped(&span.note),
            None => format!("{} <b class=\"missed\">not recovered</b>", escaped(&span.note)),
        };
        let _ = write!(
            out,
            "<tr><td class=\"n\">{:.1}</td><td>{}</td><td>{}</td><td class=\"n\">{lasted:.1}</td>\
             <td class=\"n\">{}</td><td>{note}</td></tr>",
            span.from_ms as f64 / 1000.0,
            span.fault,
            escaped(&span.target),
            span.gap_ms
        );
    }
    out.push_str("</table>");
}

fn list(out: &mut String, title: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = write!(out, "<h2>{title}</h2><ul>");
    for line in lines {
        let _ = write!(out, "<li>{}</li>", escaped(line));
    }
    out.push_str("</ul>");
}

#[cfg(test)]
mod tests {
    use crate::report::example;

    #[test]
    fn the_page_stands_alone_and_shows_faults_and_throughput() {
        let page = example().html();
        assert!(page.contains("<svg") && page.contains("<polyline"), "{page}");
        assert!(page.contains("kill-leader of node-1 at 2.0 s, gap 310 ms"));
        assert!(page.contains("a &lt;note&gt;") && !page.contains("<note>"));
        assert!(page.contains("not recovered"));
        for foreign in ["<script", "http:", "https:", "src="] {
            assert!(!page.contains(foreign), "{foreign}");
        }
    }
}
