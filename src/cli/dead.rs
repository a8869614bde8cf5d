//! `keylane dead`

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::Subcommand;

use super::Broker;
use super::since::Since;
use crate::protocol::text::{OneLine, Printable};
use crate::{DeadLetter, DeadLetters, ReplayError};

/// Look at the dead letters, publish them again, or drop them
#[derive(Debug, clap::Args)]
pub(super) struct Dead {
    #[command(subcommand)]
    command: DeadCommand,
}

#[derive(Debug, Subcommand)]
enum DeadCommand {
    /// List the dead letters, oldest first
    List {
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
        /// List so many at the most
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
        #[command(flatten)]
        filter: Filter,
    },
    /// Show one dead letter with its payload
    Show {
        /// Its task id
        id: String,
        /// Print one JSON object; the payload as text, or as bytes if it is none
        #[arg(long)]
        json: bool,
    },
    /// Publish dead letters again, oldest first, each at the end of its resource's queue
    ///
    /// One that was cancelled is not cancelled any more.
    Replay(Selection),
    /// Remove dead letters for good
    Discard(Selection),
}

/// Which dead letters: those for which all of this holds.
#[derive(Debug, clap::Args)]
#[group(skip)]
struct Filter {
    /// Those of this resource
    #[arg(long)]
    resource: Option<String>,
    /// Those whose reason has this text in it
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Those that were given up from then on: so long ago (`2h`), or at a UTC time
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,
    /// Those that were given up before then
    #[arg(long, value_name = "TIME")]
    before: Option<Since>,
}

/// Ways to say which.
const WAYS: [&str; 6] = ["ids", "all", "resource", "reason", "since", "before"];

/// What a filter can be about.
const FILTERS: [&str; 4] = ["resource", "reason", "since", "before"];

impl Filter {
    fn is_empty(&self) -> bool {
        let Self { resource, reason, since, before } = self;
        resource.is_none() && reason.is_none() && since.is_none() && before.is_none()
    }

    fn has(&self, letter: &DeadLetter) -> bool {
        let at = dead_at(letter);
        let is_since = |since: &Since| at.is_some_and(|at| at >= since.0);
        let is_before = |before: &Since| at.is_some_and(|at| at < before.0);
        self.resource.as_ref().is_none_or(|wanted| Some(wanted) == letter.resource.as_ref())
            && self.reason.as_ref().is_none_or(|text| letter.reason.contains(text))
            && self.since.as_ref().is_none_or(is_since)
            && self.before.as_ref().is_none_or(is_before)
    }
}

/// Which dead letters.
#[derive(Debug, clap::Args)]
#[group(id = "which", required = true, multiple = true, args = WAYS)]
struct Selection {
    /// Those with these task ids
    #[arg(conflicts_with_all = FILTERS, conflicts_with = "all")]
    ids: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// All that are there now
    #[arg(long, conflicts_with_all = FILTERS)]
    all: bool,
}

impl Selection {
    fn has(&self, letter: &DeadLetter) -> bool {
        let has_id = letter.id.as_ref().is_some_and(|id| self.ids.contains(id));
        self.all || has_id || !self.filter.is_empty() && self.filter.has(letter)
    }
}

impl Dead {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let mut letters = DeadLetters::open(&broker.connect()?).await?;
        let result = match self.command {
            DeadCommand::List { json, limit, filter } => {
                return list(letters, json, limit, &filter).await;
            }
            DeadCommand::Show { id, json } => show(&mut letters, &id, json).await,
            DeadCommand::Replay(selection) => replay(&mut letters, &selection).await,
            DeadCommand::Discard(selection) => discard(&mut letters, &selection).await,
        };
        letters.close().await;
        result
    }
}

async fn list(
    mut letters: DeadLetters,
    json: bool,
    limit: Option<u32>,
    filter: &Filter,
) -> anyhow::Result<ExitCode> {
    let mut listed = Vec::new();
    let is_full =
        |listed: &Vec<_>| limit.is_some_and(|limit| listed.len() as u64 >= u64::from(limit));
    while !is_full(&listed)
        && let Some(mut letter) = letters.next().await?
    {
        if filter.has(&letter) {
            letter.payload.clear();
            listed.push(letter);
        }
    }
    let left = letters.left();
    // Whoever reads the list may take his time, and they are hidden from others until then.
    letters.close().await;
    for letter in &listed {
        if json {
            out!("{}", serde_json::to_string(letter)?);
        } else {
            let id = OneLine(letter.id.as_deref().unwrap_or("-"));
            let resource = OneLine(letter.resource.as_deref().unwrap_or("-"));
            let (time, attempts, reason) = (time(letter), letter.attempts, OneLine(&letter.reason));
            out!("{time}  {id}  {resource}  attempts {attempts}: {reason}");
        }
    }
    if is_full(&listed) {
        if !json && filter.is_empty() && left > 0 {
            out!("and {left} more");
        }
        return Ok(ExitCode::SUCCESS);
    }
    Ok(if saw_all(left) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says so if there were others than those that were looked at, and returns false.
fn saw_all(left: u32) -> bool {
    if left > 0 {
        eprintln!(
            "keylane: {left} more dead letters were not looked at, since 65,535 are held at once or \
             somebody else took them: replay or discard some, and try again"
        );
    }
    left == 0
}

async fn show(letters: &mut DeadLetters, id: &str, json: bool) -> anyhow::Result<ExitCode> {
    while let Some(letter) = letters.next().await? {
        if letter.id.as_deref() != Some(id) {
            continue;
        }
        if json {
            let mut shown = serde_json::to_value(&letter)?;
            if let Some(unreadable) = &letter.unreadable {
                shown["properties"] = unreadable.to_vec().into();
            }
            shown["payload"] = match std::str::from_utf8(&letter.payload) {
                Ok(text) => text.into(),
                Err(_) => letter.payload.to_vec().into(),
            };
            out!("{shown}");
            return Ok(ExitCode::SUCCESS);
        }
        let line = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                out!("{name:<13}{}", OneLine(value));
            }
        };
        line("task", Some(id));
        line("resource", letter.resource.as_deref());
        line("kind", letter.kind.as_deref());
        out!("{:<13}{}", "reason", Printable(&letter.reason));
        line("attempts", Some(&letter.attempts.to_string()));
        line("given up by", letter.by.as_deref());
        line("given up at", Some(&time(&letter)));
        line("from", letter.from.as_deref());
        if let Some(unreadable) = &letter.unreadable {
            line("properties", Some(&format!("{} bytes, see --json", unreadable.len())));
        }
        line("payload", Some(&format!("{} bytes", letter.payload_bytes)));
        out!("\n{}", Printable(&String::from_utf8_lossy(&letter.payload)));
        return Ok(ExitCode::SUCCESS);
    }
    saw_all(letters.left());
    bail!("no dead letter has the task id {id:?}: see `keylane dead list`")
}

async fn replay(letters: &mut DeadLetters, selection: &Selection) -> anyhow::Result<ExitCode> {
    let (mut seen, mut refused) = (Seen::of(selection), false);
    let mut ended = Ok(());
    while ended.is_ok()
        && let Some(letter) = letters.next().await?
    {
        if seen.has(&letter) {
            let id = letter.id.clone();
            match letters.begin_replay(letter).await {
                Err(error @ ReplayError::NoTask(_)) => {
                    eprintln!("keylane: {}: {error}", OneLine(id.as_deref().unwrap_or("-")));
                    refused = true;
                }
                begun => ended = begun,
            }
        }
    }
    // Those that have begun are seen through.
    let finished = letters.finish_replays().await;
    let replayed = letters.replayed();
    ended.and(finished).with_context(|| format!("after {replayed} were replayed"))?;
    out!("replayed {replayed}");
    Ok(seen.conclude(letters.left(), refused))
}

async fn discard(letters: &mut DeadLetters, selection: &Selection) -> anyhow::Result<ExitCode> {
    let (mut discarded, mut seen) = (0u32, Seen::of(selection));
    while let Some(letter) = letters.next().await? {
        if seen.has(&letter) {
            letters.discard(letter).await?;
            discarded += 1;
        }
    }
    out!("discarded {discarded}");
    Ok(seen.conclude(letters.left(), false))
}

/// What has been found of a selection.
struct Seen<'a> {
    selection: &'a Selection,
    missing: BTreeSet<&'a str>,
    any: bool,
}

impl<'a> Seen<'a> {
    fn of(selection: &'a Selection) -> Self {
        Self { selection, missing: selection.ids.iter().map(String::as_str).collect(), any: false }
    }

    fn has(&mut self, letter: &DeadLetter) -> bool {
        let has = self.selection.has(letter);
        self.any |= has;
        if let Some(id) = &letter.id {
            self.missing.remove(id.as_str());
        }
        has
    }

    /// How the command ends, with so many letters that were not looked at.
    fn conclude(&self, left: u32, refused: bool) -> ExitCode {
        // Several letters may have one id, so all have to be looked at.
        let complete = saw_all(left);
        if self.is_all() && complete && !refused { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Whether all was there that was named; says what was not. Emptying what is empty
    /// is no failure.
    fn is_all(&self) -> bool {
        for id in &self.missing {
            eprintln!("keylane: no dead letter has the task id {id:?}: see `keylane dead list`");
        }
        let none = !self.any && !self.selection.all && self.selection.ids.is_empty();
        if none {
            eprintln!("keylane: no dead letter is like that: see `keylane dead list`");
        }
        self.missing.is_empty() && !none
    }
}

/// When it was given up.
fn dead_at(letter: &DeadLetter) -> Option<SystemTime> {
    let at = letter.dead_at_ms.and_then(|ms| u64::try_from(ms).ok())?;
    UNIX_EPOCH.checked_add(Duration::from_millis(at))
}

fn time(letter: &DeadLetter) -> String {
    dead_at(letter)
        .map_or_else(|| "-".to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string())
}
