//! How every soak ends: all workers end, the broker has nothing left of them, and one
//! fresh worker alone executes everything that is left.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::End;
use super::brokers::{Queue, Queues, look};
use super::fleet::Role;
use super::load::Published;
use super::scene::{LOOK, Scene};

/// For a queue that has lost its consumers to count them no more, beyond what the brokers
/// wait for.
const SETTLE: Duration = Duration::from_secs(20);

/// Between two looks with the broker's tools.
const PAUSE: Duration = Duration::from_secs(2);

/// What was found in the end.
#[derive(Debug, Default, Serialize)]
pub(super) struct Finale {
    /// Partitions, and the inbox, that have consumers although nobody lives.
    pub(super) with_consumers: usize,
    /// Consumers that they have.
    pub(super) consumers: u64,
    /// Partitions, and the inbox, with messages that are delivered to nobody who lives.
    pub(super) with_unacked: usize,
    /// Messages of that kind.
    pub(super) unacked: u64,
    /// Queues that have no leader.
    pub(super) leaderless: Vec<String>,
    /// How long it took until nothing of that was left, or was waited for.
    pub(super) settled_s: f64,
    /// Tasks that were confirmed and not executed, before the fresh worker was started.
    pub(super) left_before: u64,
    /// Those after it.
    pub(super) left_after: u64,
    /// How long the fresh worker took; `None` if it was not done in time.
    pub(super) fresh_s: Option<f64>,
    /// What partitions and inbox have, by their queues, when the fresh worker has left.
    pub(super) remains: BTreeMap<String, Queue>,
}

impl Finale {
    pub(super) fn is_ok(&self) -> bool {
        self.with_consumers == 0
            && self.with_unacked == 0
            && self.leaderless.is_empty()
            && self.left_after == 0
            && self.fresh_s.is_some()
            && self.remains.is_empty()
    }
}

/// Ends everybody, under load.
pub(super) async fn end_all(scene: &mut Scene<'_>, end: End) -> anyhow::Result<()> {
    scene.say("ending all workers");
    let mut kills = scene.chance.below(2) as u32;
    let drains = |_: &str| match end {
        End::Drain => true,
        End::Kill => false,
        End::Both => {
            kills += 1;
            kills.is_multiple_of(2)
        }
    };
    scene.fleet.end(drains).await
}

/// Asks the broker what is left of the workers, and has one fresh worker execute what is
/// left of the tasks, within `patience`.
pub(super) async fn finale(
    scene: &mut Scene<'_>,
    published: &Published,
    patience: Duration,
) -> anyhow::Result<Finale> {
    let mut finale = Finale::default();
    let began = Instant::now();
    loop {
        let queues = of_work(scene, look(scene.cluster).await?);
        finale.count(&queues);
        finale.settled_s = began.elapsed().as_secs_f64();
        if finale.is_settled() || began.elapsed() > scene.noticed() + SETTLE {
            break;
        }
        scene.say(&format!(
            "nobody lives: {} consumers and {} messages that they hold are left",
            finale.consumers, finale.unacked
        ));
        sleep(PAUSE).await;
    }
    finale.left_before = left(scene, published)?;
    finale.left_after = finale.left_before;
    scene.say(&format!("a fresh worker has {} tasks to execute", finale.left_before));
    let began = Instant::now();
    // What is judged is whether it gets everything, not how long a task takes.
    scene.fleet.hurry();
    scene.fleet.start(Role::Worker, None)?;
    if scene.routers > 0 {
        scene.fleet.start(Role::Router, None)?;
    }
    while began.elapsed() <= patience {
        finale.left_after = left(scene, published)?;
        if finale.left_after == 0 {
            finale.fresh_s = Some(began.elapsed().as_secs_f64());
            break;
        }
        sleep(LOOK).await;
    }
    scene.fleet.end(|_| true).await?;
    let began = Instant::now();
    loop {
        let queues = of_work(scene, look(scene.cluster).await?);
        let some = queues.into_iter().map(|(name, queue)| (name, queue.unwrap_or_default()));
        finale.remains = some.filter(|(_, queue)| *queue != Queue::default()).collect();
        if finale.remains.is_empty() || began.elapsed() > SETTLE {
            return Ok(finale);
        }
        sleep(PAUSE).await;
    }
}

impl Finale {
    fn count(&mut self, queues: &Queues) {
        let with = |of: fn(&Queue) -> u64| queues.values().flatten().map(of).filter(|n| *n > 0);
        self.with_consumers = with(|queue| queue.consumers).count();
        self.consumers = with(|queue| queue.consumers).sum();
        self.with_unacked = with(|queue| queue.unacked).count();
        self.unacked = with(|queue| queue.unacked).sum();
        let leaderless = queues.iter().filter(|(_, queue)| queue.is_none());
        self.leaderless = leaderless.map(|(name, _)| name.clone()).collect();
    }

    fn is_settled(&self) -> bool {
        self.with_consumers == 0 && self.with_unacked == 0 && self.leaderless.is_empty()
    }
}

/// The queues of the partitions, and the inbox.
fn of_work(scene: &Scene<'_>, mut queues: Queues) -> Queues {
    let mut names = scene.partitions();
    names.push(scene.connect.namespace().inbox());
    names.into_iter().map(|name| (name.clone(), queues.remove(&name).flatten())).collect()
}

/// Tasks that were confirmed and are not executed.
fn left(scene: &Scene<'_>, published: &Published) -> anyhow::Result<u64> {
    let mut left = 0;
    for (resource, confirmed) in &published.confirmed {
        left += confirmed.saturating_sub(scene.truth.executed(resource.as_str())?);
    }
    Ok(left)
}
