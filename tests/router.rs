//! Whoever speaks AMQP publishes to the inbox, and the router brings it to its
//! partition, in order, without what would make the broker treat it otherwise.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use keylane::testing::{Broker, Version};
use keylane::{Connect, Error, PartitionId, RouterOptions, WorkerId, WorkerSummary, init, route};
use lapin::BasicProperties;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use support::{
    Record, Worker, amqp, await_consumers, await_dead_letters, broker, eventually, header, named,
    put, rabbitmqctl, ready, resources, soon, space, take_all,
};

async fn shared() -> &'static Broker {
    broker(Version::default()).await
}

type Routing = JoinHandle<Result<WorkerSummary, Error>>;

/// A router, once the broker knows it as the `count`th.
async fn router(
    broker: &Broker,
    connect: &Connect,
    name: &str,
    count: u32,
    adjust: impl FnOnce(&mut RouterOptions),
) -> (Routing, CancellationToken) {
    let id = WorkerId::new(name).unwrap();
    let mut options = RouterOptions { id, ..RouterOptions::default() };
    adjust(&mut options);
    let (shutdown, to) = (CancellationToken::new(), connect.clone());
    let token = shutdown.clone();
    let routing = tokio::spawn(async move { route(&to, options, token).await });
    await_consumers(broker, connect, ".inbox", count).await;
    (routing, shutdown)
}

fn on(resource: &str) -> BasicProperties {
    header("resource", AMQPValue::LongString(resource.into()))
}

#[tokio::test]
async fn what_comes_into_the_inbox_is_executed_in_order() {
    let broker = shared().await;
    let (connect, topology) = space(broker, 4).await;
    let resources = resources(&topology, 3).concat();
    let (connection, channel) = amqp(broker).await;
    let inbox = connect.namespace().inbox();
    for sequence in 0..20 {
        for resource in &resources {
            let id = format!("{resource}/{sequence}");
            let properties = on(resource).with_message_id(id.as_str().into());
            put(&channel, &inbox, properties, sequence.to_string().as_bytes()).await;
        }
    }
    let record = Record::default();
    let worker = Worker::start(&connect, named("w"), record.handler("w", async |_| Ok(())));
    let (routing, shutdown) = router(broker, &connect, "router", 1, |_| {}).await;
    record.until_executed(20 * resources.len()).await;
    record.assert_once();

    shutdown.cancel();
    let summary = soon("the router's end", routing).await.unwrap().unwrap();
    assert_eq!(summary.executed, 20 * resources.len() as u64);
    worker.drain().await;
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn what_would_mislead_the_broker_is_left_behind() {
    let broker = shared().await;
    let (connect, topology) = space(broker, 1).await;
    let (connection, channel) = amqp(broker).await;
    let inbox = connect.namespace().inbox();
    let copies = format!("{}.copies", connect.namespace());
    let queue = QueueDeclareOptions { exclusive: true, ..Default::default() };
    channel.queue_declare(copies.as_str().into(), queue, FieldTable::default()).await.unwrap();

    put(&channel, &inbox, on("plain"), b"0").await;
    put(&channel, &inbox, on("expiring").with_expiration("60000".into()), b"1").await;
    let mut headers = on("copied").headers().clone().unwrap();
    let to = FieldArray::from(vec![AMQPValue::LongString(copies.as_str().into())]);
    headers.insert("CC".into(), AMQPValue::FieldArray(to));
    headers.insert("own".into(), AMQPValue::LongInt(7));
    let copied = BasicProperties::default().with_headers(headers).with_message_id("mine".into());
    put(&channel, &inbox, copied, b"2").await;

    put(&channel, &inbox, on("sorted").with_priority(0), b"3").await;

    let (routing, shutdown) = router(broker, &connect, "router", 1, |_| {}).await;
    let partition = connect.namespace().partition(&topology, PartitionId::new(0));
    let forwarded = async || (ready(&channel, &partition).await == 4).then_some(());
    eventually("four tasks", forwarded).await;
    let forwarded = take_all(&channel, &partition).await;
    shutdown.cancel();
    soon("the router's end", routing).await.unwrap().unwrap();

    let by_payload: BTreeMap<_, _> =
        forwarded.iter().map(|message| (message.data.clone(), &message.properties)).collect();
    let ids: Vec<_> = by_payload.values().map(|p| p.message_id().clone().unwrap()).collect();
    assert_eq!(ids[2].as_str(), "mine");
    assert_ne!(ids[0], ids[1], "who has no id gets one");
    for properties in by_payload.values() {
        assert_eq!(properties.expiration(), &None, "a task does not expire");
        assert_eq!(properties.priority(), &None, "nor is it sorted");
        assert_eq!(properties.delivery_mode(), &Some(2), "it survives a restart");
        assert!(properties.timestamp().is_some());
        let headers = properties.headers().clone().unwrap();
        assert!(!headers.inner().contains_key("CC"), "{headers:?}");
    }
    let last = by_payload[b"2".as_slice()].headers().clone().unwrap();
    assert_eq!(last.inner()["own"], AMQPValue::LongInt(7), "its own headers are kept");
    let copies = take_all(&channel, &copies).await;
    assert_eq!(copies.len(), 1, "the copy of the inbox, and none of the partition");
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn the_unusable_goes_to_the_dead_letters() {
    let broker = shared().await;
    let (connect, topology) = space(broker, 1).await;
    let (connection, channel) = amqp(broker).await;
    let inbox = connect.namespace().inbox();
    put(&channel, &inbox, BasicProperties::default(), b"nowhere").await;
    put(&channel, &inbox, on("r"), b"good").await;
    let (routing, shutdown) = router(broker, &connect, "router", 1, |_| {}).await;

    let letters = await_dead_letters(&connect, 1).await;
    let [letter] = letters.as_slice() else { panic!("{letters:?}") };
    assert_eq!(letter.payload.as_ref(), b"nowhere");
    assert_eq!(letter.reason, "the header `resource` is missing: not a keylane task");
    assert_eq!((letter.by.as_deref(), letter.from.as_deref()), (Some("router"), Some(&*inbox)));
    let partition = connect.namespace().partition(&topology, PartitionId::new(0));
    let forwarded = async || (ready(&channel, &partition).await == 1).then_some(());
    eventually("the task behind it", forwarded).await;
    let forwarded = take_all(&channel, &partition).await;
    assert_eq!(forwarded[0].data, b"good");
    shutdown.cancel();
    soon("the router's end", routing).await.unwrap().unwrap();
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_forwarded_waits_in_the_inbox() {
    let broker = shared().await;
    let (connect, topology) = space(broker, 1).await;
    let (connection, channel) = amqp(broker).await;
    let partition = connect.namespace().partition(&topology, PartitionId::new(0));
    let delete = channel.queue_delete(partition.as_str().into(), QueueDeleteOptions::default());
    delete.await.unwrap();
    let inbox = connect.namespace().inbox();
    for payload in [b"0", b"1", b"2"] {
        put(&channel, &inbox, on("r"), payload).await;
    }
    let (routing, shutdown) = router(broker, &connect, "router", 1, |_| {}).await;
    eventually("the router's try", async || (ready(&channel, &inbox).await == 0).then_some(()))
        .await;

    init(&connect, topology.partitions).await.unwrap();
    let forwarded = async || (ready(&channel, &partition).await == 3).then_some(());
    eventually("three tasks", forwarded).await;
    let forwarded = take_all(&channel, &partition).await;
    let payloads: Vec<_> = forwarded.iter().map(|message| message.data.as_slice()).collect();
    assert_eq!(payloads, [b"0", b"1", b"2"]);
    shutdown.cancel();
    soon("the router's end", routing).await.unwrap().unwrap();
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn every_copy_of_a_message_has_one_id_and_says_that_there_may_be_others() {
    const MESSAGES: u32 = 200;
    let broker = shared().await;
    let (connect, topology) = space(broker, 1).await;
    let (connection, channel) = amqp(broker).await;
    let inbox = connect.namespace().inbox();
    let (routing, shutdown) = router(broker, &connect, "alpha", 1, |_| {}).await;
    let partition = connect.namespace().partition(&topology, PartitionId::new(0));
    // The partition takes what it is sent and confirms nothing, until the connection is lost.
    let lose = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{partition}\">>)),
        {{Name, _}} = amqqueue:get_pid(Q), Leader = whereis(Name),
        erlang:suspend_process(Leader), timer:sleep(3000),
        Named = fun({{<<\"connection_name\">>, _, N}}) -> N =:= <<\"keylane router\">>; (_) -> false end,
        [rabbit_networking:close_connection(Pid, \"test\")
            || [{{pid, Pid}}, {{client_properties, Properties}}]
            <- rabbit_networking:connection_info_all([pid, client_properties]),
            is_list(Properties), lists:any(Named, Properties)],
        timer:sleep(500), erlang:resume_process(Leader)."
    );
    let filling = async {
        eventually("the pause", async || {
            let asked = Instant::now();
            ready(&channel, &partition).await;
            (asked.elapsed() > Duration::from_millis(850)).then_some(())
        })
        .await;
        for message in 0..MESSAGES {
            put(&channel, &inbox, on(&format!("r{message}")), message.to_string().as_bytes()).await;
        }
    };
    let words = ["eval", &lose];
    tokio::join!(rabbitmqctl(broker, &words), filling);
    eventually("all of them", async || (ready(&channel, &inbox).await == 0).then_some(())).await;
    shutdown.cancel();
    let summary = soon("the router's end", routing).await.unwrap().unwrap();
    assert_eq!(summary.executed, u64::from(MESSAGES));

    let mut copies: BTreeMap<Vec<u8>, Vec<BasicProperties>> = BTreeMap::new();
    for message in take_all(&channel, &partition).await {
        copies.entry(message.data).or_default().push(message.properties);
    }
    assert_eq!(copies.len(), MESSAGES as usize);
    let republished = |properties: &BasicProperties| {
        properties.headers().as_ref().unwrap().inner().contains_key("republished")
    };
    let mut again = 0;
    for (payload, copies) in &copies {
        let ids: BTreeSet<_> = copies.iter().map(|p| p.message_id().clone().unwrap()).collect();
        let payload = String::from_utf8_lossy(payload);
        assert_eq!(ids.len(), 1, "{payload} has {ids:?}");
        assert!(copies.iter().skip(1).all(republished), "{payload} does not say so");
        again += copies.iter().filter(|copy| republished(copy)).count();
    }
    assert!(again > 0, "nothing was on its way");
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn a_standby_takes_over_in_order() {
    const PER_RESOURCE: u64 = 300;
    let broker = shared().await;
    let (connect, topology) = space(broker, 2).await;
    let resources = resources(&topology, 2).concat();
    let (connection, channel) = amqp(broker).await;
    let inbox = connect.namespace().inbox();
    // Few in flight, so that much is left when the first one goes.
    let few = |options: &mut RouterOptions| options.max_in_flight = 8;
    let (first, _) = router(broker, &connect, "alpha", 1, few).await;
    let (standby, shutdown) = router(broker, &connect, "beta", 2, few).await;
    let record = Record::default();
    let worker = Worker::start(&connect, named("w"), record.handler("w", async |_| Ok(())));

    for sequence in 0..PER_RESOURCE {
        for resource in &resources {
            put(&channel, &inbox, on(resource), sequence.to_string().as_bytes()).await;
        }
        if sequence == PER_RESOURCE / 2 {
            assert!(!record.runs().is_empty(), "the first one forwarded nothing");
            first.abort();
        }
    }
    first.await.unwrap_err();
    record.until_executed(PER_RESOURCE as usize * resources.len()).await;
    record.assert_exclusive_and_in_order();
    shutdown.cancel();
    let summary = soon("the standby's end", standby).await.unwrap().unwrap();
    assert!(summary.executed > 0, "the standby forwarded nothing");
    worker.drain().await;
    connection.close(200, "done".into()).await.unwrap();
}
