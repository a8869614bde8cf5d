//! A sieve between the socket and the client library.
//!
//! Publishers write what they like into a message's properties: RabbitMQ does not check that
//! strings are UTF-8, or how deep tables are nested. The client library ends the *connection* for
//! the first and the process for the second, for every consumer that is handed such a message. So
//! it never sees one: in place of a [header that it cannot take](properties) it gets a small one
//! that says so, and the properties as bytes in front of the body ([`frames`]). Nothing is lost,
//! and the message goes to the dead letters like any other that is no task.

mod frames;
mod properties;

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use bytes::Bytes;
use futures_lite::Stream as Items;
use futures_lite::io::{AsyncRead, AsyncWrite};
use lapin::BasicProperties;
use lapin::tcp::AsyncTcpStream;

use self::frames::Frames;
use super::envelope::number;
use super::tls::Stream;

/// Header of a message whose properties cannot be read: why.
pub(super) const UNREADABLE: &str = "x-keylane-unreadable";
/// Header of such a message: how many bytes of properties are in front of its body.
pub(super) const PROPERTIES_BYTES: &str = "x-keylane-properties-bytes";

/// Properties that cannot be read, and the body behind them.
pub(super) fn parts(properties: &BasicProperties, body: &Bytes) -> Option<(Bytes, Bytes)> {
    let bytes = number(properties, PROPERTIES_BYTES).and_then(|bytes| usize::try_from(bytes).ok());
    let bytes = bytes.filter(|bytes| *bytes <= body.len())?;
    Some((body.slice(..bytes), body.slice(bytes..)))
}

/// Bytes that are read from the socket at once: some hundred small messages.
const READ_BYTES: usize = 64 * 1024;

/// See the [module](self).
pub(super) struct Sieve<S> {
    socket: S,
    frames: Frames,
    read: Box<[u8]>,
}

impl<S> Sieve<S> {
    /// `frame_max`: what our side wants, 0 if it takes what the broker offers.
    pub(super) fn new(socket: S, frame_max: u32) -> Self {
        let read = vec![0; READ_BYTES].into_boxed_slice();
        Self { socket, frames: Frames::new(frame_max), read }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Sieve<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { socket, frames, read } = &mut *self;
        loop {
            let taken = frames.take(into);
            if taken > 0 || into.is_empty() {
                return Poll::Ready(Ok(taken));
            }
            match ready!(Pin::new(&mut *socket).poll_read(context, read))? {
                0 => return Poll::Ready(Ok(0)),
                bytes => frames.push(&read[..bytes]),
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Sieve<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(context)
    }
}

/// The runtime of connections with a sieve.
pub(super) type SievedRuntime = Runtime<RuntimeParts<Tokio, SievedReactor>>;

/// The current runtime, whose streams have a sieve.
pub(super) fn runtime() -> SievedRuntime {
    Runtime::new(RuntimeParts::new(Tokio::current(), SievedReactor(Tokio::current())))
}

/// Tokio's reactor; the type of its streams is what the client library asks of it.
#[derive(Debug, Clone)]
pub(super) struct SievedReactor(Tokio);

impl Reactor for SievedReactor {
    type TcpStream = Sieve<Stream>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H>(
        &self,
        _socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        // Nobody hands us a socket of his own.
        Err::<Self::TcpStream, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Items<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move { Ok(Sieve::new(AsyncTcpStream::Plain(connecting.await?), 0)) }
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use lapin::protocol::basic::parse_properties;

    pub use super::frames::fuzz::frames;
    use super::frames::fuzz::sieved;
    use super::{BasicProperties, Bytes, UNREADABLE, parts};
    use crate::rabbit::envelope::text;

    /// Properties as the client library gets them, and the body. Fails if it cannot read them,
    /// or if any of their bytes is lost.
    pub(crate) fn message(bytes: &[u8], body: &[u8]) -> (BasicProperties, Bytes) {
        let (header, sieved_body) = sieved(bytes, body);
        let Ok((rest, properties)) = parse_properties(&header[..]) else {
            panic!("the client library cannot read {header:?}, made of {bytes:?}");
        };
        assert!(rest.is_empty(), "{rest:?} is left of {header:?}");
        let sieved_body = Bytes::from(sieved_body);
        if header != bytes {
            assert!(text(&properties, UNREADABLE).is_some());
            let parts = parts(&properties, &sieved_body);
            let whole = (Bytes::copy_from_slice(bytes), Bytes::copy_from_slice(body));
            assert_eq!(parts, Some(whole));
        }
        (properties, sieved_body)
    }
}
