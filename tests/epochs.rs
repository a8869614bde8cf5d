//! Fencing tokens: they rise over everything that can happen to an owner, and
//! nothing damages the counter that they are minted from.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keylane::testing::{Broker, Version};
use keylane::{
    Attempt, Connect, Error, Failure, FencingError, FencingToken, Handler, RetryPolicy,
    WorkerOptions, handler_fn, init, status, topology, work,
};
use lapin::BasicProperties;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use support::{
    Gate, Worker, amqp, broker, connect, count, cut_connections, eventually, named, publish, put,
    rabbitmqctl, ready, soon, space, task,
};

macro_rules! on_both_versions {
    ($($test:ident)*) => {
        mod on_4_3 {
            use super::Version;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test(Version::V4_3).await; })*
        }
        mod on_4_0 {
            use super::Version;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test(Version::V4_0).await; })*
        }
    };
}

on_both_versions! {
    one_stretch_has_one_token
    tokens_rise_whatever_happens
    acks_cannot_eat_the_counter
}

async fn shared() -> &'static Broker {
    broker(Version::default()).await
}

/// What the handlers were given, in the order in which they got it.
#[derive(Clone)]
struct Tokens(Arc<watch::Sender<Vec<FencingToken>>>);

impl Tokens {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Vec::new())))
    }

    /// A handler that asks, and then waits at the gate.
    fn handler(&self, gate: &Gate) -> impl Handler + use<> {
        let (tokens, gate) = (self.clone(), gate.clone());
        handler_fn(move |attempt: Attempt| {
            let (tokens, gate) = (tokens.clone(), gate.clone());
            async move {
                let token = attempt.fencing_token().await?;
                assert_eq!(attempt.fencing_token().await, Ok(token), "a second call");
                tokens.0.send_modify(|tokens| tokens.push(token));
                gate.passed().await;
                Ok(())
            }
        })
    }

    async fn until(&self, count: usize) -> Vec<FencingToken> {
        let mut changes = self.0.subscribe();
        let enough = changes.wait_for(|tokens| tokens.len() >= count);
        soon(&format!("{count} tokens"), enough).await.unwrap().clone()
    }
}

fn open_gate() -> Gate {
    let gate = Gate::default();
    gate.open();
    gate
}

fn counter(connect: &Connect, number: u32) -> String {
    format!("{}.g1.p{number}.epoch", connect.namespace())
}

/// Waits until nothing of the first partition is ready or held.
async fn all_settled(connect: &Connect) {
    eventually("the end of all tasks", async || {
        let status = status(connect).await.ok()?;
        let partition = &status.partitions[0];
        let done = partition.ready == 0 && partition.unsettled == 0;
        (done && !status.workers.is_empty()).then_some(())
    })
    .await;
}

/// Exactly one message is in the queue of each counter. Channels that have just
/// been lost may still have theirs.
async fn assert_whole(broker: &Broker, connect: &Connect, partitions: u32) {
    let (connection, channel) = amqp(broker).await;
    for number in 0..partitions {
        let queue = counter(connect, number);
        let whole = async || (ready(&channel, &queue).await == 1).then_some(());
        eventually(&format!("one counter in {queue}"), whole).await;
    }
    connection.close(200, "done".into()).await.unwrap();
    for number in 0..partitions {
        let (connection, channel) = amqp(broker).await;
        assert_eq!(ready(&channel, &counter(connect, number)).await, 1, "partition {number}");
        connection.close(200, "done".into()).await.unwrap();
    }
}

async fn one_stretch_has_one_token(version: Version) {
    let broker = broker(version).await;
    let (connect, _) = space(broker, 1).await;
    let (tokens, gate) = (Tokens::new(), Gate::default());
    let worker = Worker::start(&connect, named("w"), tokens.handler(&gate));
    publish(&connect, [task("a", 0), task("b", 0)]).await;
    let first = tokens.until(2).await[0];
    gate.open();
    assert_eq!(tokens.until(2).await[1], first, "both ran at once");
    // A stretch lasts until the last ack is out.
    let mut seen = vec![first];
    for sequence in 1..100 {
        publish(&connect, [task("a", sequence)]).await;
        seen = tokens.until(2 + sequence as usize).await;
        assert!(seen.is_sorted(), "{seen:?}");
        if seen.last() > Some(&first) {
            break;
        }
    }
    assert!(seen.last() > Some(&first), "there were pauses between the stretches");
    assert_eq!(first.generation(), 1);
    worker.drain().await;
    assert_whole(broker, &connect, 1).await;
}

async fn tokens_rise_whatever_happens(version: Version) {
    // It is restarted.
    let broker = Broker::start_version(version).await.unwrap();
    let (connect, _) = space(&broker, 1).await;
    let tokens = Tokens::new();
    let (mut seen, mut sequence) = (0, 0);
    let mut next = async || {
        publish(&connect, [task("r", sequence)]).await;
        (seen, sequence) = (seen + 1, sequence + 1);
        tokens.until(seen).await;
        seen
    };
    let open = open_gate();
    let start =
        |name: &str, gate: &Gate| Worker::start(&connect, named(name), tokens.handler(gate));
    let drained = start("drained", &open);
    next().await;
    drained.drain().await;
    let killed = start("killed", &Gate::default());
    next().await;
    killed.kill().await;
    // What the killed one ran comes first.
    let cut = start("cut", &open);
    seen = tokens.until(3).await.len();
    // Until its ack is out, the stretch is still the same one.
    all_settled(&connect).await;
    let mut next = async |worker: &str| {
        publish(&connect, [task("r", sequence)]).await;
        (seen, sequence) = (seen + 1, sequence + 1);
        tokens.until(seen).await;
        all_settled(&connect).await;
        if !worker.is_empty() {
            cut_connections(&broker, worker).await;
        }
    };
    next("cut").await;
    next("").await;
    // Streams take a moment longer than the rest.
    let serves = async || topology(&connect).await.ok();
    broker.restart().await.unwrap();
    eventually("the broker", serves).await;
    next("").await;
    broker.kill().await.unwrap();
    broker.restart().await.unwrap();
    eventually("the broker", serves).await;
    next("").await;
    cut.drain().await;
    let seen = tokens.until(7).await;
    assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
    assert_whole(&broker, &connect, 1).await;
}

/// So many bursts of tasks, a worker for each four of them. Many stretches begin
/// while others' acks are under way, and some end in the middle of a mint.
const BURSTS: u64 = 80;
const BURST: u64 = 20;

async fn acks_cannot_eat_the_counter(version: Version) {
    let broker = broker(version).await;
    let (connect, _) = space(broker, 1).await;
    let tokens = Tokens::new();
    let took = Arc::new(Mutex::new(Vec::new()));
    let (log, asked) = (tokens.clone(), took.clone());
    let handler = move || {
        let (tokens, took) = (log.clone(), asked.clone());
        handler_fn(move |attempt: Attempt| {
            let (tokens, took) = (tokens.clone(), took.clone());
            async move {
                let asked = Instant::now();
                let token = attempt.fencing_token().await?;
                took.lock().unwrap().push(asked.elapsed());
                tokens.0.send_modify(|tokens| tokens.push(token));
                Ok(())
            }
        })
    };
    let options = |name: &str| WorkerOptions {
        ack_delay: Duration::from_millis(1),
        drain_timeout: Duration::ZERO,
        ..named(name)
    };
    let mut published = 0;
    for round in 0..BURSTS / 4 {
        let worker = Worker::start(&connect, options("w"), handler());
        for burst in round * 4..round * 4 + 4 {
            publish(&connect, (0..BURST).map(|n| task(&format!("r{n}"), burst))).await;
            published += BURST as usize;
            tokens.until(published - (burst as usize % 4) * 6).await;
        }
        match round % 2 {
            0 => worker.kill().await,
            _ => drop(worker.drain().await),
        }
    }
    // What the others left.
    let worker = Worker::start(&connect, named("w"), handler());
    all_settled(&connect).await;
    worker.drain().await;
    let seen = tokens.until(published).await;
    let mut different = seen.clone();
    different.dedup();
    assert!(different.len() as u64 >= BURSTS / 2, "many were minted: {}", different.len());
    assert!(seen.is_sorted(), "each owner has higher tokens than those before");
    assert_whole(broker, &connect, 1).await;
    let mut took = took.lock().unwrap().clone();
    took.sort();
    let median = took[took.len() / 2];
    println!("{} mints; to ask took {median:?}, {:?} at most", different.len(), took.last());
}

#[tokio::test]
async fn who_does_not_ask_does_not_mint() {
    let broker = shared().await;
    let (connect, _) = space(broker, 1).await;
    let tokens = Tokens::new();
    let asks = Worker::start(&connect, named("w"), tokens.handler(&open_gate()));
    publish(&connect, [task("r", 0)]).await;
    tokens.until(1).await;
    asks.drain().await;
    let silent = Worker::start(&connect, named("w"), handler_fn(async |_| Ok(())));
    publish(&connect, (0..50).map(|n| task("s", n))).await;
    all_settled(&connect).await;
    silent.drain().await;
    let asks = Worker::start(&connect, named("w"), tokens.handler(&open_gate()));
    publish(&connect, [task("r", 1)]).await;
    let seen = tokens.until(2).await;
    assert_eq!(seen[1].number(), seen[0].number() + 1, "nobody minted in between");
    asks.drain().await;
}

#[tokio::test]
async fn there_are_no_tokens_after_the_end() {
    let (connect, _) = space(shared().await, 1).await;
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeps = kept.clone();
    let handler = handler_fn(move |attempt: Attempt| {
        keeps.lock().unwrap().push(attempt);
        async { Ok(()) }
    });
    let worker = Worker::start(&connect, named("w"), handler);
    publish(&connect, [task("r", 0)]).await;
    all_settled(&connect).await;
    let attempt = kept.lock().unwrap().pop().unwrap();
    // The worker is there, and holds nothing: it must not mint.
    assert_eq!(soon("an answer", attempt.fencing_token()).await, Err(FencingError::Over));
    worker.drain().await;
    assert_eq!(soon("an answer", attempt.fencing_token()).await, Err(FencingError::Over));
}

/// Who asks only after the partition was lost must not get a token above its
/// successor's.
#[tokio::test]
async fn there_are_no_tokens_for_who_was_cut_off() {
    let broker = shared().await;
    let (connect, _) = space(broker, 1).await;
    let kept = Arc::new(watch::Sender::new(Vec::new()));
    let keeps = kept.clone();
    let handler = handler_fn(move |attempt: Attempt| {
        keeps.send_modify(|kept| kept.push(attempt));
        std::future::pending()
    });
    let worker = Worker::start(&connect, named("cut-off"), handler);
    publish(&connect, [task("r", 0)]).await;
    let mut changes = kept.subscribe();
    drop(soon("the first try", changes.wait_for(|kept| kept.len() == 1)).await.unwrap());
    cut_connections(broker, "cut-off").await;
    drop(soon("the second try", changes.wait_for(|kept| kept.len() == 2)).await.unwrap());
    let [first, second] = [0, 1].map(|index| kept.borrow()[index].clone());
    assert_eq!(soon("an answer", first.fencing_token()).await, Err(FencingError::Over));
    assert!(soon("an answer", second.fencing_token()).await.is_ok());
    worker.kill().await;
}

#[tokio::test]
async fn fencing_can_be_switched_off() {
    let (connect, _) = space(shared().await, 1).await;
    let handler = handler_fn(async |attempt: Attempt| match attempt.fencing_token().await {
        Err(FencingError::Off) => Ok(()),
        other => Err(Failure::dead(format!("{other:?}"))),
    });
    let options = WorkerOptions { fencing: false, ..named("w") };
    let worker = Worker::start(&connect, options, handler);
    publish(&connect, [task("r", 0)]).await;
    all_settled(&connect).await;
    assert_eq!(worker.drain().await.executed, 1);
}

#[tokio::test]
async fn inits_at_once_make_one_counter() {
    let broker = shared().await;
    for _ in 0..4 {
        let connect = connect(broker);
        let all = tokio::join!(
            init(&connect, count(4)),
            init(&connect, count(4)),
            init(&connect, count(4))
        );
        assert!(all.0.is_ok() && all.1.is_ok() && all.2.is_ok(), "{all:?}");
        assert_whole(broker, &connect, 4).await;
    }
}

#[tokio::test]
async fn an_init_that_died_is_completed() {
    let broker = shared().await;
    for limit_ms in (0..160).step_by(20) {
        let connect = connect(broker);
        let limit = Duration::from_millis(limit_ms);
        let ended = tokio::time::timeout(limit, init(&connect, count(4))).await;
        soon("a second init", Box::pin(init(&connect, count(4)))).await.unwrap();
        assert_whole(broker, &connect, 4).await;
        println!("cut short after {limit:?}: {}", ended.is_err());
    }
}

/// The counter is away for a moment again and again while workers mint.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_init_beside_workers_changes_nothing() {
    let broker = shared().await;
    let (connect, _) = space(broker, 1).await;
    let tokens = Tokens::new();
    let worker = Worker::start(&connect, named("w"), tokens.handler(&open_gate()));
    let inits = async {
        for _ in 0..10 {
            init(&connect, count(1)).await.unwrap();
        }
    };
    let tasks = async {
        for n in 0..40 {
            publish(&connect, [task("r", n)]).await;
        }
    };
    tokio::join!(inits, tasks);
    let seen = tokens.until(40).await;
    assert!(seen.is_sorted());
    worker.drain().await;
    assert_whole(broker, &connect, 1).await;
}

#[tokio::test]
async fn a_namespace_without_counters_gets_them() {
    let broker = shared().await;
    let (connect, _) = space(broker, 2).await;
    let tokens = Tokens::new();
    let worker = Worker::start(&connect, named("w"), tokens.handler(&open_gate()));
    publish(&connect, [task("r", 0)]).await;
    let before = tokens.until(1).await[0];
    worker.drain().await;
    let (connection, channel) = amqp(broker).await;
    for number in 0..2 {
        let queue = counter(&connect, number);
        let deleted = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default());
        deleted.await.unwrap();
    }
    let refused =
        work(&connect, named("w"), handler_fn(async |_| Ok(())), CancellationToken::new());
    let error = soon("refusing a worker", refused).await.unwrap_err();
    assert!(matches!(&error, Error::QueueMissing { queue } if *queue == counter(&connect, 0)));
    assert!(error.to_string().contains("Run `keylane init` again"), "{error}");
    let asked = Instant::now();
    init(&connect, count(2)).await.unwrap();
    assert!(
        asked.elapsed() < Duration::from_secs(25),
        "nobody could have them: {:?}",
        asked.elapsed()
    );
    assert_whole(broker, &connect, 2).await;
    let worker = Worker::start(&connect, named("w"), tokens.handler(&open_gate()));
    publish(&connect, [task("r", 1)]).await;
    let after = tokens.until(2).await[1];
    assert!(after > before, "stores remember {before}: {after}");
    worker.drain().await;
    connection.close(200, "done".into()).await.unwrap();
}

/// A queue that was declared and holds nothing yet: an older `init` died there.
#[tokio::test]
async fn an_empty_queue_of_a_new_namespace_is_filled() {
    let broker = shared().await;
    let connect = connect(broker);
    let (connection, channel) = amqp(broker).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(-1));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    let queue = counter(&connect, 0);
    channel.queue_declare(queue.as_str().into(), durable, arguments).await.unwrap();
    init(&connect, count(1)).await.unwrap();
    assert_whole(broker, &connect, 1).await;
    connection.close(200, "done".into()).await.unwrap();
}

/// An `init` that died left a counter, and the broker says for a while that it is not there:
/// the queue's leader does not answer.
#[tokio::test]
async fn a_counter_that_is_not_seen_for_a_while_stays_the_only_one() {
    let broker = shared().await;
    let (connect, _) = space(broker, 1).await;
    let (connection, channel) = amqp(broker).await;
    let stream = connect.namespace().topology();
    channel.queue_delete(stream.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let queue = counter(&connect, 0);
    let pause = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)),
        {{Name, _}} = amqqueue:get_pid(Q), Leader = whereis(Name),
        spawn(fun() -> erlang:suspend_process(Leader), timer:sleep(2000),
            erlang:resume_process(Leader) end)."
    );
    rabbitmqctl(broker, &["eval", &pause]).await;
    init(&connect, count(1)).await.unwrap();
    assert_whole(broker, &connect, 1).await;
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn a_damaged_counter_is_told_and_can_be_mended() {
    let broker = shared().await;
    let (connect, _) = space(broker, 1).await;
    let (connection, channel) = amqp(broker).await;
    let queue = counter(&connect, 0);
    let said = Arc::new(watch::Sender::new(Vec::new()));
    let says = said.clone();
    let handler = handler_fn(move |attempt: Attempt| {
        let says = says.clone();
        async move {
            let result = attempt.fencing_token().await;
            says.send_modify(|said| said.push(result.clone()));
            Ok(result.map(drop)?)
        }
    });
    // It is no fault of the task, so that one attempt is enough.
    let retry = RetryPolicy { attempts: 1, ..RetryPolicy::default() };
    let options = WorkerOptions { retry, ..named("w") };
    put(&channel, &queue, BasicProperties::default(), b"").await;
    let worker = Worker::start(&connect, options, handler);
    publish(&connect, [task("r", 1)]).await;
    let told = async |wanted: Result<(), FencingError>| {
        let mut changes = said.subscribe();
        let is_told = |said: &Vec<Result<_, _>>| {
            said.last().is_some_and(|last| last.clone().map(drop) == wanted)
        };
        soon("an answer", changes.wait_for(is_told)).await.unwrap();
    };

    let ambiguous = FencingError::CounterAmbiguous { queue: queue.clone(), count: 2 };
    told(Err(ambiguous)).await;
    channel.queue_purge(queue.as_str().into(), QueuePurgeOptions::default()).await.unwrap();
    let missing = FencingError::CounterMissing { queue: queue.clone() };
    assert!(missing.to_string().contains("Run `keylane init` again"), "{missing}");
    told(Err(missing)).await;

    // It cannot tell a counter that is gone from one that somebody has.
    soon("an init", Box::pin(init(&connect, count(1)))).await.unwrap();
    told(Ok(())).await;
    assert_eq!(worker.drain().await.executed, 1);
    assert_whole(broker, &connect, 1).await;
    connection.close(200, "done".into()).await.unwrap();
}
