//! `keylane demo`

mod fleet;
mod queues;
mod run;
mod scene;
mod show;
mod source;
mod summary;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

pub(super) use worker::DemoWorker;

use self::scene::Scene;
use super::Broker;
use super::signals::{INTERRUPTED, until_signalled};

/// Rebuild a git repository from its history, in parallel, while workers die
///
/// Every file that a commit changes is a task, and its resource is the path. A
/// handler accepts only the parent's version of the file and writes the next.
/// On the way one worker is killed, one is told to leave, and two others join.
/// In the end every file must be what git has.
///
/// Without --amqp-url a broker is started in Docker, or from an installed
/// RabbitMQ (4.0 or later), and removed again.
#[derive(Debug, clap::Args)]
pub(super) struct Demo {
    /// The repository [default: keylane's own, inside its checkout; else one
    /// that is generated]
    #[arg(long, value_name = "PATH")]
    repo: Option<PathBuf>,
    /// Use plain competing consumers on one queue, and show what they corrupt
    #[arg(long)]
    naive: bool,
    /// Workers at the start, each a process
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=64))]
    workers: u8,
    /// Rebuild the oldest N commits only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Keep the rebuilt files in this directory, which must be empty or not there
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Print the end report as one JSON object
    #[arg(long)]
    json: bool,
}

impl Demo {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        until_signalled("removing what the demo has made", async |shutdown| {
            let mut scene = tokio::select! {
                scene = Box::pin(Scene::set(&self, broker)) => scene?,
                () = shutdown.cancelled() => return Ok(ExitCode::from(INTERRUPTED)),
            };
            let played = tokio::select! {
                played = Box::pin(scene.play(&self)) => Some(played),
                () = shutdown.cancelled() => None,
            };
            // Whatever happened, and before anything is said about it.
            let removed = Box::pin(scene.remove()).await;
            let Some(summary) = played else {
                removed?;
                return Ok(ExitCode::from(INTERRUPTED));
            };
            let summary = summary?;
            if self.json {
                out!("{}", serde_json::to_string(&summary)?);
            } else {
                summary.print();
            }
            removed?;
            Ok(if summary.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        })
        .await
    }
}
