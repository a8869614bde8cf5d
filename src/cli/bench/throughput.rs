//! Durable publish, routed, executed by a handler that does nothing, acked: as
//! many as possible. keylane with its journal and without, with its metrics read, and
//! two raw loops, in turn.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_lite::{StreamExt, stream};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::ledger::Ledger;
use super::{Bench, median, resource_name, started_worker};
use crate::rabbit::raw::{OnDelivery, Raw};
use crate::{
    Connect, Metrics, MetricsError, Producer, ProducerOptions, Task, Topology, WorkerOptions,
    handler_fn,
};

/// Tasks that are published and not confirmed, for everybody.
const IN_FLIGHT: usize = 1_000;
/// Deliveries of one partition that a consumer holds, for everybody.
pub(super) const PREFETCH: u16 = 256;
/// Deliveries that the coalescing loop acks as one.
const ACK_EVERY: u64 = 64;
/// Before every measurement.
const REST: Duration = Duration::from_millis(500);
/// Distinct resources.
const RESOURCES: u32 = 1_000;

/// Tasks per second, the median of all rounds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Throughput {
    pub(super) keylane: f64,
    pub(super) no_journal: f64,
    pub(super) metrics: f64,
    pub(super) raw_single: f64,
    pub(super) raw_coalesced: f64,
    /// keylane's share of the raw loop with an ack per message.
    pub(super) ratio_single: f64,
    /// keylane's share of the raw loop with coalesced acks.
    pub(super) ratio_coalesced: f64,
    /// Its share of keylane without a journal.
    pub(super) ratio_journal: f64,
    /// Share of keylane that it has when its metrics are read every second.
    pub(super) ratio_metrics: f64,
    pub(super) rounds: u32,
    pub(super) tasks: u64,
}

pub(super) async fn run(
    bench: &Bench,
    connect: &Connect,
    progress: &ProgressBar,
) -> anyhow::Result<(Throughput, u64)> {
    let (mut keylane, mut no_journal, mut metrics) = (Vec::new(), Vec::new(), Vec::new());
    let (mut single, mut coalesced) = (Vec::new(), Vec::new());
    let mut violations = 0;
    // One unmeasured round warms the broker and the allocator up.
    for round in 0..=bench.rounds {
        for turn in 0..5 {
            // Back and forth, so that nobody always follows the same one; and with a rest,
            // since the broker still writes when the last ack has come.
            let turn = if round % 2 == 0 { turn } else { 4 - turn };
            let who = (round + turn) % 5;
            tokio::time::sleep(REST).await;
            progress.set_message(format!("throughput, round {round} of {}", bench.rounds));
            let (seconds, found) = match who {
                0 => ours(bench, connect, Variant::Usual).await?,
                1 => ours(bench, connect, Variant::NoJournal).await?,
                2 => ours(bench, connect, Variant::Metrics).await?,
                3 => raw(bench, connect, 1).await?,
                _ => raw(bench, connect, ACK_EVERY).await?,
            };
            violations += found;
            if round > 0 {
                let rates = match who {
                    0 => &mut keylane,
                    1 => &mut no_journal,
                    2 => &mut metrics,
                    3 => &mut single,
                    _ => &mut coalesced,
                };
                rates.push(bench.tasks as f64 / seconds);
            }
        }
    }
    let ratio = |a: &[f64], b: &[f64]| median(a.iter().zip(b).map(|(a, b)| a / b).collect());
    let throughput = Throughput {
        ratio_single: ratio(&keylane, &single),
        ratio_coalesced: ratio(&keylane, &coalesced),
        ratio_journal: ratio(&keylane, &no_journal),
        ratio_metrics: ratio(&metrics, &keylane),
        keylane: median(keylane),
        no_journal: median(no_journal),
        metrics: median(metrics),
        raw_single: median(single),
        raw_coalesced: median(coalesced),
        rounds: bench.rounds,
        tasks: bench.tasks,
    };
    Ok((throughput, violations))
}

/// How keylane works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Usual,
    NoJournal,
    /// Its metrics are read every second, which is more often than usual.
    Metrics,
}

async fn ours(bench: &Bench, connect: &Connect, variant: Variant) -> anyhow::Result<(f64, u64)> {
    let ledger = Arc::new(Ledger::new(RESOURCES, bench.tasks, false));
    let seen = Arc::clone(&ledger);
    let handler = handler_fn(move |attempt| {
        seen.execute(&attempt.task.payload);
        std::future::ready(Ok(()))
    });
    let shutdown = CancellationToken::new();
    let metrics = (variant == Variant::Metrics).then(|| Metrics::new().with_hot_resources(10));
    let reading = metrics.clone().map(|metrics| tokio::spawn(read(metrics)));
    let options = WorkerOptions {
        slots: 64,
        journal: variant != Variant::NoJournal,
        metrics: metrics.clone(),
        ..WorkerOptions::default()
    };
    let worker = started_worker(connect, options, handler, shutdown.clone()).await?;
    let options =
        ProducerOptions { max_in_flight: IN_FLIGHT, metrics, ..ProducerOptions::default() };
    let producer = Producer::open(connect, options).await?;

    let began = Instant::now();
    let tasks = stream::iter(0..bench.tasks).map(|index| {
        let note = ledger.note(index);
        Task::on(resource_name(note.resource), note.to_payload())
    });
    let mut published = Box::pin(producer.publish_all(tasks));
    while let Some(done) = published.next().await {
        done.outcome?;
    }
    ledger.complete().await;
    let seconds = began.elapsed().as_secs_f64();

    drop(published);
    producer.close().await;
    shutdown.cancel();
    worker.await.context("the worker panicked")??;
    reading.into_iter().for_each(|reading| reading.abort());
    Ok((seconds, ledger.violations()))
}

async fn read(metrics: Metrics) -> Result<(), MetricsError> {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        metrics.render()?;
    }
}

async fn raw(bench: &Bench, connect: &Connect, ack_every: u64) -> anyhow::Result<(f64, u64)> {
    let ledger = Arc::new(Ledger::new(RESOURCES, bench.tasks, false));
    let seen = Arc::clone(&ledger);
    let on_delivery: OnDelivery = Arc::new(move |payload| seen.execute(payload));
    let mut raw = Raw::open(connect).await?;
    let consumers = raw.consume(PREFETCH, ack_every, &on_delivery).await?;
    let topology: Topology = crate::topology(connect).await?;

    let began = Instant::now();
    for index in 0..bench.tasks {
        let note = ledger.note(index);
        let partition = topology.partition_of(&resource_name(note.resource));
        raw.publish(partition, &note.to_payload(), IN_FLIGHT).await?;
    }
    raw.flush().await?;
    ledger.complete().await;
    let seconds = began.elapsed().as_secs_f64();

    consumers.stop().await?;
    raw.close().await;
    Ok((seconds, ledger.violations()))
}
