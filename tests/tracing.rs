//! Traces, from whoever publishes to whatever a handler calls, and what is logged of it.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

mod support;
#[path = "cli/user.rs"]
#[allow(dead_code, reason = "it is shared with the tests of the command line")]
mod user;

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use keylane::testing::{Broker, Version};
use keylane::{RouterOptions, Task, TraceContext, handler_fn, route};
use lapin::types::{AMQPValue, FieldTable};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use support::{Worker, amqp, broker, named, publish, put, soon, space};
use user::{Ran, Running, User};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A collector of spans, as OpenTelemetry has them: it takes them over HTTP, in protobuf.
struct Collector {
    endpoint: String,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let spans = Arc::<Mutex<Vec<Span>>>::default();
        let taken = Arc::clone(&spans);
        let take = move |body: Bytes| {
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            let scopes = request.resource_spans.into_iter().flat_map(|resource| {
                let attributes = resource.resource.unwrap().attributes;
                let named = attributes.iter().any(|a| a.key == "service.name");
                assert!(named, "{attributes:?}");
                resource.scope_spans
            });
            taken.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
            std::future::ready(StatusCode::OK)
        };
        let router = Router::new().route("/v1/traces", post(take));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { endpoint, spans }
    }

    /// The only span of this kind.
    fn only(&self, kind: SpanKind) -> Span {
        let spans = self.spans.lock().unwrap();
        let mut found = spans.iter().filter(|span| span.kind == kind as i32);
        let only = found.next().unwrap_or_else(|| panic!("no {kind:?} in {spans:?}"));
        assert!(found.next().is_none(), "{spans:?}");
        only.clone()
    }
}

fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    let found = found.unwrap_or_else(|| panic!("no {key} in {span:?}"));
    match found.value.as_ref().unwrap().value.as_ref().unwrap() {
        Any::StringValue(text) => text.clone(),
        Any::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A command that exports its spans.
fn starts(user: &User, collector: &Collector, args: &[&str]) -> Running {
    let mut command = user.command(args);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint);
    Running(command.spawn().unwrap())
}

/// Ends it cleanly, which exports its last spans.
fn ends(running: Running) -> Ran {
    running.signal("TERM");
    let ran = running.ends();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_the_spans_of_producer_and_worker_in_one_trace() {
    let (collector, user) = (Collector::start().await, User::with_partitions(1).await);
    user.file("one", format!("{{\"r\":\"a\",\"id\":\"t1\",\"trace\":\"{PARENT}\"}}\n"));
    let publish = ["publish", "one", "--resource", "/r", "--id", "/id", "--traceparent", "/trace"];
    assert_eq!(starts(&user, &collector, &publish).ends().code, Some(0));
    let handler = "echo $TRACEPARENT >>seen";
    let worker = starts(&user, &collector, &["work", "--exec", handler, "--id", "w1"]);
    user.waits_for_quiet();
    ends(worker);

    let (sent, executed) = (collector.only(SpanKind::Producer), collector.only(SpanKind::Consumer));
    assert_eq!(hex(&sent.trace_id), &PARENT[3..35]);
    assert_eq!(hex(&sent.parent_span_id), &PARENT[36..52], "whoever made the line");
    assert_eq!(executed.trace_id, sent.trace_id);
    assert_eq!(executed.parent_span_id, sent.span_id);
    let (exchange, queue) = (format!("{}.g1", user.namespace), format!("{}.g1.p0", user.namespace));
    assert_eq!(
        (sent.name, executed.name.clone()),
        (format!("send {exchange}"), format!("process {queue}"))
    );
    for (key, value) in [
        ("messaging.system", "rabbitmq"),
        ("messaging.operation.type", "process"),
        ("messaging.destination.name", &queue),
        ("messaging.destination.partition.id", "0"),
        ("messaging.message.id", "t1"),
        ("messaging.client.id", "w1"),
        ("keylane.resource", "a"),
        ("keylane.attempt", "1"),
    ] {
        assert_eq!(attribute(&executed, key), value, "{key}");
    }
    assert!(executed.end_time_unix_nano > executed.start_time_unix_nano);
    let handed_on = format!("00-{}-{}-01", hex(&executed.trace_id), hex(&executed.span_id));
    assert_eq!(user.lines_of("seen"), [handed_on]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_attempt_is_a_span_of_its_own_with_the_reason() {
    let (collector, user) = (Collector::start().await, User::with_partitions(1).await);
    user.file("one", "{\"r\":\"a\"}\n");
    user.succeeds(&["publish", "one", "--resource", "/r"]);
    let work = ["work", "--exec", "echo no such account >&2; exit 1", "--attempts", "1"];
    let worker = starts(&user, &collector, &work);
    user.waits_for("a dead letter", || user.status()["dead"] == 1);
    ends(worker);
    let executed = collector.only(SpanKind::Consumer);
    let status = executed.status.unwrap();
    assert_eq!((status.code, status.message.as_str()), (2, "no such account"));
    assert!(executed.parent_span_id.is_empty(), "its publisher had no trace");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_is_a_part_of_the_trace() {
    let (collector, user) = (Collector::start().await, User::with_partitions(1).await);
    let (_connection, channel) = amqp(Broker::shared().await.unwrap()).await;
    put(&channel, &format!("{}.inbox", user.namespace), traced(PARENT, None), b"{}").await;
    let router = starts(&user, &collector, &["route"]);
    user.waits_for("a forwarded task", || user.status()["partitions"][0]["ready"] == 1);
    ends(router);
    let forwarded = collector.only(SpanKind::Consumer);
    assert_eq!(hex(&forwarded.parent_span_id), &PARENT[36..52]);
    collector.spans.lock().unwrap().clear();
    let worker = starts(&user, &collector, &["work", "--exec", "true"]);
    user.waits_for_quiet();
    ends(worker);
    let executed = collector.only(SpanKind::Consumer);
    assert_eq!(hex(&executed.trace_id), &PARENT[3..35]);
    assert_eq!(executed.parent_span_id, forwarded.span_id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_not_there_stops_nothing() {
    let user = User::with_partitions(1).await;
    user.file("one", "{\"r\":\"a\"}\n");
    let nobody = Collector { endpoint: "http://127.0.0.1:1".to_owned(), spans: Arc::default() };
    let published = starts(&user, &nobody, &["publish", "one", "--resource", "/r"]).ends();
    assert_eq!(published.code, Some(0), "{published:?}");
    let worker = starts(&user, &nobody, &["work", "--exec", "echo done >>seen"]);
    user.waits_for("an executed task", || user.lines_of("seen") == ["done"]);
    ends(worker);
}

/// Properties of a task on `a` with these headers.
fn traced(traceparent: &str, tracestate: Option<&str>) -> lapin::BasicProperties {
    let mut headers = FieldTable::default();
    let mut insert = |name: &str, text: &str| {
        headers.insert(name.into(), AMQPValue::LongString(text.into()));
    };
    insert("resource", "a");
    insert("traceparent", traceparent);
    tracestate.into_iter().for_each(|state| insert("tracestate", state));
    lapin::BasicProperties::default().with_delivery_mode(2).with_headers(headers)
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_collector_a_trace_is_carried_as_it_came() {
    let broker = broker(Version::default()).await;
    let (connect, _) = space(broker, 1).await;
    let (seen, mut contexts) = mpsc::unbounded_channel();
    let handler = handler_fn(move |attempt: keylane::Attempt| {
        seen.send(attempt.trace_context().cloned()).unwrap();
        std::future::ready(Ok(()))
    });
    let worker = Worker::start(&connect, named("w"), handler);
    let context = TraceContext::new(PARENT, Some("a=1,b=2")).unwrap();
    let task = Task::new("a", "1").unwrap();
    publish(&connect, [task.clone().with_trace_context(context.clone()), task]).await;
    assert_eq!(soon("the first", contexts.recv()).await, Some(Some(context.clone())));
    assert_eq!(soon("the second", contexts.recv()).await, Some(None));

    // And from somebody else, through a router.
    let (_connection, channel) = amqp(broker).await;
    let inbox = connect.namespace().inbox();
    for (parent, state) in [
        (PARENT, Some("a=1,b=2")),
        (PARENT, Some("a=1,b")),
        ("00-1-2-01", Some("a=1")),
        (&PARENT.to_uppercase(), None),
    ] {
        put(&channel, &inbox, traced(parent, state), b"{}").await;
    }
    let shutdown = CancellationToken::new();
    let (routing, stop) = (connect.clone(), shutdown.clone());
    let router = tokio::spawn(async move { route(&routing, RouterOptions::default(), stop).await });
    let stateless = TraceContext::new(PARENT, None).unwrap();
    for expected in [Some(context), Some(stateless), None, None] {
        assert_eq!(soon("a routed task", contexts.recv()).await, Some(expected));
    }
    shutdown.cancel();
    soon("the end of a router", router).await.unwrap().unwrap();
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_publishes_is_a_part_of_its_trace() {
    let user = User::with_partitions(1).await;
    user.file("first", "{\"r\":\"a\"}\n");
    user.file("second", "{\"r\":\"b\"}\n");
    let mut publish = user.command(&["publish", "first", "--resource", "/r"]);
    let published = publish.env("TRACEPARENT", PARENT).env("TRACESTATE", "a=1").status().unwrap();
    assert!(published.success());
    let keylane = env!("CARGO_BIN_EXE_keylane");
    let handler = format!(
        "echo $KEYLANE_RESOURCE $TRACEPARENT $TRACESTATE >>seen
        [ $KEYLANE_RESOURCE = b ] || {keylane} publish second --resource /r --amqp-url {}",
        user.url
    );
    let worker = user.starts(&["work", "--exec", &handler]);
    user.waits_for("both", || user.lines_of("seen").len() == 2);
    ends(worker);
    assert_eq!(user.lines_of("seen"), [format!("a {PARENT} a=1"), format!("b {PARENT} a=1")]);
}

/// The log of a process, line by line.
fn log(ran: &Ran) -> Vec<Value> {
    let lines = ran.err.lines().filter(|line| !line.starts_with("keylane: "));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
}

fn line<'a>(log: &'a [Value], message: &str) -> &'a Value {
    let found = log.iter().find(|line| line["message"] == message);
    found.unwrap_or_else(|| panic!("no {message:?} in {log:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn log_lines_of_an_attempt_say_which_and_nothing_of_the_payload() {
    let user = User::with_partitions(1).await;
    user.file("tasks", "{\"r\":\"a\",\"id\":\"t1\",\"secret\":\"s3cret\"}\n{\"r\":\"a\",\"id\":\"t2\"}\n{\"r\":\"bad\",\"id\":\"t3\"}\n");
    user.succeeds(&["publish", "tasks", "--resource", "/r", "--id", "/id"]);
    // What it writes after its answer makes it unfit for the next task, which is logged.
    let handler = r#"while read -r line; do case $line in
        *t3*) printf '{"status":"dead","reason":"never"}\n' ;;
        *) printf '{"status":"executed"}\nnoise\n' ;;
    esac; done"#;
    let args = ["work", "--pipe", handler, "--slots", "1", "--id", "w1", "--log-format", "json"];
    let worker = user.starts(&[&args[..], &["--log", "debug,lapin=off"]].concat());
    user.waits_for_quiet();
    let ran = ends(worker);
    let log = log(&ran);
    assert!(log.iter().all(|line| line["level"].is_string() && line["timestamp"].is_string()));

    let span = &line(&log, "an idle process is replaced")["span"];
    assert!(span["task"] == "t2" || span["task"] == "t3", "{span}");
    for (field, value) in
        [("worker", Value::from("w1")), ("partition", 0.into()), ("attempt", 1.into())]
    {
        assert_eq!(span[field], value, "{span}");
    }
    assert!(span["resource"].is_string() && span["epoch"].as_u64() > Some(0), "{span}");

    for message in ["an attempt failed", "to the dead letters"] {
        let line = line(&log, message);
        for (field, value) in [
            ("task", Value::from("t3")),
            ("resource", "bad".into()),
            ("partition", 0.into()),
            ("worker", "w1".into()),
            ("reason", "never".into()),
        ] {
            assert_eq!(line[field], value, "{line}");
        }
        assert!(line["epoch"].as_u64() > Some(0), "{line}");
    }
    assert!(!ran.err.contains("s3cret"), "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn text_stays_the_usual_form_of_the_log() {
    let user = User::with_partitions(1).await;
    user.file("one", "{\"r\":\"a\"}\n");
    user.succeeds(&["publish", "one", "--resource", "/r"]);
    let worker = user.starts(&["work", "--exec", "exit 1", "--attempts", "1", "--id", "w1"]);
    user.waits_for("a dead letter", || user.status()["dead"] == 1);
    let ran = ends(worker);
    let failed = ran.err.lines().find(|line| line.contains("an attempt failed"));
    let failed = failed.unwrap_or_else(|| panic!("{ran:?}"));
    assert!(failed.contains("WARN") && failed.contains("resource=a"), "{failed}");
    assert!(failed.contains("worker=w1") && !failed.contains('\u{1b}'), "{failed}");
    user.fails(2, &["status", "--log-format", "xml"], &["--log-format", "json"]);
}
