//! One owner per partition at a time, whatever happens to the fleet: the rules
//! of ownership on both lines of RabbitMQ.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

mod support;

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_lite::StreamExt;
use keylane::protocol::plan::Role;
use keylane::testing::{Broker, Version};
use keylane::{
    Attempt, Connect, Failure, PartitionId, Resource, Status, Topology, Weight, WorkerId,
    WorkerOptions, status,
};

use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, BasicQosOptions};
use lapin::types::FieldTable;
use url::Url;

use support::proxy::Proxy;
use support::{
    End, Gate, Record, Run, Worker, amqp, await_consumers, broker, cut_connections, eventually,
    named, publish, resources, soon, space, task, tasks,
};

macro_rules! on_both_versions {
    ($($(#[$about:meta])* $test:ident)*) => {
        mod on_4_3 {
            use super::{Version, broker};
            $($(#[$about])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test(broker(Version::V4_3).await).await; })*
        }
        mod on_4_0 {
            use super::{Version, broker};
            $($(#[$about])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() { super::$test(broker(Version::V4_0).await).await; })*
        }
    };
}

on_both_versions! {
    a_newcomer_takes_over_its_share_and_soon
    a_newcomer_does_not_wait_for_what_is_held
    what_was_handed_over_comes_back
    a_standby_keeps_what_it_inherits
    a_partition_that_is_given_up_holds_no_slot
    plans_that_contradict_one_another_are_harmless
    a_drained_worker_finishes_what_runs_and_no_more
    a_drained_worker_begins_nothing_in_an_idle_partition
    a_dropped_worker_is_replaced
    a_dropped_worker_leaves_nothing_behind
    a_cut_connection_aborts_what_runs
    a_silent_broker_ends_what_runs_before_others_begin
    weights_shift_shares
    a_smaller_window_breaks_the_order
}

/// A hand-over takes as long as the tasks that run, and machines are slow at times.
const TAKE_OVER: Duration = Duration::from_secs(30);

/// How long a task takes that is slow.
const SLOW: Duration = Duration::from_millis(50);

/// So many tasks for a partition fill the prefetch of a worker, 256.
const FULL: u64 = 260;

/// A worker of this name with a slot for every resource of these tests.
fn options(name: &str) -> WorkerOptions {
    let mut options = named(name);
    options.slots = 64;
    options
}

/// The planned owner of every partition, if so many workers have some.
fn plan_of(status: &Status, workers: usize) -> Option<Vec<String>> {
    let name = |planned: &Option<WorkerId>| planned.as_ref().map(ToString::to_string);
    let planned: Option<Vec<_>> = status.partitions.iter().map(|p| name(&p.planned)).collect();
    planned.filter(|planned| planned.iter().collect::<BTreeSet<_>>().len() == workers)
}

/// The planned owner of every partition, once so many workers have some.
async fn planned(connect: &Connect, workers: usize) -> Vec<String> {
    eventually("a plan", async || plan_of(&status(connect).await.ok()?, workers)).await
}

/// The owners, once each is the planned one and so many workers have some.
async fn settled(connect: &Connect, workers: usize) -> Vec<String> {
    eventually("that all are owned as planned", async || {
        let status = status(connect).await.ok()?;
        plan_of(&status, workers).filter(|planned| *planned == owners(&status))
    })
    .await
}

/// Tells the fleet another plan, as a planner would that has gone astray: the place of each
/// partition's owner among the workers, which are sorted.
async fn forge_plan(broker: &Broker, connect: &Connect, fleet: &[&str], owners: &[usize]) {
    static NUMBER: AtomicU64 = AtomicU64::new(1_000);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let line = |owner: &usize| [*owner, (owner + 1) % fleet.len()];
    let lines: Vec<_> = owners.iter().map(line).collect();
    let plan = serde_json::json!({ "plan": {
        "number": number, "members": fleet, "everyone": true, "lines": lines,
    }})
    .to_string();
    let (connection, channel) = amqp(broker).await;
    let exchange = connect.namespace().fleet();
    let sent = channel.basic_publish(
        exchange.as_str().into(),
        "members".into(),
        BasicPublishOptions::default(),
        plan.as_bytes(),
        BasicProperties::default(),
    );
    sent.await.unwrap().await.unwrap();
    connection.close(200, "done".into()).await.unwrap();
}

/// The partitions that are planned for a worker.
fn of(planned: &[String], worker: &str) -> BTreeSet<PartitionId> {
    let numbered = (0..).zip(planned).filter(|(_, planned)| *planned == worker);
    numbered.map(|(number, _)| PartitionId::new(number)).collect()
}

fn owners(status: &Status) -> Vec<String> {
    let owner = |owner: &WorkerId| owner.to_string();
    status.partitions.iter().map(|p| p.owner.as_ref().map_or_else(String::new, owner)).collect()
}

fn partition(topology: &Topology, run: &Run) -> PartitionId {
    topology.partition_of(&Resource::new(&run.resource).unwrap())
}

/// Partitions that a worker has run something of.
fn partitions_of(topology: &Topology, runs: &[Run], worker: &str) -> BTreeSet<PartitionId> {
    runs.iter().filter(|run| run.worker == worker).map(|run| partition(topology, run)).collect()
}

/// Waits until the broker has handed out so many deliveries of every partition.
async fn await_prefetched(connect: &Connect, each: u32) {
    eventually("deliveries", async || {
        let status = status(connect).await.ok()?;
        status.partitions.iter().all(|p| p.unsettled >= each).then_some(())
    })
    .await;
}

/// A handler that takes its time until it is told to hurry.
fn slow(
    hurry: &Gate,
) -> impl Fn(Attempt) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>> + use<> {
    let hurry = hurry.clone();
    move |_| {
        let hurry = hurry.clone();
        Box::pin(async move {
            // The end of the patience is the usual case.
            tokio::time::timeout(SLOW, hurry.passed()).await.ok();
            Ok(())
        })
    }
}

async fn a_newcomer_takes_over_its_share_and_soon(broker: &Broker) {
    let (connect, topology) = space(broker, 6).await;
    let resources = resources(&topology, 2).concat();
    let total = publish(&connect, tasks(&resources, FULL)).await.len();
    let (record, hurry) = (Record::default(), Gate::default());
    let old = Worker::start(&connect, options("old"), record.handler("old", slow(&hurry)));
    await_prefetched(&connect, 200).await;

    let joined = Instant::now();
    let handler = record.handler("newcomer", slow(&hurry));
    let newcomer = Worker::start(&connect, options("newcomer"), handler);
    let planned = planned(&connect, 2).await;
    let wins = of(&planned, "newcomer");
    assert_eq!(wins.len(), 3, "half of them: {planned:?}");
    record.until("the take-over", |runs| partitions_of(&topology, runs, "newcomer") == wins).await;
    let took = joined.elapsed();
    assert!(took < TAKE_OVER, "{took:?}");
    eventually("the same in a status", async || {
        let status = status(&connect).await.ok()?;
        let line = |p: &keylane::PartitionStatus| p.line.first() == p.owner.as_ref();
        (owners(&status) == planned && status.partitions.iter().all(line)).then_some(())
    })
    .await;

    hurry.open();
    record.until_executed(total).await;
    record.assert_once();
    let runs = record.runs();
    assert_eq!(partitions_of(&topology, &runs, "newcomer"), wins, "it takes its share only");
    for won in wins {
        let of_it = || runs.iter().filter(|run| partition(&topology, run) == won);
        let back = of_it().skip_while(|run| run.worker == "old").find(|run| run.worker == "old");
        assert!(back.is_none(), "{back:?} after the take-over");
    }
    let (old, newcomer) = (old.drain().await, newcomer.drain().await);
    assert_eq!(old.executed + newcomer.executed, total as u64);
    assert_eq!((old.aborted, newcomer.aborted), (0, 0));
}

/// The owner gives back what it has not started.
async fn a_newcomer_does_not_wait_for_what_is_held(broker: &Broker) {
    /// A tenth of this and the lanes of a partition take half a minute for
    /// what their owner holds.
    const SLOWER: Duration = Duration::from_millis(250);
    let (connect, topology) = space(broker, 6).await;
    let resources = resources(&topology, 2).concat();
    let total = publish(&connect, tasks(&resources, FULL)).await.len();
    let (record, hurry) = (Record::default(), Gate::default());
    let handler = |name| {
        let hurry = hurry.clone();
        record.handler(name, move |_| {
            let hurry = hurry.clone();
            async move {
                tokio::time::timeout(SLOWER, hurry.passed()).await.ok();
                Ok(())
            }
        })
    };
    let old = Worker::start(&connect, options("old"), handler("old"));
    await_prefetched(&connect, 200).await;
    let newcomer = Worker::start(&connect, options("newcomer"), handler("newcomer"));
    let wins = of(&planned(&connect, 2).await, "newcomer");
    record.until("the take-over", |runs| partitions_of(&topology, runs, "newcomer") == wins).await;
    for won in wins {
        let of_old = |run: &&Run| run.worker == "old" && partition(&topology, run) == won;
        let executed = record.runs().iter().filter(of_old).count();
        assert!(executed < 150, "it executed {executed} of the 256 that it held of {won}");
    }
    hurry.open();
    record.until_executed(total).await;
    record.assert_once();
    old.drain().await;
    newcomer.drain().await;
}

/// A partition that waits for a slot when it is handed over would be given one, and keep it.
async fn a_partition_that_is_given_up_holds_no_slot(broker: &Broker) {
    let (connect, topology) = space(broker, 4).await;
    // Two for each, whichever.
    let fleet = ["newcomer", "old"];
    let start = |name, slots, record: &Record, handler| {
        let options = WorkerOptions { slots, ..options(name) };
        Worker::start(&connect, options, record.handler(name, handler))
    };
    let (record, end_long, end_short) = (Record::default(), Gate::default(), Gate::default());
    // Which resources take long is known when it is known who owns what.
    let gates = Arc::new(OnceLock::<[(String, Gate); 2]>::new());
    let known = Arc::clone(&gates);
    let handler = move |attempt: Attempt| {
        let name = attempt.task.resource.to_string();
        let gate = known.get().and_then(|gates| gates.iter().find(|(gated, _)| *gated == name));
        let gate = gate.map(|(_, gate)| gate.clone());
        async move {
            if let Some(gate) = gate {
                gate.passed().await;
            }
            Ok(())
        }
    };
    let old = start("old", 2, &record, handler.clone());
    let newcomer = start("newcomer", 2, &record, handler);
    let owners = settled(&connect, 2).await;
    let mut olds = of(&owners, "old").into_iter().map(|partition| partition.number() as usize);
    let (given_up, stays) = (olds.next().unwrap(), olds.next().unwrap());
    let resources = resources(&topology, 3);
    let [long, short, next] = &resources[given_up][..] else { panic!("three") };
    let kept = &resources[stays][0];
    gates.get_or_init(|| [(long.clone(), end_long.clone()), (short.clone(), end_short.clone())]);
    for resource in [long, short, next, kept] {
        publish(&connect, tasks(std::slice::from_ref(resource), 1)).await;
        let waiting = record.runs().len() == 2;
        if !waiting {
            record.until("it runs", |runs| runs.iter().any(|run| run.resource == *resource)).await;
        }
    }
    eventually("deliveries", async || {
        let held: u32 = status(&connect).await.ok()?.partitions.iter().map(|p| p.unsettled).sum();
        (held == 4).then_some(())
    })
    .await;
    let mut places: Vec<_> = owners.iter().map(|o| usize::from(o == "old")).collect();
    places[given_up] = 0;
    forge_plan(broker, &connect, &fleet, &places).await;
    // The owner hears of it after us. If it did not within this time, the test would show
    // nothing, but not fail.
    tokio::time::sleep(Duration::from_secs(1)).await;
    end_short.open();
    let at_last = |runs: &[Run]| runs.iter().any(|run| run.resource == *kept);
    record.until("the other partition goes on", at_last).await;
    assert!(record.runs().iter().all(|run| run.resource != *next), "it is not started here");
    end_long.open();
    record.until_executed(4).await;
    record.assert_once();
    old.drain().await;
    newcomer.drain().await;
}

/// Two planners at once, or one that has lost its mind: every plan gives everything to others.
async fn plans_that_contradict_one_another_are_harmless(broker: &Broker) {
    let (connect, topology) = space(broker, 8).await;
    let fleet = ["one", "three", "two"];
    let (record, hurry) = (Record::default(), Gate::default());
    let start = |name| Worker::start(&connect, options(name), record.handler(name, slow(&hurry)));
    let workers = fleet.map(start);
    settled(&connect, 3).await;
    let total = publish(&connect, tasks(&resources(&topology, 2).concat(), FULL / 2)).await.len();
    for turn in 0..12 {
        let owners: Vec<_> = (0..8).map(|partition| (turn * 7 + partition) % 3).collect();
        forge_plan(broker, &connect, &fleet, &owners).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    hurry.open();
    record.until_executed(total).await;
    record.assert_once();
    let moved = record.runs().windows(2).filter(|runs| runs[0].worker != runs[1].worker).count();
    assert!(moved > 0, "nothing was put to the test");
    settled(&connect, 3).await;
    for worker in workers {
        worker.drain().await;
    }
    await_consumers(broker, &connect, ".g1.p", 0).await;
}

/// Why the prefetch is a part of the topology: what an owner gives back goes
/// behind what the one before has given back and nobody has taken yet.
async fn a_smaller_window_breaks_the_order(broker: &Broker) {
    let (connect, topology) = space(broker, 1).await;
    publish(&connect, tasks(&["r".to_owned()], 20)).await;
    let queue = connect.namespace().partition(&topology, PartitionId::new(0));
    let owner = async |window, takes: usize| {
        let (connection, channel) = amqp(broker).await;
        channel.basic_qos(window, BasicQosOptions::default()).await.unwrap();
        let options = BasicConsumeOptions::default();
        let consume =
            channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
        let mut consumer = consume.await.unwrap();
        let mut seen = Vec::new();
        while seen.len() < takes {
            let delivery = soon("a delivery", consumer.next()).await.unwrap().unwrap();
            seen.push(String::from_utf8(delivery.data).unwrap().parse::<u64>().unwrap());
        }
        channel.close(200, "done".into()).await.unwrap();
        connection.close(200, "done".into()).await.unwrap();
        seen
    };
    let in_order: Vec<u64> = (0..10).collect();
    assert_eq!(owner(10, 10).await, in_order);
    assert_eq!(owner(10, 10).await, in_order, "the same window takes everything that came back");
    assert_eq!(owner(4, 4).await, [0, 1, 2, 3]);
    assert_eq!(owner(10, 10).await, [4, 5, 6, 7, 8, 9, 0, 1, 2, 3]);
}

/// A guest takes its share, and gives it back.
async fn what_was_handed_over_comes_back(broker: &Broker) {
    let (connect, topology) = space(broker, 4).await;
    let resources = resources(&topology, 2).concat();
    let total = publish(&connect, tasks(&resources, FULL)).await.len();
    let (record, hurry) = (Record::default(), Gate::default());
    let old = Worker::start(&connect, options("old"), record.handler("old", slow(&hurry)));
    await_prefetched(&connect, 200).await;
    let guest = Worker::start(&connect, options("guest"), record.handler("guest", slow(&hurry)));
    record.until("a take-over", |runs| runs.iter().any(|run| run.worker == "guest")).await;
    guest.drain().await;
    hurry.open();
    record.until_executed(total).await;
    record.assert_once();
    old.drain().await;
}

/// The one that is planned as the next takes over from an owner that leaves, and nobody else is
/// handed anything on the way.
async fn a_standby_keeps_what_it_inherits(broker: &Broker) {
    let (connect, _) = space(broker, 1).await;
    let record = Record::default();
    let mut fleet = Vec::new();
    for (consumers, name) in (1..).zip(["one", "two", "three"]) {
        let handler = record.handler(name, async |_| Ok(()));
        fleet.push(Worker::start(&connect, options(name), handler));
        await_consumers(broker, &connect, ".g1.p", consumers).await;
    }
    // Each sorts itself into the line behind those that are planned before it.
    let heir = eventually("a line as it is planned", async || {
        let status = status(&connect).await.ok()?;
        let [partition] = &status.partitions[..] else { panic!("one partition") };
        let sorted = partition.owner.is_some() && partition.owner == partition.planned;
        let second = (sorted && partition.line.len() == 3).then(|| partition.line[1].to_string());
        second.filter(|second| {
            let first_standby = |report: &&keylane::WorkerReport| {
                report.line.iter().any(|place| place.role == Role::Standby(1))
            };
            status.workers.iter().find(first_standby).is_some_and(|w| w.worker.as_str() == second)
        })
    })
    .await;
    let owner = fleet.remove(0);
    let other = if heir == "two" { 1 } else { 0 };
    owner.drain().await;
    let total = publish(&connect, tasks(&["r".to_owned()], 50)).await.len();
    record.until_executed(total).await;
    record.assert_once();
    let moved = record.runs().into_iter().find(|run| run.worker != heir || run.redelivered);
    assert_eq!(moved.map(|run| (run.worker, run.redelivered)), None);
    fleet.remove(other).drain().await;
    fleet.remove(0).drain().await;
}

async fn a_drained_worker_finishes_what_runs_and_no_more(broker: &Broker) {
    let (connect, topology) = space(broker, 4).await;
    let resources = resources(&topology, 2).concat();
    let total = publish(&connect, tasks(&resources, FULL / 2)).await.len();
    let (record, gate) = (Record::default(), Gate::default());
    let leaver = record.gated("leaver", &gate);
    let leaver = Worker::start(&connect, options("leaver"), leaver);
    record.until("all lanes run", |runs| runs.len() == resources.len()).await;
    await_prefetched(&connect, 200).await;

    // One that is planned nothing while the leaver is there.
    let mut heir = options("heir");
    heir.weight = Weight::new(0.001).unwrap();
    let heir = Worker::start(&connect, heir, record.handler("heir", async |_| Ok(())));
    await_consumers(broker, &connect, ".g1.p", 2).await;
    leaver.shut_down().await;
    // The heir cannot have any before the leaver's are settled.
    gate.open();
    let summary = leaver.ended().await;
    assert_eq!(summary.executed, resources.len() as u64, "what ran, and no more");
    assert_eq!(summary.aborted, 0);
    record.until_executed(total).await;
    record.assert_once();
    assert_eq!(heir.drain().await.executed, (total - resources.len()) as u64);
}

/// One that it owns like the others, and holds nothing of when it is told to end.
async fn a_drained_worker_begins_nothing_in_an_idle_partition(broker: &Broker) {
    let (connect, topology) = space(broker, 2).await;
    let [one, other] = &resources(&topology, 1)[..] else { panic!("two partitions") };
    let (busy, idle) = (one[0].clone(), other[0].clone());
    let (record, gate) = (Record::default(), Gate::default());
    let (waiting, waits) = (gate.clone(), busy.clone());
    let leaver = record.handler("leaver", move |attempt| {
        let (gate, waits) = (waiting.clone(), attempt.task.resource.as_str() == waits);
        async move {
            if waits {
                gate.passed().await;
            }
            Ok(())
        }
    });
    let leaver = Worker::start(&connect, options("leaver"), leaver);
    publish(&connect, [task(&busy, 0), task(&idle, 0)]).await;
    eventually("one runs, of the other is nothing left", async || {
        let held: u32 = status(&connect).await.ok()?.partitions.iter().map(|p| p.unsettled).sum();
        (record.runs().len() == 2 && held == 1).then_some(())
    })
    .await;
    leaver.shut_down().await;
    publish(&connect, [task(&idle, 1)]).await;
    gate.open();
    assert_eq!(leaver.ended().await.executed, 2, "what had begun before");

    let heir = Worker::start(&connect, options("heir"), record.handler("heir", async |_| Ok(())));
    record.until_executed(3).await;
    record.assert_once();
    heir.drain().await;
}

/// Drops a worker in the midst of a task of each resource, while it is asked to hand over; gives
/// the one that takes over, which executes the rest.
async fn replace_by_force(
    broker: &Broker,
    connect: &Connect,
    record: &Record,
    resources: &[String],
) -> Worker {
    let victim = record.handler("victim", async |attempt| {
        // The first ten of each resource are executed, the next one never ends.
        if attempt.task.payload == "10" { std::future::pending().await } else { Ok(()) }
    });
    let victim = Worker::start(connect, options("victim"), victim);
    let stuck = |run: &&Run| run.sequence == 10 && run.end.is_none();
    record.until("all stick", |runs| runs.iter().filter(stuck).count() == resources.len()).await;
    let heir = Worker::start(connect, options("heir"), record.handler("heir", async |_| Ok(())));
    await_consumers(broker, connect, ".g1.p", 2).await;
    victim.kill().await;
    heir
}

async fn a_dropped_worker_is_replaced(broker: &Broker) {
    let (connect, topology) = space(broker, 4).await;
    let resources = resources(&topology, 2).concat();
    let total = publish(&connect, tasks(&resources, 50)).await.len();
    let record = Record::default();
    let heir = replace_by_force(broker, &connect, &record, &resources).await;
    record.until_executed(total).await;
    record.assert_exclusive_and_in_order();
    let runs = record.runs();
    let of_victim = || runs.iter().filter(|run| run.worker == "victim");
    let aborted = of_victim().filter(|run| run.end == Some(End::Aborted)).count();
    assert_eq!(aborted, resources.len());
    // What ran was executed again, and the heir was told so.
    let again = runs.iter().filter(|run| run.worker == "heir" && run.sequence == 10);
    assert_eq!(again.filter(|run| run.redelivered).count(), resources.len());
    let left = eventually("the victim's last report", async || {
        let status = status(&connect).await.ok()?;
        (status.workers.len() == 1).then_some(status)
    })
    .await;
    assert!(owners(&left).iter().all(|owner| owner == "heir"), "{left:?}");
    heir.drain().await;
}

/// With priorities, RabbitMQ 4.3 kept the consumer of a channel that is closed while it is being
/// replaced and holds something.
async fn a_dropped_worker_leaves_nothing_behind(broker: &Broker) {
    let (connect, topology) = space(broker, 4).await;
    let resources = resources(&topology, 2).concat();
    let total = publish(&connect, tasks(&resources, 50)).await.len();
    let record = Record::default();
    let heir = replace_by_force(broker, &connect, &record, &resources).await;
    record.until_executed(total).await;
    heir.drain().await;
    await_consumers(broker, &connect, ".g1.p", 0).await;
    let more = tasks(&resources, 60).into_iter().skip(total);
    let all = total + publish(&connect, more).await.len();
    let fresh = record.handler("fresh", async |_| Ok(()));
    let fresh = Worker::start(&connect, options("fresh"), fresh);
    record.until_executed(all).await;
    record.assert_exclusive_and_in_order();
    fresh.drain().await;
}

async fn a_cut_connection_aborts_what_runs(broker: &Broker) {
    let (connect, topology) = space(broker, 4).await;
    let resources = resources(&topology, 2).concat();
    let total = publish(&connect, tasks(&resources, 20)).await.len();
    let record = Record::default();
    // The broker's connections are told apart by the worker's name.
    let name = format!("cut-{}", connect.namespace());
    let handler = record.handler(&name, async |attempt| {
        if attempt.redelivered { Ok(()) } else { std::future::pending().await }
    });
    let worker = Worker::start(&connect, options(&name), handler);
    record.until("all lanes run", |runs| runs.len() == resources.len()).await;
    await_prefetched(&connect, 40).await;

    cut_connections(broker, &name).await;
    let aborted = |run: &&Run| run.sequence == 0 && run.end == Some(End::Aborted);
    record
        .until("all are aborted", |runs| runs.iter().filter(aborted).count() == resources.len())
        .await;
    // All were prefetched, so all are redelivered now.
    record.until_executed(total).await;
    record.assert_exclusive_and_in_order();
    let summary = worker.drain().await;
    assert!(summary.reconnects > 0, "{summary:?}");
    assert_eq!(summary.aborted, resources.len() as u64);
    assert_eq!(summary.executed, total as u64);
}

/// Neither side is told that the wire is dead. The broker waits for two or three
/// heartbeats; the worker must be earlier.
async fn a_silent_broker_ends_what_runs_before_others_begin(broker: &Broker) {
    /// The broker may have heard of the worker half a heartbeat before the wire
    /// died, and waits for two. So long the library waits as well.
    const EARLIEST: Duration = Duration::from_secs(15);
    let (connect, topology) = space(broker, 4).await;
    let resources = resources(&topology, 2).concat();
    let total = publish(&connect, tasks(&resources, 5)).await.len();
    let record = Record::default();
    let url = Url::parse(&broker.amqp_url()).unwrap();
    let proxy = Proxy::to(url.port().unwrap()).await;
    let mut through = url.clone();
    through.set_port(Some(proxy.port)).unwrap();
    through.set_query(Some("heartbeat=10"));
    let through = Connect::new(through).unwrap().with_namespace(connect.namespace().clone());
    let handler = record.handler("far", async |_| std::future::pending().await);
    let far = Worker::start(&through, options("far"), handler);
    record.until("all lanes run", |runs| runs.len() == resources.len()).await;
    let mut heir = options("heir");
    heir.weight = Weight::new(0.001).unwrap();
    let heir = Worker::start(&connect, heir, record.handler("heir", async |_| Ok(())));
    await_consumers(broker, &connect, ".g1.p", 2).await;

    proxy.fall_silent();
    let silent = Instant::now();
    let aborted = |runs: &[Run]| runs.iter().all(|run| run.end == Some(End::Aborted));
    record.until("all are aborted", aborted).await;
    let after = silent.elapsed();
    assert!(after < EARLIEST, "aborted after {after:?}");
    record.until_executed(total).await;
    record.assert_exclusive_and_in_order();
    heir.drain().await;
    far.kill().await;
}

async fn weights_shift_shares(broker: &Broker) {
    let (connect, topology) = space(broker, 48).await;
    let record = Record::default();
    let start = |name: &str, weight| {
        let mut options = options(name);
        options.weight = Weight::new(weight).unwrap();
        Worker::start(&connect, options, record.handler(name, async |_| Ok(())))
    };
    let (first, second) = (start("light", 1.0), start("heavy", 3.0));
    let planned = planned(&connect, 2).await;
    assert_eq!(of(&planned, "heavy").len(), 36, "three quarters: {planned:?}");
    eventually("that all are owned as planned", async || {
        (owners(&status(&connect).await.ok()?) == planned).then_some(())
    })
    .await;
    let resources = resources(&topology, 1).concat();
    publish(&connect, tasks(&resources, 3)).await;
    record.until_executed(3 * resources.len()).await;
    record.assert_once();
    for run in record.runs() {
        assert_eq!(run.worker, planned[partition(&topology, &run).number() as usize], "{run:?}");
    }
    first.drain().await;
    second.drain().await;
}
