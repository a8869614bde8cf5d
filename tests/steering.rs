//! Operators steer: pause, resume, cancel, drain.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

mod support;

use std::num::NonZeroU16;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keylane::testing::{Broker, Version};
use keylane::{
    Attempt, CancelError, Connect, Drained, Error, Failure, Handler, NotExecuted, PartitionId,
    Scope, Task, TaskId, TaskState, Topology, WorkerOptions, abort, cancel, drain_worker,
    find_task, handler_fn, init, pause, reinstate, resume, running, status, steering, verify,
};
use lapin::BasicProperties;
use lapin::options::QueueDeleteOptions;

use support::{
    Gate, Record, Worker, amqp, await_dead_letters, broker, count, eventually, named,
    open_dead_letters, publish, put, resources, set_consumer_timeout, soon, space, task, tasks,
};

const BY: &str = "anna@ops";

fn resource(name: &str) -> Scope {
    Scope::Resource(keylane::Resource::new(name).unwrap())
}

fn partition(number: u32) -> Scope {
    Scope::Partition(PartitionId::new(number))
}

/// A handler that executes at once.
fn quick(record: &Record, name: &str) -> impl Handler + use<> {
    record.handler(name, async |_| Ok(()))
}

/// The runs of a resource so far.
fn runs_of(record: &Record, resource: &str) -> usize {
    record.runs().iter().filter(|run| run.resource == resource).count()
}

/// So many workers that have read all orders, since they answer.
async fn await_workers(connect: &Connect, count: usize) {
    eventually("workers that answer", async || {
        (status(connect).await.ok()?.workers.len() == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_4_3_a_paused_resource_waits_in_order_and_nobody_else_does() {
    a_paused_resource_waits(broker(Version::V4_3).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_4_0_a_paused_resource_waits_in_order_and_nobody_else_does() {
    a_paused_resource_waits(broker(Version::V4_0).await).await;
}

async fn a_paused_resource_waits(broker: &Broker) {
    let (connect, topology) = space(broker, 2).await;
    let resources = resources(&topology, 3).concat();
    let (held, others) = resources.split_first().unwrap();
    let record = Record::default();
    let workers =
        ["one", "two"].map(|name| Worker::start(&connect, named(name), quick(&record, name)));
    publish(&connect, tasks(&resources, 5)).await;
    record.until_executed(resources.len() * 5).await;
    await_workers(&connect, 2).await;

    assert!(pause(&connect, resource(held), BY).await.unwrap().changed);
    // Who answers late obeys, and is not named.
    eventually("both follow", async || {
        let again = pause(&connect, resource(held), BY).await.unwrap();
        assert!(!again.changed, "it is paused already");
        let names: Vec<_> = again.workers.iter().map(ToString::to_string).collect();
        (names == ["one", "two"]).then_some(())
    })
    .await;
    let more: Vec<Task> = (5..10).flat_map(|n| resources.iter().map(move |r| task(r, n))).collect();
    publish(&connect, more).await;
    record.until_executed(5 + others.len() * 10).await;
    // A newcomer takes over what it wins, and what it holds of the paused resource.
    let third = Worker::start(&connect, named("three"), quick(&record, "three"));
    await_workers(&connect, 3).await;
    let [one, two] = workers;
    one.drain().await;
    assert_eq!(runs_of(&record, held), 5, "it is paused");
    let seen = status(&connect).await.unwrap();
    assert!(seen.steering.resources.keys().any(|r| r.as_str() == held), "{seen:?}");

    assert!(resume(&connect, resource(held), BY).await.unwrap().changed);
    record.until_executed(resources.len() * 10).await;
    record.assert_once();
    two.drain().await;
    third.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_outlives_workers_and_broker() {
    let broker = Broker::start().await.unwrap();
    let (connect, topology) = space(&broker, 2).await;
    let resources = resources(&topology, 2);
    pause(&connect, partition(0), BY).await.unwrap();
    pause(&connect, resource(&resources[1][0]), BY).await.unwrap();
    broker.restart().await.unwrap();
    // Its streams take a little longer than itself.
    eventually("the streams", async || status(&connect).await.ok()).await;

    let free = &resources[1][1];
    publish(&connect, tasks(&resources.concat(), 3)).await;
    for name in ["first", "second"] {
        let record = Record::default();
        let worker = Worker::start(&connect, named(name), quick(&record, name));
        if name == "first" {
            record.until("what is free", |runs| runs.len() == 3).await;
            assert_eq!(runs_of(&record, free), 3);
            worker.drain().await;
            resume(&connect, Scope::All, BY).await.unwrap();
            assert!(steering(&connect).await.unwrap().is_empty());
        } else {
            record.until_executed(9).await;
            record.assert_once();
            worker.drain().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_can_be_paused_and_what_runs_finishes() {
    let (connect, topology) = space(broker(Version::V4_3).await, 2).await;
    let resources = resources(&topology, 1).concat();
    let (record, gate) = (Record::default(), Gate::default());
    let handler = record.gated("w", &gate);
    let worker = Worker::start(&connect, named("w"), handler);
    publish(&connect, tasks(&resources, 3)).await;
    record.until("both run", |runs| runs.len() == 2).await;
    eventually("the worker follows", async || {
        let steered = pause(&connect, Scope::All, BY).await.unwrap();
        (steered.workers.len() == 1).then_some(())
    })
    .await;
    gate.open();
    record.until_executed(2).await;
    eventually("all of it is held", async || {
        let seen = status(&connect).await.ok()?;
        let held = &seen.workers.first()?.partitions;
        (held.len() == 2 && held.iter().all(|h| (h.unsettled, h.paused) == (2, 2))).then_some(())
    })
    .await;
    assert_eq!(record.runs().len(), 2);
    resume(&connect, Scope::All, BY).await.unwrap();
    record.until_executed(6).await;
    record.assert_once();
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_is_lost_among_others() {
    const ORDERS: usize = 12;
    let broker = broker(Version::V4_3).await;
    let (connect, _) = space(broker, 1).await;
    let record = Record::default();
    let worker = Worker::start(&connect, named("w"), quick(&record, "w"));
    await_workers(&connect, 1).await;
    let orders = (0..ORDERS).map(|n| {
        let connect = connect.clone();
        tokio::spawn(async move { pause(&connect, resource(&format!("r{n}")), BY).await })
    });
    for order in orders.collect::<Vec<_>>() {
        assert!(soon("an order", order).await.unwrap().unwrap().changed);
    }
    assert_eq!(steering(&connect).await.unwrap().resources.len(), ORDERS);
    // Something that is no order stands in the way of nobody.
    let (connection, channel) = amqp(broker).await;
    let log = format!("{}.steering", connect.namespace());
    put(&channel, &log, BasicProperties::default(), b"nonsense").await;
    connection.close(200, "done".into()).await.unwrap();
    eventually("the worker follows", async || {
        let steered = resume(&connect, resource("r3"), BY).await.unwrap();
        assert_eq!(steered.steering.resources.len(), ORDERS - 1);
        (steered.workers.len() == 1).then_some(())
    })
    .await;
    let held = (0..ORDERS).map(|n| format!("r{n}")).collect::<Vec<_>>();
    publish(&connect, tasks(&held, 1)).await;
    record.until("the one that was resumed", |runs| runs.len() == 1).await;
    assert_eq!(record.runs()[0].resource, "r3");
    resume(&connect, Scope::All, BY).await.unwrap();
    record.until("all", |runs| runs.len() == ORDERS).await;
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_ordered_is_refused() {
    let (connect, _) = space(broker(Version::V4_3).await, 2).await;
    let error = pause(&connect, partition(2), BY).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchPartition { last: 1, .. }), "{error}");
    assert_eq!(
        drain_worker(&connect, &named("nobody").id, Duration::from_secs(60), BY).await.unwrap(),
        Drained::Unknown
    );
}

/// A newer keylane orders something that this one does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_of_a_later_version_stops_nobody() {
    let broker = broker(Version::V4_3).await;
    let (connect, _) = space(broker, 1).await;
    let record = Record::default();
    let early = Worker::start(&connect, named("early"), quick(&record, "early"));
    await_workers(&connect, 1).await;
    pause(&connect, resource("a"), BY).await.unwrap();
    let (connection, channel) = amqp(broker).await;
    let log = format!("{}.steering", connect.namespace());
    let order = br#"{"v":99,"what":"nobody knows"}"#;
    put(&channel, &log, BasicProperties::default(), order).await;
    let late = Worker::start(&connect, named("late"), quick(&record, "late"));
    await_workers(&connect, 2).await;
    publish(&connect, [task("a", 0), task("b", 0)]).await;
    record.until_executed(1).await;
    assert_eq!(runs_of(&record, "a"), 0, "what is known stays in force");
    let steered = resume(&connect, resource("a"), BY).await.unwrap();
    assert_eq!(steered.workers.len(), 2, "both read on");
    record.until_executed(2).await;
    early.drain().await;
    late.drain().await;
    connection.close(200, "done".into()).await.unwrap();
}

/// A namespace of an earlier version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_log_work_goes_on_and_orders_say_what_to_do() {
    let broker = broker(Version::V4_3).await;
    let (connect, _) = space(broker, 1).await;
    let (connection, channel) = amqp(broker).await;
    let log = format!("{}.steering", connect.namespace());
    channel.queue_delete(log.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let record = Record::default();
    let worker = Worker::start(&connect, named("w"), quick(&record, "w"));
    publish(&connect, tasks(&["a".to_owned()], 2)).await;
    record.until_executed(2).await;
    let error = pause(&connect, resource("a"), BY).await.unwrap_err();
    assert!(matches!(error, Error::SteeringMissing { .. }), "{error}");
    assert!(error.to_string().contains("keylane init"), "{error}");
    assert!(status(&connect).await.unwrap().steering.is_empty());

    // With one, the worker that runs follows it.
    init(&connect, count(1)).await.unwrap();
    eventually("the worker follows", async || {
        let steered = pause(&connect, resource("a"), BY).await.ok()?;
        (!steered.workers.is_empty()).then_some(())
    })
    .await;
    publish(&connect, [task("b", 0), task("a", 2), task("b", 1)]).await;
    record.until_executed(4).await;
    assert_eq!(runs_of(&record, "a"), 2);
    connection.close(200, "done".into()).await.unwrap();
    worker.drain().await;
}

/// Ids of tasks that a handler was called with, in this order.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<String>>>);

impl Calls {
    fn handler(&self, gate: &Gate) -> impl Handler + use<> {
        let (calls, gate) = (self.clone(), gate.clone());
        handler_fn(move |attempt: Attempt| {
            calls.0.lock().unwrap().push(attempt.id.to_string());
            let gate = gate.clone();
            async move {
                gate.passed().await;
                Ok(())
            }
        })
    }

    fn ids(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    async fn until(&self, ids: &[&str]) {
        eventually("these calls", async || (self.ids() == ids).then_some(())).await;
    }
}

fn with_id(resource: &str, id: &str) -> Task {
    Task::new(resource, "x").unwrap().with_id(TaskId::new(id).unwrap())
}

fn id(id: &str) -> TaskId {
    TaskId::new(id).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_task_never_starts_and_the_next_one_does() {
    let (connect, _) = space(broker(Version::V4_3).await, 1).await;
    let (calls, gate) = (Calls::default(), Gate::default());
    let worker = Worker::start(&connect, named("w"), calls.handler(&gate));
    let producer = keylane::Producer::open(&connect, Default::default()).await.unwrap();
    let mut receipts = Vec::new();
    for task in ["t0", "t1", "t2"] {
        receipts.push(producer.publish(with_id("a", task)).await.unwrap());
    }
    calls.until(&["t0"]).await;

    let cancelled = cancel(&connect, &id("t1"), None, None, BY).await.unwrap();
    assert!(cancelled.changed);
    let late = cancel(&connect, &id("t0"), None, None, BY).await.unwrap_err();
    let CancelError::TooLate { trace } = late else { panic!("{late}") };
    assert_eq!(trace.state, TaskState::Executing);
    assert!(!steering(&connect).await.unwrap().cancelled.contains_key(&id("t0")));
    gate.open();
    calls.until(&["t0", "t2"]).await;

    let [first, second, _] = &receipts[..] else { panic!("three") };
    soon("an execution", first.executed()).await.unwrap();
    let refused = soon("an end", second.executed()).await.unwrap_err();
    let NotExecuted::DeadLettered { reason } = refused else { panic!("{refused}") };
    assert_eq!(reason, "cancelled by anna@ops");
    let trace = find_task(&connect, &id("t1"), None).await.unwrap();
    assert_eq!((trace.state, trace.attempts.len()), (TaskState::DeadLettered, 1));
    let late = cancel(&connect, &id("t0"), None, None, BY).await.unwrap_err();
    assert!(late.to_string().contains("it is Executed"), "{late}");
    cancel(&connect, &id("t1"), None, None, BY).await.unwrap();

    // A replay withdraws it.
    assert_eq!(await_dead_letters(&connect, 1).await[0].reason, "cancelled by anna@ops");
    let mut dead = open_dead_letters(&connect, 1).await;
    let letter = dead.next().await.unwrap().unwrap();
    dead.replay(letter).await.unwrap();
    dead.close().await;
    calls.until(&["t0", "t2", "t1"]).await;
    worker.drain().await;
    producer.close().await;
    let (report, findings) = verify(&connect, None, Duration::ZERO).await.unwrap();
    assert_eq!((findings.len(), report.executed, report.dead_lettered), (0, 3, 1), "{findings:?}");
}

/// One hangs, one fails again and again, one failed before its resource was paused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_tried_can_be_cancelled_and_what_runs_aborted() {
    let (connect, _) = space(broker(Version::V4_3).await, 1).await;
    let later = Duration::from_secs(3600);
    let ended = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&ended);
    let handler = handler_fn(move |attempt: Attempt| {
        let log = Arc::clone(&log);
        async move {
            let id = attempt.id.to_string();
            match id.as_str() {
                "hangs" => std::future::pending().await,
                "fails" | "paused" => return Err(Failure::retry(Some(later), "not yet")),
                _ => log.lock().unwrap().push(id),
            }
            Ok(())
        }
    });
    let worker = Worker::start(&connect, named("w"), handler);
    let tasks = ["hangs", "fails", "paused"].map(|id| with_id(id, id));
    let next = ["hangs", "fails", "paused"].map(|id| with_id(id, &format!("after {id}")));
    publish(&connect, tasks.into_iter().chain(next)).await;
    eventually("two that wait and one that runs", async || {
        let seen = status(&connect).await.ok()?;
        let held = &seen.workers.first()?.partitions.first()?;
        (held.retrying == 2 && held.running == 1).then_some(())
    })
    .await;
    pause(&connect, resource("paused"), BY).await.unwrap();
    let (found, more) = running(&connect).await.unwrap();
    assert_eq!((found.len(), more), (1, 0), "{found:?}");
    assert_eq!((found[0].worker.as_str(), &found[0].running.task), ("w", &id("hangs")));
    assert!(found[0].running.age_us > 0 && found[0].running.slot < 16, "{found:?}");
    let refused = cancel(&connect, &id("hangs"), None, None, BY).await.unwrap_err();
    assert!(refused.to_string().contains("keylane abort"), "{refused}");

    let (hangs, fails, paused) = (id("hangs"), id("fails"), id("paused"));
    let (aborted, cancelled, skipped) = tokio::join!(
        abort(&connect, &hangs, None, BY),
        cancel(&connect, &fails, None, None, BY),
        cancel(&connect, &paused, None, None, BY)
    );
    for steered in [aborted, cancelled, skipped] {
        assert!(steered.unwrap().changed);
    }
    let letters = await_dead_letters(&connect, 3).await;
    for letter in letters {
        let at = letter.id.as_deref().unwrap();
        assert!(letter.reason.starts_with("cancelled by anna@ops"), "{letter:?}");
        assert_eq!(letter.reason.contains("aborted by an operator"), at == "hangs", "{letter:?}");
    }
    resume(&connect, Scope::All, BY).await.unwrap();
    eventually("those behind them", async || (ended.lock().unwrap().len() == 3).then_some(()))
        .await;
    let late = abort(&connect, &id("after hangs"), None, BY).await.unwrap_err();
    assert!(late.to_string().contains("it is Executed"), "{late}");
    worker.drain().await;
    let (_, findings) = verify(&connect, None, Duration::ZERO).await.unwrap();
    assert!(findings.is_empty(), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_can_be_cancelled_before_it_comes_and_reinstated() {
    let (connect, _) = space(broker(Version::V4_3).await, 1).await;
    for task in ["early", "waits", "back"] {
        cancel(&connect, &id(task), None, None, BY).await.unwrap();
    }
    reinstate(&connect, vec![id("back")], BY).await.unwrap();
    let tasks = ["waits", "back", "early", "last"].map(|task| with_id("a", task));
    publish(&connect, tasks).await;
    let (calls, gate) = (Calls::default(), Gate::default());
    gate.open();
    let worker = Worker::start(&connect, named("w"), calls.handler(&gate));
    calls.until(&["back", "last"]).await;
    let letters = await_dead_letters(&connect, 2).await;
    let ids: Vec<_> = letters.iter().map(|letter| letter.id.as_deref().unwrap()).collect();
    assert_eq!(ids, ["waits", "early"]);
    worker.drain().await;
    // What is to be forgotten is forgotten.
    cancel(&connect, &id("x"), Some(Duration::ZERO), None, BY).await.unwrap();
    let left = steering(&connect).await.unwrap().cancelled;
    assert!(left.contains_key(&id("waits")) && !left.contains_key(&id("x")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_drained_from_afar() {
    let (connect, topology) = space(broker(Version::V4_3).await, 2).await;
    let resources = resources(&topology, 1).concat();
    let (record, gate) = (Record::default(), Gate::default());
    let handler = record.gated("leaver", &gate);
    let leaver = Worker::start(&connect, named("leaver"), handler);
    publish(&connect, tasks(&resources, 3)).await;
    record.until("both run", |runs| runs.len() == 2).await;
    // One of whose tasks is paused when it leaves.
    pause(&connect, resource(&resources[0]), BY).await.unwrap();

    let name = named("leaver").id;
    let short = Duration::from_secs(3);
    let drained = drain_worker(&connect, &name, short, BY).await.unwrap();
    assert_eq!(drained, Drained::Leaving { running: 2 });
    // Another one waits for its end, who asks before that or after.
    gate.open();
    let drained = drain_worker(&connect, &name, Duration::from_secs(60), BY).await.unwrap();
    assert!(matches!(drained, Drained::Left { aborted: 0 } | Drained::Unknown), "{drained:?}");
    let summary = leaver.ended().await;
    assert_eq!((summary.executed, summary.aborted), (2, 0), "what ran, and no more");

    let heir = Worker::start(&connect, named("heir"), quick(&record, "heir"));
    record.until_executed(4).await;
    assert_eq!(runs_of(&record, &resources[0]), 1, "it is paused still");
    let gone = drain_worker(&connect, &name, Duration::from_secs(60), BY).await.unwrap();
    assert_eq!(gone, Drained::Unknown, "an order of the past is not obeyed again");
    resume(&connect, Scope::All, BY).await.unwrap();
    record.until_executed(6).await;
    record.assert_once();
    let drained = drain_worker(&connect, &named("heir").id, Duration::from_secs(60), BY).await;
    assert_eq!(drained.unwrap(), Drained::Left { aborted: 0 });
    heir.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_full_of_paused_tasks_holds_up_the_others_and_is_named() {
    use keylane::protocol::stall::Cause;
    let connect = support::connect(broker(Version::V4_3).await);
    let window = NonZeroU16::new(5).unwrap();
    init(&connect, Topology::first(count(1)).with_prefetch(window)).await.unwrap();
    pause(&connect, resource("held"), BY).await.unwrap();
    let record = Record::default();
    let worker = Worker::start(&connect, named("w"), quick(&record, "w"));
    publish(&connect, tasks(&["held".to_owned()], 8)).await;
    publish(&connect, [task("other", 0)]).await;
    let full = Cause::ResourcesPaused { worker: named("w").id, tasks: 5, window_full: true };
    eventually("a full window", async || {
        let seen = status(&connect).await.ok()?;
        (seen.partitions[0].cause.as_ref() == Some(&full)).then_some(())
    })
    .await;
    assert_eq!(record.runs().len(), 0);
    resume(&connect, resource("held"), BY).await.unwrap();
    record.until_executed(9).await;
    record.assert_once();
    worker.drain().await;
}

/// What RabbitMQ 4.3 does after a week, here after seconds: it takes back what the owner
/// holds. The owner comes again, and nothing was started meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_that_outlasts_the_consumer_timeout_loses_nothing() {
    let broker = broker(Version::V4_3).await;
    let (connect, topology) = space(broker, 1).await;
    let timeout = Duration::from_secs(5);
    set_consumer_timeout(broker, &connect, &topology, PartitionId::new(0), timeout).await;
    pause(&connect, resource("held"), BY).await.unwrap();
    let record = Record::default();
    let start = |name: &str| {
        let options = WorkerOptions { consumer_timeout: timeout, ..named(name) };
        Worker::start(&connect, options, quick(&record, name))
    };
    let (worker, standby) = (start("w"), start("s"));
    publish(&connect, tasks(&["held".to_owned(), "free".to_owned()], 5)).await;
    record.until("what is free", |runs| runs.len() == 5).await;
    // It is taken from one, and from the other.
    let mut owner = None;
    for _ in 0..3 {
        let next = eventually("another owner", async || {
            let seen = status(&connect).await.ok()?.partitions.swap_remove(0);
            seen.owner.filter(|next| seen.unsettled == 5 && owner.as_ref() != Some(next))
        });
        owner = Some(next.await);
    }
    assert_eq!(runs_of(&record, "held"), 0);
    resume(&connect, Scope::All, BY).await.unwrap();
    publish(&connect, [task("free", 5)]).await;
    record.until_executed(11).await;
    record.assert_exclusive_and_in_order();
    worker.drain().await;
    standby.drain().await;
}
