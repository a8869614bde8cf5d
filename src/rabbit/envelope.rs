//! Tasks as AMQP messages, and back.

use std::time::SystemTime;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use uuid::Uuid;

use super::death::X_DEATH;
use super::sieve::UNREADABLE;
use crate::protocol::envelope::{
    Envelope, Header, REPLAYED_HEADER, REPUBLISHED_HEADER, RESOURCE_HEADER, TIMESTAMP_MS_HEADER,
    TRACEPARENT_HEADER, TRACESTATE_HEADER,
};
use crate::protocol::task::{Origin, Task, TaskId};
use crate::protocol::trace_context::TraceContext;

/// AMQP's number for a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// How often a channel that held it went, by the broker's count.
pub(super) const DELIVERY_COUNT: &str = "x-delivery-count";
/// How often it was delivered and came back, since RabbitMQ 4.3.
pub(super) const ACQUIRED_COUNT: &str = "x-acquired-count";

/// The properties of a task's message, from this origin. `None` if the kind, the content type
/// or the origin is longer than AMQP's 255 bytes.
pub(crate) fn properties(
    task: &Task,
    id: &TaskId,
    origin: Option<&Origin>,
) -> Option<BasicProperties> {
    let mut headers = FieldTable::default();
    let text = |value: &str| AMQPValue::LongString(LongString::from(value));
    headers.insert(RESOURCE_HEADER.into(), text(task.resource.as_str()));
    if let Some(context) = &task.trace_context {
        add_trace_context(&mut headers, context);
    }
    let now_ms = now_ms();
    // An id that was made just now says so itself.
    let made_ms_ago = id.made_at_ms().map(|made_ms| now_ms.abs_diff(made_ms.cast_signed()));
    if made_ms_ago.is_none_or(|ago| ago > 1) {
        headers.insert(TIMESTAMP_MS_HEADER.into(), AMQPValue::LongLongInt(now_ms));
    }
    if origin.is_some_and(|origin| origin.republished) {
        headers.insert(REPUBLISHED_HEADER.into(), AMQPValue::Boolean(true));
    }
    if task.replayed {
        headers.insert(REPLAYED_HEADER.into(), AMQPValue::Boolean(true));
    }
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_message_id(id.as_str().into())
        .with_timestamp(seconds(now_ms))
        .with_headers(headers);
    if let Some(origin) = origin {
        properties = properties.with_app_id(ShortString::try_new(origin.to_string()).ok()?);
    }
    if let Some(kind) = &task.kind {
        properties = properties.with_type(ShortString::try_new(kind.as_str()).ok()?);
    }
    if let Some(content_type) = &task.content_type {
        properties =
            properties.with_content_type(ShortString::try_new(content_type.as_str()).ok()?);
    }
    Some(properties)
}

/// The properties of a message from the inbox, as a task's: durable, with an id
/// (`made`, if it has none) and a time. Left out is what would make the broker reorder it,
/// expire it, refuse it, or copy it to other queues. `again` says that it may have been forwarded before;
/// `context` is the span that forwards it, if there is one.
pub(crate) fn forwarded(
    properties: &BasicProperties,
    made: &Uuid,
    again: bool,
    context: Option<&TraceContext>,
) -> BasicProperties {
    let mut headers = FieldTable::default();
    if let Some(original) = properties.headers() {
        for (key, value) in original.inner() {
            let replaced = context.is_some() && TRACE_HEADERS.contains(&key.as_str());
            if !replaced && !BROKERS_OWN.contains(&key.as_str()) {
                headers.insert(key.clone(), value.clone());
            }
        }
    }
    if again {
        headers.insert(REPUBLISHED_HEADER.into(), AMQPValue::Boolean(true));
    }
    if let Some(context) = context {
        add_trace_context(&mut headers, context);
    }
    // An id that is made here says nothing of when the task was published.
    let is_dated = properties.timestamp().is_some() && properties.message_id().is_some();
    if !is_dated && !headers.inner().contains_key(TIMESTAMP_MS_HEADER) {
        let told_ms =
            properties.timestamp().and_then(|s| i64::try_from(s).ok()?.checked_mul(1_000));
        let published_ms = AMQPValue::LongLongInt(told_ms.unwrap_or_else(now_ms));
        headers.insert(TIMESTAMP_MS_HEADER.into(), published_ms);
    }
    let id = properties.message_id().clone();
    let id = id.unwrap_or_else(|| made.hyphenated().to_string().into());
    kept(properties)
        .with_delivery_mode(PERSISTENT)
        .with_message_id(id)
        .with_timestamp(properties.timestamp().unwrap_or_else(|| seconds(now_ms())))
        .with_headers(headers)
}

const TRACE_HEADERS: [&str; 2] = [TRACEPARENT_HEADER, TRACESTATE_HEADER];

/// Headers that the broker adds to a delivery, or acts upon.
pub(crate) const BROKERS_OWN: [&str; 5] =
    ["x-delivery-count", "x-acquired-count", X_DEATH, "CC", "BCC"];

/// The properties that mean nothing to the broker, without the headers.
pub(crate) fn kept(properties: &BasicProperties) -> BasicProperties {
    let mut kept = BasicProperties::default();
    macro_rules! keep {
        ($($get:ident => $set:ident),*) => {$(
            if let Some(value) = properties.$get() {
                kept = kept.$set(value.clone());
            }
        )*};
    }
    keep!(
        content_type => with_content_type, content_encoding => with_content_encoding,
        correlation_id => with_correlation_id, reply_to => with_reply_to,
        message_id => with_message_id,
        timestamp => with_timestamp, kind => with_type, app_id => with_app_id
    );
    kept
}

fn add_trace_context(headers: &mut FieldTable, context: &TraceContext) {
    let text = |value: &str| AMQPValue::LongString(LongString::from(value));
    headers.insert(TRACEPARENT_HEADER.into(), text(&context.traceparent()));
    if let Some(tracestate) = context.tracestate() {
        headers.insert(TRACESTATE_HEADER.into(), text(tracestate));
    }
}

fn seconds(ms: i64) -> u64 {
    ms.cast_unsigned() / 1_000
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// What the properties say, before anything is believed of it.
pub(crate) fn envelope(properties: &BasicProperties) -> Envelope<'_> {
    Envelope {
        message_id: properties.message_id().as_ref().map(ShortString::as_str),
        kind: properties.kind().as_ref().map(ShortString::as_str),
        content_type: properties.content_type().as_ref().map(ShortString::as_str),
        app_id: properties.app_id().as_ref().map(ShortString::as_str),
        timestamp: *properties.timestamp(),
        priority: *properties.priority(),
        unreadable: text(properties, UNREADABLE),
        expires: properties.expiration().is_some(),
        resource: header(properties, RESOURCE_HEADER).map(untrusted),
        timestamp_ms: number(properties, TIMESTAMP_MS_HEADER),
        traceparent: header(properties, TRACEPARENT_HEADER).map(untrusted),
        tracestate: header(properties, TRACESTATE_HEADER).map(untrusted),
        republished: header(properties, REPUBLISHED_HEADER) == Some(&AMQPValue::Boolean(true)),
        replayed: header(properties, REPLAYED_HEADER) == Some(&AMQPValue::Boolean(true)),
    }
}

/// How often a consumer held this message and did not settle it. More than it was, never less:
/// the broker counts twice what was closed or lost, in two counts of which one may be missing.
pub(crate) fn times_held(properties: &BasicProperties, redelivered: bool) -> u32 {
    if !redelivered {
        return 0;
    }
    let count = |name| number(properties, name).unwrap_or(0).max(0);
    // A publisher's own count may be there, if the broker has none.
    let held = count(DELIVERY_COUNT).max(count(ACQUIRED_COUNT)).max(1);
    u32::try_from(held).unwrap_or(u32::MAX)
}

/// How many channels that held this message were closed or lost. The broker does not tell an
/// owner that gave up from one that died, and on 4.3 it does not count one whose *node* was lost.
/// It overwrites a publisher's own count only in what it has `redelivered`.
pub(crate) fn losses(properties: &BasicProperties, redelivered: bool) -> u32 {
    let closed = number(properties, DELIVERY_COUNT).filter(|_| redelivered).unwrap_or(0);
    u32::try_from(closed.max(0)).unwrap_or(u32::MAX)
}

/// A header as text, if it is UTF-8 text.
pub(crate) fn text<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a str> {
    match untrusted(header(properties, name)?) {
        Header::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
        Header::Other(_) => None,
    }
}

/// A header as a whole number.
pub(crate) fn number(properties: &BasicProperties, name: &str) -> Option<i64> {
    header(properties, name).and_then(integer)
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

fn integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(n) => Some(i64::from(*n)),
        AMQPValue::ShortShortUInt(n) => Some(i64::from(*n)),
        AMQPValue::ShortInt(n) => Some(i64::from(*n)),
        AMQPValue::ShortUInt(n) => Some(i64::from(*n)),
        AMQPValue::LongInt(n) => Some(i64::from(*n)),
        AMQPValue::LongUInt(n) => Some(i64::from(*n)),
        AMQPValue::LongLongInt(n) => Some(*n),
        AMQPValue::Boolean(_)
        | AMQPValue::Float(_)
        | AMQPValue::Double(_)
        | AMQPValue::DecimalValue(_)
        | AMQPValue::ShortString(_)
        | AMQPValue::LongString(_)
        | AMQPValue::FieldArray(_)
        | AMQPValue::Timestamp(_)
        | AMQPValue::FieldTable(_)
        | AMQPValue::ByteArray(_)
        | AMQPValue::Void => None,
    }
}

fn untrusted(value: &AMQPValue) -> Header<'_> {
    match value {
        AMQPValue::LongString(text) => Header::Bytes(text.as_bytes()),
        AMQPValue::ShortString(text) => Header::Bytes(text.as_str().as_bytes()),
        AMQPValue::ByteArray(_) => Header::Other("byte array"),
        AMQPValue::Boolean(_) => Header::Other("boolean"),
        AMQPValue::Float(_) | AMQPValue::Double(_) | AMQPValue::DecimalValue(_) => {
            Header::Other("fraction")
        }
        AMQPValue::FieldArray(_) => Header::Other("array"),
        AMQPValue::FieldTable(_) => Header::Other("table"),
        AMQPValue::Timestamp(_) => Header::Other("timestamp"),
        AMQPValue::Void => Header::Other("void"),
        AMQPValue::ShortShortInt(_)
        | AMQPValue::ShortShortUInt(_)
        | AMQPValue::ShortInt(_)
        | AMQPValue::ShortUInt(_)
        | AMQPValue::LongInt(_)
        | AMQPValue::LongUInt(_)
        | AMQPValue::LongLongInt(_) => Header::Other("integer"),
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use bytes::Bytes;
    use lapin::BasicProperties;

    use super::{envelope as read, forwarded, losses, properties, times_held};
    use crate::protocol::envelope::EnvelopeError;
    use crate::protocol::task::{Task, TaskId};
    use crate::rabbit::header_size;
    use crate::rabbit::sieve::fuzz as sieve;

    /// A message whose properties are these bytes: the client library can read what is passed
    /// on to it, and nothing of it is lost.
    pub fn envelope(bytes: &[u8]) {
        let (properties, payload) = sieve::message(bytes, b"payload");
        message(&properties, &payload);
    }

    /// A message whose properties were read.
    pub fn message(original: &BasicProperties, payload: &[u8]) {
        header_size::check(original);
        let payload = Bytes::copy_from_slice(payload);
        let task = |properties: &BasicProperties| -> Result<Task, EnvelopeError> {
            read(properties).into_task(payload.clone())
        };
        let counted = (losses(original, false), times_held(original, false));
        assert_eq!(counted, (0, 0), "a publisher's own count");
        let sent_on = task(&forwarded(original, &uuid::Uuid::now_v7(), false, None));
        match task(original) {
            Err(error) => assert_eq!(sent_on, Err(error), "the router changes nothing"),
            Ok(task_read) => {
                let id = match &task_read.id {
                    Some(id) => id.clone(),
                    None => TaskId::of_content(&task_read),
                };
                let published = properties(&task_read, &id, task_read.origin.as_ref())
                    .map(|again| task(&again));
                let expected = Task { id: Some(id), published_at: None, ..task_read.clone() };
                let timeless = |task| Task { published_at: None, ..task };
                assert_eq!(published.map(|task| task.map(timeless)), Some(Ok(expected.clone())));
                let id = sent_on.as_ref().ok().and_then(|task| task.id.clone());
                assert!(id.is_some() && (task_read.id.is_none() || task_read.id == id));
                assert_eq!(sent_on.map(timeless), Ok(Task { id, ..expected }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_counted_by_the_broker_and_by_nobody_else() {
        let counted = |closed: Option<i64>, acquired: Option<i64>, redelivered| {
            let mut headers = FieldTable::default();
            for (name, count) in [(DELIVERY_COUNT, closed), (ACQUIRED_COUNT, acquired)] {
                if let Some(count) = count {
                    headers.insert(name.into(), AMQPValue::LongLongInt(count));
                }
            }
            let properties = BasicProperties::default().with_headers(headers);
            (losses(&properties, redelivered), times_held(&properties, redelivered))
        };
        assert_eq!(counted(None, None, false), (0, 0));
        assert_eq!(counted(Some(3), None, true), (3, 3), "4.0 has one count");
        assert_eq!(counted(Some(2), Some(2), true), (2, 2), "two channels went");
        assert_eq!(counted(Some(1), Some(2), true), (1, 2), "one of them with its node");
        assert_eq!(counted(None, Some(1), true), (0, 1), "its node was lost");
        assert_eq!(counted(Some(3), Some(3), false), (0, 0), "its publisher wrote that");
        assert_eq!(counted(Some(i64::MAX), Some(i64::MIN), true), (u32::MAX, u32::MAX));
        assert_eq!(counted(Some(-1), None, true), (0, 1));
    }
}
