//! `keylane cancel`

use std::process::ExitCode;
use std::time::Duration;

use super::Broker;
use super::operator::Operator;
use super::pause::who_follows;
use super::since::Since;
use super::work::parse_duration;
use crate::protocol::text::OneLine;
use crate::{TaskId, cancel, reinstate};

/// Have a task never start, or never again
///
/// When its turn comes it goes to the dead letters, with the reason `cancelled by …`,
/// and those behind it go on; one that waits for its next attempt goes at once. Takes 5 s: then it
/// is certain. A task that runs (see `keylane abort`), or was executed, is left as it is, with exit
/// code 1.
#[derive(Debug, clap::Args)]
pub(super) struct Cancel {
    /// The task's id
    id: TaskId,
    /// Let it start after all, if it has not come to the dead letters yet
    #[arg(long)]
    undo: bool,
    /// How long it is remembered: a task that comes later runs
    #[arg(long, default_value = "7days", value_parser = parse_duration, value_name = "TIME", conflicts_with = "undo")]
    keep: Duration,
    /// Look for executions of it from then on only: so long ago (`2h`), or at a UTC time
    /// [default: from the time in its id, if it has one]
    #[arg(long, value_name = "TIME", conflicts_with = "undo")]
    since: Option<Since>,
    #[command(flatten)]
    operator: Operator,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Cancel {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let (connect, by, id) = (broker.connect()?, self.operator.name(), self.id);
        let (steered, done) = if self.undo {
            let steered = reinstate(&connect, vec![id.clone()], &by).await?;
            let done = if steered.changed { "may start again" } else { "was not cancelled" };
            (steered, done)
        } else {
            let since = self.since.map(|since| since.0);
            let steered = cancel(&connect, &id, Some(self.keep), since, &by).await?;
            let done = if steered.changed { "is cancelled" } else { "was cancelled already" };
            (steered, done)
        };
        if self.json {
            out!("{}", serde_json::to_string(&steered)?);
        } else {
            out!("task {} {done}; {}", OneLine(id.as_str()), who_follows(&steered));
        }
        Ok(ExitCode::SUCCESS)
    }
}
