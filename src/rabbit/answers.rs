//! Which answer of the broker belongs to which message.
//!
//! A message without a queue comes back (a *return*), and is acked a little later. The client
//! library does not match the two: it hands a return to the message that is answered next,
//! which may be another one, and if one ack answers many, to any of these. Taken as it comes,
//! that would call a message published that was lost, and a published one lost.
//!
//! So one task gathers all answers of a channel. A return is handed over no later than with
//! the ack of the message that came back. When it has all answers that were given by the
//! time of an ack, it knows whether its message came back.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_lite::future::poll_once;
use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::message::BasicReturnMessage;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};

/// Writes a message, and waits for what is said of it.
pub(super) type Publishing = Pin<Box<dyn Future<Output = Said> + Send>>;

/// What the library says of a message, which may have come with another one's return.
type Said = lapin::Result<Confirmation>;

/// What became of a message.
#[derive(Debug)]
pub(super) enum Answer {
    /// A majority of its queue has it.
    Confirmed,
    /// It has no queue, in the broker's words.
    Returned {
        /// These.
        reply: String,
    },
    /// The broker refused it.
    Nacked,
    /// The channel died under it, or nobody knows.
    Lost(Option<lapin::Error>),
}

/// What a return has in common with the message that came back. Those that have all of it
/// in common are the same message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) exchange: ShortString,
    pub(super) key: ShortString,
    pub(super) id: Option<ShortString>,
}

impl Label {
    fn of(back: &BasicReturnMessage) -> Self {
        Self {
            exchange: back.exchange.clone(),
            key: back.routing_key.clone(),
            id: back.properties.message_id().clone(),
        }
    }
}

/// The answers of one channel.
#[derive(Debug)]
pub(super) struct Answers {
    gather: mpsc::UnboundedSender<Asked>,
    /// Messages that are written, or about to be.
    begun: Arc<AtomicU64>,
}

/// A message that is not answered yet; gives what the library says of it.
struct Asked {
    publishing: Publishing,
    asker: Option<Asker>,
}

/// Whom an answer concerns.
struct Asker {
    label: Label,
    tell: oneshot::Sender<Answer>,
}

impl Future for Asked {
    type Output = (Said, Option<Asker>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let said = std::task::ready!(self.publishing.as_mut().poll(context));
        Poll::Ready((said, self.asker.take()))
    }
}

impl Answers {
    /// Of this channel. Gathers until it is dropped, and all that was begun is answered.
    pub(super) fn of(channel: Arc<Channel>) -> Self {
        let (gather, asked) = mpsc::unbounded_channel();
        let begun = Arc::<AtomicU64>::default();
        tokio::spawn(Gatherer::new(channel, asked, Arc::clone(&begun)).run());
        Self { gather, begun }
    }

    /// Writes a message now, and has its answer gathered.
    pub(super) async fn publish(
        &self,
        mut publishing: Publishing,
        label: Label,
    ) -> oneshot::Receiver<Answer> {
        let (tell, answer) = oneshot::channel();
        // Before it is written: the gatherer waits for what it is told below.
        self.begun.fetch_add(1, Ordering::SeqCst);
        // The first poll puts the frames into the connection's queue, which is what orders
        // them. Waiting until they are written, one message at a time, would cost two changes
        // of threads for each. Nothing is awaited here, so nothing comes in between.
        if let Some(said) = poll_once(&mut publishing).await {
            publishing = Box::pin(std::future::ready(said));
        }
        // Without a gatherer, whoever waits for the answer is told that it is lost.
        self.gather.send(Asked { publishing, asker: Some(Asker { label, tell }) }).ok();
        answer
    }
}

/// See [`Answers`].
struct Gatherer {
    channel: Arc<Channel>,
    asked: mpsc::UnboundedReceiver<Asked>,
    begun: Arc<AtomicU64>,
    known: u64,
    unanswered: FuturesUnordered<Asked>,
    /// Returns whose messages are not acked yet.
    returned: Vec<(Label, String)>,
}

impl Gatherer {
    fn new(
        channel: Arc<Channel>,
        asked: mpsc::UnboundedReceiver<Asked>,
        begun: Arc<AtomicU64>,
    ) -> Self {
        let (unanswered, returned) = (FuturesUnordered::new(), Vec::new());
        Self { channel, asked, begun, known: 0, unanswered, returned }
    }

    async fn run(mut self) {
        let (mut given, mut open) = (Vec::new(), true);
        while open || !self.unanswered.is_empty() || !given.is_empty() {
            if given.is_empty() {
                tokio::select! {
                    asked = self.asked.recv(), if open => {
                        open = asked.is_some();
                        asked.into_iter().for_each(|asked| self.take(asked));
                    }
                    Some(first) = self.unanswered.next(), if !self.unanswered.is_empty() => {
                        given.push(first);
                    }
                }
            }
            while let Ok(asked) = self.asked.try_recv() {
                self.take(asked);
            }
            given.append(&mut self.answered());
            if given.is_empty() {
                continue;
            }
            // One ack may answer many. While the library tells them, it keeps everybody
            // else from its list of what is unanswered, which this looks into; so they have
            // all been told when this is over.
            poll_once(self.channel.wait_for_confirms()).await;
            while self.known < self.begun.load(Ordering::SeqCst) {
                match self.asked.recv().await {
                    Some(asked) => self.take(asked),
                    None => break,
                }
            }
            let later = self.answered();
            given.iter().chain(&later).for_each(|(said, _)| self.note(said));
            for (said, asker) in given {
                let Some(Asker { label, tell }) = asker else { continue };
                // Whoever asked may have lost interest.
                tell.send(self.answer(said, &label)).ok();
            }
            // There may be more that were told together with these.
            given = later;
        }
    }

    fn take(&mut self, asked: Asked) {
        self.known += 1;
        self.unanswered.push(asked);
    }

    /// All that is answered by now.
    fn answered(&mut self) -> Vec<(Said, Option<Asker>)> {
        let mut given = Vec::new();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut context = Context::from_waker(&waker);
        loop {
            match self.unanswered.poll_next_unpin(&mut context) {
                Poll::Ready(Some(answered)) => given.push(answered),
                Poll::Ready(None) => return given,
                // It takes a break now and then, and says so.
                Poll::Pending if woken.0.swap(false, Ordering::SeqCst) => {}
                Poll::Pending => return given,
            }
        }
    }

    fn note(&mut self, said: &Said) {
        if let Ok(Confirmation::Ack(Some(back)) | Confirmation::Nack(Some(back))) = said {
            self.returned.push((Label::of(back), back.reply_text.to_string()));
        }
    }

    fn answer(&mut self, said: Said, label: &Label) -> Answer {
        let nacked = match said {
            Ok(Confirmation::Ack(_)) => false,
            Ok(Confirmation::Nack(_)) => true,
            Ok(Confirmation::NotRequested) => return Answer::Lost(None),
            Err(error) => return Answer::Lost(Some(error)),
        };
        match self.returned.iter().position(|(returned, _)| returned == label) {
            Some(at) => Answer::Returned { reply: self.returned.swap_remove(at).1 },
            None if nacked => Answer::Nacked,
            None => Answer::Confirmed,
        }
    }
}

/// Remembers that it was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}
