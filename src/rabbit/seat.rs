//! A number that one worker has at a time, from a bounded set: for names of quorum queues, which
//! RabbitMQ never frees (each is an atom of Erlang's, of which there are five million).
//!
//! Whoever declares the exclusive queue of a number first has it until its connection ends.

use lapin::Connection;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use xxhash_rust::xxh3::xxh3_64;

use super::error::{Doing, Error, reply};
use crate::protocol::names::Namespace;
use crate::protocol::ownership::WorkerId;

/// More than any fleet has workers and routers.
const SEATS: u16 = 4_096;

/// Takes a free seat, for as long as the connection lasts.
///
/// # Errors
/// [`Error::NotPermitted`], and when the connection is lost or all seats are taken.
pub(crate) async fn take(
    connection: &Connection,
    namespace: &Namespace,
    worker: &WorkerId,
) -> Result<u16, Error> {
    // Below the number of seats, which has 16 bits.
    let first = (xxh3_64(worker.as_str().as_bytes()) % u64::from(SEATS)) as u16;
    for tried in 0..SEATS {
        let seat = (first + tried) % SEATS;
        let queue = namespace.seat(seat);
        let channel = connection.create_channel().await.doing("open a channel")?;
        let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        match channel.queue_declare(queue.as_str().into(), own, FieldTable::default()).await {
            // The channel stays open: it holds nothing, and ends with the connection.
            Ok(_) => return Ok(seat),
            // Somebody else's, which has closed the channel.
            Err(error) if reply(&error).is_some_and(|(code, _)| code == 405) => {}
            Err(error) => return Err(Error::from_lapin(format!("declare {queue}"), error)),
        }
    }
    let source = format!("all {SEATS} seats are taken").into();
    Err(Error::Broker { doing: format!("find a seat in {namespace}"), source })
}
