//! `keylane running`

use std::process::ExitCode;
use std::time::Duration;

use super::Broker;
use super::progress::counted;
use super::work::parse_duration;
use crate::protocol::text::OneLine;
use crate::running;

/// List the tasks that are executed now, those first that have run for the longest
///
/// A worker that is stopped or cut off does not answer, and its tasks are missing.
#[derive(Debug, clap::Args)]
pub(super) struct RunningNow {
    /// Those that have run for so long
    #[arg(long, default_value = "0s", value_parser = parse_duration, value_name = "TIME")]
    over: Duration,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

impl RunningNow {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let (found, more) = running(&broker.connect()?).await?;
        let age = |us: u64| Duration::from_micros(us);
        for found in found.iter().filter(|found| age(found.running.age_us) >= self.over) {
            if self.json {
                out!("{}", serde_json::to_string(found)?);
                continue;
            }
            let task = &found.running;
            // To the second, or the millisecond if it is young.
            let ms = task.age_us / 1_000;
            let ms = if ms >= 10_000 { ms / 1_000 * 1_000 } else { ms };
            out!(
                "{:>12}  {}  slot {}  partition {}  attempt {}  {}  {}",
                humantime::format_duration(Duration::from_millis(ms)).to_string(),
                found.worker,
                task.slot,
                task.partition,
                task.attempt,
                OneLine(task.task.as_str()).to_string(),
                OneLine(task.resource.as_str()).to_string(),
            );
        }
        if more > 0 {
            eprintln!("keylane: and {} that are younger", counted(more, "task"));
        }
        Ok(ExitCode::SUCCESS)
    }
}
