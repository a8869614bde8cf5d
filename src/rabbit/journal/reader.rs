//! Reads the journal, from some time on and to its present end, or for ever.

use std::time::{Duration, SystemTime};

use futures_lite::StreamExt;
use futures_lite::future::poll_once;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, LongString};
use lapin::{Channel, Connection, Consumer};
use tokio::time::timeout;

use crate::protocol::journal::Batch;
use crate::protocol::names::Namespace;
use crate::rabbit::connection::{arguments, close};
use crate::rabbit::consumer::counts;
use crate::rabbit::envelope;
use crate::rabbit::error::{Doing, Error, reply};

/// Where to begin.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start {
    /// With the oldest record that is kept.
    First,
    /// With what was recorded from then on, by the broker's clock, and a little
    /// before.
    Since(SystemTime),
    /// With what was recorded in the last so many seconds, whatever clock is right, and a
    /// little before.
    Within(Duration),
    /// With the batch of this offset.
    Offset(u64),
}

/// Reads batches as they were written: some may be there twice.
pub(crate) struct JournalReader {
    channel: Channel,
    consumer: Consumer,
    stream: String,
    /// Offset of the last batch that was there when it was opened.
    last: Option<u64>,
    /// Where we are.
    offset: Option<u64>,
    /// What came while it was found out whether there is anything.
    early: Option<Delivery>,
    unacked: u16,
    /// Of the last delivery.
    tag: u64,
}

/// Batches that are on their way, at the most. An ack for every half.
const CREDIT: u16 = 128;

/// Of a stream that has any, the first messages come before the broker's next answer; this is
/// for a copy of it that has just been started.
const FIRST_TIMEOUT: Duration = Duration::from_secs(2);

impl JournalReader {
    /// Opens the journal of a namespace. With `to_end`, it notes where that is
    /// now: see [`JournalReader::next_before_end`].
    pub(crate) async fn open(
        connection: &Connection,
        namespace: &Namespace,
        start: Start,
        to_end: bool,
    ) -> Result<Self, Error> {
        let stream = namespace.journal();
        let last = if to_end { last_offset(connection, namespace).await? } else { None };
        let offset = match start {
            Start::First => AMQPValue::LongString(LongString::from("first")),
            Start::Since(time) => {
                let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                AMQPValue::Timestamp(since.as_secs())
            }
            Start::Within(age) => {
                let seconds = age.as_secs() + u64::from(age.subsec_nanos() > 0);
                AMQPValue::LongString(LongString::from(format!("{}s", seconds.max(1))))
            }
            // A stream does not get that long.
            Start::Offset(offset) => AMQPValue::LongLongInt(offset.cast_signed()),
        };
        let (channel, consumer) = consume(connection, namespace, offset).await?;
        Ok(Self { channel, consumer, stream, last, offset: None, early: None, unacked: 0, tag: 0 })
    }

    /// The next batch; what cannot be read is left out, with a warning.
    ///
    /// # Errors
    /// When the channel is gone.
    ///
    /// # Cancel safety
    /// No batch is lost.
    pub(crate) async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            if let Some(batch) = self.read().await? {
                return Ok(batch);
            }
        }
    }

    /// The next batch of those that were there when it was opened; errors and
    /// cancel safety as in [`JournalReader::next`].
    pub(crate) async fn next_before_end(&mut self) -> Result<Option<Batch>, Error> {
        if self.offset.is_none() && !self.is_at_end() && !self.has_begun().await? {
            // Nothing was recorded since.
            self.last = None;
        }
        while !self.is_at_end() {
            if let Some(batch) = self.read().await? {
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    async fn read(&mut self) -> Result<Option<Batch>, Error> {
        // An ack first: what was read is with the caller.
        if self.unacked >= CREDIT / 2 {
            let options = BasicAckOptions { multiple: true };
            let ack = self.channel.basic_ack(self.tag, options);
            // Whoever drops this half-way must not have it acked twice; the next ack covers
            // it, if it was not sent.
            self.unacked = 0;
            ack.await.doing(format!("read {}", self.stream))?;
        }
        let delivery = match self.early.take() {
            Some(delivery) => delivery,
            None => delivered(self.consumer.next().await, &self.stream)?,
        };
        self.unacked += 1;
        self.tag = delivery.delivery_tag;
        let offset = envelope::number(&delivery.properties, OFFSET);
        self.offset = offset.and_then(|offset| u64::try_from(offset).ok());
        match Batch::read(&delivery.data) {
            Ok(batch) => Ok(Some(batch)),
            Err(error) => {
                tracing::warn!(offset = self.offset, %error, "in the journal");
                Ok(None)
            }
        }
    }

    /// Whether there is anything to read.
    async fn has_begun(&mut self) -> Result<bool, Error> {
        if self.early.is_none() {
            self.early = first(&self.channel, &mut self.consumer, &self.stream).await?;
        }
        Ok(self.early.is_some())
    }

    fn is_at_end(&self) -> bool {
        self.last.is_none_or(|last| self.offset.is_some_and(|offset| offset >= last))
    }

    /// Of the last batch that was read.
    pub(crate) fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// Where it is, and where the end was: both count messages.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.offset.unwrap_or(0), self.last.unwrap_or(0))
    }

    /// Ends the reading.
    pub(crate) async fn close(self) {
        close(&self.channel).await;
    }
}

/// The header that says which message of its stream one is.
const OFFSET: &str = "x-stream-offset";

async fn consume(
    connection: &Connection,
    namespace: &Namespace,
    offset: AMQPValue,
) -> Result<(Channel, Consumer), Error> {
    let stream = namespace.journal();
    let channel = connection.create_channel().await.doing("open a channel")?;
    channel.basic_qos(CREDIT, BasicQosOptions::default()).await.doing("set the prefetch")?;
    let consumer = channel
        .basic_consume(
            stream.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            arguments([("x-stream-offset", offset)]),
        )
        .await;
    match consumer {
        Ok(consumer) => Ok((channel, consumer)),
        Err(error) if reply(&error).is_some_and(|(code, _)| code == 404) => {
            Err(Error::JournalMissing { namespace: namespace.to_string() })
        }
        Err(error) => Err(Error::from_lapin(format!("read {stream}"), error)),
    }
}

/// Offset of the last message; `None` if there is none.
async fn last_offset(connection: &Connection, namespace: &Namespace) -> Result<Option<u64>, Error> {
    let last = AMQPValue::LongString(LongString::from("last"));
    let (channel, mut consumer) = consume(connection, namespace, last).await?;
    let (stream, mut offset) = (namespace.journal(), None);
    let mut next = first(&channel, &mut consumer, &stream).await?;
    // To the end of the last chunk.
    while let Some(delivery) = next {
        offset = envelope::number(&delivery.properties, OFFSET);
        let ack = channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default());
        ack.await.doing(format!("read {stream}"))?;
        next = arrived(&channel, &mut consumer, &stream).await?;
    }
    close(&channel).await;
    Ok(offset.and_then(|offset| u64::try_from(offset).ok()))
}

/// The first message, if there is one.
async fn first(
    channel: &Channel,
    consumer: &mut Consumer,
    stream: &str,
) -> Result<Option<Delivery>, Error> {
    if let Some(delivery) = arrived(channel, consumer, stream).await? {
        return Ok(Some(delivery));
    }
    match timeout(FIRST_TIMEOUT, consumer.next()).await {
        Ok(next) => delivered(next, stream).map(Some),
        Err(_) => Ok(None),
    }
}

/// What the broker has handed out by now, if anything is left of it. What a stream hands out
/// comes before the answer to a question on the same channel.
async fn arrived(
    channel: &Channel,
    consumer: &mut Consumer,
    stream: &str,
) -> Result<Option<Delivery>, Error> {
    if let Some(next) = poll_once(consumer.next()).await {
        return delivered(next, stream).map(Some);
    }
    let answer = channel.basic_qos(CREDIT, BasicQosOptions::default()).await;
    answer.doing(format!("read {stream}"))?;
    poll_once(consumer.next()).await.map(|next| delivered(next, stream)).transpose()
}

fn delivered(next: Option<lapin::Result<Delivery>>, stream: &str) -> Result<Delivery, Error> {
    let doing = || format!("read {stream}");
    let ended = || Error::Broker { doing: doing(), source: "the broker ended the reading".into() };
    next.ok_or_else(ended)?.doing(doing())
}

/// Makes sure that the namespace has a journal.
///
/// # Errors
/// [`Error::JournalMissing`] when it was set up by an older keylane.
pub(crate) async fn check(connection: &Connection, namespace: &Namespace) -> Result<(), Error> {
    let channel = connection.create_channel().await.doing("open a channel")?;
    let stream = namespace.journal();
    if !counts(&channel, &stream).await?.exists() {
        return Err(Error::JournalMissing { namespace: namespace.to_string() });
    }
    close(&channel).await;
    Ok(())
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use std::time::Duration;

    use crate::protocol::journal::{Audit, Batch, Written};
    use crate::protocol::suppression::Settled;

    /// A message of the journal.
    pub fn journal(bytes: &[u8]) {
        let Ok(batch) = Batch::read(bytes) else { return };
        let stored = serde_json::to_vec(&batch).unwrap_or_default();
        assert_eq!(Batch::read(&stored).ok().as_ref(), Some(&batch));
        let (mut audit, mut written) = (Audit::new(Duration::ZERO), Written::default());
        let findings = audit.note(batch.clone());
        let report = audit.report();
        assert_eq!(report.findings, findings.len() as u64);
        assert!(report.executed <= report.executions && !report.to_string().is_empty());
        assert!(findings.iter().all(|finding| !finding.to_string().is_empty()));
        assert!(written.is_new(&batch) && !written.is_new(&batch));
        let mut settled = Settled::default();
        settled.note(&batch);
        assert!(settled.len() <= batch.records.len());
        assert!(audit.note(batch).is_empty(), "it was read before");
        assert_eq!(audit.report(), report);
    }
}
