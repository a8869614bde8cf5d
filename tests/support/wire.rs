//! AMQP 0-9-1 by hand: publishes properties that no client library writes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

use keylane::testing::Broker;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;

/// A connection with one channel, whose publishes are confirmed.
pub(crate) struct Wire(TcpStream);

impl Wire {
    pub(crate) async fn open(broker: &Broker) -> Self {
        let url = broker.amqp_url();
        let address = url.rsplit('@').next().unwrap().trim_start_matches("amqp://");
        let mut wire = Self(TcpStream::connect(address.split('/').next().unwrap()).await.unwrap());
        wire.0.write_all(b"AMQP\0\0\x09\x01").await.unwrap();
        wire.expect([10, 10]).await;
        let start = [b"\0\0\0\0\x05PLAIN".to_vec(), long(b"\0guest\0guest"), short(b"en_US")];
        wire.method(0, [10, 11], &start.concat()).await;
        wire.expect([10, 30]).await;
        let tune = [&8_u16.to_be_bytes()[..], &131_072_u32.to_be_bytes(), &[0, 0]].concat();
        wire.method(0, [10, 31], &tune).await;
        wire.method(0, [10, 40], b"\x01/\0\0").await;
        wire.expect([10, 41]).await;
        wire.method(1, [20, 10], b"\0").await;
        wire.expect([20, 11]).await;
        wire.method(1, [85, 10], b"\0").await;
        wire.expect([85, 11]).await;
        wire
    }

    /// Publishes one message and insists on its confirm.
    pub(crate) async fn publish(
        &mut self,
        exchange: &str,
        key: &[u8],
        properties: &[u8],
        body: &[u8],
    ) {
        let mandatory = 1;
        let to = [&[0, 0][..], &short(exchange.as_bytes()), &short(key), &[mandatory]].concat();
        self.method(1, [60, 40], &to).await;
        let size = (body.len() as u64).to_be_bytes();
        let header = [&[0, 60, 0, 0], &size[..], properties].concat();
        self.frame(HEADER, 1, &header).await;
        for part in body.chunks(131_064) {
            self.frame(BODY, 1, part).await;
        }
        self.expect([60, 80]).await;
    }

    async fn method(&mut self, channel: u16, [class, method]: [u8; 2], arguments: &[u8]) {
        self.frame(METHOD, channel, &[&[0, class, 0, method], arguments].concat()).await;
    }

    async fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        let frame = [&[kind], &channel.to_be_bytes()[..], &length, payload, &[0xce]].concat();
        self.0.write_all(&frame).await.unwrap();
    }

    async fn expect(&mut self, wanted: [u8; 2]) {
        let mut head = [0; 7];
        self.0.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = vec![0; length + 1];
        self.0.read_exact(&mut payload).await.unwrap();
        let came = [payload[1], payload[3]];
        let text = String::from_utf8_lossy(&payload);
        assert_eq!((head[0], came), (METHOD, wanted), "{text}");
    }
}

pub(crate) fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

pub(crate) fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// A header that is text.
pub(crate) fn text(name: &str, text: &[u8]) -> Vec<u8> {
    [short(name.as_bytes()), b"S".to_vec(), long(text)].concat()
}

/// Properties of these headers, and of one short string with this flag.
pub(crate) fn properties(headers: &[u8], string: Option<(u16, &[u8])>) -> Vec<u8> {
    const HEADERS: u16 = 1 << 13;
    const DELIVERY_MODE: u16 = 1 << 12;
    let flags = HEADERS | DELIVERY_MODE | string.map_or(0, |(flag, _)| flag);
    let string = string.map(|(flag, text)| (flag, short(text)));
    let at = |before: bool| {
        let is = move |flag: u16| (flag > HEADERS) == before;
        string.iter().filter(move |(flag, _)| is(*flag)).flat_map(|(_, text)| text.clone())
    };
    let mut bytes = flags.to_be_bytes().to_vec();
    bytes.extend(at(true));
    bytes.extend(long(headers));
    bytes.push(2);
    bytes.extend(at(false));
    bytes
}
