//! `keylane pause` and `keylane resume`

use std::process::ExitCode;

use super::Broker;
use super::operator::Operator;
use crate::protocol::text::OneLine;
use crate::{PartitionId, Resource, Scope, Steered, Steering, pause, resume};

/// Start no tasks of a resource, of a partition, or none at all
///
/// What runs goes on, order is kept, and it holds until `resume`, over restarts of
/// workers and broker. A paused resource holds up nobody else, as long as the
/// window of its partition (`init --prefetch`) is not full of its tasks.
#[derive(Debug, clap::Args)]
pub(super) struct Pause {
    #[command(flatten)]
    steer: Steer,
}

/// Start tasks again that were paused
///
/// What is paused in several ways has to be resumed in each, or with --all.
#[derive(Debug, clap::Args)]
pub(super) struct Resume {
    #[command(flatten)]
    steer: Steer,
}

#[derive(Debug, clap::Args)]
struct Steer {
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    operator: Operator,
    /// Print one JSON object: whether it changed anything, what is in force now, and
    /// which workers have said that they follow
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct ScopeArgs {
    /// This resource
    #[arg(long)]
    resource: Option<Resource>,
    /// The partition of this number, as `status` shows it
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Everything; `resume --all` lifts the pauses of partitions and resources, too
    #[arg(long)]
    all: bool,
}

impl ScopeArgs {
    fn scope(&self) -> Scope {
        match (&self.resource, self.partition) {
            (Some(resource), _) => Scope::Resource(resource.clone()),
            (None, Some(number)) => Scope::Partition(PartitionId::new(number)),
            (None, None) => Scope::All,
        }
    }
}

impl Pause {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let Steer { scope, operator, json } = self.steer;
        let scope = scope.scope();
        let steered = pause(&broker.connect()?, scope.clone(), &operator.name()).await?;
        let done = if steered.changed { "paused" } else { "was paused already:" };
        report(&steered, &format!("{done} {scope}"), json)
    }
}

impl Resume {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let Steer { scope, operator, json } = self.steer;
        let scope = scope.scope();
        let steered = resume(&broker.connect()?, scope.clone(), &operator.name()).await?;
        let done = if steered.changed { "resumed" } else { "was not paused:" };
        report(&steered, &format!("{done} {scope}"), json)?;
        if !json && let Some(paused) = paused(&steered.steering) {
            out!("still paused: {paused}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn report(steered: &Steered, done: &str, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        out!("{}", serde_json::to_string(steered)?);
        return Ok(ExitCode::SUCCESS);
    }
    out!("{}; {}", OneLine(done), who_follows(steered));
    Ok(ExitCode::SUCCESS)
}

/// Who has answered.
pub(super) fn who_follows(steered: &Steered) -> String {
    match &steered.workers[..] {
        [] => "no worker answered: it holds for whoever connects".to_owned(),
        [worker] => format!("{worker} follows"),
        workers => {
            let names: Vec<_> = workers.iter().map(ToString::to_string).collect();
            format!("{} workers follow: {}", names.len(), names.join(", "))
        }
    }
}

/// What is paused, in words; `None` if nothing is.
pub(super) fn paused(steering: &Steering) -> Option<String> {
    const SHOWN: usize = 10;
    let list = |what: &str, names: Vec<String>| match names.len() {
        0 => None,
        all if all > SHOWN => {
            Some(format!("{all} {what}, {} and others", names[..SHOWN].join(", ")))
        }
        _ => Some(format!("{what} {}", names.join(", "))),
    };
    let signed = steering.all.as_ref().map(|ordered| format!("everything (by {})", ordered.by));
    let partitions = steering.partitions.keys().map(ToString::to_string).collect();
    let resources = steering.resources.keys().map(ToString::to_string).collect();
    let parts = [signed, list("partitions", partitions), list("resources", resources)];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| OneLine(&parts.join("; ")).to_string())
}
