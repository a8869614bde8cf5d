//! Fencing tokens for the handlers of one tenure: minted when the first one
//! asks, and good for as long as the tenure holds anything.
//!
//! While a delivery is unsettled on a channel, no other worker can be the owner,
//! and an epoch that is minted on the *same* channel is below that of any later
//! owner. Once nothing is held any more, the partition may have been away and
//! come back unnoticed, so the next token is minted anew.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::handler::fencing::{FencingError, TokenRequest, TokenSource};
use crate::protocol::fence::FencingToken;
use crate::protocol::names::Namespace;
use crate::protocol::settlement::DeliveryTag;
use crate::rabbit::consumer::QueueChannel;
use crate::rabbit::epoch::Minted;
use crate::rabbit::error::Error;

/// An earlier owner's channel gives partition and counter back at once, but to
/// different queues: milliseconds, and seconds in a cluster that has trouble.
const AWAY: Duration = Duration::from_secs(10);
const AWAY_PACE: Duration = Duration::from_millis(5);

/// See the [module](self).
pub(super) struct Mint {
    generation: u32,
    /// The queue of the counter.
    counter: String,
    ask: mpsc::UnboundedSender<TokenRequest>,
    requests: mpsc::UnboundedReceiver<TokenRequest>,
    waiting: Vec<TokenRequest>,
    /// Of the current stretch.
    token: Option<FencingToken>,
    /// The counter was not there: since when, and when to look again.
    away: Option<(Instant, Instant)>,
}

impl Mint {
    /// For the partition of this queue.
    pub(super) fn new(generation: u32, queue: &str) -> Self {
        let (ask, requests) = mpsc::unbounded_channel();
        Self {
            generation,
            counter: Namespace::epoch(queue),
            ask,
            requests,
            waiting: Vec::new(),
            token: None,
            away: None,
        }
    }

    /// Where the attempts at this delivery get their token from.
    pub(super) fn source(&self, tag: DeliveryTag) -> TokenSource {
        TokenSource::minting(tag, self.ask.clone())
    }

    /// The token of the current stretch, if any handler has asked for it.
    pub(super) fn token(&self) -> Option<FencingToken> {
        self.token
    }

    /// Comes back when [`serve`](Self::serve) has something to do.
    ///
    /// # Cancel safety
    /// No request is lost.
    pub(super) async fn due(&mut self) {
        if self.waiting.is_empty() {
            match self.requests.recv().await {
                Some(request) => self.waiting.push(request),
                // A sender is our own.
                None => std::future::pending().await,
            }
        }
        if let Some((_, again)) = self.away {
            sleep_until(again).await;
        }
    }

    /// Answers who asked, and mints if there is no token yet. `holds` says
    /// whether a delivery is unsettled: the end of an attempt may come before
    /// its request, and only who holds something may mint.
    ///
    /// # Errors
    /// When the channel is lost.
    ///
    /// # Cancel safety
    /// The channel delivers nothing any more; see [`QueueChannel::mint`].
    pub(super) async fn serve(
        &mut self,
        channel: &mut QueueChannel,
        holds: impl Fn(DeliveryTag) -> bool,
    ) -> Result<(), Error> {
        while let Ok(request) = self.requests.try_recv() {
            self.waiting.push(request);
        }
        // Who is not answered learns that it is over.
        self.waiting.retain(|request| holds(request.tag) && !request.answer.is_closed());
        if self.waiting.is_empty() {
            self.away = None;
            return Ok(());
        }
        let answer = match self.token {
            Some(token) => Ok(token),
            None => match channel.mint(&self.counter).await? {
                Minted::Epoch(epoch) => FencingToken::new(self.generation, epoch)
                    .inspect(|token| self.token = Some(*token))
                    .map_err(FencingError::Exhausted),
                Minted::Several { others } => Err(FencingError::CounterAmbiguous {
                    queue: self.counter.clone(),
                    count: others.saturating_add(1),
                }),
                Minted::Away => {
                    let now = Instant::now();
                    let since = self.away.map_or(now, |(since, _)| since);
                    if now - since < AWAY {
                        self.away = Some((since, now + AWAY_PACE));
                        return Ok(());
                    }
                    Err(FencingError::CounterMissing { queue: self.counter.clone() })
                }
            },
        };
        self.away = None;
        for request in self.waiting.drain(..) {
            // Who does not wait any more has no use for it.
            request.answer.send(answer.clone()).ok();
        }
        Ok(())
    }

    /// Nothing is held any more: the stretch is over.
    pub(super) fn release(&mut self) {
        self.token = None;
    }
}
