//! What one worker does with the tasks of a partition: retries, time limits,
//! dead letters, and tasks that kill it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

#[path = "worker/killers.rs"]
mod killers;
mod support;
#[path = "worker/trouble.rs"]
mod trouble;

use std::num::NonZeroU16;
use std::time::Duration;

use bytes::Bytes;
use keylane::testing::{Broker, Version};
use keylane::{
    Attempt, Connect, DeadLetters, Failure, ReplayError, RetryPolicy, Task, TaskId, Topology,
    WorkerOptions, handler_fn, init, status, verify, work,
};
use lapin::BasicProperties;
use lapin::options::QueueDeleteOptions;
use lapin::types::{AMQPValue, LongString};
use tokio_util::sync::CancellationToken;

use support::{
    End, Gate, Record, TOOL_INTERVAL, Worker, amqp, await_dead_letters, broker, connect, count,
    dead_letters, eventually, header, named, open_dead_letters, publish, put, rabbitmqctl, space,
    task, tasks,
};

async fn shared() -> &'static Broker {
    broker(Version::default()).await
}

/// Options that give up after so many attempts, with hardly a pause.
fn attempts(name: &str, attempts: u32) -> WorkerOptions {
    let mut options = named(name);
    let delay = Duration::from_millis(5);
    options.retry = RetryPolicy { attempts, first_delay: delay, max_delay: delay };
    options
}

fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

fn queue(connect: &Connect) -> String {
    format!("{}.g1.p0", connect.namespace())
}

/// What it hears with is lost, and its connection is not.
#[tokio::test]
async fn a_worker_that_was_deaf_hears_again() {
    let broker = shared().await;
    let (connect, _) = space(broker, 1).await;
    let worker = Worker::start(&connect, named("w"), handler_fn(async |_| Ok(())));
    let reports = async || {
        let workers = status(&connect).await.ok()?.workers;
        (workers.len() == 1).then_some(())
    };
    eventually("its report", reports).await;
    let prefix = connect.namespace().control();
    // Whoever asked had one of these, too.
    let ear = eventually("one ear", async || {
        let names = rabbitmqctl(broker, &["list_queues", "--no-table-headers", "name"]).await;
        let mut ears = names.lines().filter(|name| name.starts_with(&prefix));
        let ear = ears.next().filter(|_| ears.next().is_none());
        if ear.is_none() {
            tokio::time::sleep(TOOL_INTERVAL).await;
        }
        ear.map(str::to_owned)
    })
    .await;
    let delete = format!(
        "{{ok, Queue}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{ear}\">>)),
        rabbit_amqqueue:delete(Queue, false, false, <<\"test\">>)."
    );
    rabbitmqctl(broker, &["eval", &delete]).await;
    eventually("another report", reports).await;
    worker.drain().await;
}

#[tokio::test]
async fn a_retry_blocks_only_its_own_lane() {
    let (connect, _) = space(shared().await, 1).await;
    let total = publish(&connect, tasks(&names(["flaky", "a", "b"]), 20)).await.len();
    let record = Record::default();
    let (gate, waits_for) = (Gate::default(), 3);
    let open = gate.clone();
    let handler = record.handler("w", move |attempt| {
        let gate = open.clone();
        async move {
            let flaky = attempt.task.resource.as_str() == "flaky" && attempt.task.payload == "0";
            if flaky && (attempt.number < waits_for || !gate.is_open()) {
                return Err(Failure::failed("not yet"));
            }
            Ok(())
        }
    });
    let worker = Worker::start(&connect, attempts("w", 0), handler);
    // It fails until all of the others are executed.
    record.until_executed(40).await;
    gate.open();
    record.until_executed(total).await;
    record.assert_exclusive_and_in_order();
    let tries: Vec<_> =
        record.runs().into_iter().filter(|run| run.end == Some(End::Failed)).collect();
    assert!(tries.len() >= 2);
    for (index, run) in tries.iter().enumerate() {
        assert_eq!((run.resource.as_str(), run.attempt), ("flaky", index as u32 + 1));
        assert!(!run.redelivered, "a retry gives nothing back to the broker");
    }
    assert_eq!(worker.drain().await.executed, total as u64);
}

#[tokio::test]
async fn the_last_attempt_ends_in_the_dead_letters() {
    let (connect, _) = space(shared().await, 1).await;
    let id = TaskId::new("bad-1").unwrap();
    let bad = Task::new("r", "{\"n\":1}").unwrap().with_id(id);
    let bad = bad.with_kind("transfer").with_content_type("application/json");
    publish(&connect, [bad, task("r", 1)]).await;
    let tried = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = tried.clone();
    let handler = handler_fn(move |attempt| {
        let id = attempt.task.kind.clone();
        log.lock().unwrap().push((id.is_some(), attempt.number));
        async move { if id.is_some() { Err(Failure::failed("no funds")) } else { Ok(()) } }
    });
    let worker = Worker::start(&connect, attempts("w-1", 3), handler);
    let letters = await_dead_letters(&connect, 1).await;
    let letter = &letters[0];
    assert_eq!(letter.id.as_deref(), Some("bad-1"));
    assert_eq!(letter.resource.as_deref(), Some("r"));
    assert_eq!(letter.kind.as_deref(), Some("transfer"));
    assert_eq!(letter.content_type.as_deref(), Some("application/json"));
    assert_eq!(letter.payload, Bytes::from_static(b"{\"n\":1}"));
    assert_eq!((letter.reason.as_str(), letter.attempts), ("no funds", 3));
    assert_eq!(letter.by.as_deref(), Some("w-1"));
    assert_eq!(letter.from.as_deref(), Some(queue(&connect).as_str()));
    assert!(letter.published_at_s.is_some() && letter.dead_at_ms.is_some());
    eventually("the task behind it", async || (tried.lock().unwrap().len() == 4).then_some(()))
        .await;
    let summary = worker.drain().await;
    assert_eq!((summary.executed, summary.failed, summary.dead_lettered), (1, 3, 1));
    let tried = tried.lock().unwrap().clone();
    assert_eq!(tried, [(true, 1), (true, 2), (true, 3), (false, 1)], "in order");
}

/// More than were once held at a time.
#[tokio::test]
async fn all_dead_letters_are_seen_and_replayed_in_order() {
    const LETTERS: usize = 10_200;
    let broker = shared().await;
    let (connect, topology) = space(broker, 1).await;
    let (connection, channel) = amqp(broker).await;
    let (dead, resources) = (connect.namespace().dead(), ["a", "b", "c"]);
    let mut confirms = Vec::new();
    for number in 0..LETTERS {
        let resource = resources[number % resources.len()];
        let id = number.to_string();
        let properties = header("resource", AMQPValue::LongString(resource.into()))
            .with_message_id(id.as_str().into());
        let options = Default::default();
        let sent = channel.basic_publish(
            "".into(),
            dead.as_str().into(),
            options,
            id.as_bytes(),
            properties,
        );
        confirms.push(sent.await.unwrap());
    }
    for confirm in confirms {
        confirm.await.unwrap();
    }
    let mut reader = DeadLetters::open_first(&connect, 5).await.unwrap();
    reader.next().await.unwrap().expect("the oldest");
    let to = connect.clone();
    let opening = tokio::spawn(async move { DeadLetters::open(&to).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!opening.is_finished(), "somebody else holds some");
    reader.close().await;
    let mut letters = opening.await.unwrap().unwrap();
    assert_eq!(letters.left() as usize, LETTERS);
    let mut held = Vec::new();
    while let Some(letter) = letters.next().await.unwrap() {
        assert_eq!(letter.id.as_deref(), Some(held.len().to_string().as_str()));
        held.push(letter);
    }
    assert_eq!((held.len(), letters.left()), (LETTERS, 0), "however many are held");
    for letter in held {
        letters.begin_replay(letter).await.unwrap();
    }
    letters.finish_replays().await.unwrap();
    assert_eq!(letters.replayed() as usize, LETTERS);
    letters.close().await;
    assert_eq!(dead_letters(&connect).await.len(), 0);
    let partition = connect.namespace().partition(&topology, keylane::PartitionId::new(0));
    let replayed = support::take_all(&channel, &partition).await;
    let numbers =
        replayed.iter().map(|m| std::str::from_utf8(&m.data).unwrap().parse::<usize>().unwrap());
    assert!(numbers.eq(0..LETTERS), "in their old order, each once");
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn who_hides_dead_letters_is_named() {
    let (connect, _) = space(shared().await, 1).await;
    publish(&connect, [task("r", 0)]).await;
    let handler = handler_fn(async |_| Err(Failure::dead("no")));
    let worker = Worker::start(&connect, attempts("w", 1), handler);
    await_dead_letters(&connect, 1).await;
    worker.drain().await;
    let mut reader = open_dead_letters(&connect, 1).await;
    reader.next().await.unwrap().expect("a letter");
    let error = DeadLetters::open(&connect).await.unwrap_err();
    assert!(matches!(error, keylane::Error::DeadLettersHeld { readers: 1, .. }), "{error}");
    reader.close().await;
}

#[tokio::test]
async fn dead_is_dead_at_once() {
    let (connect, _) = space(shared().await, 1).await;
    publish(&connect, [task("r", 0)]).await;
    let handler = handler_fn(async |_| Err(Failure::dead("no such account")));
    let worker = Worker::start(&connect, attempts("w", 9), handler);
    let letters = await_dead_letters(&connect, 1).await;
    assert_eq!((letters[0].reason.as_str(), letters[0].attempts), ("no such account", 1));
    worker.drain().await;
}

#[tokio::test]
async fn a_panic_is_a_failure() {
    let (connect, _) = space(shared().await, 1).await;
    publish(&connect, [task("r", 0), task("r", 1)]).await;
    let handler = handler_fn(async |attempt| {
        assert_ne!(attempt.task.payload, "0", "out of cheese");
        Ok(())
    });
    let worker = Worker::start(&connect, attempts("w", 2), handler);
    let letters = await_dead_letters(&connect, 1).await;
    let letter = &letters[0];
    assert!(letter.reason.starts_with("the handler panicked: "), "{}", letter.reason);
    assert!(letter.reason.contains("out of cheese"), "{}", letter.reason);
    assert_eq!(letter.attempts, 2);
    let summary = worker.drain().await;
    assert_eq!((summary.failed, summary.dead_lettered), (2, 1));
}

#[tokio::test]
async fn a_task_whose_time_is_up_is_aborted() {
    let (connect, _) = space(shared().await, 1).await;
    publish(&connect, [task("r", 0)]).await;
    let record = Record::default();
    let mut options = attempts("w", 2);
    options.task_timeout = Some(Duration::from_millis(50));
    let handler = record.handler("w", async |_| std::future::pending().await);
    let worker = Worker::start(&connect, options, handler);
    let letters = await_dead_letters(&connect, 1).await;
    assert_eq!((letters[0].reason.as_str(), letters[0].attempts), ("no end after 50ms", 2));
    let ends: Vec<_> = record.runs().into_iter().map(|run| run.end).collect();
    assert_eq!(ends, [Some(End::Aborted), Some(End::Aborted)], "the future was dropped");
    worker.drain().await;
}

#[tokio::test]
async fn a_slow_resource_delays_nobody_within_the_prefetch() {
    const PREFETCH: NonZeroU16 = NonZeroU16::new(50).unwrap();
    let connect = connect(shared().await);
    init(&connect, Topology::first(count(1)).with_prefetch(PREFETCH)).await.unwrap();
    let slow = (0..40).map(|sequence| task("slow", sequence));
    let quick = tasks(&names(["a", "b", "c"]), 50);
    publish(&connect, slow.chain(quick)).await;
    let (record, gate) = (Record::default(), Gate::default());
    let waiting = gate.clone();
    let handler = record.handler("w", move |attempt| {
        let gate = waiting.clone();
        async move {
            if attempt.task.resource.as_str() == "slow" {
                gate.passed().await;
            }
            Ok(())
        }
    });
    let worker = Worker::start(&connect, named("w"), handler);
    record.until_executed(150).await;
    eventually("the slow ones only", async || {
        let seen = status(&connect).await.ok()?;
        ((seen.partitions[0].unsettled, seen.partitions[0].running) == (40, 1)).then_some(())
    })
    .await;
    assert_eq!(record.runs().iter().filter(|run| run.resource == "slow").count(), 1);

    // A lane that fills the window does delay the others: that is the bound.
    publish(&connect, (40..60).map(|sequence| task("slow", sequence))).await;
    publish(&connect, [task("a", 50)]).await;
    eventually("a full window, and the broker keeps the rest", async || {
        let seen = status(&connect).await.ok()?;
        let window = u32::from(PREFETCH.get());
        ((seen.partitions[0].unsettled, seen.partitions[0].ready) == (window, 11)).then_some(())
    })
    .await;
    gate.open();
    record.until_executed(211).await;
    record.assert_once();
    worker.drain().await;
}

#[tokio::test]
async fn what_is_no_task_goes_to_the_dead_letters() {
    let broker = shared().await;
    let (connect, _) = space(broker, 1).await;
    let queue = queue(&connect);
    let (connection, channel) = amqp(broker).await;
    let text = |bytes: &[u8]| AMQPValue::LongString(LongString::from(bytes));
    let foreign: [(BasicProperties, &str); 6] = [
        (BasicProperties::default(), "the header `resource` is missing: not a keylane task"),
        (
            header("resource", AMQPValue::LongInt(7)),
            "the header `resource` is of type integer, it must be a string",
        ),
        (
            header("resource", text(b"")),
            "the resource is empty: every task must name the resource it touches",
        ),
        (
            header("resource", text(&[b'x'; 1025])),
            "the resource has 1025 bytes, the most is 1024: hash longer keys before publishing",
        ),
        (
            header("resource", text(b"\xff\xfe")),
            "the resource is not UTF-8: encode binary keys (hex, base64) before publishing",
        ),
        (
            header("resource", text(b"r")).with_message_id("".into()),
            "message_id: a task id has 1 to 255 bytes, this one has 0",
        ),
    ];
    for (sequence, (properties, _)) in foreign.iter().enumerate() {
        put(&channel, &queue, properties.clone(), format!("foreign {sequence}").as_bytes()).await;
        publish(&connect, [task("r", sequence as u64)]).await;
    }
    let record = Record::default();
    let worker = Worker::start(&connect, named("w"), record.handler("w", async |_| Ok(())));
    record.until_executed(foreign.len()).await;
    let mut letters = await_dead_letters(&connect, foreign.len()).await;
    letters.sort_by_key(|letter| letter.payload.clone());
    for (letter, (sequence, (_, reason))) in letters.iter().zip(foreign.iter().enumerate()) {
        assert_eq!(letter.payload, format!("foreign {sequence}"));
        assert_eq!((letter.reason.as_str(), letter.attempts), (*reason, 0));
        assert_eq!((letter.by.as_deref(), letter.from.as_deref()), (Some("w"), Some(&*queue)));
    }
    assert_eq!(letters.len(), foreign.len());
    record.assert_once();
    worker.drain().await;
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn dead_letters_are_listed_replayed_and_discarded_in_order() {
    let broker = shared().await;
    let (connect, _) = space(broker, 1).await;
    publish(&connect, (0..4).map(|sequence| task("r", sequence))).await;
    let worker = Worker::start(
        &connect,
        named("w"),
        handler_fn(async |_| Err(Failure::dead("for the test"))),
    );
    await_dead_letters(&connect, 4).await;
    worker.drain().await;
    let (connection, channel) = amqp(broker).await;
    put(&channel, &connect.namespace().dead(), BasicProperties::default(), b"4").await;

    // What was looked at comes back a moment after the look.
    let await_payloads = async |what: &str, wanted: &[&'static str]| {
        eventually(what, async || {
            let letters = dead_letters(&connect).await.into_iter();
            let payloads: Vec<Bytes> = letters.map(|letter| letter.payload).collect();
            (payloads == wanted).then_some(())
        })
        .await;
    };
    await_payloads("all of them", &["0", "1", "2", "3", "4"]).await;
    await_payloads("all of them: looking changes nothing", &["0", "1", "2", "3", "4"]).await;

    let mut dead = open_dead_letters(&connect, 5).await;
    assert_eq!(dead.left(), 5);
    let zero = dead.next().await.unwrap().unwrap();
    dead.replay(zero).await.unwrap();
    let one = dead.next().await.unwrap().unwrap();
    let two = dead.next().await.unwrap().unwrap();
    dead.discard(two).await.unwrap();
    let three = dead.next().await.unwrap().unwrap();
    dead.replay(three).await.unwrap();
    let four = dead.next().await.unwrap().unwrap();
    let error = dead.replay(four).await.unwrap_err();
    assert!(matches!(error, ReplayError::NoTask(_)), "{error:?}");
    assert!(dead.next().await.unwrap().is_none());
    drop(one);
    dead.close().await;
    await_payloads("what was neither replayed nor discarded", &["1", "4"]).await;

    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = seen.clone();
    let worker = Worker::start(
        &connect,
        named("w"),
        handler_fn(move |attempt| {
            log.lock().unwrap().push(attempt.task.payload);
            async { Ok(()) }
        }),
    );
    eventually("both", async || (seen.lock().unwrap().len() >= 2).then_some(())).await;
    assert_eq!(*seen.lock().unwrap(), ["0", "3"]);
    worker.drain().await;
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn a_lost_counter_is_no_fault_of_the_tasks() {
    let broker = shared().await;
    let (connect, topology) = space(broker, 1).await;
    publish(&connect, tasks(&names(["a", "b", "c", "d", "e", "f"]), 3)).await;
    let (_connection, channel) = amqp(broker).await;
    let counter = format!("{}.epoch", queue(&connect));
    channel.queue_delete(counter.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let record = Record::default();
    let handler = || {
        record.handler("w", async |attempt: Attempt| {
            attempt.fencing_token().await?;
            Ok(())
        })
    };
    for _ in 0..10 {
        let working = work(&connect, named("w"), handler(), CancellationToken::new());
        // It ends by itself, or works on without.
        tokio::time::timeout(Duration::from_secs(2), working).await.ok();
    }
    init(&connect, topology.partitions).await.unwrap();
    let worker = Worker::start(&connect, named("w"), handler());
    record.until_executed(18).await;
    worker.drain().await;
    assert!(dead_letters(&connect).await.is_empty(), "nobody has killed a worker");
}

#[tokio::test]
async fn attempts_are_counted_over_owners() {
    let (connect, _) = space(shared().await, 1).await;
    publish(&connect, [task("r", 0)]).await;
    let record = Record::default();
    let slow = |name: &str| {
        let mut options = attempts(name, 3);
        let delay = Duration::from_secs(60);
        (options.retry.first_delay, options.retry.max_delay) = (delay, delay);
        options
    };
    for owner in 1..=2 {
        let name = format!("w{owner}");
        let handler = record.handler(&name, async |_| Err(Failure::failed("no")));
        let worker = Worker::start(&connect, slow(&name), handler);
        let failed = async || {
            let (report, _) = verify(&connect, None, Duration::ZERO).await.ok()?;
            (report.failed == owner).then_some(())
        };
        eventually("its failure", failed).await;
        worker.kill().await;
    }
    let handler = record.handler("w3", async |_| Err(Failure::failed("no")));
    let worker = Worker::start(&connect, slow("w3"), handler);
    let letters = await_dead_letters(&connect, 1).await;
    assert_eq!((record.runs().len(), letters[0].attempts), (3, 3));
    worker.drain().await;
}
