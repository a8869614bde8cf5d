//! The dead letters on the page: what is in them, replay and discard. One at a
//! time, for whoever looks at them hides them from others meanwhile.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use xxhash_rust::xxh3::Xxh3;

use super::observer::Looks;
use crate::rabbit::connection::Connect;
use crate::rabbit::dead_letters::{DeadLetter, DeadLetters, ReplayError};
use crate::rabbit::error::Error;

/// So many are listed, the oldest first; they are in memory while they are read.
const LISTED: u32 = 100;

/// What is shown of a payload, in characters.
const PAYLOAD_CHARS: usize = 2_000;

/// A list is good for so long: many tabs are one look.
const FRESH: Duration = Duration::from_secs(1);

/// Longer than reading the list takes, or replaying thousands.
const LIMIT: Duration = Duration::from_secs(120);

/// Does what the page asks for.
pub(super) struct Desk {
    connect: Connect,
    looks: Arc<Looks>,
    last: Mutex<Option<(Instant, Arc<Listing>)>>,
}

/// The oldest dead letters.
#[derive(Debug, Serialize)]
pub(super) struct Listing {
    letters: Vec<Letter>,
}

#[derive(Debug, Serialize)]
struct Letter {
    /// Stands for it when something is to be done with it.
    key: String,
    #[serde(flatten)]
    letter: DeadLetter,
    /// The beginning of the payload, as text.
    payload: String,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Replay,
    Discard,
}

/// With which of them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Selection {
    /// Those that were listed with these keys.
    Keys(HashSet<String>),
    /// Those of this resource.
    Resource(String),
    /// Those that are there now.
    All(bool),
}

/// What was done.
#[derive(Debug, Default, Serialize)]
pub(super) struct Done {
    /// How many.
    done: u32,
    /// What was not, and why.
    refused: Vec<String>,
}

impl Desk {
    pub(super) fn new(connect: &Connect, looks: Arc<Looks>) -> Self {
        Self { connect: connect.clone(), looks, last: Mutex::new(None) }
    }

    /// The oldest dead letters.
    pub(super) async fn list(&self) -> Result<Arc<Listing>, Error> {
        let mut last = self.last.lock().await;
        if let Some((at, listing)) = last.as_ref()
            && at.elapsed() < FRESH
        {
            return Ok(Arc::clone(listing));
        }
        let listing = Arc::new(limited(self.read()).await?);
        *last = Some((Instant::now(), Arc::clone(&listing)));
        Ok(listing)
    }

    async fn read(&self) -> Result<Listing, Error> {
        let _look = self.looks.begin();
        let mut dead = DeadLetters::open_first(&self.connect, LISTED).await?;
        let mut letters = Vec::new();
        while let Some(mut letter) = dead.next().await? {
            let (key, payload) = (key(&letter), preview(&letter.payload));
            letter.payload.clear();
            letters.push(Letter { key, letter, payload });
        }
        dead.close().await;
        Ok(Listing { letters })
    }

    /// Replays or discards.
    ///
    /// # Cancel safety
    /// A letter may be published again and stay as well: see it through.
    pub(super) async fn act(&self, action: Action, selection: Selection) -> Result<Done, Error> {
        let mut last = self.last.lock().await;
        *last = None;
        // A replay holds a publisher: too large for the stack of whoever asks.
        limited(Box::pin(self.work(action, selection))).await
    }

    async fn work(&self, action: Action, mut selection: Selection) -> Result<Done, Error> {
        let _look = self.looks.begin();
        let mut dead = match &selection {
            // What was listed is among the first still.
            Selection::Keys(_) => DeadLetters::open_first(&self.connect, LISTED).await?,
            Selection::Resource(_) | Selection::All(_) => DeadLetters::open(&self.connect).await?,
        };
        let mut done = Done::default();
        let mut begun = Ok(());
        while begun.is_ok()
            && !selection.is_spent()
            && let Some(letter) = dead.next().await?
        {
            if !selection.takes(&letter) {
                continue;
            }
            let id = letter.id.clone();
            match action {
                Action::Discard => {
                    dead.discard(letter).await?;
                    done.done += 1;
                }
                Action::Replay => match dead.begin_replay(letter).await {
                    Err(error @ ReplayError::NoTask(_)) => done.refuse(id.as_deref(), &error),
                    result => begun = result,
                },
            }
        }
        let finished = dead.finish_replays().await;
        done.done += dead.replayed();
        match begun.and(finished) {
            Ok(()) => {}
            Err(ReplayError::Settle(error)) => return Err(error),
            Err(error) => done.refuse(None, &error),
        }
        match &selection {
            Selection::Keys(keys) if !keys.is_empty() => done.refused.push(format!(
                "{} were not found: somebody else has taken them, or looks at them",
                keys.len()
            )),
            Selection::Keys(_) => {}
            Selection::Resource(_) | Selection::All(_) if dead.left() > 0 => {
                done.refused.push(format!("{} were not looked at: try again", dead.left()));
            }
            Selection::Resource(_) | Selection::All(_) => {}
        }
        dead.close().await;
        Ok(done)
    }
}

impl Done {
    fn refuse(&mut self, id: Option<&str>, error: &ReplayError) {
        self.refused.push(format!("{}: {error}", id.unwrap_or("-")));
    }
}

impl Selection {
    fn takes(&mut self, letter: &DeadLetter) -> bool {
        match self {
            Self::Keys(keys) => keys.remove(&key(letter)),
            Self::Resource(resource) => letter.resource.as_ref() == Some(resource),
            Self::All(all) => *all,
        }
    }

    fn is_spent(&self) -> bool {
        match self {
            Self::Keys(keys) => keys.is_empty(),
            Self::Resource(_) => false,
            Self::All(all) => !all,
        }
    }
}

/// Two letters with one key are alike in all that is shown of them.
fn key(letter: &DeadLetter) -> String {
    let mut hash = Xxh3::new();
    for part in [&letter.id, &letter.resource, &letter.by, &letter.from] {
        hash.update(part.as_deref().unwrap_or_default().as_bytes());
        hash.update(&[0xff]);
    }
    hash.update(&letter.dead_at_ms.unwrap_or_default().to_le_bytes());
    hash.update(&letter.payload);
    format!("{:032x}", hash.digest128())
}

fn preview(payload: &[u8]) -> String {
    // A character has at most four bytes.
    let start = &payload[..payload.len().min(4 * PAYLOAD_CHARS)];
    let mut text: String = String::from_utf8_lossy(start).chars().take(PAYLOAD_CHARS).collect();
    if text.len() < payload.len() {
        text.push('…');
    }
    text
}

async fn limited<T>(doing: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let silent = Error::Silent { seconds: LIMIT.as_secs() };
    timeout(LIMIT, doing).await.unwrap_or(Err(silent))
}
