//! From the publish call to the start of the handler, at a rate that everybody
//! sustains. keylane and a raw loop, in turn.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::ledger::Ledger;
use super::throughput::PREFETCH;
use super::{Bench, resource_name, started_worker};
use crate::rabbit::raw::{OnDelivery, Raw};
use crate::{Connect, Producer, ProducerOptions, Task, WorkerOptions, handler_fn};

/// 200 tasks a second.
const PAUSE: Duration = Duration::from_millis(5);
/// Enough for a p99 of some twenty values, in five seconds.
const TASKS: u64 = 1_000;
const RESOURCES: u32 = 1_000;

#[derive(Debug, Clone, Serialize)]
pub(super) struct Latency {
    pub(super) keylane: Quantiles,
    pub(super) raw: Quantiles,
}

/// In milliseconds; the medians of all rounds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Quantiles {
    pub(super) p50: f64,
    pub(super) p99: f64,
}

pub(super) async fn run(
    bench: &Bench,
    connect: &Connect,
    progress: &ProgressBar,
) -> anyhow::Result<(Latency, u64)> {
    let (mut keylane, mut raw_loop) = (Vec::new(), Vec::new());
    let mut violations = 0;
    for round in 1..=bench.rounds {
        for turn in 0..2 {
            progress.set_message(format!("latency, round {round} of {}", bench.rounds));
            let ours_now = (round + turn) % 2 == 0;
            let ledger = Arc::new(Ledger::new(RESOURCES, TASKS, true));
            if ours_now {
                ours(connect, &ledger).await?;
                keylane.push(ledger.latencies());
            } else {
                raw(connect, &ledger).await?;
                raw_loop.push(ledger.latencies());
            }
            violations += ledger.violations();
        }
    }
    Ok((Latency { keylane: quantiles(&keylane), raw: quantiles(&raw_loop) }, violations))
}

fn quantiles(rounds: &[Vec<Duration>]) -> Quantiles {
    let of = |share: f64| {
        let at = |sorted: &Vec<Duration>| {
            let index =
                ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
            sorted.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
        };
        super::median(rounds.iter().map(at).collect())
    };
    Quantiles { p50: of(0.50), p99: of(0.99) }
}

async fn ours(connect: &Connect, ledger: &Arc<Ledger>) -> anyhow::Result<()> {
    let seen = Arc::clone(ledger);
    let handler = handler_fn(move |attempt| {
        seen.execute(&attempt.task.payload);
        std::future::ready(Ok(()))
    });
    let shutdown = CancellationToken::new();
    let worker =
        started_worker(connect, WorkerOptions::default(), handler, shutdown.clone()).await?;
    let producer = Producer::open(connect, ProducerOptions::default()).await?;
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut confirms = JoinSet::new();
    for index in 0..TASKS {
        ticks.tick().await;
        let note = ledger.note(index);
        let task = Task::on(resource_name(note.resource), note.to_payload());
        confirms.spawn(producer.send(&task).await?.confirmed());
    }
    for confirmed in confirms.join_all().await {
        confirmed?;
    }
    ledger.complete().await;
    shutdown.cancel();
    worker.await.context("the worker panicked")??;
    producer.close().await;
    Ok(())
}

async fn raw(connect: &Connect, ledger: &Arc<Ledger>) -> anyhow::Result<()> {
    let seen = Arc::clone(ledger);
    let on_delivery: OnDelivery = Arc::new(move |payload| seen.execute(payload));
    let mut raw = Raw::open(connect).await?;
    let consumers = raw.consume(PREFETCH, 1, &on_delivery).await?;
    let topology = crate::topology(connect).await?;
    let mut ticks = interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for index in 0..TASKS {
        ticks.tick().await;
        let note = ledger.note(index);
        let partition = topology.partition_of(&resource_name(note.resource));
        raw.publish(partition, &note.to_payload(), TASKS as usize).await?;
    }
    raw.flush().await?;
    ledger.complete().await;
    consumers.stop().await?;
    raw.close().await;
    Ok(())
}
