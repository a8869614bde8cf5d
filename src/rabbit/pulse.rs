//! Whether the broker still knows that we are there, and whether our node still
//! belongs to the cluster.
//!
//! A broker that hears nothing of a client for two heartbeats may give its
//! partitions away, and the client library notices the silence at about the
//! same time. A node that is cut off from its peers goes on serving its clients,
//! while the others give away what those had. A worker has to be earlier than both.
//! So it asks again and again:
//!
//! - for an answer of the broker: when one comes, the broker has heard of us since
//!   the question was *sent*, and will wait for two heartbeats from then;
//! - for a *token*, the one message of a replicated queue of our own, which we give back
//!   and are handed again. That takes a majority of the nodes: when it comes,
//!   our node was one of them after we gave it back.
//!
//! Our handlers are stopped when either has not come for one heartbeat. It is a
//! lease, in the sense of Gray and Cheriton ("Leases", 1989).

use std::convert::Infallible;
use std::time::Duration;

use lapin::options::BasicQosOptions;
use lapin::{Channel, Connection};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::error::{Doing, Error};
use super::token::Token;

/// So many questions in the time of a lease.
const QUESTIONS: u32 = 5;

/// Comes back with an error when the lease has run out, or the connection is
/// lost; never if the connection has no heartbeat, since nobody gives up then.
/// `queue` is for the token, which is published over `side`.
pub(crate) async fn lost(connection: &Connection, side: &Connection, queue: &str) -> Error {
    let Some(lease) = lease(connection) else { return std::future::pending().await };
    let unanswered = match unanswered(connection).await {
        Ok(unanswered) => unanswered,
        Err(error) => return error,
    };
    // Until the token has come once, its absence says nothing: a broker that is out
    // of memory takes none.
    let (returned, returns) = watch::channel(None);
    tokio::select! {
        error = unanswered => error,
        never = pass_on(connection, side, queue, lease / QUESTIONS, &returned) => match never {},
        seconds = expired(returns, lease) => Error::Minority { seconds },
    }
}

/// Nobody gives a connection up that has no heartbeat.
fn lease(connection: &Connection) -> Option<Duration> {
    let heartbeat = connection.configuration().heartbeat();
    (heartbeat > 0).then(|| Duration::from_secs(heartbeat.into()))
}

/// The first half of [`lost`]: comes back when the broker has not answered for a lease, or the
/// connection is lost.
///
/// # Errors
/// When the connection is lost already.
pub(crate) async fn unanswered(
    connection: &Connection,
) -> Result<impl Future<Output = Error> + Send + use<>, Error> {
    let lease = lease(connection);
    let channel = connection.create_channel().await.doing("open a channel")?;
    Ok(async move {
        let Some(lease) = lease else { return std::future::pending().await };
        let (answered, answers) = watch::channel(Some(Instant::now()));
        tokio::select! {
            asked = ask(channel, lease / QUESTIONS, &answered) => match asked {
                Ok(never) => match never {},
                Err(error) => error,
            },
            seconds = expired(answers, lease) => Error::Silent { seconds },
        }
    })
}

/// Comes back when the broker has not answered on a connection that publishes for a lease, or the
/// connection is lost. While the broker runs low on memory or disk it reads nothing from one that
/// has published, and says so: that is no silence.
pub(crate) async fn silent(side: &Connection) -> Error {
    let Some(lease) = lease(side) else { return std::future::pending().await };
    loop {
        let error = match timeout(lease, unanswered(side)).await {
            Ok(Ok(unanswered)) => unanswered.await,
            Ok(Err(error)) => error,
            Err(_) => Error::Silent { seconds: lease.as_secs() },
        };
        if !matches!(error, Error::Silent { .. }) || !side.status().blocked() {
            return error;
        }
        while side.status().blocked() && side.status().connected() {
            sleep(lease / QUESTIONS).await;
        }
    }
}

/// Asks the broker, and tells when the questions that it answered were asked.
async fn ask(
    channel: Channel,
    pause: Duration,
    answered: &watch::Sender<Option<Instant>>,
) -> Result<Infallible, Error> {
    loop {
        sleep(pause).await;
        let asked = Instant::now();
        // The question changes nothing: this channel consumes nothing.
        let answer = channel.basic_qos(1, BasicQosOptions::default()).await;
        answer.doing("ask whether the broker is there")?;
        answered.send_replace(Some(asked));
    }
}

/// Sends the token round, and tells when it was sent each time that it came back.
async fn pass_on(
    connection: &Connection,
    side: &Connection,
    queue: &str,
    pause: Duration,
    returned: &watch::Sender<Option<Instant>>,
) -> Infallible {
    let mut warned = false;
    loop {
        let result: Result<Infallible, Error> = async {
            let mut token = Token::place(connection, side, queue).await?;
            loop {
                let sent = Instant::now();
                token.go_round().await?;
                returned.send_replace(Some(sent));
                sleep(pause).await;
            }
        }
        .await;
        let Err(error) = result;
        if !std::mem::replace(&mut warned, true) {
            tracing::warn!(%error, "cannot tell whether the broker's node is cut off, trying again");
        }
        sleep(pause).await;
    }
}

/// Waits until the last answer is older than the lease, and tells how old.
async fn expired(mut answers: watch::Receiver<Option<Instant>>, lease: Duration) -> u64 {
    loop {
        let last = *answers.borrow_and_update();
        let over = async {
            match last {
                Some(asked) => sleep_until(asked + lease).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => return last.map_or(0, |asked| asked.elapsed().as_secs()),
            Ok(()) = answers.changed() => {}
        }
    }
}
