//! Tasks, the resources they touch, and how both travel in an AMQP message.
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
//! | header `timestamp_in_ms` | the same in milliseconds, as RabbitMQ's own interceptor writes it | optional |
//! | headers `traceparent`, `tracestate` | [W3C trace context](super::trace_context) | optional |
//! | headers `producer`, `sequence` | who published it, as which of its tasks | optional, see [`Origin`] |
//! | header `republished` | true if an earlier copy may be there as well | optional |

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::trace_context::TraceContext;

/// Name of the header that carries the resource key.
pub const RESOURCE_HEADER: &str = "resource";
/// Name of the header that says which trace a task belongs to.
pub const TRACEPARENT_HEADER: &str = "traceparent";
/// Name of the header that says what tracing systems have to add to that.
pub const TRACESTATE_HEADER: &str = "tracestate";
/// Name of the header that says when a task was published, in milliseconds since 1970.
pub const TIMESTAMP_MS_HEADER: &str = "timestamp_in_ms";
/// Name of the header that says who published a task.
pub const PRODUCER_HEADER: &str = "producer";
/// Name of the header that says as which of its producer's tasks it was published.
pub const SEQUENCE_HEADER: &str = "sequence";
/// Name of the header of a task that was published more than once.
pub const REPUBLISHED_HEADER: &str = "republished";

/// What must not be processed concurrently: an account, a file, a device.
///
/// A non-empty UTF-8 string of at most [`Resource::MAX_BYTES`] bytes. Two tasks
/// touch the same resource when their keys are equal byte for byte. Cloning is
/// cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Resource(Arc<str>);

impl Resource {
    /// Longest resource key, in bytes. It is repeated in every message and
    /// every record, and a longer one is nearly always a payload in the wrong
    /// place; a caller with longer keys hashes them first.
    pub const MAX_BYTES: usize = 1024;

    /// Checks `key` and makes it a resource.
    ///
    /// # Errors
    /// [`ResourceError`] when the key is empty or too long.
    pub fn new(key: impl AsRef<str>) -> Result<Self, ResourceError> {
        let key = key.as_ref();
        match key.len() {
            0 => Err(ResourceError::Empty),
            bytes if bytes > Self::MAX_BYTES => Err(ResourceError::TooLong { bytes }),
            _ => Ok(Self(key.into())),
        }
    }

    /// The key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl TryFrom<String> for Resource {
    type Error = ResourceError;
    fn try_from(key: String) -> Result<Self, ResourceError> {
        Self::new(key)
    }
}

impl std::str::FromStr for Resource {
    type Err = ResourceError;
    fn from_str(key: &str) -> Result<Self, ResourceError> {
        Self::new(key)
    }
}

impl From<Resource> for String {
    fn from(resource: Resource) -> Self {
        resource.0.as_ref().to_owned()
    }
}

/// Why a string is no resource key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResourceError {
    /// The key has no bytes.
    #[error("the resource is empty: every task must name the resource it touches")]
    Empty,
    /// The key has more than [`Resource::MAX_BYTES`] bytes.
    #[error("the resource has {bytes} bytes, the most is {max}: hash longer keys before publishing", max = Resource::MAX_BYTES)]
    TooLong {
        /// Length of the key.
        bytes: usize,
    },
    /// The key is not UTF-8.
    #[error("the resource is not UTF-8: encode binary keys (hex, base64) before publishing")]
    NotUtf8,
}

/// Names one task. Unique per task; the publisher makes a time-ordered one
/// (UUID version 7) unless the caller gives its own.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(Arc<str>);

impl TaskId {
    /// Longest task id, in bytes: it travels as an AMQP short string.
    pub const MAX_BYTES: usize = 255;

    /// Checks `id` and makes it a task id.
    ///
    /// # Errors
    /// [`TaskIdError`] when it is empty or longer than [`TaskId::MAX_BYTES`].
    pub fn new(id: impl AsRef<str>) -> Result<Self, TaskIdError> {
        let id = id.as_ref();
        match id.len() {
            1..=Self::MAX_BYTES => Ok(Self(id.into())),
            bytes => Err(TaskIdError { bytes }),
        }
    }

    /// An id for a task whose publisher gave none, made from what it is: the
    /// same for every delivery of it.
    #[must_use]
    pub fn of_content(task: &Task) -> Self {
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        hash.update(task.resource.as_str().as_bytes());
        hash.update(&[0]);
        hash.update(&task.payload);
        Self(format!("content-{:032x}", hash.digest128()).into())
    }

    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<uuid::Uuid> for TaskId {
    fn from(id: uuid::Uuid) -> Self {
        let mut buffer = uuid::Uuid::encode_buffer();
        Self(Arc::from(&*id.hyphenated().encode_lower(&mut buffer)))
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl TryFrom<String> for TaskId {
    type Error = TaskIdError;
    fn try_from(id: String) -> Result<Self, TaskIdError> {
        Self::new(id)
    }
}

impl std::str::FromStr for TaskId {
    type Err = TaskIdError;
    fn from_str(id: &str) -> Result<Self, TaskIdError> {
        Self::new(id)
    }
}

impl From<TaskId> for String {
    fn from(id: TaskId) -> Self {
        id.0.as_ref().to_owned()
    }
}

/// A task id is empty or too long.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a task id has 1 to {max} bytes, this one has {bytes}", max = TaskId::MAX_BYTES)]
pub struct TaskIdError {
    /// Length of the id.
    pub bytes: usize,
}

/// Where a task comes from, so that its order and its copies can be told.
///
/// A [`Producer`](crate::Producer) numbers its tasks in the order in which it
/// sends them, over all resources. What was published outside of Rust has none,
/// unless its publisher numbers it in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Names the producer, one run of it. At most [`Origin::MAX_BYTES`] bytes.
    pub producer: Arc<str>,
    /// Position among its tasks: those of one resource rise.
    pub sequence: u64,
    /// It was sent, or forwarded, more than once: there may be another copy.
    pub republished: bool,
}

impl Origin {
    /// Longest name of a producer, in bytes: it is repeated in every message and
    /// every record.
    pub const MAX_BYTES: usize = 64;
}

/// One unit of work.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Task {
    /// Which task this is; `None` until the producer gives it one.
    pub id: Option<TaskId>,
    /// What the task touches.
    pub resource: Resource,
    /// What sort of task it is, for the handler; at most 255 bytes.
    pub kind: Option<String>,
    /// MIME type of the payload; at most 255 bytes.
    pub content_type: Option<String>,
    /// The work itself, in the producer's own format.
    pub payload: Bytes,
    /// The trace that it belongs to.
    pub trace_context: Option<TraceContext>,
    /// When it was published; `None` until the producer sends it. In milliseconds, or in
    /// whole seconds if its publisher says no more.
    pub published_at: Option<SystemTime>,
    /// Who published it, as which of its tasks; `None` until the producer sends it.
    pub origin: Option<Origin>,
}

impl Task {
    /// A task on `resource` with this payload; the producer makes its id.
    ///
    /// # Errors
    /// [`ResourceError`] when the key is empty or too long.
    pub fn new(
        resource: impl AsRef<str>,
        payload: impl Into<Bytes>,
    ) -> Result<Self, ResourceError> {
        Ok(Self::on(Resource::new(resource)?, payload))
    }

    /// A task on a resource that is checked already.
    #[must_use]
    pub fn on(resource: Resource, payload: impl Into<Bytes>) -> Self {
        Self {
            id: None,
            resource,
            kind: None,
            content_type: None,
            payload: payload.into(),
            trace_context: None,
            published_at: None,
            origin: None,
        }
    }

    /// Sets the id.
    #[must_use]
    pub fn with_id(mut self, id: TaskId) -> Self {
        self.id = Some(id);
        self
    }

    /// Sets the kind.
    #[must_use]
    pub fn with_kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = Some(kind.into());
        self
    }

    /// Makes it a part of a trace. It is carried on to the handler
    /// ([`Attempt::trace_context`](crate::Attempt::trace_context)); with the feature `otel`
    /// it is the parent of the producer's span.
    #[must_use]
    pub fn with_trace_context(mut self, trace_context: TraceContext) -> Self {
        self.trace_context = Some(trace_context);
        self
    }

    /// Sets the MIME type of the payload.
    #[must_use]
    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }
}

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
    /// `timestamp`, seconds since 1970
    pub timestamp: Option<u64>,
    /// header `resource`
    pub resource: Option<Header<'a>>,
    /// header `timestamp_in_ms`, if it is a whole number
    pub timestamp_ms: Option<i64>,
    /// header `traceparent`
    pub traceparent: Option<Header<'a>>,
    /// header `tracestate`
    pub tracestate: Option<Header<'a>>,
    /// header `producer`
    pub producer: Option<Header<'a>>,
    /// header `sequence`, if it is a whole number
    pub sequence: Option<i64>,
    /// header `republished`, if it is true
    pub republished: bool,
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

impl Envelope<'_> {
    /// Reads a task out of the properties and the body.
    ///
    /// A missing id stays `None`; a trace context that is not valid is ignored,
    /// since a broken trace must not stop work, and so is an origin that is not whole.
    ///
    /// # Errors
    /// [`EnvelopeError`] when the message has no usable resource or id.
    pub fn into_task(self, payload: Bytes) -> Result<Task, EnvelopeError> {
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
        let published_at = self
            .timestamp_ms
            .and_then(|ms| u64::try_from(ms).ok())
            .map(Duration::from_millis)
            .or(self.timestamp.map(Duration::from_secs));
        let producer = match self.producer {
            Some(Header::Bytes(bytes)) if (1..=Origin::MAX_BYTES).contains(&bytes.len()) => {
                std::str::from_utf8(bytes).ok()
            }
            Some(_) | None => None,
        };
        let sequence = self.sequence.and_then(|sequence| u64::try_from(sequence).ok());
        let origin = producer.zip(sequence).map(|(producer, sequence)| Origin {
            producer: producer.into(),
            sequence,
            republished: self.republished,
        });
        Ok(Task {
            id: self.message_id.map(TaskId::new).transpose()?,
            resource,
            origin,
            kind: self.kind.map(str::to_owned),
            content_type: self.content_type.map(str::to_owned),
            payload,
            trace_context,
            published_at: published_at.and_then(|age| SystemTime::UNIX_EPOCH.checked_add(age)),
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
    fn resources_are_checked_at_the_edge() {
        assert_eq!(Resource::new(""), Err(ResourceError::Empty));
        assert!(Resource::new("x".repeat(1024)).is_ok());
        let long = Resource::new("x".repeat(1025));
        assert_eq!(long, Err(ResourceError::TooLong { bytes: 1025 }));
    }

    #[test]
    fn a_task_id_is_one_to_255_bytes() {
        assert_eq!(TaskId::new(""), Err(TaskIdError { bytes: 0 }));
        assert!(TaskId::new("i".repeat(255)).is_ok());
        assert_eq!(TaskId::new("i".repeat(256)), Err(TaskIdError { bytes: 256 }));
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
        let read = |producer: &'static [u8], sequence| {
            let envelope = Envelope {
                producer: Some(Header::Bytes(producer)),
                sequence,
                ..envelope(Header::Bytes(b"r"))
            };
            envelope.into_task(Bytes::new()).expect("a task").origin
        };
        let whole = Origin { producer: "p".into(), sequence: 7, republished: false };
        assert_eq!(read(b"p", Some(7)), Some(whole));
        assert_eq!(
            [read(b"p", None), read(b"p", Some(-1)), read(b"", Some(7))],
            [const { None }; 3]
        );
        assert_eq!([read(&[b'p'; 65], Some(7)), read(b"\xff", Some(7))], [const { None }; 2]);
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
    }

    #[test]
    fn a_timestamp_out_of_range_is_ignored() {
        let envelope = Envelope { timestamp: Some(u64::MAX), ..envelope(Header::Bytes(b"r")) };
        let task = envelope.into_task(Bytes::new()).expect("a task");
        assert_eq!(task.published_at, None);
    }
}
