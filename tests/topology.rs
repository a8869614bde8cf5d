//! The layout of a namespace is a fact: it is stored once, and whoever wants
//! or understands another one is refused.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

mod support;

use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_lite::StreamExt;
use keylane::testing::{Broker, Version};
use keylane::{Error, Producer, ProducerOptions, handler_fn, init, route, topology, work};
use keylane::{PartitionId, PublishError, RouterOptions, Topology};
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio_util::sync::CancellationToken;

use support::{
    Record, Worker, amqp, await_dead_letters, broker, connect, count, eventually, header, named,
    open_dead_letters, publish, put, ready, resources, set_policy, soon, space, task, tasks,
};

/// Two that start at once meet differently each time.
const RACES: usize = 8;

async fn shared() -> &'static Broker {
    broker(Version::default()).await
}

#[tokio::test]
async fn init_again_changes_nothing() {
    let connect = connect(shared().await);
    let first = init(&connect, count(5)).await.unwrap();
    assert_eq!(first, Topology::first(count(5)));
    assert_eq!(init(&connect, count(5)).await.unwrap(), first);
    assert_eq!(topology(&connect).await.unwrap(), first);
}

#[tokio::test]
async fn another_count_is_refused_with_both() {
    let connect = connect(shared().await);
    init(&connect, count(5)).await.unwrap();
    let error = init(&connect, count(7)).await.unwrap_err();
    let Error::TopologyDiffers { stored, wanted, .. } = &error else { panic!("{error:?}") };
    assert_eq!((stored.partitions, wanted.partitions), (count(5), count(7)));
    let text = error.to_string();
    assert!(text.contains("5 partitions") && text.contains("7 partitions"), "{text}");
    assert_eq!(topology(&connect).await.unwrap().partitions, count(5));
}

#[tokio::test]
async fn another_prefetch_is_refused_with_both() {
    let connect = connect(shared().await);
    let [small, large] = [50, 100].map(|prefetch| {
        Topology::first(count(1)).with_prefetch(NonZeroU16::new(prefetch).unwrap())
    });
    assert_eq!(init(&connect, small).await.unwrap(), small);
    let text = init(&connect, large).await.unwrap_err().to_string();
    assert!(text.contains("prefetch 50") && text.contains("prefetch 100"), "{text}");
    assert_eq!(topology(&connect).await.unwrap(), small);
}

#[tokio::test]
async fn without_init_everybody_is_refused() {
    let connect = connect(shared().await);
    let missing = |error: &Error| matches!(error, Error::TopologyMissing { .. });
    assert!(missing(&topology(&connect).await.unwrap_err()));
    let producer = Producer::open(&connect, ProducerOptions::default()).await;
    assert!(missing(&producer.unwrap_err()));
    let worker = work(&connect, named("w"), handler_fn(async |_| Ok(())), never());
    assert!(missing(&soon("refusing a worker", worker).await.unwrap_err()));
    let router = route(&connect, RouterOptions::default(), never());
    assert!(missing(&soon("refusing a router", router).await.unwrap_err()));
}

#[tokio::test]
async fn of_two_inits_at_once_one_wins() {
    for _ in 0..RACES {
        let connect = connect(shared().await);
        let (four, six) = tokio::join!(init(&connect, count(4)), init(&connect, count(6)));
        let (winner, error) = match (four, six) {
            (Ok(winner), Err(error)) | (Err(error), Ok(winner)) => (winner, error),
            both => panic!("not one winner: {both:?}"),
        };
        let Error::TopologyDiffers { stored, wanted, .. } = error else { panic!("{error:?}") };
        assert_eq!(stored, winner);
        assert_ne!(wanted, winner);
        assert_eq!(topology(&connect).await.unwrap(), winner);
    }
}

#[tokio::test]
async fn a_hash_of_the_future_is_refused() {
    let broker = shared().await;
    let connect = connect(broker);
    let (connection, channel) = amqp(broker).await;
    let stream = connect.namespace().topology();
    let mut arguments = lapin::types::FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(stream.as_str().into(), durable, arguments).await.unwrap();
    let record = br#"{"generation":1,"partitions":4,"hash":"murmur9"}"#;
    put(&channel, &stream, BasicProperties::default(), record).await;

    let refused = |error: &Error| {
        let Error::TopologyUnreadable { stored, reason, .. } = error else { return false };
        stored.contains("murmur9") && reason.contains("murmur9")
    };
    let producer = Producer::open(&connect, ProducerOptions::default()).await;
    let error = producer.unwrap_err();
    assert!(refused(&error), "{error:?}");
    let worker = work(&connect, named("w"), handler_fn(async |_| Ok(())), never());
    let error = soon("refusing a worker", worker).await.unwrap_err();
    assert!(refused(&error), "{error:?}");
    let error = init(&connect, count(4)).await.unwrap_err();
    assert!(refused(&error), "{error:?}");
    connection.close(200, "done".into()).await.unwrap();
}

/// An hour's policies of somebody who did not think of us. What each drops is there, with its
/// reason, and can be replayed.
async fn what_a_policy_drops_ends_in_the_dead_letters(version: Version) {
    let broker = broker(version).await;
    let (connect, topology) = space(broker, 2).await;
    let namespace = connect.namespace();
    let [limited, full] = [0, 1].map(|n| namespace.partition(&topology, PartitionId::new(n)));
    set_policy(broker, &namespace.inbox(), r#"{"message-ttl": 100}"#).await;
    set_policy(broker, &limited, r#"{"delivery-limit": 1}"#).await;
    set_policy(broker, &full, r#"{"max-length": 5}"#).await;
    let resources = resources(&topology, 1).concat();
    let (connection, channel) = amqp(broker).await;
    for n in 0..10u8 {
        let id = format!("t{n}");
        let properties = header("resource", AMQPValue::LongString(resources[0].as_str().into()));
        put(&channel, &namespace.inbox(), properties.with_message_id(id.into()), &[n]).await;
    }
    let letters = await_dead_letters(&connect, 10).await;
    for (n, letter) in (0u8..).zip(&letters) {
        assert_eq!(
            (&letter.payload[..], letter.id.as_deref()),
            (&[n][..], Some(&*format!("t{n}")))
        );
        assert_eq!(letter.from, Some(namespace.inbox()));
        assert!(letter.reason.contains("`message-ttl`"), "{letter:?}");
        assert!(letter.by.as_deref() == Some("the broker") && letter.dead_at_ms.is_some());
    }

    // A full queue refuses, and drops nothing.
    let producer = Producer::open(&connect, ProducerOptions::default()).await.unwrap();
    let mut confirmed = 0;
    for n in 0..20 {
        match producer.publish(task(&resources[1], n)).await {
            Ok(_) => confirmed += 1,
            Err(error) => assert!(matches!(error, PublishError::Nacked { .. }), "{error}"),
        }
    }
    assert!((5..20).contains(&confirmed), "{confirmed}");
    assert_eq!(ready(&channel, &full).await, confirmed);

    // Owners that are lost or give up, as the broker counts them.
    publish(&connect, tasks(&resources[..1], 3)).await;
    for _ in 0..3 {
        let owner = connection.create_channel().await.unwrap();
        let (tag, options) = ("owner".into(), BasicConsumeOptions::default());
        let none = FieldTable::default();
        let consumer = owner.basic_consume(limited.as_str().into(), tag, options, none).await;
        let mut consumer = consumer.unwrap();
        tokio::time::timeout(Duration::from_millis(500), consumer.next()).await.ok();
        owner.close(200, "lost".into()).await.unwrap();
    }
    let letters = await_dead_letters(&connect, 13).await;
    assert!(letters[10..].iter().all(|l| l.reason.contains("`delivery-limit`")), "{letters:?}");
    assert!(letters[10..].iter().all(|l| l.from.as_ref() == Some(&limited)), "{letters:?}");
    let mut dead = open_dead_letters(&connect, 13).await;
    while let Some(letter) = dead.next().await.unwrap() {
        dead.replay(letter).await.unwrap();
    }
    dead.close().await;
    let executed = Arc::new(AtomicU32::new(0));
    let counts = Arc::clone(&executed);
    let handler = handler_fn(move |_| {
        counts.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(()))
    });
    let worker = Worker::start(&connect, named("w"), handler);
    eventually("all that was confirmed", async || {
        (executed.load(Ordering::Relaxed) == 13 + confirmed).then_some(())
    })
    .await;
    worker.drain().await;
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn on_4_3_what_a_policy_drops_ends_in_the_dead_letters() {
    what_a_policy_drops_ends_in_the_dead_letters(Version::V4_3).await;
}

#[tokio::test]
async fn on_4_0_what_a_policy_drops_ends_in_the_dead_letters() {
    what_a_policy_drops_ends_in_the_dead_letters(Version::V4_0).await;
}

/// Before 4.3 nobody asks the consumer, and the policy wins.
#[tokio::test]
async fn on_4_3_a_policy_takes_no_long_task_away() {
    let broker = broker(Version::V4_3).await;
    let (connect, topology) = space(broker, 1).await;
    let queue = connect.namespace().partition(&topology, PartitionId::new(0));
    set_policy(broker, &queue, r#"{"consumer-timeout": 2000}"#).await;
    publish(&connect, tasks(&["r".to_owned()], 2)).await;
    let record = Record::default();
    let worker = Worker::start(
        &connect,
        named("w"),
        record.handler("w", async |attempt| {
            if attempt.task.payload == "0" {
                tokio::time::sleep(Duration::from_secs(8)).await;
            }
            Ok(())
        }),
    );
    record.until_executed(2).await;
    record.assert_once();
    assert!(record.runs().iter().all(|run| run.attempt == 1 && !run.redelivered));
    worker.drain().await;
}

fn never() -> CancellationToken {
    CancellationToken::new()
}
