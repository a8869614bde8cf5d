//! What a change of a queue's leader does to consumers that are gone: a ghost is forgotten; one
//! whose loss the queue had been told of already is waited for, for ever; and a further change
//! ends that. It stands in the documents (docs/reliability.md), since operators have to know.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

mod support;

use std::process::Command;
use std::time::Duration;

use futures_lite::StreamExt;
use keylane::protocol::journal::Finding;
use keylane::protocol::stall::Cause;
use keylane::provision::cluster::{Cluster, Node, NodeFault, Waits};
use keylane::{Connect, PartitionId, Topology, init, status, verify};
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, Consumer};

use support::{
    End, Record, Run, TOOL_INTERVAL, Worker, count, declare_anew, eventually, named, publish,
    resources, soon, tasks,
};

/// How long the broker waits for a consumer whose loss it was told of once: enough for its tools
/// to move the leader meanwhile, each of which takes 20 s where everybody wants the processor.
const WAIT: Duration = Duration::from_secs(60);

/// Tasks of a partition, and how many of them a consumer holds.
const ALL: u64 = 20;
const HELD: u16 = 5;

/// The two partitions, and a resource in each.
struct Space {
    cluster: Cluster,
    connect: Connect,
    queues: Vec<String>,
    resources: Vec<String>,
}

impl Space {
    async fn new() -> Self {
        let waits = Waits { net_ticktime: Duration::from_secs(10), consumer_disconnected: WAIT };
        let cluster = Cluster::start(waits, |line| println!("{line}")).await.unwrap();
        let connect = Connect::new(cluster.amqp_urls(Node::ALL[0])).unwrap();
        let topology = init(&connect, Topology::first(count(2))).await.unwrap();
        let queue = |partition| connect.namespace().partition(&topology, partition);
        let queues = topology.partitions().map(queue).collect();
        let resources = resources(&topology, 1).concat();
        let space = Self { cluster, connect, queues, resources };
        // `init` has them wait for 12 s, which is too short for the broker's tools.
        let connection = space.over(Node::ALL[0]).await;
        let channel = connection.create_channel().await.unwrap();
        for partition in topology.partitions() {
            let wait = ("x-consumer-disconnected-timeout", WAIT);
            declare_anew(&channel, &space.connect, &topology, partition, wait).await;
        }
        connection.close(200, "done".into()).await.unwrap();
        space
    }

    /// Has another node lead a queue, as the runbook says it. One that lags behind is refused, or
    /// loses the election, so it is tried until it does.
    async fn lead(&self, queue: &str, node: Node) {
        let (container, target) = (self.cluster.container(node), format!("rabbit@{node}"));
        let tool = ["exec", &container, "rabbitmq-queues", "--quiet", "transfer_leadership"];
        eventually("another leader", async || {
            let output = Command::new("docker").args(tool).args([queue, &target]).output().unwrap();
            println!("{queue} to {node}: {output:?}");
            let leader = self.cluster.replicas(node).await.ok()?.remove(queue)?.leader;
            if leader == Some(node) {
                return Some(());
            }
            tokio::time::sleep(TOOL_INTERVAL).await;
            None
        })
        .await;
    }

    /// A connection over one node only.
    async fn over(&self, node: Node) -> Connection {
        let urls = self.cluster.amqp_urls(node);
        let url = urls.split(',').next().unwrap();
        Connection::connect(url, ConnectionProperties::default()).await.unwrap()
    }

    async fn cause(&self, partition: u32) -> Option<Cause> {
        let seen = status(&self.connect).await.ok()?;
        let partition = PartitionId::new(partition);
        seen.partitions.into_iter().find(|p| p.partition == partition)?.cause
    }
}

/// Consumes a queue until it holds what it may: at once, if nobody does yet.
async fn hold(connection: &Connection, queue: &str, priority: Option<i32>) -> (Channel, Consumer) {
    let channel = connection.create_channel().await.unwrap();
    channel.basic_qos(HELD, BasicQosOptions::default()).await.unwrap();
    let mut arguments = FieldTable::default();
    if let Some(priority) = priority {
        arguments.insert("x-priority".into(), AMQPValue::LongInt(priority));
    }
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.into(), "".into(), options, arguments);
    let consumer = consumer.await.unwrap();
    (channel, consumer)
}

async fn handed(consumer: &mut Consumer, times: u64) -> Vec<lapin::message::Delivery> {
    let mut deliveries = Vec::new();
    for _ in 0..times {
        let delivery = soon("a delivery", consumer.next()).await;
        deliveries.push(delivery.unwrap().unwrap());
    }
    deliveries
}

/// A consumer that ends while one of a higher priority replaces it stays behind, and is the active
/// one when its replacement has gone. No consumer of ours has a priority.
async fn another_leader_forgets_a_ghost(space: &Space) {
    let (queue, resource) = (&space.queues[0], &space.resources[..1]);
    let [first, second, _] = Node::ALL;
    space.lead(queue, first).await;
    publish(&space.connect, tasks(resource, u64::from(HELD))).await;
    let connection = space.over(first).await;
    let (ends, mut consumer) = hold(&connection, queue, Some(i32::MAX - 1)).await;
    handed(&mut consumer, u64::from(HELD)).await;
    let (replaces, mut replacement) = hold(&connection, queue, Some(i32::MAX)).await;
    ends.close(200, "ends".into()).await.unwrap();
    for delivery in handed(&mut replacement, u64::from(HELD)).await {
        delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
    }
    replaces.close(200, "leaves".into()).await.unwrap();

    let record = Record::default();
    publish(&space.connect, tasks(resource, ALL)).await;
    let worker = Worker::start(&space.connect, named("w"), record.handler("w", async |_| Ok(())));
    eventually("it stands still", async || {
        (space.cause(0).await == Some(Cause::NotHandedOut)).then_some(())
    })
    .await;
    assert_eq!(record.runs().len(), 0);
    space.lead(queue, second).await;
    record.until_executed(usize::try_from(ALL).unwrap()).await;
    record.assert_once();
    worker.drain().await;
    connection.close(200, "done".into()).await.unwrap();
}

/// The leader changes while the queue waits for a consumer whose node is lost, and nobody asks
/// again for that consumer before the leader changes once more.
async fn a_loss_that_is_told_twice_is_waited_for_until_another_leader_asks(space: &Space) {
    let (queue, resource) = (&space.queues[1], &space.resources[1..]);
    let [first, second, lost] = Node::ALL;
    space.lead(queue, first).await;
    publish(&space.connect, tasks(resource, ALL)).await;
    let connection = space.over(lost).await;
    let (_channel, mut consumer) = hold(&connection, queue, None).await;
    handed(&mut consumer, u64::from(HELD)).await;
    let record = Record::default();
    let handler = record.handler("heir", async |_| Ok(()));
    let heir = Worker::start(&space.connect, named("heir"), handler);
    eventually("it stands by", async || {
        (!status(&space.connect).await.ok()?.workers.is_empty()).then_some(())
    })
    .await;

    space.cluster.inflict(NodeFault::Kill, lost).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    space.lead(queue, second).await;
    tokio::time::sleep(WAIT * 5 / 4).await;
    eventually("it stands still", async || {
        (space.cause(1).await == Some(Cause::NotHandedOut)).then_some(())
    })
    .await;
    assert_eq!(record.runs().len(), 0, "the broker waits no longer: see docs/reliability.md");

    // Its node comes back: the next in line is handed what waits, and not what was held.
    space.cluster.heal(NodeFault::Kill, lost).await.unwrap();
    let (all, held) = (usize::try_from(ALL).unwrap(), usize::from(HELD));
    let executed = |runs: &[Run]| runs.iter().filter(|r| r.end == Some(End::Executed)).count();
    record.until("the others are executed", |runs| executed(runs) == all - held).await;
    let looks = space.over(first).await;
    let look = QueueDeclareOptions { passive: true, ..Default::default() };
    let channel = looks.create_channel().await.unwrap();
    let found = channel.queue_declare(queue.as_str().into(), look, FieldTable::default());
    let found = found.await.unwrap();
    let seen = (found.message_count(), found.consumer_count());
    assert_eq!(seen, (0, 2), "nothing waits; the owner, and one that is dead");

    // What was held comes last, so the order is gone. Nothing is lost, and nothing repeated.
    space.lead(queue, first).await;
    record.until("all is executed", |runs| executed(runs) == all).await;
    assert_eq!(record.runs().len(), all);
    heir.drain().await;
    looks.close(200, "done".into()).await.unwrap();
    let (_, findings) = verify(&space.connect, None, Duration::ZERO).await.unwrap();
    assert!(matches!(findings[..], [Finding::OutOfOrder { .. }]), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_leader_and_consumers_that_are_gone() {
    let space = Space::new().await;
    another_leader_forgets_a_ghost(&space).await;
    a_loss_that_is_told_twice_is_waited_for_until_another_leader_asks(&space).await;
    space.cluster.stop().await.unwrap();
}
