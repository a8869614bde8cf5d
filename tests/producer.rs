//! What a producer is told is true: a receipt is a task in its partition's
//! queue, and every refusal of the broker has its own name.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

mod support;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_lite::{StreamExt, stream};
use keylane::testing::{Broker, Version};
use keylane::{
    Connect, PartitionId, Producer, ProducerOptions, PublishError, Resource, Task, TaskId, Topology,
};
use lapin::Channel;
use lapin::options::QueueDeleteOptions;

use support::{amqp, broker, eventually, rabbitmqctl, resources, soon, space, take_all, task};

/// Long enough for what should not happen to happen.
const NOTHING_HAPPENS: Duration = Duration::from_millis(500);

async fn shared() -> &'static Broker {
    broker(Version::default()).await
}

async fn open(connect: &Connect, adjust: impl FnOnce(&mut ProducerOptions)) -> Producer {
    let mut options = ProducerOptions::default();
    adjust(&mut options);
    Producer::open(connect, options).await.unwrap()
}

/// Resource and sequence of everything in the partitions, in the queues' order.
async fn stored(channel: &Channel, connect: &Connect, topology: &Topology) -> Vec<(String, u64)> {
    let mut stored = Vec::new();
    for partition in topology.partitions() {
        let queue = connect.namespace().partition(topology, partition);
        for message in take_all(channel, &queue).await {
            let headers = message.properties.headers().clone().unwrap();
            let resource = headers.inner()["resource"].as_long_string().unwrap().to_string();
            let home = topology.partition_of(&Resource::new(&resource).unwrap());
            assert_eq!(home, partition, "{resource}");
            let sequence = std::str::from_utf8(&message.data).unwrap().trim().parse().unwrap();
            stored.push((resource, sequence));
        }
    }
    stored
}

/// The first occurrences of each resource's tasks are 0, 1, 2, …; gives their
/// number.
fn assert_first_occurrences_in_order(stored: &[(String, u64)]) -> usize {
    let mut next: HashMap<&str, u64> = HashMap::new();
    for (resource, sequence) in stored {
        let next = next.entry(resource).or_default();
        assert!(*sequence <= *next, "{resource}: {sequence} came before {next}");
        *next = (*next).max(sequence + 1);
    }
    next.values().sum::<u64>() as usize
}

#[tokio::test]
async fn a_receipt_is_a_task_in_its_partition() {
    let broker = shared().await;
    let (connect, topology) = space(broker, 4).await;
    let producer = open(&connect, |_| {}).await;
    let (connection, channel) = amqp(broker).await;
    for (number, resource) in resources(&topology, 1).concat().into_iter().enumerate() {
        let id = TaskId::new(format!("id-{number}")).unwrap();
        let task = task(&resource, 0).with_id(id.clone()).with_kind("k");
        let receipt = producer.publish(task).await.unwrap();
        assert_eq!(receipt.id, id);
        assert_eq!(receipt.partition, PartitionId::new(number as u32));
        let queue = connect.namespace().partition(&topology, receipt.partition);
        let messages = take_all(&channel, &queue).await;
        let [message] = messages.as_slice() else { panic!("{messages:?}") };
        let found = message.properties.message_id().as_ref().unwrap();
        assert_eq!(found.as_str(), id.as_str());
        assert_eq!(message.properties.delivery_mode(), &Some(2), "it survives a restart");
    }
    connection.close(200, "done".into()).await.unwrap();
    producer.close().await;
}

#[tokio::test]
async fn a_deleted_queue_is_unroutable() {
    let broker = shared().await;
    let (connect, topology) = space(broker, 2).await;
    let producer = open(&connect, |_| {}).await;
    let (connection, channel) = amqp(broker).await;
    let gone = connect.namespace().partition(&topology, PartitionId::new(0));
    let delete = channel.queue_delete(gone.as_str().into(), QueueDeleteOptions::default());
    delete.await.unwrap();

    let resources = resources(&topology, 1).concat();
    let error = producer.publish(task(&resources[0], 0)).await.unwrap_err();
    assert!(matches!(error, PublishError::Unroutable { .. }), "{error:?}");
    let receipt = producer.publish(task(&resources[1], 0)).await.unwrap();
    assert_eq!(receipt.partition, PartitionId::new(1), "the others go on");
    connection.close(200, "done".into()).await.unwrap();
}

/// The broker sends some back and confirms many with one answer, as it does when it has a lot
/// to do; the client library does not tell which is which.
#[tokio::test]
async fn of_many_in_flight_just_those_without_a_queue_are_unroutable() {
    const MANY: u64 = 1_000;
    const ROUNDS: u64 = 5;
    let broker = Broker::start().await.unwrap();
    let (connect, topology) = space(&broker, 2).await;
    let producer = open(&connect, |_| {}).await;
    let (connection, channel) = amqp(&broker).await;
    let gone = connect.namespace().partition(&topology, PartitionId::new(0));
    let delete = channel.queue_delete(gone.as_str().into(), QueueDeleteOptions::default());
    delete.await.unwrap();

    let resources = resources(&topology, 1).concat();
    let mut confirmed = Vec::new();
    for round in 0..ROUNDS {
        // All of them wait for it when it goes on.
        broker.pause().await.unwrap();
        let goes_on = async {
            tokio::time::sleep(NOTHING_HAPPENS).await;
            broker.unpause().await.unwrap();
        };
        let tasks = (0..MANY).map(|n| task(&resources[n as usize % 2], round * MANY + n));
        let mut published = std::pin::pin!(producer.publish_all(stream::iter(tasks)));
        let answers = async {
            while let Some(published) = soon("an answer", published.next()).await {
                let lost = published.task.resource.as_str() == resources[0];
                match published.outcome {
                    Ok(_) if !lost => confirmed.push(published.task),
                    Err(PublishError::Unroutable { .. }) if lost => {}
                    outcome => panic!("{} {outcome:?}", published.task.resource),
                }
            }
        };
        tokio::join!(answers, goes_on);
    }
    let queue = connect.namespace().partition(&topology, PartitionId::new(1));
    let stored = take_all(&channel, &queue).await;
    let stored: Vec<_> = stored.iter().map(|message| message.data.as_slice()).collect();
    let confirmed: Vec<_> = confirmed.iter().map(|task| task.payload.as_ref()).collect();
    assert_eq!(confirmed, stored);
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn a_full_queue_nacks() {
    let broker = shared().await;
    let (connect, topology) = space(broker, 1).await;
    let namespace = connect.namespace().as_str();
    let full = r#"{"max-length": 3, "overflow": "reject-publish"}"#;
    let pattern = format!("^{namespace}.g1.p0$");
    rabbitmqctl(broker, &["set_policy", "--apply-to", "queues", namespace, &pattern, full]).await;

    let producer = open(&connect, |_| {}).await;
    // The queue tells its publishers that it is full some time after it is.
    let mut confirmed = 0;
    let error = eventually("a nack", async || match producer.publish(task("r", confirmed)).await {
        Ok(_) => {
            confirmed += 1;
            None
        }
        Err(error) => Some(error),
    })
    .await;
    assert!(matches!(error, PublishError::Nacked { .. }), "{error:?}");
    let (connection, channel) = amqp(broker).await;
    let kept = stored(&channel, &connect, &topology).await;
    assert_eq!(kept.len() as u64, confirmed, "confirmed is stored, nacked is not");
    connection.close(200, "done".into()).await.unwrap();
    rabbitmqctl(broker, &["clear_policy", namespace]).await;
}

#[tokio::test]
async fn a_payload_over_the_own_limit_is_not_sent() {
    let broker = shared().await;
    let (connect, topology) = space(broker, 1).await;
    let producer = open(&connect, |options| options.max_payload = 10).await;
    let error = producer.publish(Task::new("r", "12345678901").unwrap()).await.unwrap_err();
    let PublishError::TooLarge { bytes: 11, limit: 10 } = error else { panic!("{error:?}") };
    producer.publish(Task::new("r", "0000000007").unwrap()).await.unwrap();
    let (connection, channel) = amqp(broker).await;
    assert_eq!(stored(&channel, &connect, &topology).await, [("r".to_owned(), 7)]);
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn no_more_are_in_flight_than_allowed() {
    const LIMIT: usize = 7;
    let (connect, _) = space(shared().await, 1).await;
    let producer = open(&connect, |options| options.max_in_flight = LIMIT).await;
    let (taken, answered, most) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let tasks = stream::iter(0..500).map(|sequence| {
        taken.set(taken.get() + 1);
        most.set(most.get().max(taken.get() - answered.get()));
        task("r", sequence)
    });
    let mut published = std::pin::pin!(producer.publish_all(tasks));
    while let Some(published) = soon("a confirm", published.next()).await {
        published.outcome.unwrap();
        answered.set(answered.get() + 1);
    }
    assert_eq!(answered.get(), 500);
    assert_eq!(most.get(), LIMIT, "all of the room is used, and no more");
}

/// The broker refuses by closing the channel, on which the neighbours were.
#[tokio::test]
async fn a_payload_over_the_brokers_limit_takes_no_neighbour_along() {
    let broker = Broker::start().await.unwrap();
    let lower = "application:set_env(rabbit, max_message_size, 1000), \
        persistent_term:put(max_message_size, 1000).";
    rabbitmqctl(&broker, &["eval", lower]).await;
    let (connect, topology) = space(&broker, 2).await;
    let producer = open(&connect, |_| {}).await;
    let resources = resources(&topology, 2).concat();
    let large = |sequence| matches!(sequence, 20 | 21 | 60);
    let tasks = (0..100).flat_map(|sequence| {
        resources.iter().map(move |resource| match resource.as_str() {
            // The sequence, and a lot of space behind it.
            name if large(sequence) => Task::new(name, format!("{sequence:<1001}")).unwrap(),
            name => task(name, sequence),
        })
    });
    let mut refused = HashSet::new();
    let mut published = std::pin::pin!(producer.publish_all(stream::iter(tasks)));
    while let Some(published) = soon("a confirm", published.next()).await {
        let bytes = published.task.payload.len();
        match published.outcome {
            Ok(_) => assert!(bytes < 1000),
            Err(PublishError::TooLarge { limit: 1000, .. }) => {
                assert_eq!(bytes, 1001, "only the large ones are");
                refused.insert((published.task.resource.to_string(), published.task.payload));
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(refused.len(), 3 * resources.len());

    let (connection, channel) = amqp(&broker).await;
    let stored = stored(&channel, &connect, &topology).await;
    assert!(stored.iter().all(|(_, sequence)| !large(*sequence)));
    // Closing the ranks where the large ones were, the order has no gap.
    let before = |sequence| (0..sequence).filter(|s| large(*s)).count() as u64;
    let ranks: Vec<_> = stored.into_iter().map(|(r, s)| (r, s - before(s))).collect();
    assert_eq!(assert_first_occurrences_in_order(&ranks), 97 * resources.len());
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn publishing_waits_while_the_broker_cannot() {
    const LIMIT: u64 = 5;
    let broker = Broker::start().await.unwrap();
    let (connect, topology) = space(&broker, 1).await;
    let producer = open(&connect, |options| options.max_in_flight = LIMIT as usize).await;

    // A broker that answers nothing leaves room for so many, and no more.
    broker.pause().await.unwrap();
    let mut pending = Vec::new();
    for sequence in 0..LIMIT {
        let sent = soon("a send", async { producer.send(&task("r", sequence)).await }).await;
        pending.push(sent.unwrap());
    }
    let next = task("r", LIMIT);
    let mut waiting = std::pin::pin!(producer.send(&next));
    let waited = tokio::time::timeout(NOTHING_HAPPENS, &mut waiting).await;
    assert!(waited.is_err(), "{LIMIT} are in flight");
    broker.unpause().await.unwrap();
    soon("a confirm", pending.remove(0).confirmed()).await.unwrap();
    pending.push(soon("room again", waiting).await.unwrap());
    for pending in pending {
        soon("a confirm", pending.confirmed()).await.unwrap();
    }

    // A broker without memory says so, and takes it all when it has some.
    let mut blocked = producer.blocked();
    assert_eq!(*blocked.borrow(), None);
    rabbitmqctl(&broker, &["set_vm_memory_high_watermark", "0.00001"]).await;
    let rest: Vec<_> = (LIMIT + 1..40).map(|sequence| task("r", sequence)).collect();
    let mut published = std::pin::pin!(producer.publish_all(stream::iter(rest)));
    let mut outcomes = Vec::new();
    let reason = {
        let mut told = std::pin::pin!(blocked.wait_for(Option::is_some));
        soon("being told", async {
            loop {
                tokio::select! {
                    told = &mut told => return told.unwrap().clone().unwrap(),
                    Some(published) = published.next() => outcomes.push(published),
                }
            }
        })
        .await
    };
    assert!(reason.contains("memory"), "{reason}");
    // What the broker took before it blocked may be confirmed a little later.
    while let Ok(late) = tokio::time::timeout(NOTHING_HAPPENS, published.next()).await {
        outcomes.push(late.expect("nothing more is confirmed meanwhile"));
    }
    rabbitmqctl(&broker, &["set_vm_memory_high_watermark", "0.4"]).await;
    while let Some(published) = soon("a confirm", published.next()).await {
        outcomes.push(published);
    }
    assert_eq!(outcomes.len() as u64, 40 - LIMIT - 1);
    assert!(outcomes.iter().all(|published| published.outcome.is_ok()), "{outcomes:?}");
    soon("being told the end", blocked.wait_for(Option::is_none)).await.unwrap();

    let (connection, channel) = amqp(&broker).await;
    let stored = stored(&channel, &connect, &topology).await;
    assert_eq!(assert_first_occurrences_in_order(&stored), 40);
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn a_restart_of_the_broker_loses_no_confirmed_task() {
    let broker = Arc::new(Broker::start().await.unwrap());
    let (connect, topology) = space(&broker, 4).await;
    let again = Arc::clone(&broker);
    let restart = async move { again.restart().await.unwrap() };
    survive_an_outage(&broker, &connect, topology, restart).await;
}

/// It may have what it did not confirm, however often that was tried again.
#[tokio::test]
async fn what_a_lost_broker_may_have_is_not_called_unpublished() {
    let broker = Broker::start().await.unwrap();
    let (connect, _) = space(&broker, 4).await;
    let patience = Duration::from_secs(2);
    let producer = open(&connect, |options| options.patience = Some(patience)).await;
    let tasks = stream::iter((0..).map(|n| task(&format!("r{}", n % 100), n)));
    let mut published = std::pin::pin!(producer.publish_all(tasks));
    for _ in 0..2_000 {
        soon("a confirm", published.next()).await.unwrap().outcome.unwrap();
    }
    // It dies while more and more is sent.
    let killed = tokio::spawn(async move { broker.kill().await.map(|()| broker).unwrap() });
    // All that was in flight has its outcome soon, and not each after that patience.
    let mut open = 0;
    let all = async {
        while let Some(published) = published.next().await {
            match published.outcome {
                Ok(_) => {}
                Err(error) if published.sent > 1 => {
                    assert!(error.is_indeterminate(), "{error:?}");
                    open += 1;
                }
                Err(PublishError::NotSent(_)) => break,
                Err(error) => assert!(error.is_indeterminate(), "{error:?}"),
            }
        }
    };
    soon("an outcome of all", all).await;
    assert!(open > 0, "nothing was in flight");
    killed.await.unwrap();
}

/// What was in flight is lost here, and the order is that of its second sending.
#[tokio::test]
async fn a_crash_of_the_broker_loses_no_confirmed_task() {
    let broker = Arc::new(Broker::start().await.unwrap());
    let (connect, topology) = space(&broker, 4).await;
    // Killed within seconds of making its first stream, RabbitMQ forgets it.
    broker.restart().await.unwrap();
    eventually("the topology", async || keylane::topology(&connect).await.ok()).await;
    let again = Arc::clone(&broker);
    let crash = async move {
        again.kill().await.unwrap();
        again.restart().await.unwrap();
    };
    survive_an_outage(&broker, &connect, topology, crash).await;
}

async fn survive_an_outage(
    broker: &Broker,
    connect: &Connect,
    topology: Topology,
    outage: impl Future<Output = ()> + Send + 'static,
) {
    let producer = open(connect, |_| {}).await;
    let mut outage = Some(outage);
    let resources = resources(&topology, 5).concat();

    // There are tasks for as long as the restart takes, and some more.
    let restarted = Arc::new(AtomicBool::new(false));
    let mut left = 200;
    let rounds = std::iter::from_fn(|| {
        left -= u64::from(restarted.load(Ordering::Relaxed));
        (left > 0).then_some(())
    });
    let tasks = (0..).zip(rounds).flat_map(|(sequence, ())| {
        resources.iter().map(move |resource| task(resource, sequence)).collect::<Vec<_>>()
    });
    let mut published = std::pin::pin!(producer.publish_all(stream::iter(tasks)));
    let (mut confirmed, mut sent_again, mut running) = (HashSet::new(), 0, None);
    while let Some(published) = soon("a confirm", published.next()).await {
        published.outcome.unwrap();
        sent_again += usize::from(published.sent > 1);
        let sequence: u64 = std::str::from_utf8(&published.task.payload).unwrap().parse().unwrap();
        assert!(confirmed.insert((published.task.resource.to_string(), sequence)));
        if let Some(outage) = outage.take_if(|_| confirmed.len() == 2_000) {
            let restarted = Arc::clone(&restarted);
            running = Some(tokio::spawn(async move {
                outage.await;
                restarted.store(true, Ordering::Relaxed);
            }));
        }
    }
    soon("the end of the outage", running.unwrap()).await.unwrap();
    assert!(sent_again > 0, "the outage hit nothing");

    let (connection, channel) = amqp(broker).await;
    let stored = stored(&channel, connect, &topology).await;
    let different = assert_first_occurrences_in_order(&stored);
    let stored: HashSet<_> = stored.into_iter().collect();
    assert_eq!(confirmed.difference(&stored).next(), None, "confirmed, and lost");
    assert_eq!(different, confirmed.len());
    connection.close(200, "done".into()).await.unwrap();
}
