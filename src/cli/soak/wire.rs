//! The network between the clients and a single broker, which can be cut.
//!
//! A cut is silent: nothing comes through any more, and neither side is told. The
//! connections of before stay dead when it is over, as behind a firewall that has
//! forgotten them, so that the broker counts them as lost in its own time while their
//! clients are back already.

use std::io;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::provision::amqp_url;

/// Forwards from a port of its own to that of the broker. Ends with this value.
#[derive(Debug)]
pub(super) struct Wire {
    port: u16,
    state: Arc<watch::Sender<State>>,
    accepting: AbortHandle,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct State {
    is_cut: bool,
    cuts: u32,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Wire {
    pub(super) async fn to(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let own = listener.local_addr()?.port();
        let state = Arc::new(watch::Sender::new(State::default()));
        let accepting = tokio::spawn(accept(listener, port, state.subscribe())).abort_handle();
        Ok(Self { port: own, state, accepting })
    }

    /// The URL of the broker over this wire.
    pub(super) fn amqp_url(&self) -> String {
        amqp_url(self.port)
    }

    /// From now on nothing comes through, and never again over the connections that are.
    pub(super) fn cut(&self) {
        self.state.send_modify(|state| *state = State { is_cut: true, cuts: state.cuts + 1 });
    }

    /// New connections come through again.
    pub(super) fn mend(&self) {
        self.state.send_modify(|state| state.is_cut = false);
    }
}

/// Takes connections for ever; while the wire is cut they wait at the port.
async fn accept(listener: TcpListener, port: u16, mut state: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    loop {
        let whole = state.wait_for(|state| !state.is_cut).await.map(|state| *state);
        let Ok(whole) = whole else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            changed = state.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        if let Ok((client, _)) = accepted {
            connections.spawn(forward(client, port, state.clone(), whole.cuts));
        }
        while connections.try_join_next().is_some() {}
    }
}

/// Forwards until one side has ended, or the wire is cut; both sides stay open then.
async fn forward(mut client: TcpStream, port: u16, mut state: watch::Receiver<State>, cuts: u32) {
    let Ok(mut broker) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    // It is a socket of this machine: what is small must not wait for more.
    client.set_nodelay(true).ok();
    broker.set_nodelay(true).ok();
    let cut = async { state.wait_for(|state| state.cuts != cuts).await.map(drop) };
    let is_cut = tokio::select! {
        biased;
        cut = cut => cut.is_ok(),
        _ = tokio::io::copy_bidirectional(&mut client, &mut broker) => false,
    };
    if is_cut {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_cut_is_silent_and_kills_what_was_connected() {
        let broker = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let wire =
            Wire::to(broker.local_addr().expect("its address").port()).await.expect("a wire");
        let mut first = TcpStream::connect(("127.0.0.1", wire.port)).await.expect("connects");
        let (mut of_first, _) = broker.accept().await.expect("accepted");
        first.write_all(b"a").await.expect("sent");
        assert_eq!(of_first.read_u8().await.expect("received"), b'a');

        wire.cut();
        first.write_all(b"b").await.expect("nobody tells");
        let mut second = TcpStream::connect(("127.0.0.1", wire.port)).await.expect("waits");
        second.write_all(b"c").await.expect("nobody tells");
        let silence = timeout(Duration::from_millis(100), of_first.read_u8()).await;
        assert!(silence.is_err(), "{silence:?}");

        wire.mend();
        let (mut of_second, _) = broker.accept().await.expect("accepted");
        assert_eq!(of_second.read_u8().await.expect("received"), b'c');
        drop(first);
        let silence = timeout(Duration::from_millis(100), of_first.read_u8()).await;
        assert!(silence.is_err(), "not even the end of the first is told: {silence:?}");
    }
}
