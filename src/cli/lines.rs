//! Reads tasks from newline-delimited JSON, in constant memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::protocol::task::{ResourceError, TaskIdError};
use crate::{Task, TaskId, TraceContext};

/// Lines that are read ahead of the publisher.
const READ_AHEAD: usize = 256;

/// Where things stand in a line.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    pub(super) resource: String,
    pub(super) id: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) kind_name: Option<String>,
    pub(super) traceparent: Option<String>,
    /// Of lines that have none of their own.
    pub(super) trace_context: Option<TraceContext>,
    pub(super) max_bytes: usize,
    /// Lines before this one are passed over.
    pub(super) first_line: u64,
}

/// AMQP's limit.
pub(super) const MAX_KIND_BYTES: usize = 255;

/// How UTF-8 and UTF-16 mark themselves.
const MARK: &[u8] = b"\xef\xbb\xbf";
const UTF16_MARKS: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];

/// One line.
#[derive(Debug)]
pub(super) struct Item {
    /// Its number, from 1.
    pub(super) line: u64,
    /// Bytes of the input up to its end.
    pub(super) end: u64,
    pub(super) task: Result<Task, LineError>,
    /// As it came, if it is no task and was read whole.
    pub(super) text: Option<Bytes>,
}

/// Why a line is no task.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("over {limit} bytes: raise --max-payload, and max_message_size on the broker")]
    TooLong { limit: usize },
    #[error("no JSON: {reason}")]
    NoJson { reason: String },
    #[error("is nested more than 127 levels deep, which is the most that is read")]
    TooDeep,
    #[error("is UTF-16, and UTF-8 is needed")]
    Utf16,
    #[error("begins with a byte order mark (U+FEFF), which only the first line may")]
    ByteOrderMark,
    #[error("has a kind of {bytes} bytes at {pointer}, of which it may have 255")]
    KindTooLong { pointer: String, bytes: usize },
    #[error("is blank")]
    Blank,
    #[error("has nothing at {0}")]
    Missing(String),
    #[error("has {found} at {pointer}, a string or a whole number is needed")]
    WrongType { pointer: String, found: &'static str },
    #[error(transparent)]
    Resource(#[from] ResourceError),
    #[error(transparent)]
    TaskId(#[from] TaskIdError),
}

impl LineError {
    /// Nothing can be read after it.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Read(_))
    }
}

/// Starts reading; `-` is standard input. Also gives the size, if it is known.
pub(super) fn read(path: &Path, fields: Fields) -> io::Result<(mpsc::Receiver<Item>, Option<u64>)> {
    let (input, size): (Box<dyn Read + Send>, _) = if path.as_os_str() == "-" {
        (Box::new(io::stdin()), None)
    } else {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::Error::other("is a folder, not a file"));
        }
        (Box::new(file), metadata.is_file().then_some(metadata.len()))
    };
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    // A thread of its own: a read of a terminal cannot be cancelled.
    std::thread::spawn(move || {
        let mut input = BufReader::with_capacity(1 << 16, input);
        let (mut line, mut end) = (0, 0);
        while let Some((text, bytes)) = next_line(&mut input, fields.max_bytes) {
            line += 1;
            end += bytes;
            if line < fields.first_line {
                continue;
            }
            let item = fields.item(line, end, text);
            let last = item.task.as_ref().is_err_and(LineError::is_final);
            if sender.blocking_send(item).is_err() || last {
                return;
            }
        }
    });
    Ok((receiver, size))
}

/// The next line without its end, and how many bytes it took. A line that is
/// too long is skipped to its end.
fn next_line(input: &mut impl BufRead, limit: usize) -> Option<(Result<Vec<u8>, LineError>, u64)> {
    let mut text = Vec::new();
    let (mut bytes, mut too_long) = (0u64, false);
    loop {
        let available = match input.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Some((Err(error.into()), bytes)),
        };
        if available.is_empty() {
            if bytes == 0 {
                return None;
            }
            break;
        }
        let end = available.iter().position(|b| *b == b'\n');
        let part = &available[..end.unwrap_or(available.len())];
        // One more for a carriage return.
        too_long |= text.len() + part.len() > limit + 1;
        if !too_long {
            text.extend_from_slice(part);
        }
        let consumed = part.len() + usize::from(end.is_some());
        bytes += consumed as u64;
        input.consume(consumed);
        if end.is_some() {
            break;
        }
    }
    if text.last() == Some(&b'\r') {
        text.pop();
    }
    if too_long || text.len() > limit {
        return Some((Err(LineError::TooLong { limit }), bytes));
    }
    Some((Ok(text), bytes))
}

impl Fields {
    fn item(&self, line: u64, end: u64, text: Result<Vec<u8>, LineError>) -> Item {
        let text = match text {
            Ok(text) => Bytes::from(text),
            Err(error) => return Item { line, end, task: Err(error), text: None },
        };
        // It belongs to the file, not to the line.
        let text = match text.strip_prefix(MARK) {
            Some(rest) if line == 1 => text.slice_ref(rest),
            _ => text,
        };
        let task = self.task(text.clone());
        let text = task.is_err().then_some(text);
        Item { line, end, task, text }
    }

    fn task(&self, text: Bytes) -> Result<Task, LineError> {
        if text.iter().all(u8::is_ascii_whitespace) {
            return Err(LineError::Blank);
        }
        let json: Value = serde_json::from_slice(&text).map_err(|error| no_json(&text, &error))?;
        let mut task =
            Task::new(at(&json, &self.resource)?, text)?.with_content_type("application/json");
        if let Some(pointer) = &self.id {
            task = task.with_id(TaskId::new(at(&json, pointer)?)?);
        }
        if let Some(pointer) = &self.kind {
            let kind = at(&json, pointer)?;
            let bytes = kind.len();
            if bytes > MAX_KIND_BYTES {
                return Err(LineError::KindTooLong { pointer: pointer.clone(), bytes });
            }
            task = task.with_kind(kind);
        } else if let Some(name) = &self.kind_name {
            task = task.with_kind(name);
        }
        let traceparent = self.traceparent.as_ref().and_then(|at| json.pointer(at)?.as_str());
        let trace_context = traceparent.and_then(|text| TraceContext::new(text, None).ok());
        task.trace_context = trace_context.or_else(|| self.trace_context.clone());
        Ok(task)
    }
}

/// Why a text is no JSON, or none that is read.
fn no_json(text: &[u8], error: &serde_json::Error) -> LineError {
    if text.starts_with(MARK) {
        return LineError::ByteOrderMark;
    }
    if UTF16_MARKS.iter().any(|mark| text.starts_with(mark)) {
        return LineError::Utf16;
    }
    // It counts lines too, and each of ours is its first.
    let reason = error.to_string().replace("at line 1 column", "at column");
    match reason.starts_with("recursion limit") {
        true => LineError::TooDeep,
        false => LineError::NoJson { reason },
    }
}

fn at(json: &Value, pointer: &str) -> Result<String, LineError> {
    let wrong = |found| Err(LineError::WrongType { pointer: pointer.to_owned(), found });
    match json.pointer(pointer) {
        None => Err(LineError::Missing(pointer.to_owned())),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) if !number.is_f64() => Ok(number.to_string()),
        Some(Value::Number(_)) => wrong("a fraction"),
        Some(Value::Null) => wrong("null"),
        Some(Value::Bool(_)) => wrong("a boolean"),
        Some(Value::Array(_)) => wrong("an array"),
        Some(Value::Object(_)) => wrong("an object"),
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use super::{Fields, next_line};

    /// Newline-delimited JSON.
    pub fn lines(bytes: &[u8]) {
        const LIMIT: usize = 64;
        let fields = Fields {
            resource: "/r".to_owned(),
            id: Some("/id".to_owned()),
            kind: Some("/a/0".to_owned()),
            kind_name: None,
            traceparent: Some("/id".to_owned()),
            trace_context: None,
            max_bytes: LIMIT,
            first_line: 1,
        };
        let (mut input, mut taken) = (bytes, 0);
        while let Some((text, bytes_taken)) = next_line(&mut input, LIMIT) {
            assert!(bytes_taken > 0, "it comes to an end");
            taken += bytes_taken;
            match text {
                Ok(text) => {
                    assert!(text.len() <= LIMIT && !text.contains(&b'\n'));
                    match fields.task(text.clone().into()) {
                        Ok(task) => assert_eq!(task.payload, text),
                        Err(error) => assert!(!error.is_final() && !error.to_string().is_empty()),
                    }
                }
                Err(error) => assert!(!error.is_final()),
            }
        }
        assert_eq!(taken, bytes.len() as u64, "every byte belongs to a line");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8], limit: usize) -> Vec<(Result<String, String>, u64)> {
        let mut input = BufReader::with_capacity(3, input);
        let mut lines = Vec::new();
        while let Some((text, bytes)) = next_line(&mut input, limit) {
            let text = text.map(|t| String::from_utf8(t).expect("text"));
            lines.push((text.map_err(|e| e.to_string()), bytes));
        }
        lines
    }

    #[test]
    fn lines_end_with_a_newline_a_crlf_or_the_input() {
        let ok = |text: &str, bytes| (Ok(text.to_owned()), bytes);
        assert_eq!(
            lines(b"ab\r\n\nabcdefgh\nx", 8),
            [ok("ab", 4), ok("", 1), ok("abcdefgh", 9), ok("x", 1)]
        );
        assert_eq!(lines(b"", 8), []);
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_the_next_is_read() {
        let read = lines(b"abcdefghi\nok\n", 8);
        assert!(read[0].0.as_ref().is_err_and(|e| e.contains("over 8 bytes")), "{read:?}");
        assert_eq!(read[1].0, Ok("ok".to_owned()));
    }

    fn fields() -> Fields {
        Fields {
            resource: "/a/r".to_owned(),
            id: Some("/id".to_owned()),
            kind: None,
            kind_name: Some("k".to_owned()),
            traceparent: Some("/trace".to_owned()),
            trace_context: None,
            max_bytes: 120,
            first_line: 1,
        }
    }

    fn task(text: &str) -> Result<Task, String> {
        fields().task(Bytes::from(text.to_owned())).map_err(|e| e.to_string())
    }

    #[test]
    fn a_line_is_a_task_with_itself_as_the_payload() {
        let text = r#"{"a": {"r": 17}, "id": "x"}"#;
        let task = task(text).expect("a task");
        assert_eq!(task.resource.as_str(), "17");
        assert_eq!(task.id.as_ref().map(TaskId::as_str), Some("x"));
        assert_eq!(task.kind.as_deref(), Some("k"));
        assert_eq!(task.payload, text.as_bytes());
    }

    #[test]
    fn a_byte_order_mark_belongs_to_the_file() {
        let text = "\u{feff}{\"a\":{\"r\":1},\"id\":\"x\"}";
        let task = |line| fields().item(line, 0, Ok(text.as_bytes().to_vec())).task;
        assert_eq!(task(1).expect("a task").payload, &text.as_bytes()[3..]);
        assert!(matches!(task(2), Err(LineError::ByteOrderMark)));
        let utf16 = fields().item(1, 0, Ok(b"\xff\xfe{\0}\0".to_vec()));
        assert!(matches!(utf16.task, Err(LineError::Utf16)) && utf16.text.is_some());
    }

    #[test]
    fn a_kind_has_as_many_bytes_as_the_broker_takes() {
        let fields = Fields { kind: Some("/k".to_owned()), max_bytes: 1_000, ..fields() };
        let task = |kind: usize| {
            let text = format!(r#"{{"a":{{"r":1}},"id":"x","k":"{}"}}"#, "k".repeat(kind));
            fields.task(text.into())
        };
        assert_eq!(task(255).expect("a task").kind.map(|kind| kind.len()), Some(255));
        assert!(matches!(task(256), Err(LineError::KindTooLong { bytes: 256, .. })));
    }

    #[test]
    fn a_traceparent_is_valid_or_ignored() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let valid = format!(r#"{{"a":{{"r":1}},"id":"x","trace":"{parent}"}}"#);
        let context = task(&valid).expect("a task").trace_context.expect("a trace context");
        assert_eq!(context.traceparent(), parent);
        for trace in ["1", r#""00-1-2-01""#, "null"] {
            let text = format!(r#"{{"a":{{"r":1}},"id":"x","trace":{trace}}}"#);
            assert_eq!(task(&text).expect("a task").trace_context, None);
        }
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said() {
        for (text, reason) in [
            ("nope", "no JSON"),
            ("{}", "has nothing at /a/r"),
            (r#"{"a":{"r":null}}"#, "has null at /a/r"),
            (r#"{"a":{"r":1.5}}"#, "has a fraction at /a/r"),
            (r#"{"a":{"r":""}}"#, "the resource is empty"),
            (r#"{"a":{"r":"x"},"id":""}"#, "a task id has 1 to 255 bytes"),
            (" \t", "is blank"),
            ("\u{feff}{}", "begins with a byte order mark"),
            (&"[".repeat(128), "nested more than 127 levels deep"),
        ] {
            let error = task(text).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
