//! `keylane watch`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::time::sleep;

use super::Broker;
use super::management::ManagementOptions;
use super::pause::paused;
use super::signals::until_signalled;
use super::since::time;
use super::work::parse_duration;
use crate::protocol::stall::Watch as Stalls;
use crate::rabbit::status::Observer;
use crate::rabbit::steering::now_ms;

/// Say which partitions stand still and why, as it happens, until Ctrl-C
///
/// A partition stands still if it has tasks, and none was executed for a while.
#[derive(Debug, clap::Args)]
pub(super) struct Watch {
    /// How long a partition stands still before it is told of
    #[arg(long, default_value = "5s", value_parser = parse_duration, value_name = "TIME")]
    after: Duration,
    /// Time between two looks
    #[arg(long, default_value = "2s", value_parser = parse_duration, value_name = "TIME")]
    interval: Duration,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    management: ManagementOptions,
}

impl Watch {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        until_signalled("ending", async |shutdown| {
            let connect = broker.connect()?;
            let mut observer = Some(Observer::open(&connect, "watch").await?);
            let mut management = self.management.open(broker)?;
            let (started, mut stalls) = (Instant::now(), Stalls::new(self.after));
            let mut last_paused = None;
            let watching = async {
                loop {
                    let looked = match observer.take() {
                        Some(mut opened) => opened.look().await.map(|status| (opened, status)),
                        None => {
                            observer = match Observer::open(&connect, "watch").await {
                                Ok(opened) => Some(opened),
                                Err(error) if error.is_retryable() => None,
                                Err(error) => bail!(error),
                            };
                            if observer.is_none() {
                                sleep(self.interval.max(RECONNECT_PAUSE)).await;
                            }
                            continue;
                        }
                    };
                    match looked {
                        Ok((opened, mut status)) => {
                            observer = Some(opened);
                            if let Some(management) = &mut management {
                                let namespace = connect.namespace();
                                let added = management.add_strays(namespace, &mut status).await;
                                if let Err(error) = added {
                                    eprintln!("keylane: {error:#}; looking again");
                                }
                            }
                            let now = paused(&status.steering);
                            if now != last_paused {
                                self.tell_paused(now.as_deref(), &status.steering)?;
                                last_paused = now;
                            }
                            let at = u64::try_from(started.elapsed().as_millis())?;
                            for event in stalls.note(at, status.looks()) {
                                self.tell(&event)?;
                            }
                        }
                        Err(error) if error.is_retryable() => {
                            eprintln!("keylane: {error}; looking again");
                        }
                        Err(error) => bail!(error),
                    }
                    sleep(self.interval).await;
                }
            };
            let ended: anyhow::Result<std::convert::Infallible> = tokio::select! {
                ended = watching => ended,
                () = shutdown.cancelled() => return Ok(ExitCode::SUCCESS),
            };
            ended.map(|never| match never {})
        })
        .await
    }

    fn tell(&self, event: &crate::protocol::stall::Event) -> anyhow::Result<()> {
        if self.json {
            let mut line = serde_json::to_value(event)?;
            line["at_ms"] = now_ms().into();
            out!("{line}");
        } else {
            out!("{}  {event}", time(now_ms() * 1_000));
        }
        Ok(())
    }

    fn tell_paused(&self, paused: Option<&str>, steering: &crate::Steering) -> anyhow::Result<()> {
        if self.json {
            let mut line = serde_json::json!({ "event": "steering", "at_ms": now_ms() });
            line["steering"] = serde_json::to_value(steering)?;
            out!("{line}");
        } else {
            let paused = paused.unwrap_or("nothing any more");
            out!("{}  paused: {paused}", time(now_ms() * 1_000));
        }
        Ok(())
    }
}

/// A node restarts in seconds.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
