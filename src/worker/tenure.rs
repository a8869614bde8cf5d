//! One ownership period of one partition (or of the inbox, in a router): drives [`Lanes`] from one channel,
//! the handler and the clock.
//!
//! Everything here dies with the channel: no delivery is ever settled on
//! another one, and no handler outlives it.

mod acting;
mod claiming;
mod ending;
mod journaling;
mod judging;
mod spilling;

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::PollSemaphore;

use self::spilling::whole;
use super::Execute;
use super::attempt::Ended;
use super::counting::Counting;
use super::gate::{Gate, Pass};
use super::held::HeldDelivery;
use super::mint::Mint;
use super::recording::Recording;
use super::session::Session;
use super::steered::View;
use super::stints;
use crate::backoff::later;
use crate::protocol::crashes::Returned;
use crate::protocol::journal;
use crate::protocol::lanes::{IllegalInput, Input, Lanes, Millis, Outcome, Output};
use crate::protocol::partition::PartitionId;
use crate::protocol::settlement::DeliveryTag;
use crate::protocol::suppression::Suppression;
use crate::rabbit::claims::ClaimRegister;
use crate::rabbit::consumer::{Delivery, QueueChannel};
use crate::rabbit::error::Error;
use crate::rabbit::journal::Lately;

/// Acks are sent when so many wait, however young they are: the broker gains
/// nothing from more at once.
const ACK_BATCH: usize = 64;

/// See the [module](self).
pub(super) struct Tenure<'a, E> {
    session: Arc<Session<E>>,
    /// Which of the session's queues it is.
    index: usize,
    queue: &'a str,
    channel: QueueChannel,
    lanes: Lanes,
    deliveries: HashMap<DeliveryTag, HeldDelivery>,
    running: JoinSet<Ended>,
    running_tags: HashMap<Id, DeliveryTag>,
    dead_letters: JoinSet<DeliveryTag>,
    slots: PollSemaphore,
    /// A slot that the next start takes.
    slot: Option<(OwnedSemaphorePermit, [Pass; 2])>,
    /// Closed while there is no fencing token for the partition.
    tokens: Arc<Gate>,
    claims: Option<Arc<ClaimRegister>>,
    /// When they are looked at again, if they could not be read.
    claims_due: Option<Instant>,
    returned: Returned,
    recording: Recording,
    counting: Counting,
    /// Since when the partition is ours, at the latest; and what was settled and not acked by
    /// then, nothing if that is not known.
    owned_since: Option<Instant>,
    settled: Option<Lately>,
    suppression: Suppression,
    mint: Mint,
    /// What operators have ordered.
    view: watch::Receiver<View>,
    /// The partition is being given up.
    leaving: bool,
    origin: Instant,
    flush_at: Option<Instant>,
    /// A flush is due, and waits for the tasks that run.
    flush_waits: bool,
    /// For the next flush or retry, whichever is first.
    timer: Pin<Box<Sleep>>,
    outputs: Vec<Output>,
}

/// What happens next.
enum Event {
    Abort,
    GiveUp,
    Ended(Result<(Id, Ended), JoinError>),
    Recorded,
    DeadLettered(DeliveryTag),
    Steered,
    Startable,
    Slot(Option<OwnedSemaphorePermit>),
    Timer,
    Mint,
    Delivered(Result<Box<Delivery>, Error>),
}

/// Whether the tenure goes on.
enum Go {
    On,
    Closed,
}

impl<'a, E: Execute> Tenure<'a, E> {
    pub(super) fn new(
        session: Arc<Session<E>>,
        index: usize,
        queue: &'a str,
        channel: QueueChannel,
    ) -> Self {
        let lanes = Lanes::new(session.shared.options.retry, (index as u64) << 32);
        let slots = PollSemaphore::new(Arc::clone(&session.shared.slots));
        let recording = Recording::new(session.shared.journal().cloned());
        let mint = Mint::new(session.topology.generation, queue);
        let counting = Counting::new(Arc::clone(&session.shared.figures), index);
        let view = session.steered.subscribe();
        Self {
            session,
            index,
            queue,
            channel,
            lanes,
            deliveries: HashMap::new(),
            running: JoinSet::new(),
            running_tags: HashMap::new(),
            dead_letters: JoinSet::new(),
            slots,
            slot: None,
            tokens: Gate::new(format!("the fencing token of {queue}")),
            claims: None,
            claims_due: None,
            returned: Returned::default(),
            recording,
            counting,
            owned_since: None,
            settled: None,
            suppression: Suppression::default(),
            mint,
            view,
            leaving: false,
            origin: Instant::now(),
            flush_at: None,
            flush_waits: false,
            timer: Box::pin(sleep_until(Instant::now())),
            outputs: Vec::new(),
        }
    }

    /// Runs until the partition was given up (`Ok`) or lost. No handler runs
    /// any more when it returns. It is given up when `give_up` comes back.
    pub(super) async fn run(mut self, give_up: impl Future<Output = ()>) -> Result<(), Error> {
        let lost = self.session.lost.clone();
        let mut give_up = pin!(give_up);
        let result = loop {
            let event = self.next_event(give_up.as_mut()).await;
            // Whatever it waits for on the network, handlers are aborted in time.
            let taken = tokio::select! {
                // First, since an attempt that has ended is no aborted one.
                biased;
                taken = self.take(event) => taken,
                () = lost.cancelled() => Ok(Go::Closed),
            };
            match taken {
                Ok(Go::On) => self.note(),
                Ok(Go::Closed) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let lost = result.is_err() || self.session.lost.is_cancelled();
        if lost {
            // It cannot be acked any more, but the next owner may find it in the journal.
            self.take_ended();
        }
        // Handlers first: once the channel is closed, others may start.
        self.counting.aborted(self.running.len());
        self.end_running(lost).await;
        self.dead_letters.shutdown().await;
        self.take_claims_back().await;
        self.record_aborted();
        if !lost {
            self.settle().await;
        }
        // Meanwhile it may have been.
        let lost = lost || self.session.lost.is_cancelled();
        // What was not executed is still unsettled, and comes to the next in line in order.
        self.channel.close().await;
        self.session.held[self.index].note_nothing(self.session.shared.started.elapsed());
        self.counting.over(lost);
        result
    }

    async fn next_event(&mut self, give_up: Pin<&mut impl Future<Output = ()>>) -> Event {
        if self.is_steered() {
            return Event::Steered;
        }
        let leaving = self.leaving;
        // A retry so late that no clock shows it never comes.
        let next_tick = self.lanes.next_tick();
        let next_tick = next_tick.and_then(|at| self.origin.checked_add(at.since_origin()));
        let due = self.flush_at.into_iter().chain(next_tick).min();
        if let Some(due) =
            due.filter(|due| self.timer.deadline() != *due || self.timer.is_elapsed())
        {
            self.timer.as_mut().reset(due);
        }
        let waits = self.recording.holds_acks();
        let Self {
            session,
            lanes,
            running,
            dead_letters,
            slots,
            channel,
            timer,
            mint,
            recording,
            view,
            tokens,
            ..
        } = self;
        let wants_slot = lanes.wants_slot();
        let handler = &session.shared.handler;
        let may_start =
            wants_slot && session.steered.is_current() && handler.is_open() && tokens.is_open();
        if !may_start {
            // Whoever stands in line is given a slot, wanted or not.
            *slots = PollSemaphore::new(slots.clone_inner());
        }
        tokio::select! {
            // Ends make room before anything starts, and acks are not kept
            // waiting by a flood of deliveries.
            biased;
            () = session.abort.cancelled() => Event::Abort,
            () = give_up, if !leaving => Event::GiveUp,
            Some(ended) = running.join_next_with_id() => Event::Ended(ended),
            Some(letter) = dead_letters.join_next() => match letter {
                Ok(tag) => Event::DeadLettered(tag),
                Err(_) => Event::Abort,
            },
            () = recording.progress(), if waits => Event::Recorded,
            () = timer.as_mut(), if due.is_some() => Event::Timer,
            () = mint.due() => Event::Mint,
            slot = poll_fn(|context| slots.poll_acquire(context)), if may_start => {
                Event::Slot(slot)
            }
            () = startable(session, tokens), if wants_slot && !may_start => Event::Startable,
            delivery = channel.next() => Event::Delivered(delivery.map(Box::new)),
            // Last, since it is looked at before anything else.
            Ok(()) = view.changed() => Event::Steered,
        }
    }

    async fn take(&mut self, event: Event) -> Result<Go, Error> {
        match event {
            Event::Abort => {
                // What has ended is settled; what runs is not.
                self.take_ended();
                self.running.abort_all();
                self.apply(Input::Flush)?;
                self.act().await?;
                self.apply(Input::Lost)?;
                return Ok(Go::Closed);
            }
            Event::GiveUp => {
                self.leaving = true;
                self.apply(Input::Drain)?;
            }
            Event::Ended(ended) => self.ended(ended)?,
            Event::Recorded => {}
            Event::DeadLettered(tag) => {
                self.counting.dead_lettered();
                let reason = self.deliveries.get_mut(&tag).and_then(|held| held.obituary.take());
                self.record(tag, journal::Outcome::DeadLettered, reason.as_deref());
                self.forget_evidence(tag);
                self.session.held[self.index].note_settled();
                self.deliveries.remove(&tag);
                self.apply(Input::DeadLettered { tag })?;
            }
            Event::Steered => self.steer()?,
            Event::Startable => {}
            Event::Slot(slot) => {
                if self.is_steered() {
                    self.steer()?;
                }
                self.slot = slot.zip(self.passes());
                if self.slot.is_some() {
                    self.apply(Input::SlotFree)?;
                }
            }
            Event::Timer => {
                self.apply(Input::Tick)?;
                self.flush_if_due()?;
            }
            Event::Mint => self.serve_tokens().await?,
            Event::Delivered(delivery) => {
                let mut delivery = *delivery?;
                delivery.payload = whole(&delivery).await;
                let tag = delivery.tag;
                self.delivered(delivery).await?;
                self.make_room(tag);
            }
        }
        let pending = self.lanes.pending_acks();
        let contiguous = self.flush_waits && self.lanes.running() == 0;
        if pending >= ACK_BATCH || contiguous && pending > 0 {
            self.apply(Input::Flush)?;
        }
        let go = self.act().await?;
        let waits_for_records = self.recording.holds_acks();
        if self.lanes.unsettled() == 0 && self.lanes.pending_acks() == 0 && !waits_for_records {
            self.mint.release();
            // The partition may have another owner now, unnoticed.
            (self.owned_since, self.settled) = (None, None);
            (self.suppression, self.returned) = Default::default();
        }
        if self.lanes.pending_acks() == 0 {
            (self.flush_at, self.flush_waits) = (None, false);
        } else if self.flush_at.is_none() {
            self.flush_at = Some(later(self.session.shared.options.ack_delay));
        }
        Ok(go)
    }

    /// Gives the handlers that ask their fencing token. An abort does not wait
    /// for it: it is the next event then, and the last.
    async fn serve_tokens(&mut self) -> Result<(), Error> {
        let Self { session, mint, channel, deliveries, .. } = self;
        let known = mint.token();
        let served = tokio::select! {
            biased;
            () = session.abort.cancelled() => Ok(()),
            served = mint.serve(channel, |tag| deliveries.contains_key(&tag)) => served,
        };
        if mint.token() != known {
            self.counting.minted();
        }
        served
    }

    /// The permissions to start one task, if the handler and the tokens can be reached.
    fn passes(&self) -> Option<[Pass; 2]> {
        Some([self.session.shared.handler.enter()?, self.tokens.enter()?])
    }

    /// Acks what has waited long enough. While tasks run, what is done lies
    /// scattered between them and would take an ack each, so they get as much
    /// time again to make it one.
    fn flush_if_due(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if self.flush_at.is_none_or(|at| at > now) {
            return Ok(());
        }
        if self.lanes.running() > 0 && !self.flush_waits {
            self.flush_waits = true;
            self.flush_at = Some(later(self.session.shared.options.ack_delay));
            return Ok(());
        }
        self.apply(Input::Flush)
    }

    fn apply(&mut self, input: Input) -> Result<(), Error> {
        let now = Millis::since(self.origin.elapsed());
        let applied = self.lanes.apply(now, input, &mut self.outputs);
        // A contradiction means that our picture of the channel is wrong: it is
        // given up, and the broker starts anew from what is settled.
        applied.map_err(|error: IllegalInput| Error::Broker {
            doing: format!("follow {}", self.queue),
            source: Box::new(error),
        })
    }

    /// Whether there are orders that the lanes do not know.
    fn is_steered(&self) -> bool {
        // Without a sender there are none; it lives as long as the session.
        self.view.has_changed().unwrap_or(false)
    }

    /// Has the lanes follow what operators have ordered.
    fn steer(&mut self) -> Result<(), Error> {
        let View { steering, .. } = self.view.borrow_and_update().clone();
        let partition = PartitionId::new(self.index as u32);
        let paused = steering.paused_in(&self.session.topology, partition);
        self.apply(Input::Pause(paused))?;
        if steering.cancelled.is_empty() {
            return Ok(());
        }
        let now_ms = stints::wall_ms();
        let cancelled = self.deliveries.iter().filter_map(|(tag, held)| {
            let (id, _) = held.task.as_ref()?;
            let cancellation = steering.cancellation(id, now_ms)?;
            if cancellation.abort {
                held.stint.abort();
            }
            Some((*tag, cancellation.reason()))
        });
        for (tag, reason) in cancelled.collect::<Vec<_>>() {
            self.apply(Input::Cancel { tag, reason })?;
        }
        Ok(())
    }

    /// Does what the lanes have asked for.
    async fn act(&mut self) -> Result<Go, Error> {
        let mut go = Go::On;
        let mut outputs = VecDeque::from(std::mem::take(&mut self.outputs));
        while let Some(output) = outputs.pop_front() {
            match output {
                Output::Start { tag, .. } if self.supersede(tag) => {
                    let outcome = Outcome::Executed;
                    self.apply(Input::Finished { tag, outcome })?;
                    outputs.extend(self.outputs.drain(..));
                }
                Output::Start { tag, attempt } => self.start(tag, attempt),
                Output::DeadLetter { tag, attempts, reason } => {
                    self.dead_letter(tag, attempts, reason);
                }
                Output::Ack(ack) => self.recording.ack_later(ack),
                // The handlers are stopped together, when the tenure ends.
                Output::Abort(_) => {}
                Output::CloseChannel => go = Go::Closed,
            }
        }
        self.recording.ack(&self.channel).await?;
        // A slot that nothing took goes to another partition.
        self.slot = None;
        Ok(go)
    }

    fn note(&self) {
        let retry_at = self.lanes.next_tick().map(|at| {
            let since_start = self.origin.duration_since(self.session.shared.started);
            since_start.saturating_add(at.since_origin())
        });
        let now = self.session.shared.started.elapsed();
        let window = usize::from(self.session.topology.prefetch.get());
        self.session.held[self.index].note(now, &self.lanes, retry_at, window);
        let Self { counting, lanes, .. } = self;
        counting.note(lanes.unsettled(), lanes.running(), lanes.lanes());
        counting.note_spilled(self.session.shared.spill.on_disk());
    }
}

/// Waits until nothing keeps tasks from starting.
async fn startable<E>(session: &Session<E>, tokens: &Gate) {
    session.steered.current().await;
    session.shared.handler.opens().await;
    tokens.opens().await;
}
