//! The layout of a namespace is a fact: it is stored once, and whoever wants
//! or understands another one is refused.

mod support;

use std::num::NonZeroU16;

use keylane::testing::{Broker, Version};
use keylane::{Error, Producer, ProducerOptions, handler_fn, init, route, topology, work};
use keylane::{RouterOptions, Topology};
use lapin::BasicProperties;
use lapin::options::QueueDeclareOptions;
use lapin::types::AMQPValue;
use tokio_util::sync::CancellationToken;

use support::{amqp, broker, connect, count, named, put, soon};

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

fn never() -> CancellationToken {
    CancellationToken::new()
}
