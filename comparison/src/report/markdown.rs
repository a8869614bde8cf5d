//! The tables of `docs/comparison.md`, written between markers, so that a run refreshes them
//! and leaves the prose alone.

use std::fmt::Write;

use anyhow::Context;

use super::{Measured, Report, StressRow, number, time};
use crate::stress::Stress;
use crate::work::Workload;

/// The tables, each with the name of its place.
#[must_use]
pub fn sections(report: &Report) -> Vec<(&'static str, String)> {
    vec![
        ("run", run(report)),
        ("contestants", contestants(report)),
        ("throughput", throughput(report)),
        ("hot", hot(report)),
        ("coordination", coordination(report)),
        ("truth", truth(report)),
        ("stress", stress(report)),
    ]
}

/// The text with its marked places filled anew: what stands between `<!-- begin NAME -->` and
/// `<!-- end NAME -->`.
///
/// # Errors
/// If a place is missing.
pub fn refresh(text: &str, report: &Report) -> anyhow::Result<String> {
    let mut text = text.to_owned();
    for (name, section) in sections(report) {
        let (begin, end) = (format!("<!-- begin {name} -->"), format!("<!-- end {name} -->"));
        let (before, rest) = text.split_once(&begin).with_context(|| format!("no {begin}"))?;
        let (_, after) = rest.split_once(&end).with_context(|| format!("no {end}"))?;
        text = format!("{before}{begin}\n{}\n{end}{after}", section.trim_end());
    }
    Ok(text)
}

fn table(head: &[String], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut text = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        text.push_str(&format!("| {} |\n", row.join(" | ")));
    }
    text
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).into()
}

fn run(report: &Report) -> String {
    let shape = &report.shape;
    let tasks: Vec<String> = shape
        .tasks
        .iter()
        .map(|(handler, tasks)| format!("{} of {handler} ms", number(f64::from(*tasks))))
        .collect();
    let mut text = format!(
        "Command: `{}`\n\nMachine: {}\n\nServers: {}\n\nFleet: {} worker processes with {} slots each; {} \
         resources; tasks of a run: {} (half of them where all are on one resource); {} rounds, medians; leases of {} ms.\n",
        report.command,
        report.machine,
        report.servers.join("; "),
        shape.workers,
        shape.slots,
        number(shape.resources.into()),
        tasks.join(", "),
        shape.rounds,
        shape.lease_ms,
    );
    for one in &report.left_out {
        // Writing to a string does not fail.
        write!(text, "\nLeft out: {one}\n").unwrap_or_default();
    }
    text
}

fn contestants(report: &Report) -> String {
    let rows = report.contestants.iter().map(|one| {
        let fence = one.fence.clone().unwrap_or_else(|| "nothing".to_owned());
        vec![one.name.clone(), one.pattern.clone(), one.on.clone(), fence]
    });
    table(&words(["contestant", "pattern", "on", "what stops a stale write"]), rows)
}

/// Rows of all contestants that have something to say.
fn rows(report: &Report, cells: impl Fn(&str) -> Option<Vec<String>>) -> Vec<Vec<String>> {
    let row = |name: &String| Some(std::iter::once(name.clone()).chain(cells(name)?).collect());
    report.contestants.iter().filter_map(|one| row(&one.name)).collect()
}

fn throughput(report: &Report) -> String {
    let mut text = String::new();
    for handler_ms in report.handler_times() {
        let found =
            |name: &str| Workload::ALL.map(|workload| report.find(name, workload, handler_ms));
        let rows = rows(report, |name| {
            let found = found(name);
            found.iter().any(Option::is_some).then(|| found.map(rate).into())
        });
        let head: Vec<String> = std::iter::once("tasks/s".to_owned())
            .chain(Workload::ALL.map(|workload| workload.title().to_owned()))
            .collect();
        text.push_str(&format!("**A handler of {handler_ms} ms**\n\n{}\n", table(&head, rows)));
    }
    text
}

fn rate(measured: Option<&Measured>) -> String {
    match measured {
        None => "–".to_owned(),
        Some(one) if one.completed == 0 => "failed".to_owned(),
        Some(one) => number(one.rate),
    }
}

fn hot(report: &Report) -> String {
    let mut text = String::new();
    for handler_ms in report.handler_times() {
        let rows = rows(report, |name| {
            let one = report.find(name, Workload::Hot90, handler_ms)?;
            let (hot, others) = (one.hot?, one.others?);
            Some(vec![
                time(hot.p50),
                time(hot.p99),
                time(others.p50),
                time(others.p99),
                format!("{:.0} %", one.waiting * 100.0),
            ])
        });
        let head = [
            "90/10, from publish to executed",
            "hot p50",
            "hot p99",
            "others p50",
            "others p99",
            "slots' time spent waiting",
        ];
        text.push_str(&format!(
            "**A handler of {handler_ms} ms**\n\n{}\n",
            table(&words(head), rows)
        ));
    }
    text
}

fn coordination(report: &Report) -> String {
    let Some(handler_ms) = report.handler_times().last().copied() else { return String::new() };
    let rows = rows(report, |name| {
        let of = |workload| report.find(name, workload, handler_ms);
        let all = [Workload::Uniform, Workload::Hot90, Workload::One, Workload::Transfers].map(of);
        all.iter().any(Option::is_some).then(|| {
            let shown = |what: &dyn Fn(&Measured) -> f64, at: usize| {
                all[at].map_or_else(|| "–".to_owned(), |one| number(what(one)))
            };
            vec![
                shown(&|one| one.operations, 0),
                shown(&|one| one.operations, 1),
                shown(&|one| one.operations, 2),
                shown(&|one| one.operations, 3),
                shown(&|one| one.messages, 1),
                shown(&|one| one.wasted, 1),
                shown(&|one| one.wasted, 2),
            ]
        })
    });
    let head = [
        "per task",
        "round trips, uniform",
        "90/10",
        "all on one",
        "transfers",
        "messages between workers, 90/10",
        "executions wasted, 90/10",
        "all on one",
    ];
    format!("**A handler of {handler_ms} ms**\n\n{}", table(&words(head), rows))
}

fn truth(report: &Report) -> String {
    let rows = rows(report, |name| {
        let all: Vec<&Measured> =
            report.measured.iter().filter(|one| one.contestant == name).collect();
        let sum = |what: &dyn Fn(&Measured) -> u64| all.iter().map(|one| what(one)).sum::<u64>();
        let order = |transfers: bool| {
            let of = all.iter().filter(|one| (one.workload == Workload::Transfers) == transfers);
            match of.map(|one| one.reordered).max() {
                None => "–",
                Some(0) => "yes",
                Some(_) => "no",
            }
        };
        let contestant = report.contestants.iter().find(|one| one.name == name)?;
        let overlaps = sum(&|one| one.overlaps);
        let overlaps =
            if contestant.exclusive { overlaps.to_string() } else { "by design".to_owned() };
        let failed: u32 = all.iter().map(|one| one.rounds - one.completed).sum();
        Some(vec![
            sum(&|one| one.lost).to_string(),
            overlaps,
            sum(&|one| one.repeated).to_string(),
            sum(&|one| one.deadlocks).to_string(),
            order(false).to_owned(),
            order(true).to_owned(),
            failed.to_string(),
        ])
    });
    let head = [
        "all rounds of all workloads",
        "updates lost",
        "handlers that overlapped",
        "updates made twice",
        "deadlocks",
        "order kept",
        "order kept, transfers",
        "runs not finished",
    ];
    table(&words(head), rows)
}

fn stress(report: &Report) -> String {
    if report.stressed.is_empty() {
        return "Not run.\n".to_owned();
    }
    let with = |stress| move |name: &str| report.stress(name, stress);
    let [kill, pause, fenced, opposite] = Stress::ALL.map(with);
    let hit = rows(report, |name| {
        let any = [kill(name), pause(name), fenced(name)];
        any.iter().any(Option::is_some).then(|| {
            let [kill, pause, fenced] = any;
            let paused = pause.or(fenced);
            vec![moved(kill), lost(kill), moved(paused), lost(pause), refused(fenced)]
        })
    });
    let head = [
        "one resource, its holder",
        "killed: moves after",
        "updates lost",
        "paused: moves after",
        "updates lost, nothing checked",
        "updates lost, store checks",
    ];
    let mut text = table(&words(head), hit);
    let opposed = rows(report, |name| {
        let one = opposite(name)?;
        let ended = if one.missing == 0 { "all executed" } else { "stood still" };
        Some(vec![one.deadlocks.to_string(), ended.to_owned(), one.lost.to_string()])
    });
    if !opposed.is_empty() {
        let head =
            ["60 transfers between two resources, both ways", "deadlocks", "", "updates lost"];
        text.push_str(&format!("\n{}", table(&words(head), opposed)));
    }
    text
}

fn moved(row: Option<&StressRow>) -> String {
    match row {
        None => "–".to_owned(),
        Some(row) if row.failures.len() as u32 == row.rounds => "failed".to_owned(),
        Some(row) => row.moved_ms.map_or_else(|| "not before it goes on".to_owned(), time),
    }
}

fn lost(row: Option<&StressRow>) -> String {
    row.map_or_else(
        || "–".to_owned(),
        |row| match row.lost {
            0 => "0".to_owned(),
            lost => format!("**{lost}**"),
        },
    )
}

fn refused(row: Option<&StressRow>) -> String {
    row.map_or_else(
        || "–".to_owned(),
        |row| match (row.lost, row.fenced_off) {
            (lost, 0) => lost.to_string(),
            (lost, refused) => format!("{lost} ({refused} refused)"),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::Shape;
    use super::*;

    fn empty() -> Report {
        let tasks = [(0, 1)].into();
        let shape = Shape { workers: 1, slots: 1, resources: 1, lease_ms: 1, rounds: 1, tasks };
        Report {
            command: "c".to_owned(),
            machine: "m".to_owned(),
            servers: Vec::new(),
            shape,
            left_out: vec!["etcd".to_owned()],
            contestants: Vec::new(),
            measured: Vec::new(),
            stressed: Vec::new(),
        }
    }

    #[test]
    fn only_what_is_marked_is_replaced() {
        let report = empty();
        let names = sections(&report);
        let text: String = names
            .iter()
            .map(|(name, _)| format!("prose\n<!-- begin {name} -->\nold\n<!-- end {name} -->\n"))
            .collect();
        let new = refresh(&text, &report).unwrap();
        assert!(!new.contains("old") && new.contains("Left out: etcd"));
        assert_eq!(new.matches("prose").count(), names.len());
        assert_eq!(refresh(&new, &report).unwrap(), new);
        assert!(refresh("nothing marked", &report).is_err());
    }
}
