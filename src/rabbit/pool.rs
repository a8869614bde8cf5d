//! The connections that a worker consumes over: one for up to [`SHARE`] partitions, and more where
//! a connection would run out of channels.

use lapin::Connection;
use tokio::sync::{OnceCell, mpsc};

use super::connection::{Connect, close_connection};
use super::error::Error;
use super::pulse;

/// Partitions of one connection: half of the 2,047 channels that RabbitMQ allows by default.
const SHARE: usize = 1_024;

/// See the [module](self).
pub(crate) struct ConsumerPool {
    connect: Connect,
    first: Connection,
    /// Those of later partitions, opened when first needed.
    more: Vec<OnceCell<Connection>>,
    lost: mpsc::UnboundedSender<Error>,
}

impl ConsumerPool {
    /// A pool for so many partitions, with the connection of the first ones. Tells of later ones
    /// that are lost; the first one is watched by its owner.
    pub(crate) fn new(
        connect: &Connect,
        first: Connection,
        partitions: usize,
    ) -> (Self, mpsc::UnboundedReceiver<Error>) {
        let (lost, losses) = mpsc::unbounded_channel();
        let more = (1..partitions.div_ceil(SHARE)).map(|_| OnceCell::new()).collect();
        (Self { connect: connect.clone(), first, more, lost }, losses)
    }

    /// The connection of the first partitions, which reads the commands, too.
    pub(crate) fn first(&self) -> &Connection {
        &self.first
    }

    /// The connection of a partition.
    ///
    /// # Errors
    /// Those of connecting.
    ///
    /// # Cancel safety
    /// A connection that is half-way is dropped.
    pub(crate) async fn of(&self, partition: usize) -> Result<&Connection, Error> {
        let later = (partition / SHARE).checked_sub(1).and_then(|later| self.more.get(later));
        let Some(later) = later else { return Ok(&self.first) };
        later
            .get_or_try_init(async || {
                let connection = self.connect.open("worker").await?;
                let unanswered = pulse::unanswered(&connection).await?;
                let lost = self.lost.clone();
                // It ends with the connection. Nobody listens once the session has ended.
                tokio::spawn(async move { lost.send(unanswered.await).ok() });
                Ok(connection)
            })
            .await
    }

    /// A connection for one partition alone, whose queue makes trouble: the broker ends the whole
    /// connection of whoever consumes a queue without a leader. Its owner closes it. If it falls
    /// silent, that is told as of a later one.
    ///
    /// # Errors
    /// Those of connecting.
    ///
    /// # Cancel safety
    /// A connection that is half-way is dropped.
    pub(crate) async fn for_one(&self) -> Result<Connection, Error> {
        let connection = self.connect.open("worker, one partition").await?;
        let unanswered = pulse::unanswered(&connection).await?;
        let lost = self.lost.clone();
        tokio::spawn(async move {
            let error = unanswered.await;
            // Its end alone is a matter of its owner.
            if matches!(error, Error::Silent { .. }) {
                lost.send(error).ok();
            }
        });
        Ok(connection)
    }

    /// Whether all of them are connected, as far as the client library knows.
    pub(crate) fn connected(&self) -> bool {
        let later = self.more.iter().filter_map(OnceCell::get);
        std::iter::once(&self.first).chain(later).all(|c| c.status().connected())
    }

    /// Says goodbye on all of them.
    pub(crate) async fn close(self) {
        for later in self.more.into_iter().filter_map(OnceCell::into_inner) {
            close_connection(later).await;
        }
        close_connection(self.first).await;
    }
}
