//! What a handler says about a task that it executed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A few words that a handler leaves for whoever published the task: an account's
/// new balance, the place of a file. Text, mostly none.
///
/// It travels in the journal, beside the record of the execution, so it is for
/// answers, not for data: at most [`TaskResult::MAX_BYTES`]. A longer one is left
/// out, with a warning in the worker's log; the task is Executed all the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskResult(Option<Box<str>>);

impl TaskResult {
    /// Longest result, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 1024;

    /// No result.
    pub const NONE: Self = Self(None);

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Its text, if it is short enough to be kept.
    ///
    /// # Errors
    /// Its length in bytes.
    pub fn kept(self) -> Result<Self, usize> {
        match &self.0 {
            Some(text) if text.len() > Self::MAX_BYTES => Err(text.len()),
            Some(_) | None => Ok(self),
        }
    }
}

impl fmt::Display for TaskResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str().unwrap_or_default())
    }
}

impl From<()> for TaskResult {
    fn from((): ()) -> Self {
        Self::NONE
    }
}

impl From<String> for TaskResult {
    fn from(text: String) -> Self {
        Self(Some(text.into()))
    }
}

impl From<&str> for TaskResult {
    fn from(text: &str) -> Self {
        Self(Some(text.into()))
    }
}

impl<T: Into<Self>> From<Option<T>> for TaskResult {
    fn from(result: Option<T>) -> Self {
        result.map_or(Self::NONE, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_that_is_too_long_is_not_kept() {
        assert_eq!(TaskResult::from("x".repeat(1025)).kept(), Err(1025));
        let longest = TaskResult::from("x".repeat(1024));
        assert_eq!(longest.clone().kept(), Ok(longest));
        assert_eq!(TaskResult::from(()).kept(), Ok(TaskResult::NONE));
    }
}
