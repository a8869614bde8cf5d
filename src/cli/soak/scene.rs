//! What runs while the faults come, and how long it is waited for.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::fleet::Fleet;
use super::schedule::Chance;
use super::truth::Truth;
use super::watch::{Stream, Watch};
use super::wire::Wire;
use super::worker::now_us;
use crate::provision::cluster::{Cluster, Node, Waits};
use crate::{Connect, Topology};

/// Beyond the waits of the brokers: for the clients, which try one node after
/// another, on a machine that is busy with everything else as well.
pub(super) const CLIENTS: Duration = Duration::from_secs(45);

/// What happened last is digested, and does not count for what comes next.
pub(super) const CALM: Duration = Duration::from_secs(3);

/// Pause between two looks at what changes by the second.
pub(super) const LOOK: Duration = Duration::from_millis(200);

/// What runs while the faults come.
pub(super) struct Scene<'a> {
    pub(super) cluster: &'a Cluster,
    /// Between the clients and a single broker.
    pub(super) wire: Option<Wire>,
    pub(super) waits: Waits,
    pub(super) heartbeat: Duration,
    pub(super) connect: Connect,
    pub(super) topology: Topology,
    /// For the ground truth and the logs.
    pub(super) directory: PathBuf,
    pub(super) truth: Truth,
    pub(super) watch: Arc<Watch>,
    pub(super) fleet: Fleet,
    /// How many workers and routers there are between two faults.
    pub(super) workers: usize,
    pub(super) routers: usize,
    pub(super) chance: Chance,
    /// Confirmed tasks so far.
    pub(super) confirmed: Arc<AtomicU64>,
    /// Poison that was published.
    pub(super) poison: u64,
    /// Tells what happens.
    pub(super) say: &'a dyn Fn(&str),
    /// Tells it on a terminal only, where it replaces what was told before.
    pub(super) show: &'a dyn Fn(&str),
}

impl Scene<'_> {
    pub(super) fn say(&self, what: &str) {
        (self.say)(&self.with_tasks(what));
    }

    pub(super) fn show(&self, what: &str) {
        (self.show)(&self.with_tasks(what));
    }

    fn with_tasks(&self, what: &str) -> String {
        format!("{what} ({} tasks so far)", self.confirmed.load(Ordering::Relaxed))
    }

    /// The names of the partitions' queues.
    pub(super) fn partitions(&self) -> Vec<String> {
        let name = |partition| self.connect.namespace().partition(&self.topology, partition);
        self.topology.partitions().map(name).collect()
    }

    /// How long the brokers need for noticing that a node and its consumers are lost.
    pub(super) fn noticed(&self) -> Duration {
        match self.cluster.nodes() {
            // A single one has only clients to lose, and waits for two heartbeats, or three.
            [_] => self.heartbeat * 3,
            _ => self.waits.net_ticktime.mul_f64(1.25) + self.waits.consumer_disconnected,
        }
    }

    /// Waits until everything makes progress, and goes on doing so; gives what does not
    /// when that takes longer than any of the waits involved explains.
    pub(super) async fn recovered(&self) -> BTreeSet<Stream> {
        let deadline = Instant::now() + self.noticed() + CLIENTS;
        let mut steady = Instant::now();
        loop {
            let stuck = self.watch.stuck(now_us());
            if !stuck.is_empty() {
                steady = Instant::now();
            }
            if steady.elapsed() >= CALM || Instant::now() > deadline {
                return stuck;
            }
            sleep(LOOK).await;
        }
    }

    /// Leader of a partition by chance: a node that leads many is met more often.
    pub(super) fn any_leader(&mut self, leaders: &[Node]) -> Node {
        match leaders {
            [] => Node::ALL[0],
            leaders => self.chance.pick(leaders),
        }
    }
}
