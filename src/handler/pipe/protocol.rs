//! The two lines of JSON: a task for the process, its answer for us. Pure.

use std::borrow::Cow;
use std::process::ExitStatus;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::handler::exec::ending;
use crate::handler::{Attempt, Failure};
use crate::protocol::fence::FencingToken;
use crate::protocol::result::TaskResult;
use crate::protocol::task::{Task, TaskId};
use crate::protocol::trace_context::TraceContext;

/// Longest answer, its newline included. An answer is a word and a reason; a
/// process that writes more is not speaking this protocol.
pub(super) const MAX_ANSWER_BYTES: usize = 1 << 20;
/// What is shown of a line that is no answer: enough to recognise it.
const SHOWN_CHARS: usize = 200;

/// How a process broke the protocol, after which its state is unknown. Reads on
/// after the name of its command.
#[derive(Debug, thiserror::Error)]
pub(super) enum Breach {
    #[error("ended before it had answered: {}", ending(*.0))]
    Ended(ExitStatus),
    #[error("closed its stdout before it had answered")]
    Closed,
    #[error("answered before it had read the whole task: {0}")]
    Unread(#[source] std::io::Error),
    #[error("answered with more than {MAX_ANSWER_BYTES} bytes, beginning with: {start}")]
    TooLong { start: String },
    #[error("gave no valid answer ({error}): {line}")]
    Malformed {
        #[source]
        error: serde_json::Error,
        line: String,
    },
    #[error("answered for the task {found} instead of {expected}: {line}")]
    OtherTask { found: String, expected: TaskId, line: String },
    #[error("cannot be talked to: {0}")]
    Io(#[source] std::io::Error),
}

/// What is shown of a line.
pub(super) fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim().chars().take(SHOWN_CHARS).collect()
}

#[derive(Serialize)]
struct Request<'a> {
    id: &'a TaskId,
    resource: &'a str,
    kind: Option<&'a str>,
    content_type: Option<&'a str>,
    partition: u32,
    attempt: u32,
    redelivered: bool,
    fencing_token: Option<FencingToken>,
    timeout_ms: Option<u128>,
    traceparent: Option<String>,
    tracestate: Option<&'a str>,
    #[serde(flatten)]
    payload: Payload<'a>,
}

#[derive(Serialize)]
#[serde(tag = "payload_encoding", content = "payload", rename_all = "lowercase")]
enum Payload<'a> {
    Json(Cow<'a, RawValue>),
    Text(&'a str),
    Base64(String),
}

impl<'a> Payload<'a> {
    fn of(task: &'a Task) -> Self {
        let Ok(text) = std::str::from_utf8(&task.payload) else {
            return Self::Base64(BASE64_STANDARD.encode(&task.payload));
        };
        let json = task.content_type.as_deref().is_none_or(is_json).then(|| one_line(text));
        json.flatten().map_or(Self::Text(text), Self::Json)
    }
}

/// `application/json`, `text/json`, `application/problem+json; charset=utf-8` …
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.ends_with("/json") || essence.ends_with("+json")
}

/// The text as JSON of one line, if it is JSON. Numbers keep every digit.
fn one_line(text: &str) -> Option<Cow<'_, RawValue>> {
    let value: &RawValue = serde_json::from_str(text).ok()?;
    if !text.contains(['\n', '\r']) {
        return Some(Cow::Borrowed(value));
    }
    // Inside a JSON string a line break is escaped: these are white space.
    let line = value.get().replace(['\n', '\r'], " ");
    RawValue::from_string(line).ok().map(Cow::Owned)
}

/// The line that hands over a task, its newline included.
pub(super) fn request(
    attempt: &Attempt,
    fencing_token: Option<FencingToken>,
) -> serde_json::Result<Vec<u8>> {
    let task = &attempt.task;
    let mut line = serde_json::to_vec(&Request {
        id: &attempt.id,
        resource: task.resource.as_str(),
        kind: task.kind.as_deref(),
        content_type: task.content_type.as_deref(),
        partition: attempt.partition.number(),
        attempt: attempt.number,
        redelivered: attempt.redelivered,
        fencing_token,
        timeout_ms: attempt.timeout.map(|time| time.as_millis()),
        traceparent: attempt.trace_context().map(TraceContext::traceparent),
        tracestate: attempt.trace_context().and_then(TraceContext::tracestate),
        payload: Payload::of(task),
    })?;
    line.push(b'\n');
    Ok(line)
}

/// What a process says of its task.
#[derive(Deserialize)]
pub(super) struct Answer {
    id: Option<String>,
    status: Status,
    after_ms: Option<u64>,
    reason: Option<String>,
    result: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Executed,
    Retry,
    Failed,
    Dead,
}

impl Answer {
    /// Reads the answer to the task `expected`.
    pub(super) fn read(line: &[u8], expected: &TaskId) -> Result<Self, Breach> {
        let answer: Self = serde_json::from_slice(line)
            .map_err(|error| Breach::Malformed { error, line: shown(line) })?;
        match answer.id {
            Some(found) if found != expected.as_str() => {
                Err(Breach::OtherTask { found, expected: expected.clone(), line: shown(line) })
            }
            _ => Ok(answer),
        }
    }

    /// What is to become of the task, and what is said of it.
    pub(super) fn into_result(self) -> Result<TaskResult, Failure> {
        let reason = self.reason.unwrap_or_else(|| "no reason given".to_owned());
        match self.status {
            Status::Executed => Ok(self.result.into()),
            Status::Retry => Err(Failure::retry(self.after_ms.map(Duration::from_millis), reason)),
            Status::Failed => Err(Failure::failed(reason)),
            Status::Dead => Err(Failure::dead(reason)),
        }
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use serde_json::Value;

    use super::{Answer, BASE64_STANDARD, Engine, SHOWN_CHARS, shown};
    use crate::handler::Attempt;
    use crate::protocol::task::{Resource, Task, TaskId};

    fn attempt(payload: &[u8], content_type: Option<&str>) -> Option<Attempt> {
        let resource = Resource::new("r").ok()?;
        let mut task = Task::on(resource, payload.to_vec());
        task.content_type = content_type.map(str::to_owned);
        Some(Attempt::new(TaskId::new("t-1").ok()?, task))
    }

    /// A line from a process.
    pub fn answer(bytes: &[u8]) {
        assert!(shown(bytes).chars().count() <= SHOWN_CHARS);
        let Some(attempt) = attempt(b"", None) else { return };
        match Answer::read(bytes, &attempt.id) {
            Ok(answer) => {
                assert!(answer.id.as_deref().is_none_or(|id| id == "t-1"));
                answer.into_result().err();
            }
            Err(breach) => assert!(!breach.to_string().is_empty()),
        }
    }

    /// A payload for a process; its first byte chooses the content type.
    pub fn request(bytes: &[u8]) {
        let Some((choice, payload)) = bytes.split_first() else { return };
        let types = [None, Some("application/json"), Some("text/plain")];
        let attempt = attempt(payload, types[usize::from(*choice) % types.len()]);
        let Some(Ok(line)) = attempt.as_ref().map(|a| super::request(a, None)) else { return };
        let ends = line.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count();
        assert!(ends == 1 && line.ends_with(b"\n"), "one line");
        let Ok(sent) = serde_json::from_slice::<Value>(&line) else {
            // JSON that is nested deeper than this reader goes is passed on.
            assert!(serde_json::from_slice::<Value>(payload).is_err());
            return;
        };
        let (encoding, sent) = (&sent["payload_encoding"], &sent["payload"]);
        match (encoding.as_str(), sent.as_str()) {
            (Some("json"), _) => {
                assert_eq!(serde_json::from_slice(payload).ok().as_ref(), Some(sent))
            }
            (Some("text"), Some(text)) => assert_eq!(text.as_bytes(), payload),
            (Some("base64"), Some(text)) => {
                assert_eq!(BASE64_STANDARD.decode(text).ok().as_deref(), Some(payload));
            }
            other => panic!("an unknown encoding: {other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::handler::exec::tests::attempt;
    use crate::protocol::fence::Epoch;

    fn payload(content_type: Option<&str>, payload: &[u8]) -> (String, Value) {
        let mut attempt = attempt(payload.to_vec());
        attempt.task.content_type = content_type.map(str::to_owned);
        let line = request(&attempt, None).expect("a line");
        let newlines = line.iter().filter(|byte| matches!(byte, b'\n' | b'\r')).count();
        assert!(newlines == 1 && line.ends_with(b"\n"), "not one line");
        let mut request: Value = serde_json::from_slice(&line).expect("JSON");
        let encoding = request["payload_encoding"].as_str().expect("a string").to_owned();
        (encoding, request["payload"].take())
    }

    #[test]
    fn json_is_embedded() {
        let json = Some("application/json; charset=utf-8");
        let lines = b"{\r\n \"a\":\n [1, \"b\\nc\"]}\n";
        assert_eq!(payload(json, lines), ("json".into(), json!({"a": [1, "b\nc"]})));
        assert_eq!(payload(None, b"true"), ("json".into(), json!(true)));
        assert_eq!(payload(Some("application/x+json"), b"[]"), ("json".into(), json!([])));
    }

    #[test]
    fn numbers_keep_every_digit() {
        let line = request(&attempt("[1.00, 12345678901234567890123]"), None).expect("a line");
        let line = String::from_utf8(line).expect("UTF-8");
        assert!(line.contains(r#""payload":[1.00, 12345678901234567890123]"#), "{line}");
    }

    #[test]
    fn other_text_is_a_string() {
        assert_eq!(payload(None, b"two\nlines"), ("text".into(), json!("two\nlines")));
        assert_eq!(payload(None, b""), ("text".into(), json!("")));
        assert_eq!(payload(Some("text/plain"), b"1e2"), ("text".into(), json!("1e2")));
        assert_eq!(payload(Some("application/json"), b"{}{}"), ("text".into(), json!("{}{}")));
    }

    #[test]
    fn other_bytes_are_base64() {
        assert_eq!(payload(None, b"\xff\x00"), ("base64".into(), json!("/wA=")));
    }

    #[test]
    fn every_fact_is_in_the_line() {
        let mut attempt = attempt("x");
        let line = request(&attempt, None).expect("a line");
        let expected = json!({
            "id": "t-1", "resource": "account/7", "kind": null, "content_type": null,
            "partition": 0, "attempt": 1, "redelivered": false, "fencing_token": null,
            "timeout_ms": null,
            "traceparent": null, "tracestate": null, "payload_encoding": "text", "payload": "x",
        });
        assert_eq!(serde_json::from_slice::<Value>(&line).expect("JSON"), expected);
        attempt.task.kind = Some("transfer".into());
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        attempt.task.trace_context = TraceContext::new(parent, Some("a=1")).ok();
        attempt.redelivered = true;
        attempt.number = 3;
        attempt.timeout = Some(Duration::from_millis(1500));
        let token = FencingToken::new(2, Epoch::new(7)).ok();
        let line = request(&attempt, token).expect("a line");
        let line = String::from_utf8(line).expect("UTF-8");
        let expected = r#""kind":"transfer","content_type":null,"partition":0,"attempt":3,"redelivered":true,"fencing_token":2199023255559,"timeout_ms":1500,"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01","tracestate":"a=1""#;
        assert!(line.contains(expected), "{line}");
    }

    fn read(line: &str) -> Result<Result<TaskResult, Failure>, String> {
        let id = TaskId::new("t-1").expect("an id");
        Answer::read(line.as_bytes(), &id).map(Answer::into_result).map_err(|b| b.to_string())
    }

    #[test]
    fn answers_are_read() {
        let retry = Failure::retry(Some(Duration::from_millis(500)), "busy");
        let retry_line = r#"{"status":"retry","after_ms":500,"reason":"busy"}"#;
        assert_eq!(read(r#"{"status":"executed","id":"t-1","took":3}"#), Ok(Ok(TaskResult::NONE)));
        let result = r#"{"status":"executed","result":"balance 12"}"#;
        assert_eq!(read(result), Ok(Ok("balance 12".into())));
        assert_eq!(read(retry_line), Ok(Err(retry)));
        assert_eq!(read(r#"{"status":"retry"}"#), Ok(Err(Failure::retry(None, "no reason given"))));
        let failed = r#"{"status":"failed","reason":"why"}"#;
        assert_eq!(read(failed), Ok(Err(Failure::failed("why"))));
        assert_eq!(read(r#"{"status":"dead","reason":"why"}"#), Ok(Err(Failure::dead("why"))));
    }

    #[test]
    fn anything_else_breaks_the_protocol() {
        let reason = read(&"ä".repeat(1000)).expect_err("no answer");
        assert!(reason.ends_with(&format!(": {}", "ä".repeat(200))), "{reason}");
        for line in ["{}", r#"{"status":"done"}"#, "[]", "", r#"{"status":"executed"} x"#] {
            assert!(read(line).is_err(), "{line}");
        }
        let other = read(r#"{"status":"executed","id":"t-2"}"#).expect_err("another task");
        assert!(other.starts_with("answered for the task t-2 instead of t-1: "), "{other}");
    }
}
