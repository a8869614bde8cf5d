//! The figures as Prometheus has them. What each means stands in `docs/metrics.md`, too.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use prometheus::core::{Collector, Desc};
use prometheus::proto::{LabelPair, MetricFamily};
use prometheus::{GaugeVec, IntCounterVec, Opts, Registry, TextEncoder};

use super::{Figures, Metrics, PartitionFigures, PublishFigures, WorkerFigures};
use crate::rabbit::journal::JournalFigures;

impl Metrics {
    /// The figures of this moment in Prometheus' text format.
    ///
    /// # Errors
    /// [`MetricsError`] never comes of what keylane counts.
    pub fn render(&self) -> Result<String, MetricsError> {
        let registry = Registry::new();
        registry.register(Box::new(self.clone()))?;
        Ok(TextEncoder::new().encode_to_string(&registry.gather())?)
    }
}

/// The figures cannot be rendered.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct MetricsError(#[from] prometheus::Error);

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.figures.worker.latency.collector().desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Figures { namespace, worker, journal, publish } = &*self.figures;
        let mut families = Families::default();
        if let Some([name, namespace]) = worker.info.get() {
            families.worker(name, namespace, worker);
            families.hot_resources(worker, self.hot_resources);
        }
        if let Some(journal) = journal.get() {
            families.journal(journal);
        }
        if let Some(figures) = publish.get() {
            families.publish(figures);
        }
        if let Some(namespace) = namespace.get() {
            families.0.iter_mut().for_each(|family| label(family, namespace));
        }
        families.0
    }
}

/// Two namespaces that one Prometheus watches must not hide one another.
fn label(family: &mut MetricFamily, namespace: &str) {
    for metric in family.mut_metric() {
        if metric.get_label().iter().any(|label| label.name() == "namespace") {
            continue;
        }
        let mut label = LabelPair::default();
        label.set_name("namespace".to_owned());
        label.set_value(namespace.to_owned());
        let mut labels = metric.take_label();
        labels.push(label);
        labels.sort();
        metric.set_label(labels);
    }
}

#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    fn worker(&mut self, name: &str, namespace: &str, worker: &WorkerFigures) {
        self.gauge(
            "keylane_worker_info",
            "Which worker this is; the value is 1.",
            ["worker", "namespace", "version"],
            [([name, namespace, env!("CARGO_PKG_VERSION")], 1.0)],
        );
        self.gauge(
            "keylane_slots",
            "Tasks that the worker runs at once, at the most.",
            [],
            [([], f64::from(worker.slots.load(Relaxed)))],
        );
        let since_us = worker.oldest_since_us.load(Relaxed);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let age = Duration::from_micros(since_us);
        let age_s = if since_us == 0 { 0.0 } else { now.saturating_sub(age).as_secs_f64() };
        let timeout_s = worker.oldest_timeout_ms.load(Relaxed) as f64 / 1e3;
        let ratio = if timeout_s > 0.0 { age_s / timeout_s } else { 0.0 };
        self.gauge(
            "keylane_longest_running_seconds",
            "For how long the task has run that has been running for longest; 0 if none runs.",
            [],
            [([], age_s)],
        );
        self.gauge(
            "keylane_longest_running_timeout_ratio",
            "The same as a share of the time after which that task is given up; 0 if it never is.",
            [],
            [([], ratio)],
        );
        self.gauge(
            "keylane_connected",
            "1 while the worker is connected to the broker and consumes, else 0.",
            [],
            [([], f64::from(u8::from(worker.health.is_connected())))],
        );
        self.gauge(
            "keylane_handler_unavailable",
            "1 while whatever executes the tasks is out of reach, and nothing starts; else 0.",
            [],
            [([], f64::from(u8::from(worker.health.unavailable().is_some())))],
        );
        self.counter(
            "keylane_tasks_total",
            "Tasks that are done with: executed, dead-lettered, suppressed because they had been \
             settled before their owner was lost, or superseded by another copy.",
            ["outcome"],
            [
                (["executed"], &worker.executed),
                (["dead_lettered"], &worker.dead_lettered),
                (["suppressed"], &worker.suppressed),
                (["superseded"], &worker.superseded),
            ]
            .map(|(outcome, counter)| (outcome, counter.load(Relaxed))),
        );
        self.counter(
            "keylane_attempts_total",
            "Attempts at tasks: executed, failed (the handler's retry included), aborted because \
             the partition was lost or the drain took too long, or never begun because the handler \
             or the fencing token was unavailable.",
            ["outcome"],
            [
                (["executed"], &worker.executed),
                (["failed"], &worker.failed),
                (["aborted"], &worker.aborted),
                (["unavailable"], &worker.refused),
            ]
            .map(|(outcome, counter)| (outcome, counter.load(Relaxed))),
        );
        for (name, help, counter) in [
            ("keylane_retries_total", "Attempts after a task's first one here.", &worker.retries),
            (
                "keylane_redeliveries_total",
                "Deliveries that an owner, this one or another, had held before.",
                &worker.redelivered,
            ),
            (
                "keylane_reconnects_total",
                "How often the broker was lost and tried again.",
                &worker.reconnects,
            ),
            (
                "keylane_epochs_minted_total",
                "Epochs minted for fencing tokens, one for each stretch of ownership in which a \
                 handler asked.",
                &worker.epochs,
            ),
        ] {
            self.counter(name, help, [], [([], counter.load(Relaxed))]);
        }
        self.counter(
            "keylane_ownership_changes_total",
            "Partitions that became this worker's, that it gave up in order, and that it lost \
             with its channel or its connection.",
            ["change"],
            [
                (["gained"], &worker.partitions_gained),
                (["given_up"], &worker.partitions_given_up),
                (["lost"], &worker.partitions_lost),
            ]
            .map(|(change, counter)| (change, counter.load(Relaxed))),
        );
        self.0.extend(worker.latency.collector().collect());
        self.0.extend(worker.handling.collector().collect());
        let partitions = worker.partitions.get().map_or(&[][..], Vec::as_slice);
        self.partitions(partitions, worker.spilled.load(Relaxed));
    }

    fn partitions(&mut self, partitions: &[PartitionFigures], spilled: u64) {
        let sum = |read: fn(&PartitionFigures) -> u32| {
            let sum: u64 = partitions.iter().map(|partition| u64::from(read(partition))).sum();
            [([], sum as f64)]
        };
        self.gauge(
            "keylane_held_tasks",
            "Deliveries that the worker holds and has not settled.",
            [],
            sum(|partition| partition.unsettled.load(Relaxed)),
        );
        self.gauge(
            "keylane_running_tasks",
            "Tasks that run now.",
            [],
            sum(|partition| partition.running.load(Relaxed)),
        );
        self.gauge(
            "keylane_lanes",
            "Resources that the worker holds deliveries of; no more tasks than these can run.",
            [],
            sum(|partition| partition.lanes.load(Relaxed)),
        );
        self.gauge(
            "keylane_owned_partitions",
            "Partitions that the worker has been handed a delivery of since it took them.",
            [],
            sum(|partition| u32::from(partition.owned.load(Relaxed))),
        );
        self.gauge(
            "keylane_spilled_bytes",
            "Payloads that wait for their turn on disk, since too much is held in memory.",
            [],
            [([], spilled as f64)],
        );
        // A partition that was never this worker's has no series.
        let touched = |partition: &&PartitionFigures| {
            partition.owned.load(Relaxed) || partition.executed.load(Relaxed) > 0
        };
        let touched: Vec<_> = partitions.iter().filter(touched).collect();
        self.counter(
            "keylane_partition_executed_total",
            "Tasks executed, by partition.",
            ["partition"],
            touched.iter().map(|p| ([p.name.as_str()], p.executed.load(Relaxed))),
        );
        self.gauge(
            "keylane_partition_held_tasks",
            "Deliveries that the worker holds and has not settled, by partition.",
            ["partition"],
            touched.iter().map(|p| ([p.name.as_str()], f64::from(p.unsettled.load(Relaxed)))),
        );
        let looked_at = partitions.iter().filter(|p| p.ready_is_known.load(Relaxed));
        self.gauge(
            "keylane_partition_ready_tasks",
            "Tasks of a partition that wait on the broker: seen every 5 s by its owner, and \
             every minute by the other workers.",
            ["partition"],
            looked_at.map(|p| ([p.name.as_str()], f64::from(p.ready.load(Relaxed)))),
        );
    }

    fn hot_resources(&mut self, worker: &WorkerFigures, most: usize) {
        let load = worker.load(usize::MAX);
        let (attempts, handler_us) = (load.attempts.max(1.0), load.handler_us.max(1.0));
        let window_us = load.window_us.max(1.0);
        let most_of = |shares: &mut dyn Iterator<Item = f64>| [([], shares.fold(0.0, f64::max))];
        let all = &load.resources;
        self.gauge(
            "keylane_hottest_resource_attempts_ratio",
            "Share of one resource in the worker's attempts of the last one to two minutes: the \
             largest.",
            [],
            most_of(&mut all.iter().map(|load| load.attempts / attempts)),
        );
        self.gauge(
            "keylane_hottest_resource_handler_time_ratio",
            "Share of one resource in the time of the worker's handlers of the last one to two \
             minutes: the largest.",
            [],
            most_of(&mut all.iter().map(|load| load.handler_us / handler_us)),
        );
        let busy = |handler_us: f64| (handler_us / window_us).min(1.0);
        self.gauge(
            "keylane_hottest_resource_busy_ratio",
            "Share of the last one to two minutes in which a handler worked on one resource: the \
             largest. At 1 it cannot take more tasks than it does.",
            [],
            most_of(&mut all.iter().map(|load| busy(load.handler_us))),
        );
        let named = || all.iter().take(most);
        self.gauge(
            "keylane_hot_resource_attempts_ratio",
            "Share of a resource in the worker's attempts of the last one to two minutes. Only \
             when it is asked for.",
            ["resource"],
            named().map(|load| ([load.resource.as_str()], load.attempts / attempts)),
        );
        self.gauge(
            "keylane_hot_resource_busy_ratio",
            "Share of the last one to two minutes in which a handler worked on a resource. Only \
             when it is asked for.",
            ["resource"],
            named().map(|load| ([load.resource.as_str()], busy(load.handler_us))),
        );
    }

    fn journal(&mut self, journal: &JournalFigures) {
        for (name, help, counter) in [
            (
                "keylane_journal_batches_total",
                "Batches of records that the broker has confirmed.",
                &journal.batches,
            ),
            (
                "keylane_journal_records_total",
                "Records of attempts that the broker has confirmed.",
                &journal.records,
            ),
            (
                "keylane_journal_records_lost_total",
                "Records that were given up because the broker took none for too long.",
                &journal.given_up,
            ),
            (
                "keylane_journal_late_records_total",
                "Records that came later than their acks may have been sent.",
                &journal.late,
            ),
        ] {
            self.counter(name, help, [], [([], counter.load(Relaxed))]);
        }
        self.gauge(
            "keylane_journal_lag_seconds",
            "For how long the oldest record has waited for the broker's confirm.",
            [],
            [([], journal.lag().as_secs_f64())],
        );
        self.gauge(
            "keylane_journal_stalled",
            "1 while the broker takes no records and tasks are acked without one.",
            [],
            [([], f64::from(u8::from(journal.stalled.load(Relaxed))))],
        );
    }

    fn publish(&mut self, figures: &PublishFigures) {
        self.counter(
            "keylane_published_total",
            "Tasks that were published or forwarded, by what became of it.",
            ["outcome"],
            [
                (["confirmed"], &figures.confirmed),
                (["indeterminate"], &figures.indeterminate),
                (["invalid"], &figures.invalid),
                (["nacked"], &figures.nacked),
                (["not_sent"], &figures.not_sent),
                (["too_large"], &figures.too_large),
                (["unroutable"], &figures.unroutable),
            ]
            .map(|(outcome, counter)| (outcome, counter.load(Relaxed))),
        );
        self.gauge(
            "keylane_publish_in_flight",
            "Tasks that were sent and not answered.",
            [],
            [([], figures.in_flight.load(Relaxed) as f64)],
        );
        self.0.extend(figures.latency.collector().collect());
    }

    fn counter<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&str; N],
        samples: impl IntoIterator<Item = ([&'a str; N], u64)>,
    ) {
        let family = ours(IntCounterVec::new(Opts::new(name, help), &labels));
        for (labels, value) in samples {
            family.with_label_values(&labels).inc_by(value);
        }
        self.0.extend(family.collect());
    }

    fn gauge<'a, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        labels: [&str; N],
        samples: impl IntoIterator<Item = ([&'a str; N], f64)>,
    ) {
        let family = ours(GaugeVec::new(Opts::new(name, help), &labels));
        for (labels, value) in samples {
            family.with_label_values(&labels).set(value);
        }
        self.0.extend(family.collect());
    }
}

/// Only a name or a label that is none would be an error.
fn ours<T>(made: Result<T, impl fmt::Display>) -> T {
    made.unwrap_or_else(|error| unreachable!("{error}"))
}
