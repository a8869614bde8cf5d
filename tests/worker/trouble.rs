//! What is wrong with one part of the broker is no reason to end, or to leave the other parts.

use std::sync::Arc;
use std::time::Duration;

use keylane::{Error, handler_fn, route, status};
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use url::Url;

use super::support::proxy::Proxy;
use super::*;

/// As [`space`], through a wire that can be cut.
async fn behind(broker: &Broker, connect: &Connect, query: &str) -> (Connect, Proxy) {
    let mut url = Url::parse(&broker.amqp_url()).unwrap();
    let proxy = Proxy::to(url.port().unwrap()).await;
    url.set_port(Some(proxy.port)).unwrap();
    url.set_query(Some(query));
    (Connect::new(url).unwrap().with_namespace(connect.namespace().clone()), proxy)
}

fn quick(record: &Record) -> impl keylane::Handler + use<> {
    record.handler("w", async |_| Ok(()))
}

/// Tasks of each of these.
fn several(resources: &[String], sequence: std::ops::Range<u64>) -> Vec<Task> {
    sequence.flat_map(|n| resources.iter().map(move |r| task(r, n))).collect()
}

/// A resource of each partition.
fn one_each(topology: &Topology) -> Vec<String> {
    support::resources(topology, 1).concat()
}

#[tokio::test]
async fn a_queue_without_a_leader_is_left_out_alone() {
    let broker = shared().await;
    let (connect, topology) = space(broker, 4).await;
    let resources = one_each(&topology);
    publish(&connect, several(&resources, 0..5)).await;
    let server = |what: &str| {
        let queue = queue(&connect);
        format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)),
            ra:{what}_server(quorum_queues, amqqueue:get_pid(Q))."
        )
    };
    rabbitmqctl(broker, &["eval", &server("stop")]).await;
    let record = Record::default();
    let worker = Worker::start(&connect, named("w"), quick(&record));
    record.until_executed(15).await;
    // Long enough for several tries at the other one.
    tokio::time::sleep(Duration::from_secs(3)).await;
    publish(&connect, several(&resources[1..], 5..10)).await;
    record.until_executed(30).await;
    rabbitmqctl(broker, &["eval", &server("restart")]).await;
    record.until_executed(35).await;
    record.assert_exclusive_and_in_order();
    let summary = worker.drain().await;
    assert!(summary.reconnects <= 1, "one is the price of finding out: {summary:?}");
}

#[tokio::test]
async fn a_queue_that_is_missing_is_left_out_until_it_is_made_again() {
    let broker = shared().await;
    let (connect, topology) = space(broker, 4).await;
    let resources = one_each(&topology);
    let record = Record::default();
    let worker = Worker::start(&connect, named("w"), quick(&record));
    publish(&connect, several(&resources, 0..1)).await;
    record.until_executed(4).await;
    let (connection, channel) = amqp(broker).await;
    let delete = channel.queue_delete(queue(&connect).into(), QueueDeleteOptions::default());
    delete.await.unwrap();
    publish(&connect, several(&resources[1..], 1..6)).await;
    record.until_executed(19).await;
    init(&connect, count(4)).await.unwrap();
    publish(&connect, several(&resources[..1], 1..6)).await;
    record.until_executed(24).await;
    // Who consumes a queue in the moment of its end may lose the connection.
    assert!(worker.drain().await.reconnects <= 1);
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn a_control_exchange_that_was_made_anew_is_listened_to() {
    let broker = shared().await;
    let (connect, _) = space(broker, 1).await;
    let worker = Worker::start(&connect, named("w"), handler_fn(async |_| Ok(())));
    let reports = async || {
        let workers = status(&connect).await.ok()?.workers;
        (workers.len() == 1).then_some(())
    };
    eventually("its report", reports).await;
    let (connection, channel) = amqp(broker).await;
    let control = connect.namespace().control();
    let delete = channel.exchange_delete(control.as_str().into(), ExchangeDeleteOptions::default());
    delete.await.unwrap();
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let (kind, arguments) = (ExchangeKind::Fanout, FieldTable::default());
    channel.exchange_declare(control.as_str().into(), kind, durable, arguments).await.unwrap();
    eventually("another report", reports).await;
    worker.drain().await;
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn a_worker_begins_anew_when_its_second_connection_falls_silent() {
    let (connect, topology) = space(shared().await, 2).await;
    let (through, proxy) = behind(shared().await, &connect, "heartbeat=4").await;
    let record = Record::default();
    let worker = Worker::start(&through, named("w"), quick(&record));
    publish(&connect, tasks(&one_each(&topology), 1)).await;
    record.until_executed(2).await;
    proxy.fall_silent_on(1);
    // More than one heartbeat, and less than the two that the client library waits for.
    tokio::time::sleep(Duration::from_millis(6_500)).await;
    assert_eq!(worker.drain().await.reconnects, 1);
}

#[tokio::test]
async fn a_worker_and_a_router_wait_for_a_broker_that_is_not_there_yet() {
    let (connect, topology) = space(shared().await, 1).await;
    let (through, proxy) = behind(shared().await, &connect, "").await;
    proxy.cut();
    proxy.refuse(true);
    let mut impatient = named("impatient");
    impatient.wait_for_broker = Some(Duration::ZERO);
    let ended = work(&through, impatient, handler_fn(async |_| Ok(())), CancellationToken::new());
    assert!(matches!(ended.await, Err(Error::Unreachable { .. })));
    let record = Record::default();
    let worker = Worker::start(&through, named("w"), quick(&record));
    let shutdown = CancellationToken::new();
    let (to, token) = (through.clone(), shutdown.clone());
    let router = tokio::spawn(async move { route(&to, Default::default(), token).await });
    tokio::time::sleep(Duration::from_secs(2)).await;
    proxy.refuse(false);
    publish(&connect, tasks(&one_each(&topology), 2)).await;
    record.until_executed(2).await;
    let summary = worker.drain().await;
    assert_eq!(summary.reconnects, 0, "it has not had one before");
    support::await_consumers(shared().await, &connect, ".inbox", 1).await;
    shutdown.cancel();
    router.await.unwrap().unwrap();
}

/// Rights that are gone, a record that does not come: both were there a moment ago.
#[tokio::test]
async fn who_has_worked_before_waits_for_what_was_there_before() {
    let broker = Broker::start().await.unwrap();
    let (connect, topology) = space(&broker, 1).await;
    for args in [&["add_user", "w", "pw"][..], &["set_permissions", "w", ".*", ".*", ".*"]] {
        rabbitmqctl(&broker, args).await;
    }
    let url = broker.amqp_url().replace("guest:guest@", "w:pw@");
    let limited = Connect::new(url).unwrap().with_namespace(connect.namespace().clone());
    let record = Record::default();
    let worker = Worker::start(&limited, named("w"), quick(&record));
    publish(&connect, tasks(&one_each(&topology), 1)).await;
    record.until_executed(1).await;
    for (takes, gives) in [
        (&["change_password", "w", "other"][..], &["change_password", "w", "pw"][..]),
        (&["set_permissions", "w", "^$", "^$", "^$"], &["set_permissions", "w", ".*", ".*", ".*"]),
        (
            &["set_user_limits", "w", "{\"max-connections\": 0}"],
            &["clear_user_limits", "w", "max-connections"],
        ),
    ] {
        rabbitmqctl(&broker, takes).await;
        support::cut_connections(&broker, "keylane w").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        rabbitmqctl(&broker, gives).await;
        let before = record.runs().len();
        publish(&connect, tasks(&one_each(&topology), 1)).await;
        record.until("the next", |runs| runs.len() > before).await;
    }
    assert!(worker.drain().await.reconnects >= 3);
}

/// Its thread sleeps, so that nobody can abort it.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_handler_that_blocks_holds_up_the_reconnect_of_no_other_partition() {
    let broker = shared().await;
    let (connect, topology) = space(broker, 2).await;
    let resources = one_each(&topology);
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Arc::new(std::sync::Mutex::new(blocked));
    let blocks = resources[0].clone();
    let record = Record::default();
    let handler = record.handler("blocks", move |attempt| {
        let (blocked, blocks) = (Arc::clone(&blocked), blocks.clone());
        async move {
            if attempt.task.resource.as_str() == blocks && attempt.task.payload == "0" {
                blocked.lock().unwrap().recv_timeout(Duration::from_secs(30)).ok();
            }
            Ok(())
        }
    });
    let worker = Worker::start(&connect, named("blocks"), handler);
    publish(&connect, tasks(&resources[..1], 2)).await;
    record.until("the blocked one", |runs| runs.len() == 1).await;
    support::cut_connections(broker, "keylane blocks").await;
    publish(&connect, tasks(&resources[1..], 3)).await;
    record.until("the other partition", |runs| runs.len() >= 4).await;
    drop(release);
    // Once released it ends, and its partition is consumed again.
    record
        .until("what was held up", |runs| {
            runs.iter().filter(|run| run.resource == resources[0]).count() >= 3
        })
        .await;
    worker.drain().await;
}

/// As `Duration::MAX`, which no clock can add to the time.
#[tokio::test]
async fn the_longest_durations_are_durations_like_any_other() {
    let (connect, topology) = space(shared().await, 1).await;
    let mut options = named("w");
    (options.ack_delay, options.drain_timeout) = (Duration::MAX, Duration::MAX);
    options.wait_for_broker = Some(Duration::MAX);
    options.task_timeout = Some(Duration::MAX);
    let longest = Duration::MAX;
    options.retry = RetryPolicy { attempts: 2, first_delay: longest, max_delay: longest };
    let record = Record::default();
    let handler = record.handler("w", async |attempt: keylane::Attempt| {
        if attempt.task.payload == "1" {
            Err(Failure::retry(Some(Duration::MAX), "never"))
        } else {
            Ok(())
        }
    });
    let worker = Worker::start(&connect, options, handler);
    publish(&connect, tasks(&one_each(&topology), 2)).await;
    record.until("both", |runs| runs.len() == 2 && runs.iter().all(|run| run.end.is_some())).await;
    assert_eq!(worker.drain().await.executed, 1);
}
