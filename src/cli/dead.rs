//! `keylane dead`

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::Subcommand;

use super::Broker;
use crate::{DeadLetter, DeadLetters};

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
    },
    /// Show one dead letter with its payload
    Show {
        /// Its task id
        id: String,
        /// Print one JSON object; the payload as text, or as bytes if it is none
        #[arg(long)]
        json: bool,
    },
    /// Publish dead letters again, each at the end of its resource's queue
    Replay(Selection),
    /// Remove dead letters for good
    Discard(Selection),
}

/// Which dead letters.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Selection {
    /// Those with these task ids
    ids: Vec<String>,
    /// Those of this resource
    #[arg(long)]
    resource: Option<String>,
    /// All that are there now
    #[arg(long)]
    all: bool,
}

impl Selection {
    fn has(&self, letter: &DeadLetter) -> bool {
        let has_id = letter.id.as_ref().is_some_and(|id| self.ids.contains(id));
        let of_resource = self.resource.is_some() && self.resource == letter.resource;
        self.all || has_id || of_resource
    }
}

impl Dead {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let mut letters = DeadLetters::open(&broker.connect()?).await?;
        let result = match self.command {
            DeadCommand::List { json, limit } => list(&mut letters, json, limit).await,
            DeadCommand::Show { id, json } => show(&mut letters, &id, json).await,
            DeadCommand::Replay(selection) => replay(&mut letters, &selection).await,
            DeadCommand::Discard(selection) => discard(&mut letters, &selection).await,
        };
        letters.close().await;
        result
    }
}

async fn list(
    letters: &mut DeadLetters,
    json: bool,
    limit: Option<u32>,
) -> anyhow::Result<ExitCode> {
    let mut listed = 0;
    while limit.is_none_or(|limit| listed < limit)
        && let Some(letter) = letters.next().await?
    {
        listed += 1;
        if json {
            out!("{}", serde_json::to_string(&letter)?);
        } else {
            let id = letter.id.as_deref().unwrap_or("-");
            let resource = letter.resource.as_deref().unwrap_or("-");
            let attempts = letter.attempts;
            out!("{}  {id}  {resource}  attempts {attempts}: {}", time(&letter), letter.reason);
        }
    }
    if !json && letters.left() > 0 {
        out!("and {} more", letters.left());
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(letters: &mut DeadLetters, id: &str, json: bool) -> anyhow::Result<ExitCode> {
    while let Some(letter) = letters.next().await? {
        if letter.id.as_deref() != Some(id) {
            continue;
        }
        if json {
            let mut shown = serde_json::to_value(&letter)?;
            shown["payload"] = match std::str::from_utf8(&letter.payload) {
                Ok(text) => text.into(),
                Err(_) => letter.payload.to_vec().into(),
            };
            out!("{shown}");
            return Ok(ExitCode::SUCCESS);
        }
        let line = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                out!("{name:<13}{value}");
            }
        };
        line("task", Some(id));
        line("resource", letter.resource.as_deref());
        line("kind", letter.kind.as_deref());
        line("reason", Some(&letter.reason));
        line("attempts", Some(&letter.attempts.to_string()));
        line("given up by", letter.by.as_deref());
        line("given up at", Some(&time(&letter)));
        line("from", letter.from.as_deref());
        line("payload", Some(&format!("{} bytes", letter.payload_bytes)));
        out!("\n{}", String::from_utf8_lossy(&letter.payload));
        return Ok(ExitCode::SUCCESS);
    }
    bail!("no dead letter has the task id {id:?}: see `keylane dead list`")
}

async fn replay(letters: &mut DeadLetters, selection: &Selection) -> anyhow::Result<ExitCode> {
    let (mut replayed, mut refused) = (0u32, 0u32);
    while let Some(letter) = letters.next().await? {
        if selection.has(&letter) {
            let id = letter.id.clone();
            match letters.replay(letter).await {
                Ok(()) => replayed += 1,
                Err(error @ crate::ReplayError::NoTask(_)) => {
                    eprintln!("keylane: {}: {error}", id.as_deref().unwrap_or("-"));
                    refused += 1;
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("after {replayed} were replayed"));
                }
            }
        }
    }
    out!("replayed {replayed}");
    Ok(found(replayed + refused, selection, refused > 0))
}

async fn discard(letters: &mut DeadLetters, selection: &Selection) -> anyhow::Result<ExitCode> {
    let mut discarded = 0u32;
    while let Some(letter) = letters.next().await? {
        if selection.has(&letter) {
            letters.discard(letter).await?;
            discarded += 1;
        }
    }
    out!("discarded {discarded}");
    Ok(found(discarded, selection, false))
}

/// Naming one that is not there is a failure; emptying what is empty is not.
fn found(count: u32, selection: &Selection, failed: bool) -> ExitCode {
    let all_found = selection.all || count > 0 && count as usize >= selection.ids.len();
    if all_found && !failed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn time(letter: &DeadLetter) -> String {
    let at = letter.dead_at_ms.and_then(|ms| u64::try_from(ms).ok());
    let at = at.and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    at.map_or_else(|| "-".to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string())
}
