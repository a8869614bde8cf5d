//! Tasks that kill whoever executes them, and supervisors that start that one again.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Done;
use crate::cli::soak::brokers::look;
use crate::cli::soak::load::resources;
use crate::cli::soak::payload::Payload;
use crate::cli::soak::scene::Scene;
use crate::cli::soak::supervisor::RESTART_AFTER;
use crate::{Producer, ProducerOptions, Task};

/// Poison tasks at a time, each on a resource of another partition.
const TASKS: usize = 3;

/// How soon a supervisor starts a worker again.
const RESTARTS: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(1)];

/// A worker is lost five times over each of them, next to neighbours that must not be
/// blamed, and has to come back each time.
const PATIENCE: Duration = Duration::from_secs(180);

/// Between two looks with the broker's tools.
const PAUSE: Duration = Duration::from_secs(2);

/// Publishes poison among the other tasks, and waits until it is in the dead letters.
pub(super) async fn poison(scene: &mut Scene<'_>) -> anyhow::Result<Done> {
    let restart_after = scene.chance.pick(&RESTARTS);
    scene.fleet.restart_after(restart_after);
    let before = scene.fleet.crashes();
    let producer = Producer::open(&scene.connect, ProducerOptions::default()).await?;
    for resource in resources(&scene.topology, TASKS)? {
        let task = Task::on(resource, Payload::Poison(scene.poison).text());
        producer.publish(task).await?;
        scene.poison += 1;
    }
    producer.close().await;
    let (began, dead) = (Instant::now(), scene.connect.namespace().dead());
    let buried = loop {
        let queue = look(scene.cluster).await?.remove(&dead).flatten().unwrap_or_default();
        let buried = queue.ready + queue.unacked;
        scene.show(&format!("poison: {buried} of {} in the dead letters", scene.poison));
        if buried >= scene.poison || began.elapsed() > PATIENCE {
            break buried;
        }
        sleep(PAUSE).await;
    };
    scene.fleet.restart_after(RESTART_AFTER);
    let crashes = scene.fleet.crashes() - before;
    let on = format!("{crashes} crashes, {buried} of {} dead", scene.poison);
    Ok(Done { on, ..Done::default() })
}
