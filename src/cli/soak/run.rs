//! One soak: load, faults one after another, the finale, and the verdict.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Soak;
use super::faults;
use super::finale::{end_all, finale};
use super::fleet::{Fleet, Launch, Role};
use super::inbox::publish_to_inbox;
use super::judge::judge;
use super::load::{Load, Published, publish, resources};
use super::report::{FaultReport, Report};
use super::scene::{LOOK, Scene};
use super::schedule::{Chance, Fault, Schedule};
use super::truth::Truth;
use super::watch::Watch;
use super::wire::Wire;
use crate::provision::cluster::{Cluster, Node, Setup};
use crate::{Connect, Namespace, PartitionCount};

/// What has executed something in this time makes progress; a partition whose resources
/// have their turn less often may take three turns.
const LATELY: Duration = Duration::from_secs(2);

/// One of so many resources gets its tasks through the inbox, if there are routers.
const THROUGH_INBOX: usize = 4;

pub(super) struct Run<'a> {
    pub(super) soak: &'a Soak,
    pub(super) seed: u64,
    pub(super) setup: Setup,
    pub(super) cluster: &'a Cluster,
    /// For the ground truth and the logs.
    pub(super) directory: &'a Path,
    /// Tells what happens.
    pub(super) say: &'a dyn Fn(&str),
    /// Tells it on a terminal only, where it replaces what was told before.
    pub(super) show: &'a dyn Fn(&str),
}

impl Run<'_> {
    pub(super) async fn run(self) -> anyhow::Result<Report> {
        let sizes = self.soak.sizes();
        let heartbeat = Duration::from_secs(self.soak.heartbeat.as_secs().max(1));
        let nodes = self.cluster.nodes();
        let wire = match nodes {
            &[node] => Some(Wire::to(self.cluster.port(node)).await?),
            _ => None,
        };
        let connect = |&node| self.connect(wire.as_ref(), node, heartbeat);
        let connects: Vec<Connect> = nodes.iter().map(connect).collect::<Result<_, _>>()?;
        let count = PartitionCount::new(sizes.partitions).context("a number of partitions")?;
        let topology = crate::init(&connects[0], count).await?;
        let all = resources(&topology, sizes.resources)?;
        let turn = Duration::from_secs_f64(all.len() as f64 / sizes.rate);
        let watch = Watch::new(sizes.partitions, sizes.routers > 0, LATELY.max(turn * 3));
        let watch = Arc::new(watch);
        let launch = Launch {
            connects: connects.clone(),
            directory: self.directory.to_owned(),
            task_time: self.soak.task_time,
            excused_after: heartbeat,
        };
        let mut scene = Scene {
            cluster: self.cluster,
            wire,
            waits: self.setup.waits,
            heartbeat,
            connect: connects[0].clone(),
            topology,
            directory: self.directory.to_owned(),
            truth: Truth::new(self.directory, heartbeat),
            watch: Arc::clone(&watch),
            fleet: Fleet::new(launch, watch),
            workers: sizes.workers,
            routers: sizes.routers,
            chance: Chance::new(self.seed),
            confirmed: Arc::new(AtomicU64::new(0)),
            poison: 0,
            say: self.say,
            show: self.show,
        };
        for _ in 0..sizes.workers {
            scene.fleet.start(Role::Worker, None)?;
        }
        for _ in 0..sizes.routers {
            scene.fleet.start(Role::Router, None)?;
        }

        let stop = CancellationToken::new();
        let load = |number: usize, resources: &[_]| Load {
            connect: connects[number % connects.len()].clone(),
            resources: resources.to_vec(),
            rate: sizes.rate * resources.len() as f64 / all.len() as f64,
            stop: stop.clone(),
            confirmed: Arc::clone(&scene.confirmed),
        };
        let through_inbox = if sizes.routers > 0 { all.len() / THROUGH_INBOX } else { 0 };
        let (inbox, straight) = all.split_at(through_inbox);
        let mut producers = JoinSet::new();
        for (number, half) in (1..).zip(straight.chunks(straight.len().div_ceil(2).max(1))) {
            producers.spawn(publish(load(number, half)));
        }
        if !inbox.is_empty() {
            let load = load(0, inbox);
            producers.spawn(async move { Ok(publish_to_inbox(load, topology).await) });
        }

        scene.say("waiting until everything makes progress");
        let stuck = scene.recovered().await;
        anyhow::ensure!(stuck.is_empty(), "without any fault there is no progress: {stuck:?}");
        let faults = self.faults(&mut scene).await?;
        while scene.confirmed.load(Ordering::Relaxed) < sizes.tasks {
            scene.show("publishing");
            sleep(LOOK).await;
        }
        end_all(&mut scene, self.soak.end).await?;
        // Every partition has something for the fresh worker.
        sleep(turn.mul_f64(1.5)).await;
        stop.cancel();
        scene.say("waiting until everything is confirmed");
        let mut published = Published::default();
        while let Some(producer) = producers.join_next().await {
            published.add(producer??);
        }
        let finale = finale(&mut scene, &published, self.soak.finish_within).await?;
        judge(&scene, (self.seed, self.setup), faults, published, finale).await
    }

    fn connect(
        &self,
        wire: Option<&Wire>,
        first: Node,
        heartbeat: Duration,
    ) -> anyhow::Result<Connect> {
        let urls = wire.map_or_else(|| self.cluster.amqp_urls(first), Wire::amqp_url);
        let seconds = heartbeat.as_secs();
        let urls: Vec<_> =
            urls.split(',').map(|url| format!("{url}?heartbeat={seconds}")).collect();
        Ok(Connect::new(urls.join(","))?.with_namespace(Namespace::new("soak")?))
    }

    /// What stands still after a fault ends the faults: what comes next would show nothing.
    async fn faults(&self, scene: &mut Scene<'_>) -> anyhow::Result<Vec<FaultReport>> {
        let given = !self.soak.faults.is_empty();
        let mut schedule = match given {
            true => Schedule::Given(self.soak.faults.clone().into_iter()),
            false => Schedule::Random,
        };
        let end = Instant::now() + Duration::from_secs(60 * self.soak.minutes);
        let mut reports: Vec<FaultReport> = Vec::new();
        while given || Instant::now() < end {
            let Some(planned) = schedule.next(&mut scene.chance, self.soak.nodes) else {
                return Ok(reports);
            };
            let report = faults::inflict(scene, planned).await?;
            let stands = !report.stuck.is_empty();
            reports.push(report);
            if stands {
                return Ok(reports);
            }
        }
        // Whatever chance has brought, the cluster was once restarted as a whole.
        reports.push(faults::inflict(scene, Fault::Restart.into()).await?);
        Ok(reports)
    }
}
