//! The demo's end report.

use std::io::IsTerminal;

use serde::Serialize;

use super::run::{Done, Workers};
use crate::cli::progress::grouped;
use crate::demo::verify::{Reason, Verified};
use crate::demo::{Corruption, Difference, Oid, Report};

/// How many of a long list a person reads.
const SHOWN: usize = 5;

/// What the demo did, and whether it was right.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    mode: Mode,
    repository: String,
    head: Oid,
    commits: u64,
    tasks: u64,
    executed: u64,
    workers: Workers,
    seconds: f64,
    tasks_per_s: f64,
    hand_overs: u64,
    redeliveries: u64,
    repeated: u64,
    interrupted: u64,
    dead_letters: u32,
    /// All that keylane rules out.
    violations: u64,
    overlaps: u64,
    order_violations: u64,
    mismatches: u64,
    files: u64,
    /// Byte-identical to the commit's.
    files_identical: u64,
    /// Missing and unexpected ones too.
    files_wrong: usize,
    /// The first of each, in words.
    wrong: Vec<String>,
    corruptions: Vec<String>,
    obituaries: Vec<String>,
    ok: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Keylane,
    Naive,
}

/// What the judges say.
#[derive(Debug)]
pub(super) struct Judgement {
    pub(super) report: Report,
    pub(super) verified: Result<Verified, Vec<Difference>>,
    /// Files that the commit has.
    pub(super) files: u64,
    pub(super) corruptions: Vec<Corruption>,
}

/// What was to be rebuilt.
#[derive(Debug)]
pub(super) struct Goal {
    pub(super) name: String,
    pub(super) head: Oid,
    pub(super) commits: u64,
    pub(super) tasks: u64,
    /// Corruption is what is to be shown.
    pub(super) naive: bool,
}

impl Summary {
    pub(super) fn new(goal: Goal, done: Done, judged: Judgement, obituaries: Vec<String>) -> Self {
        let Judgement { report, verified, files, corruptions } = judged;
        let seconds = done.took.as_secs_f64();
        let wrong = verified.err().unwrap_or_default();
        let surplus = wrong.iter().filter(|wrong| wrong.reason == Reason::Unexpected).count();
        let violations = report.overlaps + report.order_violations + report.mismatches;
        let executed = report.tasks();
        let right = violations == 0 && wrong.is_empty();
        let ok = if goal.naive {
            !right
        } else {
            right && done.dead_letters == 0 && executed == goal.tasks
        };
        Self {
            mode: if goal.naive { Mode::Naive } else { Mode::Keylane },
            repository: goal.name,
            head: goal.head,
            commits: goal.commits,
            tasks: goal.tasks,
            executed,
            workers: done.workers,
            seconds,
            tasks_per_s: goal.tasks as f64 / seconds.max(1e-3),
            hand_overs: report.hand_overs,
            redeliveries: report.redelivered,
            repeated: report.repeated,
            interrupted: report.interrupted,
            dead_letters: done.dead_letters,
            violations,
            overlaps: report.overlaps,
            order_violations: report.order_violations,
            mismatches: report.mismatches,
            files,
            files_identical: files.saturating_sub((wrong.len() - surplus) as u64),
            files_wrong: wrong.len(),
            wrong: wrong.iter().take(SHOWN).map(ToString::to_string).collect(),
            corruptions: corruptions.iter().take(SHOWN).map(ToString::to_string).collect(),
            obituaries,
            ok,
        }
    }
}

impl Summary {
    /// Whether the demo showed what it was to show.
    pub(super) fn is_ok(&self) -> bool {
        self.ok
    }

    /// Prints it for a person.
    pub(super) fn print(&self) {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let row = |name: &str, value: String| out!("  {name:<17} {value}");
        let promised = |name: &str, count: u64| {
            let value = grouped(count);
            row(name, if count == 0 { value } else { paint(&value, RED, colours) });
        };
        out!();
        row("repository", format!("{} ({} commits)", self.repository, grouped(self.commits)));
        let rate = grouped(self.tasks_per_s as u64);
        let (executed, tasks) = (grouped(self.executed), grouped(self.tasks));
        row("tasks", format!("{executed} of {tasks} in {:.1} s ({rate}/s)", self.seconds));
        let Workers { started, killed, drained, joined } = self.workers;
        row("workers", format!("{started}, {killed} killed, {drained} drained, {joined} joined"));
        row("hand-overs", grouped(self.hand_overs));
        let (redelivered, repeated) = (grouped(self.redeliveries), grouped(self.repeated));
        row("redeliveries", format!("{redelivered} ({repeated} tasks had been begun before)"));
        promised("overlaps", self.overlaps);
        promised("order violations", self.order_violations);
        promised("mismatches", self.mismatches);
        promised("dead letters", u64::from(self.dead_letters));
        out!();
        let lists = [
            ("The first that a worker found", &self.corruptions),
            ("The first files that are wrong", &self.wrong),
            ("The first dead letters", &self.obituaries),
        ];
        for (title, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            out!("  {title}:");
            list.iter().for_each(|line| out!("    {line}"));
            out!();
        }
        let colour = if self.ok != (self.mode == Mode::Naive) { GREEN } else { RED };
        out!("  {}", paint(&self.verdict(), colour, colours));
    }

    fn verdict(&self) -> String {
        let (identical, files) = (grouped(self.files_identical), grouped(self.files));
        let head = self.head.short();
        let violations = grouped(self.violations);
        if self.files_wrong == 0 && self.ok {
            return format!("violations: 0; {files} files are byte-identical to HEAD {head}");
        }
        let verdict = format!(
            "violations: {violations}; {identical} of {files} files are byte-identical to HEAD \
             {head}, {} are wrong",
            self.files_wrong
        );
        match self.mode {
            Mode::Keylane => verdict,
            Mode::Naive if self.ok => {
                format!(
                    "{verdict}\n  That is what competing consumers do. Without --naive it does not happen"
                )
            }
            Mode::Naive => {
                format!("{verdict}\n  Nothing went wrong this time: try a longer history")
            }
        }
    }
}

const GREEN: u8 = 32;
const RED: u8 = 31;

fn paint(text: &str, colour: u8, colours: bool) -> String {
    if colours { format!("\x1b[1;{colour}m{text}\x1b[0m") } else { text.to_owned() }
}
