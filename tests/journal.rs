//! What the journal knows: every attempt, before its ack; and what it is good for.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

mod support;
#[path = "journal/suppression.rs"]
mod suppression;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keylane::protocol::journal::{Finding, Outcome, Written};
use keylane::testing::{Broker, Version};
use keylane::{
    Connect, Error, Failure, JournalReader, NotExecuted, Producer, ProducerOptions, Retention,
    RetryPolicy, TaskId, TaskState, WorkerOptions, find_task, handler_fn, init, init_with, status,
    verify, work,
};
use lapin::BasicProperties;
use lapin::options::QueueDeleteOptions;
use tokio_util::sync::CancellationToken;
use url::Url;

use support::proxy::Proxy;
use support::{
    Gate, Record, TOOL_INTERVAL, Worker, amqp, broker, connect, count, eventually, named, publish,
    put, rabbitmqctl, soon, space, task, tasks, try_cut_connections,
};

async fn shared() -> &'static Broker {
    broker(Version::default()).await
}

fn names<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_owned).to_vec()
}

/// All entries, oldest first.
async fn entries(connect: &Connect) -> Vec<keylane::protocol::journal::Entry> {
    let mut journal = JournalReader::open(connect, None).await.unwrap();
    let (mut written, mut entries) = (Written::default(), Vec::new());
    while let Some(batch) = journal.next_before_end().await.unwrap() {
        if written.is_new(&batch) {
            entries.extend(batch.into_entries());
        }
    }
    journal.close().await;
    entries
}

async fn every_attempt_is_recorded(version: Version) {
    let (connect, _) = space(broker(version).await, 4).await;
    let resources = names(["a", "b", "c", "flaky"]);
    let receipts = publish(&connect, tasks(&resources, 50)).await;
    let record = Record::default();
    let mut options = named("w");
    options.retry = RetryPolicy { first_delay: Duration::from_millis(1), ..options.retry };
    let flaky = record.handler("w", |attempt| async move {
        let fails = attempt.task.resource.as_str() == "flaky" && attempt.number < 3;
        if fails { Err(Failure::failed("not yet")) } else { Ok(()) }
    });
    let worker = Worker::start(&connect, options, flaky);
    record.until_executed(200).await;
    worker.drain().await;

    let entries = entries(&connect).await;
    let counted = |outcome| entries.iter().filter(|e| e.record.outcome == outcome).count();
    assert_eq!([counted(Outcome::Executed), counted(Outcome::Failed)], [200, 100]);
    for (index, receipt) in receipts.iter().enumerate() {
        let mine = entries.iter().filter(|e| e.record.task == receipt.id);
        let attempts: Vec<_> = mine.map(|e| (e.record.attempt, e.record.outcome)).collect();
        let executed = |number| (number, Outcome::Executed);
        let failed = |number| (number, Outcome::Failed);
        match index % 4 {
            3 => assert_eq!(attempts, [failed(1), failed(2), executed(3)]),
            _ => assert_eq!(attempts, [executed(1)]),
        }
    }
    let (report, findings) = verify(&connect, None, Duration::ZERO).await.unwrap();
    assert_eq!((report.executed, report.failed, report.open), (200, 100, 0));
    assert_eq!(findings, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_is_recorded_before_its_ack() {
    every_attempt_is_recorded(Version::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attempt_is_recorded_before_its_ack_4_0() {
    every_attempt_is_recorded(Version::V4_0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_wait_for_records_and_work_goes_on_when_none_can_be_written() {
    let broker = Broker::start().await.unwrap();
    let (connect, _) = space(&broker, 1).await;
    // More than may be acked without a record.
    const TASKS: u64 = 12_000;
    publish(&connect, tasks(&names(["a", "b", "c"]), TASKS / 3)).await;
    let (record, gate) = (Record::default(), Gate::default());
    let handler = record.gated("one", &gate);
    let mut through = Url::parse(&broker.amqp_url()).unwrap();
    let proxy = Proxy::to(through.port().unwrap()).await;
    through.set_port(Some(proxy.port)).unwrap();
    let through = Connect::new(through).unwrap().with_namespace(connect.namespace().clone());
    let worker = Worker::start(&through, named("one"), handler);
    record.until("the first starts", |runs| runs.len() == 3).await;
    rabbitmqctl(&broker, &["set_vm_memory_high_watermark", "0.00001"]).await;
    // Connections hear of it a little later.
    let heard = async {
        while !rabbitmqctl(&broker, &["list_connections", "state"]).await.contains("blocking") {
            tokio::time::sleep(TOOL_INTERVAL).await;
        }
    };
    soon("an alarm that is heard of", heard).await;
    gate.open();
    record.until_executed(256).await;
    // Nothing is acked yet, for nothing is recorded: whoever loses its connection
    // now executes all of it again.
    proxy.cut();
    // After a while it is acked, or the broker would never get rid of its messages. But what
    // may be acked without a record is bounded.
    record.until_executed(9_500).await;
    let again = record.runs().iter().filter(|run| run.redelivered).count();
    assert_eq!(again, 256, "acked without a record");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let runs = record.runs().len();
    assert!(runs < 10_000 + 4 * 256, "{runs} executions, and none is recorded");
    rabbitmqctl(&broker, &["set_vm_memory_high_watermark", "0.6"]).await;
    record.until_executed(TASKS as usize).await;
    worker.drain().await;
    record.assert_exclusive_and_in_order();
    let (report, findings) = verify(&connect, None, Duration::ZERO).await.unwrap();
    assert_eq!(findings, [], "recorded late, but recorded");
    assert!((9_000..=10_000).contains(&report.late), "{} came late", report.late);
    assert_eq!(report.unended, 0, "it said that this was all");
    // One may have been cut off before its end.
    let again = report.repeated_redelivered + report.aborted;
    assert_eq!((report.executed, again), (TASKS, 256));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_learns_how_its_tasks_end() {
    let broker = shared().await;
    let (connect, _) = space(broker, 4).await;
    let producer = Producer::open(&connect, ProducerOptions::default()).await.unwrap();
    let before = producer.publish(task("before", 1)).await.unwrap();
    let mut options = named("w");
    options.retry = RetryPolicy { attempts: 1, ..options.retry };
    let gate = Gate::default();
    let open = gate.clone();
    let handler = handler_fn(move |attempt: keylane::Attempt| {
        let gate = open.clone();
        async move {
            match attempt.task.resource.as_str() {
                "bad" => return Err(Failure::failed("no such account")),
                "slow" => gate.passed().await,
                _ => {}
            }
            attempt.set_result(format!("balance of {}", attempt.task.resource));
            Ok(())
        }
    });
    let shutdown = CancellationToken::new();
    let worker = tokio::spawn({
        let (connect, shutdown) = (connect.clone(), shutdown.clone());
        async move { work(&connect, options, handler, shutdown).await }
    });
    let bad = producer.publish(task("bad", 1)).await.unwrap();
    let slow = producer.publish(task("slow", 1)).await.unwrap();

    let executed = soon("an execution", before.executed()).await.unwrap();
    assert_eq!(executed.worker.as_str(), "w");
    assert_eq!(executed.result.as_str(), Some("balance of before"));
    let error = soon("a dead letter", bad.executed()).await.unwrap_err();
    assert!(matches!(&error, NotExecuted::DeadLettered { reason } if reason == "no such account"));
    let not_yet = tokio::time::timeout(Duration::from_millis(500), slow.executed()).await;
    assert!(not_yet.is_err(), "it runs");
    // Whoever asks on a connection that is lost then, or was before, is answered all the same.
    let asks = || {
        let slow = slow.clone();
        tokio::spawn(async move { slow.executed().await })
    };
    let before_it = asks();
    // It ends by itself when nobody asks for a while, and begins again with the first.
    eventually("its connection", async || {
        let cut = try_cut_connections(broker, "keylane producer, journal").await;
        cut.then_some(())
    })
    .await;
    let after_it = asks();
    tokio::time::sleep(Duration::from_millis(300)).await;
    gate.open();
    for waiting in [before_it, after_it] {
        assert!(soon("an execution", waiting).await.unwrap().is_ok());
    }
    producer.close().await;
    let again = soon("what is known", before.executed()).await.unwrap();
    assert_eq!(again, executed, "asked twice, after the producer's end");
    shutdown.cancel();
    soon("the end of a worker", worker).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_wait_at_once() {
    const TASKS: u64 = 40_000;
    let (connect, _) = space(shared().await, 8).await;
    let receipts = publish(&connect, tasks(&names(["a", "b", "c", "d", "e"]), TASKS / 5)).await;
    let executed = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&executed);
    let handler = handler_fn(move |_| {
        counting.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Ok(()))
    });
    let worker = Worker::start(&connect, named("w"), handler);
    // More than are remembered, and asked for from the last on.
    let mut waiting = tokio::task::JoinSet::new();
    for receipt in receipts.into_iter().rev() {
        waiting.spawn(async move { receipt.executed().await });
    }
    let mut answered = 0;
    while let Some(answer) = soon("all executions", waiting.join_next()).await {
        answer.unwrap().unwrap();
        answered += 1;
    }
    assert_eq!(answered, TASKS);
    assert_eq!(executed.load(Ordering::Relaxed), TASKS);
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_found_wherever_it_is() {
    let (connect, _) = space(shared().await, 1).await;
    let id = |id: &str| TaskId::new(id).unwrap();
    let state = async |name: &str| find_task(&connect, &id(name), None).await.unwrap();
    let wanted = ["runs", "waits", "fails"];
    publish(&connect, wanted.map(|name| task(name, 0).with_id(id(name)))).await;
    assert_eq!(state("runs").await.state, TaskState::NotExecuted);
    let gate = Gate::default();
    let open = gate.clone();
    let mut options = WorkerOptions { slots: 1, ..named("w") };
    options.retry = RetryPolicy { attempts: 1, ..options.retry };
    let handler = handler_fn(move |attempt: keylane::Attempt| {
        let gate = open.clone();
        async move {
            gate.passed().await;
            match attempt.id.as_str() {
                "fails" => Err(Failure::failed("no")),
                _ => Ok(()),
            }
        }
    });
    let worker = Worker::start(&connect, options, handler);
    let found = eventually("the task that runs", async || {
        let found = state("runs").await;
        (found.state == TaskState::Executing).then_some(found)
    })
    .await;
    assert_eq!(found.executing[0].worker.as_str(), "w");
    assert_eq!(found.executing[0].running.resource.as_str(), "runs");
    assert_eq!(state("waits").await.state, TaskState::NotExecuted);
    gate.open();
    let ended = async |name: &str, wanted| {
        eventually(name, async || {
            let found = state(name).await;
            (found.state == wanted).then_some(found)
        })
        .await
    };
    assert_eq!(ended("waits", TaskState::Executed).await.attempts.len(), 1);
    let outcomes: Vec<_> = ended("fails", TaskState::DeadLettered)
        .await
        .attempts
        .iter()
        .map(|entry| (entry.record.outcome, entry.record.reason.clone().unwrap()))
        .collect();
    assert_eq!(outcomes, [Outcome::Failed, Outcome::DeadLettered].map(|o| (o, "no".to_owned())));
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_into_the_drain_timeout_is_recorded_as_aborted() {
    let (connect, _) = space(shared().await, 1).await;
    publish(&connect, [task("a", 1)]).await;
    let record = Record::default();
    let handler = record.handler("one", |_| std::future::pending());
    let options = WorkerOptions { drain_timeout: Duration::from_millis(200), ..named("one") };
    let worker = Worker::start(&connect, options, handler);
    record.until("a start", |runs| !runs.is_empty()).await;
    worker.drain().await;
    let handler = record.handler("two", |_| async { Ok(()) });
    let worker = Worker::start(&connect, named("two"), handler);
    record.until_executed(1).await;
    worker.drain().await;
    let outcomes: BTreeMap<_, _> = entries(&connect)
        .await
        .iter()
        .map(|e| (e.worker.to_string(), (e.record.outcome, e.record.redelivered)))
        .collect();
    assert_eq!(outcomes["one"], (Outcome::Aborted, false));
    assert_eq!(outcomes["two"], (Outcome::Executed, true));
    let (report, findings) = verify(&connect, None, Duration::ZERO).await.unwrap();
    assert_eq!((report.aborted, report.executed, report.open, findings), (1, 1, 0, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn epochs_stand_in_the_journal_and_rise_with_every_owner() {
    let (connect, _) = space(shared().await, 1).await;
    let record = Record::default();
    let mut epochs = Vec::new();
    for name in ["one", "two", "three"] {
        let handler = record.handler(name, |attempt| async move {
            attempt.fencing_token().await.map_err(|error| Failure::failed(error.to_string()))?;
            Ok(())
        });
        let worker = Worker::start(&connect, named(name), handler);
        publish(&connect, tasks(&names([name]), 20)).await;
        record.until_executed(20 * (epochs.len() + 1)).await;
        worker.drain().await;
        let entries = entries(&connect).await;
        let of_it = entries.iter().filter(|entry| entry.worker.as_str() == name);
        let found: BTreeSet<_> = of_it.map(|entry| entry.record.epoch.unwrap()).collect();
        epochs.push(found);
    }
    for pair in epochs.windows(2) {
        assert!(pair[0].last() < pair[1].first(), "{epochs:?}");
    }
    let (report, findings) = verify(&connect, None, Duration::ZERO).await.unwrap();
    assert_eq!((report.executed, findings), (60, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_a_rule_is_found_in_a_real_journal() {
    let broker = shared().await;
    let (connect, _) = space(broker, 1).await;
    let stream = format!("{}.journal", connect.namespace());
    let batch = |writer: &str, task: &str, at_us: u64| {
        format!(
            r#"{{"v":1,"writer":"{writer}","number":0,"worker":"{writer}","records":[{{"task":"{task}","resource":"r","partition":0,"attempt":1,"at_us":{at_us},"took_us":10,"outcome":"executed"}}]}}"#
        )
    };
    let (_connection, channel) = amqp(broker).await;
    let write = async |body: String| {
        put(&channel, &stream, BasicProperties::default(), body.as_bytes()).await;
    };
    write(batch("a", "one", 1_000)).await;
    write("who wrote this?".to_owned()).await;
    let (report, findings) = verify(&connect, None, Duration::ZERO).await.unwrap();
    assert_eq!((report.executed, findings), (1, vec![]), "what is no batch is left out");
    write(batch("b", "two", 1_005)).await;
    let (report, findings) = verify(&connect, None, Duration::ZERO).await.unwrap();
    assert_eq!((report.executed, report.findings), (2, 1));
    assert!(matches!(findings[..], [Finding::Overlap { overlap_us: 5, .. }]), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_has_limits_and_is_missed() {
    let broker = shared().await;
    let connect = connect(broker);
    let retention = Retention { bytes: 50_000_000, age: Duration::from_secs(3600) };
    init_with(&connect, count(1), Some(retention)).await.unwrap();
    init_with(&connect, count(1), Some(retention)).await.unwrap();
    init(&connect, count(1)).await.unwrap();
    let name = format!("{}.journal", connect.namespace());
    let queues = rabbitmqctl(broker, &["list_queues", "name", "arguments"]).await;
    let arguments = queues.lines().find(|line| line.contains(&name)).unwrap();
    for expected in ["50000000", "3600s", "2500000"] {
        assert!(arguments.contains(expected), "{arguments}");
    }
    let other = Retention { bytes: 60_000_000, ..retention };
    let error = init_with(&connect, count(1), Some(other)).await.unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, Error::Conflict { .. }) && said.contains("60000000"), "{said}");

    let (_connection, channel) = amqp(broker).await;
    channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let handler = || handler_fn(|_| async { Ok(()) });
    let shutdown = CancellationToken::new();
    let error = work(&connect, named("w"), handler(), shutdown.clone()).await.unwrap_err();
    assert!(matches!(error, Error::JournalMissing { .. }), "{error}");
    let receipt = publish(&connect, [task("a", 1)]).await.remove(0);
    let error = soon("an answer", receipt.executed()).await.unwrap_err();
    assert!(error.to_string().contains("keylane init"), "{error}");
    let options = WorkerOptions { journal: false, ..named("w") };
    let worker = Worker::start(&connect, options, handler());
    eventually("work without it", async || {
        (status(&connect).await.ok()?.workers.first()?.executed == 1).then_some(())
    })
    .await;
    worker.drain().await;
}
