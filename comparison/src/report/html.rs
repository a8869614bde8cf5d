//! One page, with everything in it: no script, no font, no picture from elsewhere.

use super::chart::{Row, Scale, chart, escaped, plain};
use super::{Report, sections, time};
use crate::stress::Stress;
use crate::work::Workload;

/// The page.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut body = String::new();
    body.push_str("<h1>One task of a resource at a time: what each pattern costs</h1>\n");
    body.push_str(
        "<p class=\"lead\">The same tasks, the same worker processes, the same machine, alternating. Each \
         task reads the state of its resource, waits, and writes it. Bars in colour are keylane.</p>\n",
    );
    for handler_ms in report.handler_times().into_iter().rev() {
        body.push_str(&format!("<h2>Throughput, handler of {handler_ms} ms</h2>\n<p>Tasks per second, from the first publish to the last execution. Longer is better.</p>\n<div class=\"panels\">\n"));
        for workload in Workload::ALL {
            let rows = rows(report, |name| {
                Some(vec![Some(report.find(name, workload, handler_ms)?.rate)])
            });
            body.push_str(&chart(workload.title(), Scale::Linear, &rows, plain));
        }
        body.push_str("</div>\n");
    }
    body.push_str("<h2>Do the other 10 % starve?</h2>\n<p>90 % of the tasks are on one resource. From publish to executed, 99th percentile: <span class=\"key k0\"></span> the hot resource, <span class=\"key k1\"></span> all others. The whole backlog is published at once, so these are times in a queue. Shorter is better.</p>\n<div class=\"panels\">\n");
    for handler_ms in report.handler_times().into_iter().rev() {
        let rows = rows(report, |name| {
            let one = report.find(name, Workload::Hot90, handler_ms)?;
            Some(vec![one.hot.map(|hot| hot.p99), one.others.map(|others| others.p99)])
        });
        body.push_str(&chart(
            &format!("90/10, handler of {handler_ms} ms"),
            Scale::Linear,
            &rows,
            short_time,
        ));
    }
    body.push_str("</div>\n<h2>Coordination</h2>\n<p>Round trips and messages between workers for each task, counted: locks, unlocks, tries, renewals, claims, changes of ownership. A scale of powers of ten. Fewer is better.</p>\n<div class=\"panels\">\n");
    if let Some(handler_ms) = report.handler_times().last().copied() {
        for workload in [Workload::Uniform, Workload::Hot90, Workload::One] {
            let rows = rows(report, |name| {
                let one = report.find(name, workload, handler_ms)?;
                Some(vec![Some(one.operations + one.messages)])
            });
            let title = format!("{}, handler of {handler_ms} ms", workload.title());
            body.push_str(&chart(&title, Scale::Logarithmic, &rows, plain));
        }
    }
    body.push_str("</div>\n");
    if !report.stressed.is_empty() {
        body.push_str("<h2>When the holder is killed or paused</h2>\n<p>Until somebody else executes a task of the same resource. Leases last 2 s; keylane's heartbeat is 2 s here, and 10 s by default.</p>\n<div class=\"panels\">\n");
        for (stress, title) in [(Stress::Kill, "killed"), (Stress::Pause, "paused")] {
            let rows = rows(report, |name| {
                let fenced =
                    || report.stress(name, Stress::PauseFenced).filter(|_| stress == Stress::Pause);
                let row = report.stress(name, stress).or_else(fenced)?;
                Some(vec![row.moved_ms])
            });
            body.push_str(&chart(title, Scale::Linear, &rows, short_time));
        }
        body.push_str("</div>\n");
    }
    body.push_str("<h2>All figures</h2>\n");
    for (_, section) in sections(report) {
        body.push_str(&html_of(&section));
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>keylane beside the patterns of locking</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <main>\n{body}</main>\n</body>\n</html>\n"
    )
}

/// A row for each contestant that has something to show.
fn rows(report: &Report, values: impl Fn(&str) -> Option<Vec<Option<f64>>>) -> Vec<Row> {
    let row = |name: &String| {
        let values = values(name)?;
        Some(Row { name: name.clone(), values, note: "not before it goes on".to_owned() })
    };
    report.contestants.iter().filter_map(|one| row(&one.name)).collect()
}

fn short_time(ms: f64) -> String {
    if ms < 1_000.0 { format!("{ms:.0} ms") } else { time(ms) }
}

/// The tables and paragraphs of the documents, as HTML: just the few signs that they use.
fn html_of(markdown: &str) -> String {
    let mut html = String::new();
    let mut head = true;
    for line in markdown.lines() {
        let cells = line.strip_prefix('|').and_then(|line| line.strip_suffix('|'));
        match cells {
            Some(cells) if cells.starts_with("---") => head = false,
            Some(cells) => {
                if head {
                    let class =
                        if cells.trim_start().starts_with("contestant") { "words" } else { "" };
                    html.push_str(&format!("<div class=\"wide\"><table class=\"{class}\">"));
                }
                let sign = if head { "th" } else { "td" };
                let row: String = cells
                    .split('|')
                    .map(|cell| format!("<{sign}>{}</{sign}>", inline(cell.trim())))
                    .collect();
                html.push_str(&format!("<tr>{row}</tr>"));
            }
            None => {
                if !head {
                    html.push_str("</table></div>\n");
                    head = true;
                }
                if !line.is_empty() {
                    html.push_str(&format!("<p>{}</p>\n", inline(line)));
                }
            }
        }
    }
    if !head {
        html.push_str("</table></div>\n");
    }
    html
}

fn inline(text: &str) -> String {
    let mut html = escaped(text);
    for (sign, tag) in [("**", "strong"), ("`", "code")] {
        while html.matches(sign).count() >= 2 {
            html =
                html.replacen(sign, &format!("<{tag}>"), 1).replacen(sign, &format!("</{tag}>"), 1);
        }
    }
    html
}

const STYLE: &str = "
:root{--paper:#fcfcfa;--ink:#1b1f24;--soft:#59626d;--line:#d9dde2;--bar:#a3afbc;--bar2:#d08a4e;--own:#0a6c9a;--own2:#c2570c}
@media (prefers-color-scheme:dark){:root{--paper:#13171b;--ink:#e7eaed;--soft:#9ba5b0;--line:#2d343c;--bar:#566371;--bar2:#8a5d36;--own:#46b3e3;--own2:#f29b4b}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:72rem;margin:0 auto;padding:1.2rem .75rem 3rem}
h1{font-size:1.55rem;line-height:1.25;margin:.4rem 0 .6rem}
h2{font-size:1.15rem;margin:2.2rem 0 .2rem}
p{margin:.3rem 0 .8rem;max-width:46rem;color:var(--soft);overflow-wrap:anywhere}
.lead{color:var(--ink)}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20.5rem),1fr));gap:1.2rem 1.6rem}
figure{margin:0;max-width:25rem}
figcaption{font-weight:600;font-size:.95rem;border-bottom:1px solid var(--line);margin-bottom:.35rem}
svg{display:block;width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
svg .name{text-anchor:end;fill:var(--ink)}
svg .number{font-variant-numeric:tabular-nums}
svg .axis{text-anchor:middle;font-size:10px}
svg .own{font-weight:700}
svg text.number.own{fill:var(--ink)}
.s0{fill:var(--bar)}.s1{fill:var(--bar2)}.s0.own{fill:var(--own)}.s1.own{fill:var(--own2)}
.grid{stroke:var(--line)}
.key{display:inline-block;width:.8rem;height:.8rem;border-radius:2px}.k0{background:linear-gradient(90deg,var(--own) 50%,var(--bar) 50%)}.k1{background:linear-gradient(90deg,var(--own2) 50%,var(--bar2) 50%)}
.wide{overflow-x:auto;margin:.2rem 0 1.4rem}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.28rem .6rem;border-bottom:1px solid var(--line);vertical-align:bottom}
th{color:var(--soft);font-weight:600}
.words th,.words td{text-align:left}
td:first-child,th:first-child{text-align:left;white-space:nowrap;position:sticky;left:0;background:var(--paper)}
code{font-size:.85em}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_become_tables() {
        let html = html_of("**T** `x`\n\n| a | b |\n|---|---|\n| 1 | <2 |\n");
        assert!(html.starts_with("<p><strong>T</strong> <code>x</code></p>"));
        assert!(html.contains("<th>a</th><th>b</th>") && html.contains("<td>&lt;2</td>"));
        assert_eq!(html.matches("<table ").count(), html.matches("</table>").count());
    }
}
