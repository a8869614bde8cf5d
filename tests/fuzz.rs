//! What reads bytes from outside neither panics nor breaks its promises. The
//! same functions run under libFuzzer in `fuzz/`.

use keylane::fuzz;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// What a worker writes into the journal.
const RECORDS: &[u8] = br#"{"v":1,"writer":"x","number":2,"worker":"w","records":[{"task":"t-1","resource":"r3","partition":3,"epoch":7,"slot":0,"attempt":1,"at_us":1700000000000000,"took_us":1,"outcome":"executed","result":"ok","producer":"p","sequence":7,"republished":true,"redelivered":true}]}"#;

/// What an operator writes into the log of orders.
const ORDER: &[u8] = br#"{"v":1,"id":"x","base":17,"before":{"all":{"by":"a","at_ms":1},"partitions":{"3":{"by":"a","at_ms":1}},"resources":{"r":{"by":"a","at_ms":1}},"cancelled":{"t":{"by":"a","at_ms":1,"until_ms":9}}},"change":{"pause":{"partition":4}},"by":"b","at_ms":2}"#;

/// Bytes of any kind, and good ones that were damaged in one place.
fn bytes(good: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<u8>> {
    let damaged = (select(good), any::<prop::sample::Index>(), 0..3_usize, vec(any::<u8>(), 0..4));
    let damaged = damaged.prop_map(|(good, at, removed, inserted)| {
        let mut bytes = good.to_vec();
        let at = at.index(bytes.len() + 1);
        let end = (at + removed).min(bytes.len());
        bytes.splice(at..end, inserted);
        bytes
    });
    prop_oneof![1 => vec(any::<u8>(), 0..200), 3 => damaged, 1 => select(good).prop_map(<[u8]>::to_vec)]
}

/// JSON with these fields, whose values are of any type.
fn json(fields: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<u64>().prop_map(|number| number.to_string()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:?}")),
        (0..300_u32).prop_map(|number| number.to_string()),
        any::<String>().prop_map(|text| serde_json::Value::from(text).to_string()),
        select(
            &["\"t-1\"", "\"executed\"", "\"retry\"", "\"xxh3_64\"", "\"w:1\"", "0.1", "1e999"][..]
        )
        .prop_map(str::to_owned),
    ];
    let value = scalar.prop_recursive(3, 12, 4, move |inner| {
        let object = vec((select(fields), inner.clone()), 0..5).prop_map(object);
        prop_oneof![vec(inner, 0..4).prop_map(|all| format!("[{}]", all.join(","))), object]
    });
    vec((select(fields), value), 0..7).prop_map(|fields| object(fields).into_bytes())
}

fn object(fields: Vec<(&str, String)>) -> String {
    let fields = fields.into_iter().map(|(name, value)| format!("\"{name}\":{value}"));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
}

/// A value of a header.
fn value() -> impl Strategy<Value = AMQPValue> {
    prop_oneof![
        any::<String>().prop_map(|text| AMQPValue::LongString(LongString::from(text))),
        vec(any::<u8>(), 0..1100).prop_map(|text| AMQPValue::LongString(LongString::from(text))),
        "\\PC{0,20}".prop_map(|text| AMQPValue::ShortString(text.into())),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<i32>().prop_map(AMQPValue::LongInt),
        any::<u8>().prop_map(AMQPValue::ShortShortUInt),
        any::<f64>().prop_map(AMQPValue::Double),
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        Just(AMQPValue::Void),
        Just(AMQPValue::FieldTable(FieldTable::default())),
    ]
}

fn properties() -> impl Strategy<Value = BasicProperties> {
    const NAMES: &[&str] = &[
        "resource",
        "traceparent",
        "tracestate",
        "timestamp_in_ms",
        "republished",
        "x-delivery-count",
        "x-acquired-count",
        "CC",
        "other",
    ];
    let trace = prop_oneof![
        "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}",
        "([a-z0-9]{1,4}=[a-z0-9 ]{1,4},?){0,4}"
    ];
    let trace = trace.prop_map(|text| AMQPValue::LongString(text.into()));
    let value = prop_oneof![4 => value(), 1 => trace];
    let headers = vec((select(NAMES), value), 0..6);
    let resource = prop::option::weighted(0.7, "\\PC{1,20}");
    let short = || prop::option::of("\\PC{0,60}".prop_map(ShortString::from));
    let times = prop::option::of(prop_oneof![any::<u64>(), 0..2_000_000_000_u64]);
    let origin = prop_oneof!["keylane/\\PC{0,40}/[0-9]{1,3}", "\\PC{0,60}"];
    let origin = prop::option::of(origin.prop_map(ShortString::from));
    let parts = (headers, resource, short(), short(), short(), origin, times);
    parts.prop_map(|(headers, resource, id, kind, content_type, origin, timestamp)| {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert(name.into(), value);
        }
        if let Some(resource) = resource {
            table.insert("resource".into(), AMQPValue::LongString(resource.into()));
        }
        let mut properties = BasicProperties::default().with_headers(table);
        if let Some(id) = id {
            properties = properties.with_message_id(id);
        }
        if let Some(origin) = origin {
            properties = properties.with_app_id(origin);
        }
        if let Some(kind) = kind {
            properties = properties.with_type(kind);
        }
        if let Some(content_type) = content_type {
            properties = properties.with_content_type(content_type);
        }
        match timestamp {
            Some(timestamp) => properties.with_timestamp(timestamp),
            None => properties,
        }
    })
}

/// Only headers, and of these only a resource `a`.
const MESSAGE: &[u8] = b"\x20\x00\x00\x00\x00\x0f\x08resourceS\x00\x00\x00\x01a";
/// A message id and a type, too.
const NAMED: &[u8] = b"\x20\xa0\x00\x00\x00\x0f\x08resourceS\x00\x00\x00\x01a\x01i\x01k";
/// A header of tables and arrays, and each other type of a value.
const NESTED: &[u8] = b"\xf8\x40\x01c\x01e\x00\x00\x00\x3d\x01aA\x00\x00\x00\x15t\x01B\x01s\x00\x01u\x00\x01A\x00\x00\x00\x06VI\x00\x00\x00\x01\x01fF\x00\x00\x00\x1a\x01dd\x00\x00\x00\x00\x00\x00\x00\x00\x01DD\x01\x00\x00\x00\x01\x01xx\x00\x00\x00\x00\x02\x05\x00\x00\x00\x00\x00\x00\x00\x01";

/// A delivery with its message, a heartbeat, and what is no AMQP.
const FRAMES: &[u8] = b"\x01\x00\x01\x00\x00\x00\x13\x00\x3c\x00\x3c\x01c\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01e\x01k\xce\x02\x00\x01\x00\x00\x00\x11\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x20\x02\xff\xfe\xce\x03\x00\x01\x00\x00\x00\x03abc\xce\x08\x00\x00\x00\x00\x00\x00\xceAMQP";

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn a_message_is_read_and_sent_on_as_it_is(properties in properties(), payload in vec(any::<u8>(), 0..50)) {
        fuzz::message(&properties, &payload);
    }

    #[test]
    fn properties_are_any_bytes(bytes in bytes(&[MESSAGE, NAMED, NESTED])) {
        fuzz::envelope(&bytes);
    }

    #[test]
    fn a_stream_of_frames_is_any_bytes(bytes in bytes(&[FRAMES])) {
        fuzz::frames(&bytes);
    }

    #[test]
    fn a_topology_is_any_bytes(bytes in bytes(&[br#"{"generation":1,"partitions":8,"hash":"xxh3_64","prefetch":256}"#])) {
        fuzz::topology(&bytes);
    }

    #[test]
    fn a_topology_is_any_json(json in json(&["generation", "partitions", "hash", "prefetch"])) {
        fuzz::topology(&json);
    }

    #[test]
    fn lines_are_any_bytes(bytes in bytes(&[b"{\"r\":\"a\",\"id\":7}\r\n\n{\"r\":1}\n", b"{\"r\":\"\\u00e4\"}"])) {
        fuzz::lines(&bytes);
    }

    #[test]
    fn lines_are_any_json(mut json in json(&["r", "id", "a"]), next in json(&["r", "id"])) {
        json.push(b'\n');
        json.extend(next);
        fuzz::lines(&json);
    }

    #[test]
    fn an_answer_is_any_bytes(bytes in bytes(&[br#"{"status":"retry","after_ms":500,"reason":"x","id":"t-1"}"#])) {
        fuzz::answer(&bytes);
    }

    #[test]
    fn an_answer_is_any_json(json in json(&["status", "after_ms", "reason", "id"])) {
        fuzz::answer(&json);
    }

    #[test]
    fn a_payload_reaches_a_process_whole(kind in 0..3_u8, payload in prop_oneof![
        bytes(&[b"{\"a\": [1.00, 2e5,\n\"\\n\"]}", b"\"text\"", b"\xff\xfe"]),
        json(&["a", "b"]),
        any::<String>().prop_map(String::into_bytes),
    ]) {
        fuzz::request(&[&[kind][..], &payload].concat());
    }

    #[test]
    fn a_greeting_is_any_bytes(bytes in bytes(&[b"\x01\x00\x00....\x07versionS\x00\x00\x00\x054.3.6\x08platformS"])) {
        fuzz::greeting(&bytes);
    }

    #[test]
    fn claims_are_any_bytes(bytes in bytes(&[br#"{"t-1":{"lost":2,"alone":true},"t-2":{"lost":1,"alone":false}}"#])) {
        fuzz::claims(&bytes);
    }

    #[test]
    fn an_order_is_any_bytes(bytes in prop_oneof![
        bytes(&[ORDER]),
        json(&["v", "id", "base", "before", "change", "by", "at_ms", "pause", "resource", "all"]),
    ]) {
        fuzz::order(&bytes);
    }

    #[test]
    fn a_batch_of_records_is_any_bytes(bytes in prop_oneof![
        bytes(&[RECORDS]),
        json(&["v", "writer", "number", "worker", "records", "task", "resource", "partition",
            "attempt", "at_us", "took_us", "outcome"]),
    ]) {
        fuzz::journal(&bytes);
    }

    /// Any numbers in good records.
    #[test]
    fn records_say_what_they_like(records in vec(
        ((0..3_u8, 0..3_u8, any::<Option<u8>>()), any::<[u64; 2]>(), any::<Option<u64>>(),
            select(&["executed", "failed", "aborted", "dead_lettered", "lost"][..])),
        0..8,
    )) {
        let records = records.into_iter().map(|((task, resource, slot), [at, took], sequence, outcome)| {
            let number = |n: Option<u64>| n.map_or("null".to_owned(), |n| n.to_string());
            format!(
                r#"{{"task":"t{task}","resource":"r{resource}","partition":{resource},"epoch":{},
                "slot":{},"attempt":1,"at_us":{at},"took_us":{took},"outcome":"{outcome}",
                "producer":"p","sequence":{},"redelivered":{}}}"#,
                number(sequence), number(slot.map(u64::from)), number(sequence), at % 2 == 0
            )
        });
        let records: Vec<_> = records.collect();
        let batch = format!(r#"{{"v":1,"writer":"x","number":0,"worker":"w","records":[{}]}}"#, records.join(","));
        fuzz::journal(batch.as_bytes());
    }

    #[test]
    fn a_control_message_is_any_bytes(bytes in bytes(&[
        br#""report""#,
        br#"{"plan":{"number":3,"members":["a","b"],"everyone":true,"lines":[[0,1],[1,0]]}}"#,
        br#"{"attached":{"worker":"w:1","places":[[3,1700,12345]]}}"#,
        br#"{"unattended":{"partitions":[3]}}"#,
        br#"{"report":{"worker":"w:1","weight":0.3,"plan":7,"loads":[[3,0.25]]}}"#,
        br#"{"goodbye":{"worker":"w:1"}}"#,
        br#"{"heed":{"position":7}}"#,
        br#"{"worker":"w","weight":1.5,"slots":4294967295,"uptime_ms":1,"executed":2,"failed":0,"dead_lettered":0,"partitions":[{"partition":1,"unsettled":4294967295,"running":3}],"plan":3,"line":[[1,{"standby":1},20],[2,"owner",null]]}"#,
    ])) {
        fuzz::control(&bytes);
    }

    #[test]
    fn a_weight_is_said_exactly(weight in 0.001..1000.0_f64) {
        let report = format!(r#"{{"report":{{"worker":"w","weight":{weight},"plan":null,"loads":[]}}}}"#);
        fuzz::control(report.as_bytes());
    }
}

#[test]
fn the_good_examples_are_good() {
    // Or the damaged ones would be damaged twice.
    assert!(keylane::protocol::journal::Batch::read(RECORDS).is_ok());
    assert!(keylane::protocol::steering::Order::read(ORDER).is_ok());
    for good in [MESSAGE, NAMED, NESTED] {
        let (rest, properties) = lapin::protocol::basic::parse_properties(good).expect("parses");
        assert!(properties.headers().is_some() && rest.is_empty());
    }
}
