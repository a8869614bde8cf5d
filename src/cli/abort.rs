//! `keylane abort`

use std::process::ExitCode;

use super::Broker;
use super::operator::Operator;
use super::pause::who_follows;
use super::since::Since;
use crate::{TaskId, abort};

/// End a task that runs, and never start it again
///
/// Its handler ends as at a time-out: a process is killed, a request is dropped. The task goes to
/// the dead letters, with the reason `cancelled by …, while it ran`, and those behind it go on. One
/// that waits is cancelled. What the handler has done by then stays done. Takes 5 s; exit code 1 if
/// the task was executed meanwhile, or does not end.
#[derive(Debug, clap::Args)]
pub(super) struct Abort {
    /// The task's id, as `keylane running` shows it
    id: TaskId,
    /// Look for executions of it from then on only: so long ago (`2h`), or at a UTC time
    /// [default: from the time in its id, if it has one]
    #[arg(long, value_name = "TIME")]
    since: Option<Since>,
    #[command(flatten)]
    operator: Operator,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Abort {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let (connect, by) = (broker.connect()?, self.operator.name());
        let since = self.since.map(|since| since.0);
        let steered = abort(&connect, &self.id, since, &by).await?;
        if self.json {
            out!("{}", serde_json::to_string(&steered)?);
        } else {
            out!("task {} is aborted; {}", self.id, who_follows(&steered));
        }
        Ok(ExitCode::SUCCESS)
    }
}
