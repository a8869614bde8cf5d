//! `keylane watch`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::time::sleep;

use super::Broker;
use super::management::{Management, ManagementOptions};
use super::pause::paused;
use super::policies::Policy;
use super::signals::until_signalled;
use super::since::time;
use super::work::parse_duration;
use crate::protocol::stall::Watch as Stalls;
use crate::rabbit::status::Observer;
use crate::rabbit::steering::now_ms;
use crate::{Connect, Status};

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
            let (mut last_paused, mut last_policies) = (None, Vec::new());
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
                                let added = self.ask(management, &connect, &mut status);
                                match added.await {
                                    Ok(policies) if policies != last_policies => {
                                        self.tell_policies(&policies)?;
                                        last_policies = policies;
                                    }
                                    Ok(_) => {}
                                    Err(error) => eprintln!("keylane: {error:#}; looking again"),
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

    /// Adds what the management interface tells, and gives the policies that are in the way.
    async fn ask(
        &self,
        management: &mut Management,
        connect: &Connect,
        status: &mut Status,
    ) -> anyhow::Result<Vec<Policy>> {
        management.add_strays(connect.namespace(), status).await?;
        management.policies(connect.namespace()).await
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

    fn tell_policies(&self, policies: &[Policy]) -> anyhow::Result<()> {
        let at_ms = now_ms();
        if self.json {
            let line = serde_json::json!({
                "event": "policies", "at_ms": at_ms, "policies": serde_json::to_value(policies)?,
            });
            out!("{line}");
            return Ok(());
        }
        for policy in policies {
            out!("{}  in the way: {policy}", time(at_ms * 1_000));
        }
        if policies.is_empty() {
            out!("{}  no policy is in the way any more", time(at_ms * 1_000));
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
