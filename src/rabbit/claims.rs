//! Where the claims on a partition's suspect tasks are stored: a quorum queue
//! that holds one message, the latest record.
//!
//! A new record is published and confirmed before the old one is removed, so a
//! crash leaves at least one; a reader adds up what it finds. The queue is made
//! when a partition first has a suspect.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::options::{BasicAckOptions, BasicGetOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, LongString};
use lapin::{BasicProperties, Channel, Connection};
use tokio::sync::Mutex as AsyncMutex;

use super::connection::{arguments, confirm_channel};
use super::error::{Doing, Error};
use crate::protocol::crashes::{Claims, Evidence};
use crate::protocol::task::TaskId;

/// The claims of one partition, in memory and on the broker.
///
/// Changes are stored as groups: whoever waits while a record is being stored
/// finds its own change in the next one.
pub(crate) struct ClaimRegister {
    state: Mutex<State>,
    store: AsyncMutex<Store>,
}

#[derive(Default)]
struct State {
    claims: Claims,
    /// Rises with every change.
    version: u64,
}

struct Store {
    channel: Channel,
    queue: String,
    /// Last message of the records that were found, not yet replaced.
    found: Option<u64>,
    /// There is a record of ours in the queue.
    has_record: bool,
    /// What of the state is in it.
    version: u64,
}

impl ClaimRegister {
    /// Reads what earlier owners left.
    pub(crate) async fn open(connection: &Connection, queue: String) -> Result<Self, Error> {
        let doing = format!("open {queue}");
        in_time(doing, Self::open_unbounded(connection, queue)).await
    }

    async fn open_unbounded(connection: &Connection, queue: String) -> Result<Self, Error> {
        let channel = confirm_channel(connection).await?;
        let arguments = arguments([
            ("x-queue-type", AMQPValue::LongString(LongString::from("quorum"))),
            ("x-delivery-limit", AMQPValue::LongInt(-1)),
        ]);
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        let declared = channel.queue_declare(queue.as_str().into(), durable, arguments).await;
        declared.doing(format!("declare {queue}"))?;
        let mut store = Store { channel, queue, found: None, has_record: false, version: 0 };
        let mut claims = Claims::default();
        while let Some(record) = store.get(false).await? {
            store.found = Some(record.delivery_tag);
            match self::record(&record.data) {
                Ok(found) => claims.merge(found),
                Err(error) => tracing::warn!(%error, queue = store.queue, "unreadable claims"),
            }
        }
        let state = Mutex::new(State { claims, version: 0 });
        Ok(Self { state, store: AsyncMutex::new(store) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a task.
    pub(crate) fn evidence(&self, id: &TaskId) -> Option<Evidence> {
        self.state().claims.evidence(id)
    }

    /// Stores that a task is about to run.
    pub(crate) async fn claim(self: &Arc<Self>, id: TaskId, alone: bool) -> Result<(), Error> {
        let version = {
            let mut state = self.state();
            state.claims.claim(id, alone);
            state.version += 1;
            state.version
        };
        self.stored(version).await
    }

    /// A task's run has ended; says whether anything was known of it. Nothing is stored before
    /// [`ClaimRegister::flush`] or the next claim: what is left of a claim is suspicion, not guilt.
    pub(crate) fn clear(&self, id: &TaskId) -> bool {
        let mut state = self.state();
        let known = state.claims.clear(id);
        state.version += u64::from(known);
        known
    }

    /// Stores what was cleared.
    pub(crate) async fn flush(self: &Arc<Self>) -> Result<(), Error> {
        let version = self.state().version;
        self.stored(version).await
    }

    async fn stored(self: &Arc<Self>, version: u64) -> Result<(), Error> {
        let register = Arc::clone(self);
        // Whoever waits may be stopped: half of a change would leave a record behind for good.
        let storing = tokio::spawn(async move { register.store_unbounded(version).await });
        let doing = || "store a claim".to_owned();
        in_time(doing(), async {
            let lost = |panic| Error::Broker { doing: doing(), source: Box::new(panic) };
            storing.await.unwrap_or_else(|panic| Err(lost(panic)))
        })
        .await
    }

    async fn store_unbounded(&self, version: u64) -> Result<(), Error> {
        let mut store = self.store.lock().await;
        if store.version >= version {
            return Ok(());
        }
        let (record, version) = {
            let state = self.state();
            let record = (!state.claims.is_empty()).then(|| serde_json::to_vec(&state.claims));
            (record, state.version)
        };
        let record = record.transpose().map_err(|error| Error::Broker {
            doing: format!("store a claim in {}", store.queue),
            source: Box::new(error),
        })?;
        store.replace(record).await?;
        store.version = version;
        Ok(())
    }
}

/// It takes milliseconds. Evidence is worth less than work that stands still behind a
/// queue that has no leader.
const TIMEOUT: Duration = Duration::from_secs(10);

async fn in_time<T>(
    doing: String,
    claiming: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(TIMEOUT, claiming).await.unwrap_or_else(|_| {
        Err(Error::Broker { doing, source: format!("no answer within {TIMEOUT:?}").into() })
    })
}

fn record(bytes: &[u8]) -> serde_json::Result<Claims> {
    serde_json::from_slice(bytes)
}

impl Store {
    /// Publishes the new record, then removes the old one.
    async fn replace(&mut self, record: Option<Vec<u8>>) -> Result<(), Error> {
        if let Some(record) = &record {
            self.publish(record).await?;
        }
        if let Some(tag) = self.found.take() {
            let ack = self.channel.basic_ack(tag, BasicAckOptions { multiple: true });
            ack.await.doing(format!("replace a record of {}", self.queue))?;
        }
        if self.has_record {
            self.get(true).await?;
        }
        self.has_record = record.is_some();
        Ok(())
    }

    async fn publish(&self, record: &[u8]) -> Result<(), Error> {
        let doing = || format!("store a claim in {}", self.queue);
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let properties = BasicProperties::default().with_delivery_mode(2);
        self.channel
            .basic_publish("".into(), self.queue.as_str().into(), options, record, properties)
            .await
            .doing(doing())?
            .await
            .doing(doing())?;
        Ok(())
    }

    async fn get(&self, no_ack: bool) -> Result<Option<lapin::message::Delivery>, Error> {
        let got = self.channel.basic_get(self.queue.as_str().into(), BasicGetOptions { no_ack });
        Ok(got.await.doing(format!("read {}", self.queue))?.map(|message| message.delivery))
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use crate::protocol::crashes::Claims;

    /// A record of claims.
    pub fn claims(bytes: &[u8]) {
        let Ok(claims) = super::record(bytes) else { return };
        let mut merged = Claims::default();
        merged.merge(claims.clone());
        merged.merge(claims.clone());
        assert_eq!(merged, claims, "what is read twice counts once");
        let stored = serde_json::to_vec(&claims).unwrap_or_default();
        assert_eq!(super::record(&stored).ok(), Some(claims));
    }
}
