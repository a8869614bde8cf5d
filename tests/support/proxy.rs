//! A wire between a worker and its broker that can be cut, or fall silent: nothing
//! is forwarded, for a while or for ever, and nobody is told.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Ends with the test's runtime.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    silent: watch::Sender<Silent>,
    /// Nobody is listened to.
    refuses: Arc<AtomicBool>,
    /// Of the connections that were made since the last cut.
    cut: Arc<Mutex<CancellationToken>>,
}

impl Proxy {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (silent, silence) = watch::channel(Silent::Nobody);
        let refuses = Arc::<AtomicBool>::default();
        let cut = Arc::<Mutex<CancellationToken>>::default();
        let port_of_ours = listener.local_addr().unwrap().port();
        let proxy = Self {
            port: port_of_ours,
            silent,
            refuses: Arc::clone(&refuses),
            cut: Arc::clone(&cut),
        };
        tokio::spawn(async move {
            let mut number = 0;
            while let Ok((client, _)) = listener.accept().await {
                if refuses.load(Ordering::Relaxed) {
                    continue;
                }
                let broker = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let ((from, to), (from_broker, to_broker)) =
                    (client.into_split(), broker.into_split());
                let cut = cut.lock().unwrap().clone();
                let there = forward(number, from, to_broker, silence.clone());
                let back = forward(number, from_broker, to, silence.clone());
                number += 1;
                tokio::spawn(cut.clone().run_until_cancelled_owned(there));
                tokio::spawn(cut.run_until_cancelled_owned(back));
            }
        });
        proxy
    }

    /// Ends all connections; new ones can be made.
    pub(crate) fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }

    /// From now on nothing comes through; the connections stay open.
    pub(crate) fn fall_silent(&self) {
        self.silent.send_replace(Silent::Everybody);
    }

    /// As [`Proxy::fall_silent`], on one connection only; the first is 0.
    pub(crate) fn fall_silent_on(&self, connection: usize) {
        self.silent.send_replace(Silent::Only(connection));
    }

    /// Whether new connections end at once.
    pub(crate) fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::Relaxed);
    }

    /// What was said meanwhile comes through, too.
    pub(crate) fn speak_again(&self) {
        self.silent.send_replace(Silent::Nobody);
    }
}

/// Which connections nothing comes through.
#[derive(Clone, Copy)]
enum Silent {
    Nobody,
    Only(usize),
    Everybody,
}

impl Silent {
    fn holds(self, connection: usize) -> bool {
        match self {
            Self::Nobody => false,
            Self::Only(one) => one == connection,
            Self::Everybody => true,
        }
    }
}

async fn forward(
    number: usize,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut silence: watch::Receiver<Silent>,
) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        // Both halves are kept, so neither side sees an end.
        until(&mut silence, number, false).await;
        tokio::select! {
            biased;
            () = until(&mut silence, number, true) => {}
            read = from.read(&mut bytes) => match read {
                Ok(read) if read > 0 && to.write_all(&bytes[..read]).await.is_ok() => {}
                _ => return,
            },
        }
    }
}

/// Stays as it is when the proxy is gone.
async fn until(silence: &mut watch::Receiver<Silent>, number: usize, silent: bool) {
    if silence.wait_for(|now| now.holds(number) == silent).await.is_err() {
        std::future::pending().await
    }
}
