//! Whether the broker still knows that we are there.
//!
//! A broker that hears nothing of a client for two heartbeats may give its
//! partitions away, and the client library notices the silence at about the
//! same time. A worker has to be earlier. So it asks for an answer again and
//! again: when one comes, the broker has heard of us since the question was
//! *sent*, and will wait for two heartbeats from then. Our handlers are stopped
//! after one, which leaves as long to stop them. It is a lease on the connection,
//! in the sense of Gray and Cheriton ("Leases", 1989), of one heartbeat.

use std::time::Duration;

use lapin::Connection;
use lapin::options::BasicQosOptions;
use tokio::time::{Instant, sleep, timeout_at};

use super::error::{Doing, Error};

/// Comes back with an error when the lease has run out, or the connection is
/// lost; never if the connection has no heartbeat, since nobody gives up then.
pub(crate) async fn lost(connection: &Connection) -> Error {
    let heartbeat = Duration::from_secs(connection.configuration().heartbeat().into());
    if heartbeat.is_zero() {
        return std::future::pending().await;
    }
    match watch(connection, heartbeat).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn watch(
    connection: &Connection,
    heartbeat: Duration,
) -> Result<std::convert::Infallible, Error> {
    let mut answered = Instant::now();
    let channel = connection.create_channel();
    let Ok(channel) = timeout_at(answered + heartbeat, channel).await else {
        return Err(Error::Silent { seconds: heartbeat.as_secs() });
    };
    let channel = channel.doing("open a channel")?;
    loop {
        sleep(heartbeat / 5).await;
        let asked = Instant::now();
        // The question changes nothing: this channel consumes nothing.
        let answer = channel.basic_qos(1, BasicQosOptions::default());
        let Ok(answer) = timeout_at(answered + heartbeat, answer).await else {
            return Err(Error::Silent { seconds: answered.elapsed().as_secs() });
        };
        answer.doing("ask whether the broker is there")?;
        answered = asked;
    }
}
