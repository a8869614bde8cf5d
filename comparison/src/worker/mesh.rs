//! A connection between every two workers, for the patterns in which workers talk to each
//! other.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What comes from another worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A message; they come in the order in which they were sent.
    Message(u32, Vec<u8>),
    /// Its connection is closed: on one machine, it has ended.
    Gone(u32),
}

/// The connections of this worker.
#[derive(Debug)]
pub struct Mesh {
    own: u32,
    listener: TcpListener,
    peers: Mutex<HashMap<u32, mpsc::UnboundedSender<Vec<u8>>>>,
    incoming: (mpsc::UnboundedSender<Incoming>, Mutex<Option<mpsc::UnboundedReceiver<Incoming>>>),
}

impl Mesh {
    /// Listens on a free port of 127.0.0.1.
    pub(super) async fn listen(own: u32) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("no free port")?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let incoming = (sender, Mutex::new(Some(receiver)));
        Ok(Self { own, listener, peers: Mutex::default(), incoming })
    }

    pub(super) fn address(&self) -> String {
        self.listener.local_addr().map(|address| address.to_string()).unwrap_or_default()
    }

    /// Connects to all workers with a lower number, and waits for those with a higher one.
    pub(super) async fn connect(&self, addresses: &[String]) -> anyhow::Result<()> {
        for (peer, address) in (0..).zip(addresses).take(self.own as usize) {
            let mut stream = TcpStream::connect(address).await.context("cannot reach a worker")?;
            stream.write_u32(self.own).await?;
            self.add(peer, stream)?;
        }
        for _ in self.own as usize + 1..addresses.len() {
            let (mut stream, _) = self.listener.accept().await?;
            let peer = stream.read_u32().await?;
            self.add(peer, stream)?;
        }
        Ok(())
    }

    fn add(&self, peer: u32, stream: TcpStream) -> anyhow::Result<()> {
        stream.set_nodelay(true)?;
        let (reading, writing) = stream.into_split();
        let (sender, receiver) = mpsc::unbounded_channel();
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, sender);
        tokio::spawn(write(writing, receiver));
        tokio::spawn(read(peer, reading, self.incoming.0.clone()));
        Ok(())
    }

    /// All that comes in, from all. There is one taker.
    ///
    /// # Errors
    /// If it was taken before.
    pub fn incoming(&self) -> anyhow::Result<mpsc::UnboundedReceiver<Incoming>> {
        let mut receiver = self.incoming.1.lock().unwrap_or_else(PoisonError::into_inner);
        receiver.take().context("the messages of the workers have a reader already")
    }

    /// The workers that this one was connected to at the start.
    #[must_use]
    pub fn peers(&self) -> Vec<u32> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Sends a message. To one that has ended, it is lost.
    pub fn send(&self, peer: u32, message: Vec<u8>) {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = peers.get(&peer) {
            // Closed: the reader tells that the peer is gone.
            drop(sender.send(message));
        }
    }
}

async fn write(mut stream: OwnedWriteHalf, mut messages: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(message) = messages.recv().await {
        let mut frame = Vec::with_capacity(message.len() + 1);
        // Messages here are a few numbers long.
        frame.push(message.len() as u8);
        frame.extend(message);
        if stream.write_all(&frame).await.is_err() {
            return;
        }
    }
}

async fn read(peer: u32, stream: OwnedReadHalf, incoming: mpsc::UnboundedSender<Incoming>) {
    let mut stream = tokio::io::BufReader::new(stream);
    while let Ok(length) = stream.read_u8().await {
        let mut message = vec![0; length.into()];
        if stream.read_exact(&mut message).await.is_err() {
            break;
        }
        if incoming.send(Incoming::Message(peer, message)).is_err() {
            return;
        }
    }
    // Nobody listens any more: this process ends as well.
    drop(incoming.send(Incoming::Gone(peer)));
}
