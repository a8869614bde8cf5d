//! `keylane top`

mod panes;
mod plain;
mod screen;
mod state;

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ratatui::crossterm::event::{self, Event};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use self::state::State;
use super::Broker;
use crate::dashboard::observer::{Frame, Looks, Observer};

/// Show the namespace live in the terminal: flow, workers, partitions, resources
///
/// Keys: Tab changes the list, arrows or j and k move, s sorts, ? helps, q leaves.
/// Without a terminal it prints one picture and ends.
#[derive(Debug, clap::Args)]
pub(super) struct Top {
    /// Print one picture and end, although there is a terminal
    #[arg(long)]
    once: bool,
    /// Print one picture as a JSON object, and end
    #[arg(long)]
    json: bool,
}

/// A picture comes every second; of the first ones the journal is not a part yet.
const WHOLE_PICTURE: Duration = Duration::from_secs(20);

/// How often the reader of keys looks whether it is to end.
const KEY_POLL: Duration = Duration::from_millis(100);

impl Top {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let connect = broker.connect()?;
        let observer = Observer::start(&connect, "top", Arc::new(Looks::default())).await?;
        let mut frames = observer.watch();
        if self.once || self.json || !io::stdout().is_terminal() {
            let whole = frames.wait_for(|frame| frame.snapshot.totals.rates_known);
            // A journal that cannot be read by then leaves its figures out.
            timeout(WHOLE_PICTURE, whole).await.ok();
            let frame = Arc::clone(&frames.borrow());
            if self.json {
                out!("{}", frame.json());
            } else {
                plain::print(&frame.snapshot);
            }
            return Ok(ExitCode::SUCCESS);
        }
        watch(frames).await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The terminal, as it was, when this is dropped; after a panic, too.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

async fn watch(mut frames: watch::Receiver<Arc<Frame>>) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let mut terminal = ratatui::try_init().context("cannot use the terminal")?;
    let _restored = Restored;
    let mut keys = keys();
    let mut state = State::default();
    loop {
        let frame = Arc::clone(&frames.borrow_and_update());
        terminal.draw(|area| screen::draw(area, &frame.snapshot, &mut state))?;
        tokio::select! {
            changed = frames.changed() => changed.context("nothing looks any more")?,
            event = keys.recv() => match event {
                Some(Event::Key(key)) if state.takes(key).is_break() => return Ok(()),
                Some(_) => {}
                None => return Ok(()),
            },
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
        }
    }
}

/// Keys and changes of size, read by a thread of their own until nobody listens.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            let came = match event::poll(KEY_POLL) {
                Ok(true) => event::read(),
                Ok(false) => continue,
                Err(_) => return,
            };
            let Ok(event) = came else { return };
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}
