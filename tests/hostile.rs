//! Messages that nobody can read, that do not fit, or that would break a rule, between good tasks:
//! these are executed, and those are in the dead letters, whole and with the reason.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

mod support;

use keylane::testing::{Broker, Version};
use keylane::{
    Connect, DeadLetter, Failure, RetryPolicy, RouterOptions, WorkerOptions, handler_fn, route,
    status,
};
use lapin::BasicProperties;
use lapin::types::AMQPValue;
use tokio_util::sync::CancellationToken;

use support::wire::{Wire, long, properties, short, text};
use support::{
    Record, Worker, amqp, await_dead_letters, broker, dead_letters, eventually, header, named,
    publish, put, resources, soon, space, task, tasks,
};

async fn shared() -> &'static Broker {
    broker(Version::default()).await
}

fn queue(connect: &Connect) -> String {
    format!("{}.g1.p0", connect.namespace())
}

/// Properties that end the client library's connection, or its process.
fn unreadable() -> Vec<Vec<u8>> {
    const BAD: &[u8] = b"\xff\xfe";
    let resource = text("resource", b"r");
    let nested = |levels: usize, kind: u8| {
        let name: &[u8] = if kind == b'F' { b"\x01n" } else { b"" };
        let mut value = [name, b"V"].concat();
        for _ in 0..levels {
            value = [name, &[kind], &long(&value)].concat();
        }
        let header = if kind == b'F' { value } else { [b"\x01n", &value[..]].concat() };
        properties(&[header, resource.clone()].concat(), None)
    };
    // content_type, content_encoding, correlation_id, reply_to, message_id, type, app_id, cluster_id
    let mut all: Vec<_> = [15, 14, 10, 9, 7, 5, 3, 2]
        .map(|bit| properties(&resource, Some((1 << bit, BAD))))
        .to_vec();
    let name = [short(BAD), b"V".to_vec()].concat();
    let inner = [&b"\x01tF"[..], &long(&name)].concat();
    for headers in [name, inner] {
        all.push(properties(&[resource.clone(), headers].concat(), None));
    }
    all.extend([nested(3_000, b'A'), nested(3_000, b'F'), nested(129, b'A')]);
    // The broker takes frames that are some bytes larger than agreed.
    all.extend([131_073, 131_080].map(|frame| of_frame(&resource, frame)));
    all
}

/// Properties whose frame has so many bytes; headers are sorted, as the broker sorts them.
fn of_frame(headers: &[u8], frame: usize) -> Vec<u8> {
    let empty = properties(&[&text("fill", b""), headers].concat(), None).len();
    let fill = vec![b'x'; frame - 8 - 12 - empty];
    properties(&[&text("fill", &fill), headers].concat(), None)
}

/// Good tasks of the resource `r`, the hostile ones between them.
async fn put_all(wire: &mut Wire, queue: &str, hostile: &[Vec<u8>]) -> usize {
    let good = properties(&text("resource", b"r"), None);
    for (number, bad) in hostile.iter().enumerate() {
        wire.publish("", queue.as_bytes(), &good, number.to_string().as_bytes()).await;
        wire.publish("", queue.as_bytes(), bad, format!("bad {number}").as_bytes()).await;
    }
    let last = hostile.len();
    wire.publish("", queue.as_bytes(), &good, last.to_string().as_bytes()).await;
    last + 1
}

fn assert_whole(letters: &[DeadLetter], hostile: &[Vec<u8>]) {
    assert_eq!(letters.len(), hostile.len());
    for (number, bad) in hostile.iter().enumerate() {
        let body = format!("bad {number}");
        let letter = letters.iter().find(|letter| letter.payload == body.as_bytes());
        let letter = letter.unwrap_or_else(|| panic!("{body} is not there"));
        assert!(letter.unreadable.as_deref() == Some(&bad[..]), "{}", letter.reason);
        assert!(letter.reason.contains("cannot be read"), "{}", letter.reason);
        assert!(letter.task().is_err());
    }
}

#[tokio::test]
async fn what_cannot_be_read_goes_to_the_dead_letters_and_its_neighbours_are_executed() {
    the_unreadable_passes(Version::default()).await;
}

#[tokio::test]
async fn what_cannot_be_read_goes_to_the_dead_letters_4_0() {
    the_unreadable_passes(Version::V4_0).await;
}

async fn the_unreadable_passes(version: Version) {
    let broker = broker(version).await;
    let (connect, topology) = space(broker, 1).await;
    let mut wire = Wire::open(broker).await;
    let hostile = unreadable();
    let queue = queue(&connect);
    let good = put_all(&mut wire, &queue, &hostile).await;
    // A route that cannot be read, to a queue that another one names; and headers that just fit.
    let to = [&b"S"[..], &long(b"0")].concat();
    let copied = [&b"\x02CCA"[..], &long(&to), &text("resource", b"r")].concat();
    let exchange = connect.namespace().exchange(&topology);
    let body = |number: usize| number.to_string().into_bytes();
    wire.publish(&exchange, b"\xff\xfe", &properties(&copied, None), &body(good)).await;
    let fitting = of_frame(&text("resource", b"r"), 131_072);
    wire.publish("", queue.as_bytes(), &fitting, &body(good + 1)).await;

    let record = Record::default();
    let worker = Worker::start(&connect, named("w"), record.handler("w", async |_| Ok(())));
    record.until_executed(good + 2).await;
    record.assert_once();
    assert!(record.runs().iter().all(|run| !run.redelivered), "no connection was lost");
    assert_whole(&await_dead_letters(&connect, hostile.len()).await, &hostile);
    // Letters that were looked at come with counts of the broker's.
    assert_whole(&await_dead_letters(&connect, hostile.len()).await, &hostile);
    let summary = worker.drain().await;
    assert_eq!(summary.executed, good as u64 + 2);
}

#[tokio::test]
async fn a_router_passes_over_what_cannot_be_read_or_sent_on() {
    let broker = shared().await;
    let (connect, _) = space(broker, 4).await;
    let mut wire = Wire::open(broker).await;
    let (hostile, inbox) = (unreadable(), connect.namespace().inbox());
    let good = put_all(&mut wire, &inbox, &hostile).await;
    // They fit, but not with what a router adds.
    let full = of_frame(&text("resource", b"r"), 131_060);
    wire.publish("", inbox.as_bytes(), &full, b"full").await;

    let record = Record::default();
    let worker = Worker::start(&connect, named("w"), record.handler("w", async |_| Ok(())));
    let shutdown = CancellationToken::new();
    let (to, token) = (connect.clone(), shutdown.clone());
    let routing = tokio::spawn(async move { route(&to, RouterOptions::default(), token).await });
    record.until_executed(good).await;
    let letters = await_dead_letters(&connect, hostile.len() + 1).await;
    record.assert_once();
    assert!(record.runs().iter().all(|run| !run.redelivered), "no connection was lost");
    let (full, rest): (Vec<_>, _) =
        letters.into_iter().partition(|letter| letter.payload == b"full".as_slice());
    assert_whole(&rest, &hostile);
    assert!(full[0].reason.contains("headers have"), "{}", full[0].reason);
    assert_eq!(full[0].resource.as_deref(), Some("r"), "headers that fit are kept");

    shutdown.cancel();
    soon("the router's end", routing).await.unwrap().unwrap();
    worker.drain().await;
}

#[tokio::test]
async fn a_reason_without_end_is_cut() {
    let (connect, _) = space(shared().await, 1).await;
    publish(&connect, [task("panics", 0), task("fails", 0), task("good", 0)]).await;
    let handler = handler_fn(async |attempt| match attempt.task.resource.as_str() {
        "panics" => panic!("{}", "ä".repeat(100_000)),
        "fails" => Err(Failure::dead("x".repeat(200_000))),
        _ => Ok(()),
    });
    let options =
        WorkerOptions { retry: RetryPolicy { attempts: 1, ..Default::default() }, ..named("w") };
    let worker = Worker::start(&connect, options, handler);
    let letters = await_dead_letters(&connect, 2).await;
    for letter in &letters {
        assert!(letter.reason.len() < 4200, "{}", letter.reason.len());
        assert!(letter.reason.ends_with(" bytes)"), "{}", letter.reason);
    }
    assert_eq!(worker.drain().await.executed, 1);
    assert_eq!(dead_letters(&connect).await.len(), 2, "each of them once");
}

#[tokio::test]
async fn a_wrong_hash_ends_in_the_dead_letters() {
    let broker = shared().await;
    let (connect, topology) = space(broker, 4).await;
    let names = resources(&topology, 1).concat();
    let (connection, channel) = amqp(broker).await;
    let text = |text: &str| header("resource", AMQPValue::LongString(text.into()));
    // The resource of partition 2, which an older layout or another hash has in partition 0.
    put(&channel, &queue(&connect), text(&names[2]), b"0").await;
    publish(&connect, tasks(&names, 1)).await;
    let record = Record::default();
    let worker = Worker::start(&connect, named("w"), record.handler("w", async |_| Ok(())));
    record.until_executed(4).await;
    let letters = await_dead_letters(&connect, 1).await;
    let reason = &letters[0].reason;
    assert!(reason.contains("from partition 0"), "{reason}");
    assert!(reason.contains("belongs to partition 2 of 4"), "{reason}");
    assert_eq!(letters[0].resource.as_deref(), Some(names[2].as_str()));
    record.assert_once();
    assert_eq!(worker.drain().await.executed, 4);
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn priorities_and_expirations_end_in_the_dead_letters() {
    let broker = shared().await;
    let (connect, _) = space(broker, 1).await;
    let (connection, channel) = amqp(broker).await;
    let on = || header("resource", AMQPValue::LongString("r".into()));
    let sorted = [on(), on().with_priority(0), on().with_priority(4), on().with_priority(5)];
    for (sequence, properties) in [0, 9, 1, 9].into_iter().zip(sorted) {
        put(&channel, &queue(&connect), properties, sequence.to_string().as_bytes()).await;
    }
    put(&channel, &queue(&connect), on().with_expiration("600000".into()), b"9").await;
    put(&channel, &queue(&connect), on(), b"2").await;
    let record = Record::default();
    let worker = Worker::start(&connect, named("w"), record.handler("w", async |_| Ok(())));
    record.until_executed(3).await;
    let letters = await_dead_letters(&connect, 3).await;
    record.assert_once();
    let about = |what: &str| letters.iter().filter(|letter| letter.reason.contains(what)).count();
    assert_eq!((about("priority 0"), about("priority 5"), about("expiration")), (1, 1, 1));
    assert_eq!(worker.drain().await.executed, 3);
    connection.close(200, "done".into()).await.unwrap();
}

#[tokio::test]
async fn a_publishers_own_delivery_count_is_not_believed() {
    let broker = shared().await;
    let (connect, _) = space(broker, 1).await;
    let (connection, channel) = amqp(broker).await;
    let mut headers = header("resource", AMQPValue::LongString("r".into())).headers().clone();
    let same = || BasicProperties::default().with_message_id("same".into());
    let plain = same().with_headers(headers.clone().unwrap());
    put(&channel, &queue(&connect), plain, b"0").await;
    let record = Record::default();
    let worker = Worker::start(&connect, named("w"), record.handler("w", async |_| Ok(())));
    record.until_executed(1).await;
    // Its record is in the journal when its ack has come.
    eventually("its ack", async || {
        let held = status(&connect).await.ok()?.workers;
        let held: u32 = held.iter().flat_map(|w| &w.partitions).map(|held| held.unsettled).sum();
        (held == 0).then_some(())
    })
    .await;
    let table = headers.as_mut().unwrap();
    table.insert("x-delivery-count".into(), AMQPValue::LongLongInt(9));
    table.insert("x-acquired-count".into(), AMQPValue::LongLongInt(9));
    let forged = same().with_headers(headers.unwrap());
    put(&channel, &queue(&connect), forged, b"1").await;
    record.until_executed(2).await;
    assert!(record.runs().iter().all(|run| !run.redelivered));
    worker.drain().await;
    connection.close(200, "done".into()).await.unwrap();
}
