//! Faults of a node as a whole, and of the leaders of the queues.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Done;
use crate::cli::soak::scene::{CLIENTS, LOOK, Scene};
use crate::cli::soak::schedule::Fault;
use crate::cli::soak::worker::now_us;
use crate::provision::cluster::{Node, Replicas};

/// The shortest fault of a node of a cluster: longer than an election, and than a
/// worker's lease.
const SHORTEST: Duration = Duration::from_secs(15);

/// For so long a single broker is paused.
const PAUSES: [Duration; 3] =
    [Duration::from_secs(5), Duration::from_secs(15), Duration::from_secs(40)];

/// For so many tenths of a heartbeat the network of a single broker is cut: it counts
/// its clients as lost after two heartbeats to three, and they count it after one.
const CUT_TENTHS: (u32, u32) = (16, 25);

/// A broker that was stopped or killed is away for so long.
const AWAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// Lets a fault befall the node of a leader by chance, and undoes it.
pub(super) async fn befall(
    scene: &mut Scene<'_>,
    fault: Fault,
    time: Option<Duration>,
) -> anyhow::Result<Done> {
    let Some(of_node) = fault.of_node() else { anyhow::bail!("{fault:?} is none of a node") };
    let cluster = scene.cluster;
    let queues = cluster.replicas(Node::ALL[0]).await?;
    let leaders = leaders(scene, &queues);
    let node = scene.any_leader(&leaders);
    scene.say(&format!("{} {node}", fault.name()));
    cluster.inflict(of_node, node).await?;
    let survived = match cluster.nodes() {
        [_] => {
            sleep(time.unwrap_or_else(|| away(scene, fault))).await;
            None
        }
        _ => {
            if fault == Fault::DoubleLoss {
                let other = Node::ALL[(node.index() + 1) % Node::ALL.len()];
                move_leaders(scene, other).await?;
            }
            Some(hold(scene, fault, time).await)
        }
    };
    cluster.heal(of_node, node).await?;
    scene.say(&format!("{} {node}: waiting until the broker is whole", fault.name()));
    cluster.whole().await?;
    let journal = scene.connect.namespace().journal();
    let led_journal = queues.get(&journal).and_then(|queue| queue.leader) == Some(node);
    let led = leaders.iter().filter(|leader| **leader == node).count();
    Ok(Done { on: node.to_string(), led: Some((led, led_journal)), survived })
}

/// Cuts the network between a single broker and its clients, silently.
pub(super) async fn cut_wire(
    scene: &mut Scene<'_>,
    time: Option<Duration>,
) -> anyhow::Result<Done> {
    let tenth = scene.heartbeat / 10;
    let (least, most) = (tenth * CUT_TENTHS.0, tenth * CUT_TENTHS.1);
    let time = time.unwrap_or_else(|| scene.chance.between(least, most));
    let Some(wire) = &scene.wire else { anyhow::bail!("there is no wire to a cluster") };
    wire.cut();
    sleep(time).await;
    wire.mend();
    Ok(Done { on: "all".to_owned(), ..Done::default() })
}

/// Stops all nodes and starts them again.
pub(super) async fn restart_all(scene: &mut Scene<'_>) -> anyhow::Result<Done> {
    let cluster = scene.cluster;
    let queues = cluster.replicas(Node::ALL[0]).await?;
    let led = leaders(scene, &queues).len();
    cluster.stop_all().await?;
    cluster.start_all().await?;
    cluster.whole().await?;
    Ok(Done { on: "all".to_owned(), led: Some((led, true)), survived: Some(false) })
}

/// Moves the leaders of all queues to the next node.
pub(super) async fn move_all(scene: &mut Scene<'_>) -> anyhow::Result<Done> {
    for &node in scene.cluster.nodes() {
        move_leaders(scene, node).await?;
    }
    scene.cluster.whole().await?;
    Ok(Done { on: "all".to_owned(), ..Done::default() })
}

/// Moves the leaders of those queues that a node leads to the one after it.
async fn move_leaders(scene: &Scene<'_>, node: Node) -> anyhow::Result<()> {
    let mut others = scene.cluster.nodes().iter().cycle().skip(node.index() + 1);
    let Some(to) = others.next().filter(|to| **to != node) else { return Ok(()) };
    let script = format!(
        "[ra:transfer_leadership({{Name, node()}}, {{Name, 'rabbit@{to}'}})
           || Q <- rabbit_amqqueue:list(), amqqueue:get_type(Q) =:= rabbit_quorum_queue,
              {{Name, Leader}} <- [amqqueue:get_pid(Q)], Leader =:= node()], ok."
    );
    scene.cluster.ctl(node, &["eval", &script]).await?;
    Ok(())
}

/// The leader of each partition that has one.
fn leaders(scene: &Scene<'_>, queues: &BTreeMap<String, Replicas>) -> Vec<Node> {
    let leader = |queue: &String| queues.get(queue).and_then(|replicas| replicas.leader);
    scene.partitions().iter().filter_map(leader).collect()
}

/// Keeps a fault of a cluster's node up until all partitions make progress in spite of
/// it. One that clients may not notice lasts for as long as the brokers need to.
async fn hold(scene: &Scene<'_>, fault: Fault, time: Option<Duration>) -> bool {
    let noticed = scene.noticed();
    let began = Instant::now();
    let usual = if fault == Fault::Split { noticed + SHORTEST } else { SHORTEST };
    let least = time.unwrap_or(usual);
    loop {
        let survived = scene.watch.progresses(now_us());
        if began.elapsed() >= least && survived {
            return true;
        }
        if began.elapsed() >= least.max(noticed + CLIENTS) {
            return false;
        }
        sleep(LOOK).await;
    }
}

/// How long a fault of a single broker lasts.
fn away(scene: &mut Scene<'_>, fault: Fault) -> Duration {
    match fault {
        Fault::Pause => scene.chance.pick(&PAUSES),
        _ => scene.chance.between(AWAY.0, AWAY.1),
    }
}
