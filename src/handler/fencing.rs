//! How an attempt gets its fencing token.

use std::fmt;
use std::sync::Arc;

use tokio::sync::{OnceCell, mpsc, oneshot};

use super::{Attempt, Failure, Lacking};
use crate::protocol::fence::{FencingToken, TokenError};
use crate::protocol::settlement::DeliveryTag;

/// There is no fencing token for an attempt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FencingError {
    /// The worker was told to hand out none.
    #[error("there are no fencing tokens: fencing is switched off for this worker")]
    Off,
    /// The attempt has ended, or its partition was given up or lost.
    #[error("there is no fencing token any more: the attempt is over, or its partition was lost")]
    Over,
    /// The partition's counter of epochs is not in its queue.
    #[error("queue {queue} has lost its counter: was it purged? Run `keylane init` again")]
    CounterMissing {
        /// The queue.
        queue: String,
    },
    /// Something was published to the queue of a counter.
    #[error(
        "queue {queue} has {count} messages instead of its one counter: delete it and run `keylane init` again"
    )]
    CounterAmbiguous {
        /// The queue.
        queue: String,
        /// How many messages it holds.
        count: u32,
    },
    /// The numbers have run out.
    #[error(transparent)]
    Exhausted(TokenError),
}

/// Nothing was done without a token, so no attempt is counted. A worker that hands out none at all
/// has the task tried again as it has any other.
impl From<FencingError> for Failure {
    fn from(error: FencingError) -> Self {
        let reason = error.to_string();
        match error {
            FencingError::Off => Self::retry(None, reason),
            FencingError::Over
            | FencingError::CounterMissing { .. }
            | FencingError::CounterAmbiguous { .. }
            | FencingError::Exhausted(_) => {
                Self::Unavailable { what: Lacking::FencingToken, reason }
            }
        }
    }
}

/// Asks for the token of a delivery.
#[derive(Debug)]
pub(crate) struct TokenRequest {
    pub(crate) tag: DeliveryTag,
    /// Dropped unanswered when the attempt is over.
    pub(crate) answer: oneshot::Sender<Result<FencingToken, FencingError>>,
}

/// Where an attempt has its token from.
#[derive(Clone, Default)]
pub(crate) struct TokenSource(Option<Arc<Source>>);

struct Source {
    known: OnceCell<FencingToken>,
    /// `None` if the token was given by hand.
    mint: Option<(DeliveryTag, mpsc::UnboundedSender<TokenRequest>)>,
}

impl TokenSource {
    /// A token by hand.
    fn given(token: FencingToken) -> Self {
        Self(Some(Arc::new(Source { known: OnceCell::new_with(Some(token)), mint: None })))
    }

    /// Minted by the owner of this delivery, when it is asked for.
    pub(crate) fn minting(tag: DeliveryTag, ask: mpsc::UnboundedSender<TokenRequest>) -> Self {
        Self(Some(Arc::new(Source { known: OnceCell::new(), mint: Some((tag, ask)) })))
    }

    fn is_known(&self) -> bool {
        self.0.as_ref().is_some_and(|source| source.known.initialized())
    }

    async fn token(&self) -> Result<FencingToken, FencingError> {
        let Some(source) = &self.0 else { return Err(FencingError::Off) };
        let minted = source.known.get_or_try_init(async || {
            let (tag, ask) = source.mint.as_ref().ok_or(FencingError::Off)?;
            let (answer, answered) = oneshot::channel();
            ask.send(TokenRequest { tag: *tag, answer }).map_err(|_| FencingError::Over)?;
            answered.await.map_err(|_| FencingError::Over)?
        });
        minted.await.copied()
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_ref().map(|source| source.known.get()) {
            None => f.write_str("Off"),
            Some(None) => f.write_str("NotMinted"),
            Some(Some(token)) => write!(f, "{token}"),
        }
    }
}

impl Attempt {
    /// The fencing token: proof for a store that checks it that no later owner
    /// of the partition has been there. Guards for some
    /// stores are in `keylane::guard` (features `guard-postgres`, `guard-redis`).
    ///
    /// All tasks of an ownership period have the same token, and the first one
    /// that asks makes the worker mint it: about 1 ms, a round trip to the
    /// broker. Later calls cost nothing. Ask *before* the work begins: whoever
    /// gets a token only after it was paused proves the wrong thing.
    ///
    /// # Errors
    /// [`FencingError`]. All but [`FencingError::Off`] pass, so that `?` in a
    /// handler has the task tried again.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn fencing_token(&self) -> Result<FencingToken, FencingError> {
        let is_known = self.fencing.is_known();
        let token = self.fencing.token().await?;
        if !is_known {
            self.span.record("epoch", token.epoch().get());
        }
        Ok(token)
    }

    /// The same with this token, for tests of a handler.
    #[must_use]
    pub fn with_fencing_token(mut self, token: FencingToken) -> Self {
        self.fencing = TokenSource::given(token);
        self
    }
}

/// The token, for handlers that hand it on; `None` if fencing is off.
#[cfg(any(feature = "exec", feature = "http"))]
pub(super) async fn token(attempt: &Attempt) -> Result<Option<FencingToken>, Failure> {
    match attempt.fencing_token().await {
        Ok(token) => Ok(Some(token)),
        Err(FencingError::Off) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
