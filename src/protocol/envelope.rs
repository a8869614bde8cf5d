//! How a task travels in an AMQP message.
//!
//! The body of the message is the payload, untouched. Everything keylane needs
//! to know stands in the properties, so that anything that speaks AMQP can
//! publish a task:
//!
//! | property | means | |
//! |---|---|---|
//! | header `resource` | resource key: UTF-8, 1 to 1,024 bytes | required |
//! | `message_id` | task id: UTF-8, 1 to 255 bytes | the publisher makes one |
//! | `type` | kind of task: up to 255 bytes | optional |
//! | `content_type` | of the payload | optional |
//! | `timestamp` | when it was published, seconds since 1970 | optional |
//! | header `timestamp_in_ms` | the same in milliseconds, as RabbitMQ's own interceptor writes it | optional, see below |
//! | headers `traceparent`, `tracestate` | [W3C trace context](super::trace_context) | optional |
//! | `app_id` | `keylane/PRODUCER/SEQUENCE`: who published it, as which of its tasks | optional, see [`Origin`] |
//! | header `republished` | true if an earlier copy may be there as well | optional |
//! | header `replayed` | true if it was put back from the dead letters | optional |
//!
//! Every header costs the broker and both clients some microseconds, which the other
//! properties do not, so there are few. The id that a producer makes says itself when
//! that was ([`TaskId::made_at_ms`]); without `timestamp_in_ms`, it is asked for what
//! `timestamp` leaves out.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::task::{Origin, Resource, ResourceError, Task, TaskId, TaskIdError};
use super::trace_context::TraceContext;

/// Name of the header that carries the resource key.
pub const RESOURCE_HEADER: &str = "resource";
/// Name of the header that says which trace a task belongs to.
pub const TRACEPARENT_HEADER: &str = "traceparent";
/// Name of the header that says what tracing systems have to add to that.
pub const TRACESTATE_HEADER: &str = "tracestate";
/// Name of the header that says when a task was published, in milliseconds since 1970.
pub const TIMESTAMP_MS_HEADER: &str = "timestamp_in_ms";
/// Name of the header of a task that was published more than once.
pub const REPUBLISHED_HEADER: &str = "republished";
/// Name of the header of a task that was put back from the dead letters.
pub const REPLAYED_HEADER: &str = "replayed";

/// The properties of a message as they came over the wire, before anything is
/// believed of them.
#[derive(Debug, Clone, Default)]
pub struct Envelope<'a> {
    /// `message_id`
    pub message_id: Option<&'a str>,
    /// `type`
    pub kind: Option<&'a str>,
    /// `content_type`
    pub content_type: Option<&'a str>,
    /// `app_id`
    pub app_id: Option<&'a str>,
    /// `timestamp`, seconds since 1970
    pub timestamp: Option<u64>,
    /// `priority`
    pub priority: Option<u8>,
    /// Has an `expiration`.
    pub expires: bool,
    /// Why the properties cannot be read, if they cannot.
    pub unreadable: Option<&'a str>,
    /// header `resource`
    pub resource: Option<Header<'a>>,
    /// header `timestamp_in_ms`, if it is a whole number
    pub timestamp_ms: Option<i64>,
    /// header `traceparent`
    pub traceparent: Option<Header<'a>>,
    /// header `tracestate`
    pub tracestate: Option<Header<'a>>,
    /// header `republished`, if it is true
    pub republished: bool,
    /// header `replayed`, if it is true
    pub replayed: bool,
}

/// A header's value as it came over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header<'a> {
    /// A string, which AMQP does not promise to be UTF-8.
    Bytes(&'a [u8]),
    /// A value of another AMQP type, by that type's name.
    Other(&'static str),
}

impl<'a> Header<'a> {
    fn text(self) -> Option<&'a str> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            Self::Other(_) => None,
        }
    }
}

/// Why a message is not a task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// The properties cannot be read at all.
    #[error("{reason}: its properties cannot be read, and are kept as bytes")]
    Unreadable {
        /// Why.
        reason: String,
    },
    /// There is no header `resource`.
    #[error("the header `resource` is missing: not a keylane task")]
    NoResource,
    /// The header `resource` is not a string.
    #[error("the header `resource` is of type {found}, it must be a string")]
    ResourceType {
        /// The AMQP type that was found.
        found: &'static str,
    },
    /// The header `resource` is no valid resource key.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// `message_id` is no valid task id.
    #[error("message_id: {0}")]
    TaskId(#[from] TaskIdError),
}

/// A property by which the broker reorders tasks, or drops them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// Tasks of other priorities were delivered out of turn.
    #[error(
        "it has priority {0}, and the broker sorts by priority, which breaks the order of its \
         resource: publish tasks without one"
    )]
    Priority(u8),
    /// It may expire before it is executed.
    #[error("it has an expiration, and would be lost when it expires: publish tasks without one")]
    Expiration,
}

/// The priority of messages without one. RabbitMQ 4.3 sorts quorum queues by 32 priorities,
/// earlier versions tell those above this from the others.
const DEFAULT_PRIORITY: u8 = 4;

impl Envelope<'_> {
    /// A property that no task may have.
    #[must_use]
    pub fn forbidden(&self) -> Option<Forbidden> {
        let priority = self.priority.filter(|priority| *priority != DEFAULT_PRIORITY);
        let expiration = self.expires.then_some(Forbidden::Expiration);
        priority.map(Forbidden::Priority).or(expiration)
    }

    /// Reads a task out of the properties and the body.
    ///
    /// A missing id stays `None`; a trace context that is not valid is ignored,
    /// since a broken trace must not stop work, and so is an origin that is not whole.
    ///
    /// # Errors
    /// [`EnvelopeError`] when the message has no usable resource or id.
    pub fn into_task(self, payload: Bytes) -> Result<Task, EnvelopeError> {
        if let Some(reason) = self.unreadable {
            return Err(EnvelopeError::Unreadable { reason: reason.to_owned() });
        }
        let resource = match self.resource {
            None => return Err(EnvelopeError::NoResource),
            Some(Header::Other(found)) => return Err(EnvelopeError::ResourceType { found }),
            Some(Header::Bytes(bytes)) => {
                Resource::new(std::str::from_utf8(bytes).map_err(|_| ResourceError::NotUtf8)?)?
            }
        };
        let trace_context = self.traceparent.and_then(Header::text).and_then(|traceparent| {
            let tracestate = self.tracestate.and_then(Header::text);
            TraceContext::new(traceparent, tracestate).ok()
        });
        let id = self.message_id.map(TaskId::new).transpose()?;
        // What a publisher says of milliseconds; or its id, if that was made when it was
        // published; or seconds will have to do.
        let told_ms = self.timestamp_ms.and_then(|ms| u64::try_from(ms).ok());
        let made_ms = || {
            let made_ms = id.as_ref()?.made_at_ms()?;
            (self.timestamp?.abs_diff(made_ms / 1_000) <= 1).then_some(made_ms)
        };
        let published_at = told_ms
            .or_else(made_ms)
            .map(Duration::from_millis)
            .or(self.timestamp.map(Duration::from_secs))
            // Some clients write 0 for none: a latency of 56 years would spoil every sum.
            .filter(|age| !age.is_zero());
        Ok(Task {
            id,
            resource,
            origin: self.app_id.and_then(|app_id| Origin::parse(app_id, self.republished)),
            kind: self.kind.map(str::to_owned),
            content_type: self.content_type.map(str::to_owned),
            payload,
            trace_context,
            published_at: published_at.and_then(|age| SystemTime::UNIX_EPOCH.checked_add(age)),
            replayed: self.replayed,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(resource: Header<'_>) -> Envelope<'_> {
        Envelope { resource: Some(resource), ..Envelope::default() }
    }

    #[test]
    fn every_unusable_resource_has_its_own_reason() {
        let read = |e: Envelope<'_>| e.into_task(Bytes::new()).expect_err("must be refused");
        assert_eq!(read(Envelope::default()), EnvelopeError::NoResource);
        assert_eq!(
            read(envelope(Header::Other("integer"))),
            EnvelopeError::ResourceType { found: "integer" }
        );
        assert_eq!(read(envelope(Header::Bytes(b"\xff"))), ResourceError::NotUtf8.into());
        assert_eq!(read(envelope(Header::Bytes(b""))), ResourceError::Empty.into());
    }

    #[test]
    fn what_reorders_or_drops_tasks_is_forbidden() {
        let forbidden =
            |priority, expires| Envelope { priority, expires, ..Envelope::default() }.forbidden();
        assert_eq!(forbidden(None, false), None);
        assert_eq!(forbidden(Some(4), false), None, "sorted as one without");
        assert_eq!(forbidden(Some(0), false), Some(Forbidden::Priority(0)));
        assert_eq!(forbidden(Some(5), true), Some(Forbidden::Priority(5)));
        assert_eq!(forbidden(Some(4), true), Some(Forbidden::Expiration));
    }

    #[test]
    fn a_message_becomes_a_task() {
        let envelope = Envelope {
            message_id: Some("t-1"),
            kind: Some("transfer"),
            timestamp: Some(1_700_000_000),
            traceparent: Some(Header::Other("boolean")),
            ..envelope(Header::Bytes("konto/ä".as_bytes()))
        };
        let task = envelope.into_task(Bytes::from_static(b"{}")).expect("a task");
        assert_eq!(task.resource.as_str(), "konto/ä");
        assert_eq!(task.id.as_ref().map(TaskId::as_str), Some("t-1"));
        assert_eq!(task.kind.as_deref(), Some("transfer"));
        assert_eq!(task.trace_context, None, "a broken trace does not stop work");
        assert_eq!(task.payload.as_ref(), b"{}");
    }

    #[test]
    fn an_origin_is_whole_or_not_there() {
        let read = |app_id: &str| {
            let envelope = Envelope { app_id: Some(app_id), ..envelope(Header::Bytes(b"r")) };
            envelope.into_task(Bytes::new()).expect("a task").origin
        };
        let whole = Origin { producer: "p/q".into(), sequence: 7, republished: false };
        assert_eq!(read(&whole.to_string()), Some(whole));
        let most = Origin { producer: "p".into(), sequence: u64::MAX, republished: false };
        assert_eq!(read(&most.to_string()), Some(most));
        let broken = ["", "p", "p/", "/7", "p/-1", "p/+1", "p/18446744073709551616"];
        assert_eq!(broken.map(|end| read(&format!("keylane/{end}"))), [const { None }; 7]);
        assert_eq!(read(&format!("keylane/{}/7", "p".repeat(65))), None);
        assert_eq!(read("billing/7"), None, "an application that numbers something else");
    }

    #[test]
    fn a_trace_context_is_valid_or_not_there() {
        let read = |traceparent: &'static str, tracestate| {
            let envelope = Envelope {
                traceparent: Some(Header::Bytes(traceparent.as_bytes())),
                tracestate,
                ..envelope(Header::Bytes(b"r"))
            };
            envelope.into_task(Bytes::new()).expect("a task").trace_context
        };
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let carried = |state| TraceContext::new(parent, state).ok();
        assert_eq!(read(parent, Some(Header::Bytes(b"a=1"))), carried(Some("a=1")));
        for state in [None, Some(Header::Other("boolean")), Some(Header::Bytes(b"a=\xff"))] {
            assert_eq!(read(parent, state), carried(None));
        }
        assert_eq!(read("00-1-2-01", Some(Header::Bytes(b"a=1"))), None);
    }

    #[test]
    fn milliseconds_come_before_seconds() {
        let read = |timestamp_ms, timestamp| {
            let envelope = Envelope { timestamp_ms, timestamp, ..envelope(Header::Bytes(b"r")) };
            let task = envelope.into_task(Bytes::new()).expect("a task");
            task.published_at.map(|at| at.duration_since(SystemTime::UNIX_EPOCH).expect("after"))
        };
        assert_eq!(read(Some(1_500), Some(1)), Some(Duration::from_millis(1_500)));
        assert_eq!(read(Some(-1), Some(1)), Some(Duration::from_secs(1)));
        assert_eq!(read(None, None), None);
        assert_eq!([read(Some(0), None), read(None, Some(0))], [None, None], "no time at all");
    }

    #[test]
    fn an_id_says_when_its_task_was_published() {
        let id = "019a9f3c-7b1d-7000-8000-000000000000";
        let made = 0x019a_9f3c_7b1d;
        let read = |timestamp_ms, timestamp| {
            let message_id = Some(id);
            let envelope =
                Envelope { message_id, timestamp_ms, timestamp, ..envelope(Header::Bytes(b"r")) };
            let task = envelope.into_task(Bytes::new()).expect("a task");
            task.published_at.map(|at| at.duration_since(SystemTime::UNIX_EPOCH).expect("after"))
        };
        assert_eq!(read(None, Some(made / 1_000)), Some(Duration::from_millis(made)));
        assert_eq!(read(Some(1_500), Some(made / 1_000)), Some(Duration::from_millis(1_500)));
        let later = made / 1_000 + 2;
        assert_eq!(read(None, Some(later)), Some(Duration::from_secs(later)), "an older id");
        assert_eq!(read(None, None), None, "nobody said that it was published then");
    }

    #[test]
    fn a_timestamp_out_of_range_is_ignored() {
        let envelope = Envelope { timestamp: Some(u64::MAX), ..envelope(Header::Bytes(b"r")) };
        let task = envelope.into_task(Bytes::new()).expect("a task");
        assert_eq!(task.published_at, None);
    }
}
