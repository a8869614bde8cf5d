//! One soak: load, faults one after another, and the verdict.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Soak;
use super::fleet::Fleet;
use super::load::{Published, publish, resources};
use super::report::{FaultReport, Report};
use super::schedule::{Chance, Fault, Schedule};
use super::truth::Truth;
use super::watch::Watch;
use super::worker::now_us;
use crate::provision::cluster::{Cluster, Node, Waits};
use crate::{Connect, Namespace, PartitionCount, Topology};

/// Several for each worker and each node.
const PARTITIONS: u32 = 12;

/// The shortest fault: longer than an election, and than a worker's lease.
const SHORTEST: Duration = Duration::from_secs(15);

/// Beyond the waits of the brokers: for the clients, which try one node after
/// another, on a machine that is busy with everything else as well.
const CLIENTS: Duration = Duration::from_secs(45);

/// What happened last is digested, and does not count for what comes next.
const CALM: Duration = Duration::from_secs(3);

/// Progress that has not come back by then is not going to.
const PATIENCE: Duration = Duration::from_secs(300);

/// Pause between two looks at what changes by the second.
const LOOK: Duration = Duration::from_millis(200);

pub(super) struct Run<'a, S> {
    pub(super) soak: &'a Soak,
    pub(super) seed: u64,
    pub(super) cluster: &'a Cluster,
    /// For the ground truth and the logs.
    pub(super) directory: &'a Path,
    pub(super) say: &'a S,
}

/// What runs while the faults come.
struct Scene {
    connect: Connect,
    topology: Topology,
    truth: Truth,
    watch: Arc<Watch>,
    fleet: Fleet,
    chance: Chance,
    /// Restarts of a queue's server.
    cured: usize,
}

impl<S: Fn(&str)> Run<'_, S> {
    pub(super) async fn run(self, waits: Waits) -> anyhow::Result<Report> {
        let namespace = Namespace::new("soak")?;
        let connect = |first: Node| -> anyhow::Result<Connect> {
            let urls = self.cluster.amqp_urls(first);
            let seconds = self.soak.heartbeat.as_secs().max(1);
            let urls: Vec<_> =
                urls.split(',').map(|url| format!("{url}?heartbeat={seconds}")).collect();
            Ok(Connect::new(urls.join(","))?.with_namespace(namespace.clone()))
        };
        let [first, second, third] = Node::ALL;
        let count = PartitionCount::new(PARTITIONS).context("a number of partitions")?;
        let topology = crate::init(&connect(first)?, count).await?;
        let watch = Arc::new(Watch::new(PARTITIONS));
        let mut fleet = Fleet::new(Arc::clone(&watch));
        for node in Node::ALL {
            fleet.join(&connect(node)?, self.directory, self.soak.task_time)?;
        }
        let all = resources(&topology)?;
        let (stop, mut producers) = (CancellationToken::new(), JoinSet::new());
        for (node, half) in [second, third].into_iter().zip(all.chunks(all.len().div_ceil(2))) {
            producers.spawn(publish(connect(node)?, half.to_vec(), stop.clone()));
        }
        let (connect, truth) = (connect(first)?, Truth::new(self.directory));
        let chance = Chance::new(self.seed);
        let mut scene = Scene { connect, topology, truth, watch, fleet, chance, cured: 0 };
        self.recovered(&mut scene, "the start", waits).await?;

        let faults = self.faults(&mut scene, waits).await?;

        (self.say)("waiting until everything is executed");
        stop.cancel();
        let mut published = Published::default();
        while let Some(producer) = producers.join_next().await {
            published.add(producer??);
        }
        let lost = self.lost(&mut scene, &published, waits).await?;
        let dead = crate::status(&scene.connect).await?.dead;
        let Scene { connect, truth, watch, fleet, cured, .. } = scene;
        fleet.end().await?;
        (self.say)("verifying the journal");
        let (journal, findings) = crate::verify(&connect, None, Duration::ZERO).await?;
        Ok(Report {
            seed: self.seed,
            net_ticktime_s: waits.net_ticktime.as_secs(),
            consumer_disconnected_s: waits.consumer_disconnected.as_secs(),
            heartbeat_s: self.soak.heartbeat.as_secs().max(1),
            faults,
            tasks: published.total(),
            republished: published.republished,
            refused: published.refused,
            counts: watch.counts(),
            workers: watch.ends(),
            violations: truth.violations()?,
            lost,
            cured,
            dead,
            journal,
            findings,
        })
    }

    async fn faults(&self, scene: &mut Scene, waits: Waits) -> anyhow::Result<Vec<FaultReport>> {
        let given = !self.soak.faults.is_empty();
        let mut schedule = match given {
            true => Schedule::Given(self.soak.faults.clone().into_iter()),
            false => Schedule::Random,
        };
        let end = Instant::now() + Duration::from_secs(60 * self.soak.minutes);
        let mut reports = Vec::new();
        while given || Instant::now() < end {
            let Some(fault) = schedule.next(&mut scene.chance) else { return Ok(reports) };
            reports.push(self.fault(scene, fault, waits).await?);
        }
        // Whatever chance has brought, the cluster was once restarted as a whole.
        reports.push(self.fault(scene, Fault::Restart, waits).await?);
        Ok(reports)
    }

    async fn fault(
        &self,
        scene: &mut Scene,
        fault: Fault,
        waits: Waits,
    ) -> anyhow::Result<FaultReport> {
        sleep(CALM).await;
        let (counts, violations) = (scene.watch.counts(), scene.truth.violations()?.len());
        let cured = scene.cured;
        let queues = self.cluster.replicas(Node::ALL[0]).await?;
        let namespace = scene.connect.namespace().clone();
        // The leader of a partition by chance: a node that leads many is met more often.
        let number = scene.chance.below(PARTITIONS as usize);
        let leader = |queue: &str| queues.get(queue).and_then(|replicas| replicas.leader);
        let leaders: Vec<_> = scene
            .topology
            .partitions()
            .filter_map(|p| leader(&namespace.partition(&scene.topology, p)))
            .collect();
        let node = *leaders.get(number).context("a partition without a leader")?;
        let (began, began_us) = (Instant::now(), now_us());
        scene.watch.begin(began_us);
        let survived = match fault.of_node() {
            None => {
                (self.say)("restarting all nodes");
                self.cluster.stop_all().await?;
                self.cluster.start_all().await?;
                false
            }
            Some(of_node) => {
                (self.say)(&format!("{} {node}", fault.name()));
                self.cluster.inflict(of_node, node).await?;
                let survived = self.hold(scene, fault, waits).await?;
                self.cluster.heal(of_node, node).await?;
                survived
            }
        };
        let held_ms = began.elapsed().as_millis() as u64;
        let restart = fault.of_node().is_none();
        let what =
            format!("{} {}", fault.name(), if restart { "all".into() } else { node.to_string() });
        (self.say)(&format!("{what}: waiting until the cluster is whole"));
        self.cluster.whole().await?;
        self.recovered(scene, &what, waits).await?;
        Ok(FaultReport {
            fault,
            node: (!restart).then(|| node.to_string()),
            led: leaders.iter().filter(|leader| restart || **leader == node).count(),
            led_journal: restart || leader(&namespace.journal()) == Some(node),
            held_ms,
            survived,
            pause_ms: scene.watch.pauses(now_us()),
            cured: scene.cured - cured,
            counts: scene.watch.counts().since(counts),
            violations: scene.truth.violations()?.len() - violations,
        })
    }

    /// Keeps a fault up until all partitions make progress in spite of it. One that
    /// clients may not notice lasts for as long as the brokers need to.
    async fn hold(&self, scene: &mut Scene, fault: Fault, waits: Waits) -> anyhow::Result<bool> {
        let noticed = noticed(waits);
        let began = Instant::now();
        let least = if fault == Fault::Split { noticed + SHORTEST } else { SHORTEST };
        loop {
            scene.fleet.check()?;
            let survived = scene.watch.progresses(now_us());
            if began.elapsed() >= least && survived {
                return Ok(true);
            }
            if began.elapsed() >= noticed + CLIENTS {
                return Ok(false);
            }
            sleep(LOOK).await;
        }
    }

    /// Waits until all partitions make progress, and goes on doing so.
    async fn recovered(&self, scene: &mut Scene, after: &str, waits: Waits) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let (mut steady, mut cure) = (Instant::now(), Cure::new(waits));
        while steady.elapsed() < CALM {
            scene.fleet.check()?;
            let stuck = scene.watch.stuck(now_us());
            if !stuck.is_empty() {
                steady = Instant::now();
                self.cure(scene, &mut cure, &stuck).await?;
            }
            if Instant::now() > deadline {
                bail!("no progress {PATIENCE:?} after {after}: partitions {stuck:?} stand still");
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Does, after a while, what an operator does about partitions that the broker hands
    /// to nobody. What a worker holds is not touched: that is for keylane to end.
    async fn cure(
        &self,
        scene: &mut Scene,
        cure: &mut Cure,
        stuck: &BTreeSet<u32>,
    ) -> anyhow::Result<()> {
        if Instant::now() < cure.next {
            return Ok(());
        }
        cure.next = Instant::now() + cure.pause;
        let status = crate::status(&scene.connect).await?;
        for look in status.looks().filter(|look| stuck.contains(&look.partition.number())) {
            let queue = scene.connect.namespace().partition(&scene.topology, look.partition);
            if look.holder.is_some() || look.answering.is_empty() || !look.consumed {
                (self.say)(&format!("{queue} stands still: {look:?}"));
                continue;
            }
            (self.say)(&format!("{queue} is handed to nobody: restarting its server"));
            self.cluster.restart_leader(&queue).await?;
            scene.cured += 1;
        }
        Ok(())
    }

    /// Waits until all that was confirmed is executed; gives what is not.
    async fn lost(
        &self,
        scene: &mut Scene,
        published: &Published,
        waits: Waits,
    ) -> anyhow::Result<Vec<String>> {
        let deadline = Instant::now() + PATIENCE;
        let mut cure = Cure::new(waits);
        loop {
            scene.fleet.check()?;
            let (mut missing, mut stuck) = (Vec::new(), BTreeSet::new());
            for (resource, confirmed) in &published.confirmed {
                let executed = scene.truth.executed(resource.as_str())?;
                if executed < *confirmed {
                    missing.push(format!("{resource}: {executed} of {confirmed} executed"));
                    stuck.insert(scene.topology.partition_of(resource).number());
                }
            }
            if missing.is_empty() || Instant::now() > deadline {
                return Ok(missing);
            }
            // Whoever goes on needs no cure.
            stuck.retain(|partition| scene.watch.stuck(now_us()).contains(partition));
            self.cure(scene, &mut cure, &stuck).await?;
            sleep(LOOK).await;
        }
    }
}

/// When a partition that stands still may be taken for one that the broker forgot.
struct Cure {
    next: Instant,
    /// A cure may have to be repeated.
    pause: Duration,
}

impl Cure {
    fn new(waits: Waits) -> Self {
        Self { next: Instant::now() + noticed(waits) + CLIENTS, pause: CLIENTS }
    }
}

/// How long the brokers need for noticing that a node and its consumers are lost.
fn noticed(waits: Waits) -> Duration {
    waits.net_ticktime.mul_f64(1.25) + waits.consumer_disconnected
}
