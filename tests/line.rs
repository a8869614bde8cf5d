//! The line in which the consumers of a partition stand, as the broker keeps it on both lines of
//! RabbitMQ: what ownership is built on. Nothing of keylane is in between; what fails here has
//! changed in the broker.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

mod support;

use std::ops::Range;
use std::time::Duration;

use futures_lite::StreamExt;
use keylane::testing::{Broker, Version};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use url::Url;

use support::proxy::Proxy;
use support::{amqp, broker, eventually, put, soon};

macro_rules! on_both_versions {
    ($($(#[$about:meta])* $test:ident)*) => {
        mod on_4_3 {
            use super::{Version, broker};
            $($(#[$about])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test(broker(Version::V4_3).await, Version::V4_3).await; })*
        }
        mod on_4_0 {
            use super::{Version, broker};
            $($(#[$about])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test(broker(Version::V4_0).await, Version::V4_0).await; })*
        }
    };
}

on_both_versions! {
    who_attached_first_is_next_and_is_handed_everything_in_order
    credit_goes_before_age
    a_cancel_breaks_the_order_and_a_close_does_not
    only_priorities_leave_a_ghost
    every_close_counts
}

/// Messages of a queue, and how many of them a consumer holds.
const ALL: u64 = 20;
const HELD: u16 = 5;

/// In which nothing comes that does not come. A test that is slower than this shows less, and
/// does not fail.
const NOTHING: Duration = Duration::from_millis(300);

/// A queue as a partition has it, with messages that are numbered.
struct Queue {
    name: String,
    /// Of somebody who looks on.
    channel: Channel,
    connection: Connection,
}

impl Queue {
    async fn new(broker: &Broker, more: &[(&str, AMQPValue)]) -> Self {
        let name = broker.namespace();
        let (connection, channel) = amqp(broker).await;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(-1));
        for (key, value) in more {
            arguments.insert((*key).into(), value.clone());
        }
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(name.as_str().into(), durable, arguments).await.unwrap();
        for number in 0..ALL {
            let payload = number.to_string();
            put(&channel, &name, BasicProperties::default(), payload.as_bytes()).await;
        }
        Self { name, channel, connection }
    }

    /// How many consumers the broker says that it has: those that are handed something, and not
    /// those that wait for their turn.
    async fn consumers(&self) -> u32 {
        let look = QueueDeclareOptions { passive: true, ..Default::default() };
        let found = self.channel.queue_declare(self.name.as_str().into(), look, Default::default());
        found.await.unwrap().consumer_count()
    }

    async fn until_consumers(&self, count: u32) {
        eventually(&format!("{count} consumers"), async || {
            (self.consumers().await == count).then_some(())
        })
        .await;
    }

    async fn attach(&self) -> Standing {
        self.attach_with(HELD, None).await
    }

    async fn attach_with(&self, window: u16, priority: Option<i32>) -> Standing {
        Standing::over(&self.connection, &self.name, window, priority).await
    }

    async fn done(self) {
        self.connection.close(200, "done".into()).await.unwrap();
    }
}

/// A consumer on a channel of its own.
struct Standing {
    channel: Channel,
    consumer: Consumer,
}

impl Standing {
    async fn over(
        connection: &Connection,
        queue: &str,
        window: u16,
        priority: Option<i32>,
    ) -> Self {
        let channel = connection.create_channel().await.unwrap();
        channel.basic_qos(window, BasicQosOptions::default()).await.unwrap();
        let mut arguments = FieldTable::default();
        if let Some(priority) = priority {
            arguments.insert("x-priority".into(), AMQPValue::LongInt(priority));
        }
        let options = BasicConsumeOptions::default();
        let consumer = channel.basic_consume(queue.into(), "".into(), options, arguments);
        let consumer = consumer.await.unwrap();
        Self { channel, consumer }
    }

    async fn handed(&mut self, count: usize) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        while deliveries.len() < count {
            deliveries.push(soon("a delivery", self.consumer.next()).await.unwrap().unwrap());
        }
        deliveries
    }

    /// Is handed just these next, and no more.
    async fn is_handed(&mut self, range: Range<u64>) {
        let wanted: Vec<u64> = range.collect();
        assert_eq!(numbers(&self.handed(wanted.len()).await), wanted);
        self.is_handed_nothing().await;
    }

    async fn is_handed_nothing(&mut self) {
        let more = tokio::time::timeout(NOTHING, self.consumer.next()).await;
        assert!(more.is_err(), "{more:?}");
    }

    /// Executes what is left.
    async fn executes(&mut self, count: usize) -> Vec<u64> {
        let mut executed = Vec::new();
        while executed.len() < count {
            let deliveries = self.handed(1).await;
            executed.extend(numbers(&deliveries));
            deliveries[0].acker.ack(BasicAckOptions::default()).await.unwrap();
        }
        executed
    }

    async fn settle(&self) {
        self.channel.basic_ack(0, BasicAckOptions { multiple: true }).await.unwrap();
    }

    /// Gives up, and leaves the line.
    async fn close(self) {
        self.channel.close(200, "gives up".into()).await.unwrap();
    }
}

fn numbers(deliveries: &[Delivery]) -> Vec<u64> {
    let number = |delivery: &Delivery| std::str::from_utf8(&delivery.data).unwrap().parse();
    deliveries.iter().map(|delivery| number(delivery).unwrap()).collect()
}

fn all() -> Vec<u64> {
    (0..ALL).collect()
}

async fn who_attached_first_is_next_and_is_handed_everything_in_order(broker: &Broker, _: Version) {
    let queue = Queue::new(broker, &[]).await;
    let (mut first, mut second) = (queue.attach().await, queue.attach().await);
    let (third, mut fourth) = (queue.attach().await, queue.attach().await);
    first.is_handed(0..5).await;
    second.is_handed_nothing().await;
    assert_eq!(queue.consumers().await, 1, "those that wait are not counted");

    // The third steps back: it holds nothing, leaves, and attaches again.
    third.close().await;
    let mut third = queue.attach().await;
    first.settle().await;
    first.is_handed(5..10).await;
    first.close().await;
    second.is_handed(5..10).await;
    fourth.is_handed_nothing().await;
    // Who attaches anew stands last as well.
    let mut first = queue.attach().await;
    second.close().await;
    fourth.is_handed(5..10).await;
    third.is_handed_nothing().await;
    fourth.close().await;
    third.is_handed(5..10).await;
    third.close().await;
    assert_eq!(first.executes(15).await, (5..ALL).collect::<Vec<_>>());
    first.close().await;
    queue.until_consumers(0).await;
    queue.done().await;
}

/// Why all windows of a partition are the same.
async fn credit_goes_before_age(broker: &Broker, _: Version) {
    let queue = Queue::new(broker, &[]).await;
    let (mut owner, mut older) = (queue.attach().await, queue.attach().await);
    let mut greedy = queue.attach_with(HELD + 1, None).await;
    owner.is_handed(0..5).await;
    owner.close().await;
    greedy.is_handed(0..6).await;
    older.is_handed_nothing().await;
    greedy.close().await;
    older.is_handed(0..5).await;
    queue.done().await;
}

/// Who cancels keeps what it holds, and the next one is handed what comes after.
async fn a_cancel_breaks_the_order_and_a_close_does_not(broker: &Broker, _: Version) {
    let queue = Queue::new(broker, &[]).await;
    let (mut owner, mut next) = (queue.attach().await, queue.attach().await);
    owner.is_handed(0..5).await;
    let tag = owner.consumer.tag();
    owner.channel.basic_cancel(tag, BasicCancelOptions::default()).await.unwrap();
    next.is_handed(5..10).await;
    assert_eq!(queue.consumers().await, 2, "somebody beside the owner holds something");
    owner.close().await;
    next.settle().await;
    next.is_handed(0..5).await;
    queue.done().await;
}

/// Often the broker has not noticed yet that a connection is dead when the same client stands in
/// line again. The dead one is the owner then, and is replaced if the new one has a priority over
/// it; on 4.3 that leaves it behind, for ever.
async fn only_priorities_leave_a_ghost(broker: &Broker, version: Version) {
    for priorities in [false, true] {
        let queue = Queue::new(broker, &[]).await;
        let mut gone = Vec::new();
        for again in 0..3 {
            let (proxy, connection) = frail(broker).await;
            let priority = priorities.then_some(again);
            let mut standing = Standing::over(&connection, &queue.name, HELD, priority).await;
            // As soon as the broker has noticed that the one before is dead.
            assert_eq!(numbers(&standing.handed(usize::from(HELD)).await), [0, 1, 2, 3, 4]);
            proxy.fall_silent();
            gone.push((proxy, connection, standing));
        }
        let ghost = priorities && version == Version::V4_3;
        if ghost {
            // The last one is noticed, and then the one before it is the owner.
            let mut fresh = queue.attach_with(HELD, Some(-1)).await;
            tokio::time::sleep(NOTICED).await;
            fresh.is_handed_nothing().await;
            queue.until_consumers(1).await;
        } else {
            queue.until_consumers(0).await;
            let mut fresh = queue.attach_with(HELD, priorities.then_some(-1)).await;
            assert_eq!(fresh.executes(all().len()).await, all());
        }
        queue.done().await;
        drop(gone);
    }
}

/// The broker waits for two heartbeats of a second each, and looks every second.
const NOTICED: Duration = Duration::from_secs(5);

/// A connection that the broker soon takes for dead when its wire falls silent.
async fn frail(broker: &Broker) -> (Proxy, Connection) {
    let mut url = Url::parse(&broker.amqp_url()).unwrap();
    let proxy = Proxy::to(url.port().unwrap()).await;
    url.set_port(Some(proxy.port)).unwrap();
    url.set_query(Some("heartbeat=1"));
    let connection = Connection::connect(url.as_str(), ConnectionProperties::default());
    (proxy, connection.await.unwrap())
}

/// The evidence against tasks that kill their workers is made of it: a hand-over by closing looks
/// like a loss, to which what is in the journal is the answer.
async fn every_close_counts(broker: &Broker, version: Version) {
    let queue = Queue::new(broker, &[]).await;
    let newer = version == Version::V4_3;
    let counts = |delivery: &Delivery| {
        let headers = delivery.properties.headers().clone().unwrap_or_default();
        let count = |name: &str| headers.inner().get(name).and_then(AMQPValue::as_long_long_int);
        assert_eq!(delivery.redelivered, count("x-delivery-count").is_some());
        (count("x-delivery-count"), count("x-acquired-count"))
    };
    let mut standing = queue.attach().await;
    assert_eq!(counts(&standing.handed(1).await[0]), (None, None));
    for closes in 1..4 {
        standing.close().await;
        standing = queue.attach().await;
        // All that was handed out counts, whether it was begun or not.
        for delivery in standing.handed(usize::from(HELD)).await {
            assert_eq!(counts(&delivery), (Some(closes), newer.then_some(closes)));
        }
    }
    let options = BasicNackOptions { multiple: true, requeue: true };
    standing.channel.basic_nack(0, options).await.unwrap();
    // On 4.0 it comes last.
    let given_back = loop {
        let delivery = standing.handed(1).await.remove(0);
        if delivery.data == b"0" {
            break counts(&delivery);
        }
        delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
    };
    assert_eq!(given_back, if newer { (Some(3), Some(4)) } else { (Some(4), None) });
    queue.done().await;
}

/// Why the consumer timeout of partitions is a week: when it strikes, somebody lives. What was
/// held for so long comes back, and what was held for less does not, while the next in line is
/// handed what comes after both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_4_3_a_consumer_timeout_breaks_the_order_of_those_who_live() {
    let timeout = ("x-consumer-timeout", AMQPValue::LongLongInt(5_000));
    let queue = Queue::new(broker(Version::V4_3).await, &[timeout]).await;
    let (mut owner, mut next) = (queue.attach().await, queue.attach().await);
    let held = owner.handed(usize::from(HELD)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // One takes long; the others are executed, and the window is filled again.
    for delivery in &held[1..] {
        delivery.acker.ack(BasicAckOptions::default()).await.unwrap();
    }
    assert_eq!(numbers(&owner.handed(4).await), [5, 6, 7, 8]);
    assert_eq!(numbers(&next.handed(5).await), [0, 9, 10, 11, 12]);
    assert!(owner.channel.status().connected(), "it is cancelled, and not more");
    queue.done().await;
}
