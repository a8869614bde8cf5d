//! Tasks, and the resources they touch.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::trace_context::TraceContext;

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

    /// When it was made, in milliseconds since 1970, if it is a UUID of version 7
    /// ([RFC 9562](https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-7)): that
    /// begins with the time.
    #[must_use]
    pub fn made_at_ms(&self) -> Option<u64> {
        let uuid = uuid::Uuid::try_parse(&self.0).ok()?;
        let is_7 = uuid.get_version() == Some(uuid::Version::SortRand);
        is_7.then(|| uuid.as_u64_pair().0 >> 16)
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
///
/// It travels as `keylane/PRODUCER/SEQUENCE`, the sequence in decimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Names the producer, one run of it. 1 to [`Origin::MAX_BYTES`] bytes.
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

    /// Tells it from what other applications write there.
    const PREFIX: &str = "keylane/";

    /// Reads it as it travels; `None` if it is not whole.
    pub(super) fn parse(text: &str, republished: bool) -> Option<Self> {
        let (producer, sequence) = text.strip_prefix(Self::PREFIX)?.rsplit_once('/')?;
        let digits = sequence.bytes().all(|byte| byte.is_ascii_digit());
        let named = (1..=Self::MAX_BYTES).contains(&producer.len());
        let sequence = sequence.parse().ok().filter(|_| digits && named)?;
        Some(Self { producer: producer.into(), sequence, republished })
    }
}

impl fmt::Display for Origin {
    /// As it travels.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}/{}", Self::PREFIX, self.producer, self.sequence)
    }
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
    /// It had been a dead letter, and was put back.
    pub replayed: bool,
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
            replayed: false,
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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn an_id_says_when_it_was_made() {
        let made_at_ms = |id| TaskId::new(id).expect("an id").made_at_ms();
        assert_eq!(made_at_ms("019a9f3c-7b1d-7000-8000-000000000000"), Some(0x019a_9f3c_7b1d));
        assert_eq!(made_at_ms("019a9f3c-7b1d-4000-8000-000000000000"), None, "version 4");
        assert_eq!(made_at_ms("t-1"), None);
    }
}
