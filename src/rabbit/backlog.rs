//! How many tasks wait on the broker, as somebody sees who only looks.

use std::time::Duration;

use lapin::{Channel, Connection};
use tokio::time::timeout;

use super::consumer::{Counted, counts};
use super::error::{Doing, Error};

/// A broker that blocks the connection (memory or disk run low) answers when it
/// recovers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A channel to ask on. It is gone after an error.
pub(crate) struct Backlog(Channel);

impl Backlog {
    /// Opens it.
    pub(crate) async fn open(connection: &Connection) -> Result<Self, Error> {
        let opened = within(connection.create_channel()).await?;
        opened.doing("open a channel").map(Self)
    }

    /// How many messages of a queue nobody holds; `None` if its leader does not answer.
    ///
    /// # Errors
    /// [`Error::QueueMissing`], [`Error::Silent`] after five seconds, and when the
    /// connection is lost.
    pub(crate) async fn ready(&self, queue: &str) -> Result<Option<u32>, Error> {
        match within(counts(&self.0, queue)).await?? {
            Counted::Silent => Ok(None),
            counted => counted.known(queue).map(|(ready, _)| Some(ready)),
        }
    }
}

async fn within<T>(asked: impl Future<Output = T>) -> Result<T, Error> {
    let seconds = ANSWER_TIMEOUT.as_secs();
    timeout(ANSWER_TIMEOUT, asked).await.map_err(|_| Error::Silent { seconds })
}
