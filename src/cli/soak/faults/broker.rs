//! Faults that a broker is told over its own tools.

use std::time::Duration;

use tokio::time::sleep;

use super::Done;
use crate::cli::soak::scene::Scene;
use crate::cli::soak::schedule::Fault;
use crate::provision::cluster::Node;

/// How long the application is stopped.
const STOPPED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// How long an alarm lasts.
const ALARM: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(20));

/// RabbitMQ's own share of the memory.
const MEMORY_LIMIT: &str = "0.6";

/// RabbitMQ's own limit.
const DISK_LIMIT: &str = "50MB";

/// Every node closes the connections of its clients.
pub(super) async fn close_connections(scene: &mut Scene<'_>) -> anyhow::Result<Done> {
    let cluster = scene.cluster;
    for &node in cluster.nodes() {
        cluster.ctl(node, &["close_all_connections", "soak"]).await?;
    }
    Ok(Done { on: "all".to_owned(), ..Done::default() })
}

/// Stops RabbitMQ within the Erlang that runs it, and starts it again.
pub(super) async fn stop_app(
    scene: &mut Scene<'_>,
    time: Option<Duration>,
) -> anyhow::Result<Done> {
    let cluster = scene.cluster;
    let node = scene.chance.pick(cluster.nodes());
    scene.say(&format!("stop-app {node}"));
    cluster.ctl(node, &["stop_app"]).await?;
    sleep(time.unwrap_or_else(|| scene.chance.between(STOPPED.0, STOPPED.1))).await;
    cluster.ctl(node, &["start_app"]).await?;
    cluster.whole().await?;
    Ok(Done { on: node.to_string(), ..Done::default() })
}

/// Raises an alarm, as if memory or disk space ran low, and ends it. It blocks the
/// publishers of all nodes.
pub(super) async fn alarm(
    scene: &mut Scene<'_>,
    fault: Fault,
    time: Option<Duration>,
) -> anyhow::Result<Done> {
    let cluster = scene.cluster;
    let node: Node = scene.chance.pick(cluster.nodes());
    let (set, low, usual) = match fault {
        Fault::Memory => ("set_vm_memory_high_watermark", "0.00001", MEMORY_LIMIT),
        _ => ("set_disk_free_limit", "1000000000000000", DISK_LIMIT),
    };
    scene.say(&format!("{} {node}", fault.name()));
    cluster.ctl(node, &[set, low]).await?;
    sleep(time.unwrap_or_else(|| scene.chance.between(ALARM.0, ALARM.1))).await;
    cluster.ctl(node, &[set, usual]).await?;
    Ok(Done { on: node.to_string(), ..Done::default() })
}
