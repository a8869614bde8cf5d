//! Partitions that stand still, each for a reason of its own, and what is said of it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

mod support;

use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use futures_lite::StreamExt;
use keylane::protocol::stall::{Cause, Event, Watch};
use keylane::testing::{Broker, Version};
use keylane::{
    Connect, Failure, PartitionId, Resource, Scope, Topology, WorkerOptions, init, pause, resume,
    status,
};
use lapin::Channel;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};

use support::{
    End, Gate, Record, Worker, amqp, broker, count, eventually, named, publish, rabbitmqctl,
    resources, restart_server, set_consumer_timeout, soon, space, task, tasks,
};

/// Looks until something is told. A slow worker has more told on the way to it.
struct Looks {
    connect: Connect,
    watch: Watch,
    began: Instant,
}

impl Looks {
    fn new(connect: &Connect) -> Self {
        let watch = Watch::new(Duration::from_secs(1));
        Self { connect: connect.clone(), watch, began: Instant::now() }
    }

    async fn told(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) {
        eventually(what, async || {
            let seen = status(&self.connect).await.ok()?;
            let now = u64::try_from(self.began.elapsed().as_millis()).unwrap();
            self.watch.note(now, seen.looks()).iter().any(&wanted).then_some(())
        })
        .await;
    }

    async fn until(&mut self, wanted: &Cause) {
        self.until_like(&format!("{wanted:?}"), |cause| cause == wanted).await;
    }

    async fn until_like(&mut self, what: &str, wanted: impl Fn(&Cause) -> bool) {
        let stalls = |event: &Event| matches!(event, Event::Stalled { cause, .. } if wanted(cause));
        self.told(what, stalls).await;
    }

    async fn moves(&mut self) {
        self.told("that it moves", |event| matches!(event, Event::Moves { .. })).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_consumes_and_what_is_paused_is_told_until_it_goes_on() {
    let (connect, _) = space(broker(Version::V4_3).await, 1).await;
    publish(&connect, [task("a", 0), task("a", 1)]).await;
    let mut looks = Looks::new(&connect);
    looks.until(&Cause::NotConsumed).await;
    pause(&connect, Scope::Partition(PartitionId::new(0)), "anna").await.unwrap();
    looks.until(&Cause::Paused).await;
    let record = Record::default();
    let worker = Worker::start(&connect, named("w"), record.handler("w", async |_| Ok(())));
    pause(&connect, Scope::Resource(Resource::new("a").unwrap()), "anna").await.unwrap();
    resume(&connect, Scope::Partition(PartitionId::new(0)), "anna").await.unwrap();
    let held = Cause::ResourcesPaused { worker: named("w").id, tasks: 2, window_full: false };
    looks.until(&held).await;
    resume(&connect, Scope::All, "anna").await.unwrap();
    looks.moves().await;
    record.until_executed(2).await;
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_retry_or_for_a_slot_is_told() {
    let (connect, topology) = space(broker(Version::V4_3).await, 2).await;
    let [one, other] = &resources(&topology, 1)[..] else { panic!("two partitions") };
    let (fails, long) = (one[0].clone(), other[0].clone());
    let (record, gate) = (Record::default(), Gate::default());
    let (waiting, failing) = (gate.clone(), fails.clone());
    let handler = record.handler("w", move |attempt| {
        let (gate, fails) = (waiting.clone(), attempt.task.resource.as_str() == failing);
        async move {
            if fails && !gate.is_open() {
                let again = Some(Duration::from_secs(20));
                return Err(Failure::retry(again, "not now".to_owned()));
            }
            gate.passed().await;
            Ok(())
        }
    });
    let worker = Worker::start(&connect, WorkerOptions { slots: 1, ..named("w") }, handler);
    publish(&connect, [task(&fails, 0)]).await;
    record.until("it fails", |runs| runs.iter().any(|run| run.end == Some(End::Failed))).await;
    let mut looks = Looks::new(&connect);
    let retries = |cause: &Cause| {
        let Cause::Retrying { worker, tasks: 1, next_in_ms } = cause else { return false };
        worker.as_str() == "w" && (1..=20_000).contains(next_in_ms)
    };
    looks.until_like("a retry in 20 s", retries).await;
    // The only slot is taken by the other partition when the retry is due.
    publish(&connect, [task(&long, 0)]).await;
    record.until("it runs", |runs| runs.iter().any(|run| run.resource == long)).await;
    looks.until(&Cause::NoSlot { worker: named("w").id }).await;
    gate.open();
    record.until_executed(2).await;
    worker.drain().await;
}

/// Of a queue whose leader is silent for 250 ms the broker says that nothing is in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_leader_does_not_make_a_partition_look_empty() {
    let broker = broker(Version::V4_3).await;
    let (connect, topology) = space(broker, 1).await;
    publish(&connect, tasks(&["a".to_owned()], 3)).await;
    let queue = connect.namespace().partition(&topology, PartitionId::new(0));
    let pauses = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)),
        {{Name, _}} = amqqueue:get_pid(Q), Leader = whereis(Name),
        [begin erlang:suspend_process(Leader), timer:sleep(400),
            erlang:resume_process(Leader), timer:sleep(100) end || _ <- lists:seq(1, 10)]."
    );
    let words = ["eval", &pauses];
    let paused = async {
        loop {
            rabbitmqctl(broker, &words).await;
        }
    };
    let seen = eventually("a look that met a pause", async || {
        let asked = Instant::now();
        let seen = status(&connect).await.ok()?;
        (asked.elapsed() > Duration::from_millis(250) && seen.partitions[0].ready > 0)
            .then_some(seen)
    });
    let seen = tokio::select! { seen = seen => seen, () = paused => unreachable!() };
    assert_eq!(seen.partitions[0].ready, 3);
}

/// A consumer with a priority, as a stranger has it.
async fn consume(channel: &Channel, queue: &str, priority: i32) -> lapin::Consumer {
    channel.basic_qos(5, BasicQosOptions::default()).await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-priority".into(), AMQPValue::LongInt(priority));
    let options = BasicConsumeOptions::default();
    channel.basic_consume(queue.into(), "".into(), options, arguments).await.unwrap()
}

/// RabbitMQ's issue 17317: when every consumer has held something for longer than the consumer
/// timeout, the queue hands out nothing any more. (The report says of 4.3.0 to 4.3.5 that the
/// consumers stay, and are passed over; 4.3.6 has none left.) Consumers that come anew are the
/// cure, which is what workers do by themselves: `a_pause_that_outlasts_the_consumer_timeout_
/// loses_nothing`, among the tests of steering.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_whose_consumers_have_all_timed_out_goes_on_with_a_new_one() {
    let broker = broker(Version::V4_3).await;
    let (connect, topology) = space(broker, 1).await;
    let timeout = Duration::from_secs(5);
    set_consumer_timeout(broker, &connect, &topology, PartitionId::new(0), timeout).await;
    publish(&connect, tasks(&["a".to_owned()], 10)).await;
    let queue = connect.namespace().partition(&topology, PartitionId::new(0));
    let (connection, channel) = amqp(broker).await;
    let standby = connection.create_channel().await.unwrap();
    let consumers = [consume(&channel, &queue, 2).await, consume(&standby, &queue, 1).await];
    for mut consumer in consumers.clone() {
        let mut held = 0;
        while let Some(delivery) = soon("the end of its time", consumer.next()).await {
            delivery.unwrap();
            held += 1;
        }
        assert_eq!(held, 5, "its window");
    }
    let stuck = |cause: &Cause| matches!(cause, Cause::NotConsumed | Cause::NotHandedOut);
    Looks::new(&connect).until_like("a queue that is stuck", stuck).await;
    assert!(channel.status().connected() && standby.status().connected());

    let record = Record::default();
    let worker = Worker::start(&connect, named("w"), record.handler("w", async |_| Ok(())));
    record.until_executed(10).await;
    record.assert_once();
    worker.drain().await;
    drop(consumers);
    connection.close(200, "done".into()).await.unwrap();
}

/// A consumer that is lost while one of a higher priority replaces it stays behind on 4.3; when
/// that one has left, it is the active one. Workers have no priorities, so a stranger does this.
async fn make_a_ghost(broker: &Broker, queue: &str) {
    let (connection, channel) = amqp(broker).await;
    let mut victim = consume(&channel, queue, 0).await;
    soon("a delivery", victim.next()).await.unwrap().unwrap();
    let replacement = connection.create_channel().await.unwrap();
    let newcomer = consume(&replacement, queue, 1).await;
    channel.close(200, "lost".into()).await.unwrap();
    replacement.close(200, "leaves".into()).await.unwrap();
    connection.close(200, "done".into()).await.unwrap();
    drop((victim, newcomer));
}

/// No consumer cures it, whatever its priority, and restarts of the queue's server do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ghost_is_named_and_no_consumer_cures_it() {
    let broker = broker(Version::V4_3).await;
    let connect = support::connect(broker);
    let window = NonZeroU16::new(5).unwrap();
    let topology = init(&connect, Topology::first(count(1)).with_prefetch(window)).await.unwrap();
    let resources = resources(&topology, 2).concat();
    publish(&connect, tasks(&resources, 10)).await;
    let record = Record::default();
    let queue = connect.namespace().partition(&topology, PartitionId::new(0));
    make_a_ghost(broker, &queue).await;

    let start = || Worker::start(&connect, named("w"), record.handler("w", async |_| Ok(())));
    let mut worker = start();
    let mut looks = Looks::new(&connect);
    looks.until(&Cause::NotHandedOut).await;

    // One that consumes anew, and one that has the highest priority of all.
    worker.drain().await;
    worker = start();
    eventually("it consumes", async || {
        (!status(&connect).await.ok()?.workers.is_empty()).then_some(())
    })
    .await;
    let (connection, channel) = amqp(broker).await;
    let mut highest = consume(&channel, &queue, i32::MAX).await;
    let handed = tokio::time::timeout(Duration::from_secs(3), highest.next()).await;
    assert!(handed.is_err(), "there is a cure now: see docs/reliability.md");
    channel.close(200, "done".into()).await.unwrap();
    connection.close(200, "done".into()).await.unwrap();
    assert_eq!(record.runs().len(), 0, "there is a cure now: see docs/reliability.md");

    // Once more if need be: that consumer has had the ghost replaced, so that its end
    // leaves it behind again.
    for _ in 0..3 {
        restart_server(broker, &queue).await;
        let cured = record.until_executed(resources.len() * 10);
        if tokio::time::timeout(Duration::from_secs(10), cured).await.is_ok() {
            break;
        }
    }
    record.until_executed(resources.len() * 10).await;
    record.assert_exclusive_and_in_order();
    worker.drain().await;
}

/// A window of four is full of a resource that fails again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resource_that_fills_the_window_is_named() {
    let connect = support::connect(broker(Version::V4_3).await);
    let window = NonZeroU16::new(4).unwrap();
    init(&connect, Topology::first(count(1)).with_prefetch(window)).await.unwrap();
    publish(&connect, (0..5).map(|n| task("hot", n)).chain([task("other", 0)])).await;
    let (record, gate) = (Record::default(), Gate::default());
    let mut options = named("w");
    options.retry.first_delay = Duration::from_millis(300);
    options.retry.max_delay = Duration::from_millis(300);
    options.retry.attempts = 0;
    let opened = gate.clone();
    let handler = record.handler("w", move |_| {
        let done = opened.is_open();
        async move { if done { Ok(()) } else { Err(Failure::failed("not yet")) } }
    });
    let worker = Worker::start(&connect, options, handler);
    let mut looks = Looks::new(&connect);
    let full = |cause: &Cause| matches!(cause, Cause::Crowded { by, .. } if by.tasks == 4);
    looks.until_like("a crowd", full).await;
    gate.open();
    looks.moves().await;
    record.until_executed(6).await;
    worker.drain().await;
}

/// The broker answers for it: no messages, no consumers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_does_not_answer_is_told_from_an_empty_one() {
    for version in [Version::V4_3, Version::V4_0] {
        let broker = broker(version).await;
        let (connect, topology) = space(broker, 2).await;
        let queue = connect.namespace().partition(&topology, PartitionId::new(1));
        let order = |what: &str| {
            format!(
                "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, \
                 <<\"{queue}\">>)), {{Name, _}} = amqqueue:get_pid(Q), sys:{what}(Name)."
            )
        };
        rabbitmqctl(broker, &["eval", &order("suspend")]).await;
        let seen = status(&connect).await.unwrap();
        let counted: Vec<_> = seen.partitions.iter().map(|partition| partition.counted).collect();
        assert_eq!(counted, [true, false], "{version:?}");
        Looks::new(&connect).until(&Cause::QueueSilent).await;
        rabbitmqctl(broker, &["eval", &order("resume")]).await;
        eventually("an answer", async || {
            status(&connect).await.unwrap().partitions[1].counted.then_some(())
        })
        .await;
    }
}
