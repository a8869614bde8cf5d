//! A stream of AMQP frames with the hostile ones replaced.

use std::mem;

use super::properties::{Flaw, brokers_counts, check};
use super::{PROPERTIES_BYTES, UNREADABLE};

/// Type, channel and length of the payload.
const BEFORE_PAYLOAD: usize = 7;
/// What ends a frame.
const END: u8 = 0xce;
/// All that a frame has around its payload.
const AROUND_PAYLOAD: usize = BEFORE_PAYLOAD + 1;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// Class, weight and size of the body, before the properties of a header frame.
const BEFORE_PROPERTIES: usize = 12;

/// Class and method of `connection.tune`, which says how large a frame may be.
const TUNE: [u8; 4] = [0, 10, 0, 30];
/// Class of the methods that carry names which publishers choose, and these methods: `return`,
/// `deliver`, `get-ok`.
const BASIC: u8 = 60;
const NAMING: [u8; 3] = [50, 60, 71];
/// Longest of them: three short strings and some numbers.
const MAX_METHOD_BYTES: usize = 1024;

/// The smallest largest frame of AMQP.
const MIN_FRAME_MAX: usize = 4096;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// A frame that has not come whole.
    held: Vec<u8>,
    /// Bytes of the current frame that are passed on as they come.
    passing: usize,
    /// It is no AMQP, so the client library is to judge it.
    opaque: bool,
    /// Largest frame that the client library takes, 0 if any.
    limit: usize,
    ready: Vec<u8>,
    /// How much of that was taken.
    taken: usize,
}

impl Frames {
    pub(super) fn new(frame_max: u32) -> Self {
        Self { limit: frame_max as usize, ..Self::default() }
    }

    /// Moves what is ready.
    pub(super) fn take(&mut self, into: &mut [u8]) -> usize {
        let ready = &self.ready[self.taken..];
        let bytes = ready.len().min(into.len());
        into[..bytes].copy_from_slice(&ready[..bytes]);
        self.taken += bytes;
        if self.taken == self.ready.len() {
            self.ready.clear();
            self.taken = 0;
        }
        bytes
    }

    /// Takes what was received.
    pub(super) fn push(&mut self, received: &[u8]) {
        if self.held.is_empty() {
            let rest = self.sieve(received).len();
            self.held.extend_from_slice(&received[received.len() - rest..]);
        } else {
            let mut held = mem::take(&mut self.held);
            held.extend_from_slice(received);
            let rest = self.sieve(&held).len();
            held.drain(..held.len() - rest);
            self.held = held;
        }
    }

    /// Makes ready what can be; returns the rest.
    fn sieve<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        loop {
            let passing = if self.opaque { bytes.len() } else { self.passing.min(bytes.len()) };
            let (passed, left) = bytes.split_at(passing);
            self.ready.extend_from_slice(passed);
            self.passing -= if self.opaque { 0 } else { passing };
            bytes = left;
            let Some((&[kind, _, _, a, b, c, d], _)) = bytes.split_first_chunk() else {
                return bytes;
            };
            let frame = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_add(AROUND_PAYLOAD);
            let examined =
                kind == HEADER || kind == METHOD && frame <= MAX_METHOD_BYTES + AROUND_PAYLOAD;
            if !matches!(kind, METHOD | HEADER | BODY | HEARTBEAT) {
                self.opaque = true;
            } else if !examined {
                self.passing = frame;
            } else if bytes.len() < frame {
                return bytes;
            } else {
                let (frame, left) = bytes.split_at(frame);
                if kind == METHOD {
                    self.method(frame)
                } else {
                    self.header(frame)
                }
                bytes = left;
            }
        }
    }

    /// Passes a method on. Names that are not UTF-8 are made ASCII: no queue of ours has one.
    fn method(&mut self, frame: &[u8]) {
        let payload = &frame[BEFORE_PAYLOAD..frame.len() - 1];
        let begin = self.ready.len() + BEFORE_PAYLOAD;
        self.ready.extend_from_slice(frame);
        if let Some(&[_, _, a, b, c, d]) = payload.strip_prefix(&TUNE).and_then(<[u8]>::first_chunk)
        {
            let broker = u32::from_be_bytes([a, b, c, d]) as usize;
            let wanted = [self.limit, broker].into_iter().filter(|limit| *limit > 0).min();
            self.limit = wanted.map_or(0, |limit| limit.max(MIN_FRAME_MAX));
        }
        let naming = payload.len() > 4 && payload[1] == BASIC && NAMING.contains(&payload[3]);
        // Numbers may have such bytes, too, which is why strings alone are looked at.
        if naming && !payload[4..].is_ascii() {
            mend_names(payload[3], &mut self.ready[begin + 4..begin + payload.len()]);
        }
    }

    /// Passes the properties of a message on, or says that they cannot be read.
    fn header(&mut self, frame: &[u8]) {
        let payload = &frame[BEFORE_PAYLOAD..frame.len() - 1];
        let flaw = match payload.get(BEFORE_PROPERTIES..) {
            None => Some(Flaw::Malformed),
            Some(properties) if self.limit > 0 && frame.len() > self.limit => {
                let limit = self.limit - AROUND_PAYLOAD - BEFORE_PROPERTIES;
                Some(Flaw::TooLarge { bytes: properties.len(), limit })
            }
            Some(properties) => check(properties).err(),
        };
        match flaw {
            None => self.ready.extend_from_slice(frame),
            Some(flaw) => self.stand_in(frame, flaw),
        }
    }

    /// A header that says why there is no other one, and its properties as the first bytes of
    /// the body.
    fn stand_in(&mut self, frame: &[u8], flaw: Flaw) {
        let channel = [frame[1], frame[2]];
        let payload = &frame[BEFORE_PAYLOAD..frame.len() - 1];
        let Some((fixed, properties)) = payload.split_at_checked(BEFORE_PROPERTIES) else {
            // No broker sends that, and no connection can go on after it.
            return self.ready.extend_from_slice(frame);
        };
        let mut table = Vec::new();
        put_text(&mut table, UNREADABLE, &flaw.to_string());
        let bytes = i64::try_from(properties.len()).unwrap_or(i64::MAX);
        put_number(&mut table, PROPERTIES_BYTES, bytes);
        for (name, count) in brokers_counts(properties) {
            put_number(&mut table, name, count);
        }
        let (kind, body) = fixed.split_at(4);
        let body = body.try_into().map_or(0, u64::from_be_bytes);
        let body = body.saturating_add(properties.len() as u64);
        let headers_only = [0x20, 0];
        let length = (table.len() as u32).to_be_bytes();
        let header = [kind, &body.to_be_bytes(), &headers_only, &length, &table].concat();
        self.put_frame(HEADER, channel, &header);
        let most = if self.limit > 0 { self.limit - AROUND_PAYLOAD } else { usize::MAX };
        for part in properties.chunks(most) {
            self.put_frame(BODY, channel, part);
        }
    }

    fn put_frame(&mut self, kind: u8, [a, b]: [u8; 2], payload: &[u8]) {
        self.ready.extend_from_slice(&[kind, a, b]);
        self.ready.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        self.ready.extend_from_slice(payload);
        self.ready.push(END);
    }
}

/// Makes ASCII of the strings in the arguments of a method.
fn mend_names(method: u8, arguments: &mut [u8]) {
    const DELIVER: u8 = 60;
    const RETURN: u8 = 50;
    // How many strings there are, and how many bytes of numbers before each.
    let gaps: &[usize] = match method {
        // The consumer; tag and flag, exchange; key.
        DELIVER => &[0, 9, 0],
        // Code, text; exchange; key.
        RETURN => &[2, 0, 0],
        // Tag and flag, exchange; key.
        _ => &[9, 0],
    };
    let mut at = 0;
    for gap in gaps {
        at += gap;
        let Some(&bytes) = arguments.get(at) else { return };
        let Some(text) = arguments.get_mut(at + 1..at + 1 + usize::from(bytes)) else { return };
        if std::str::from_utf8(text).is_err() {
            text.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
        }
        at += 1 + usize::from(bytes);
    }
}

fn put_text(table: &mut Vec<u8>, name: &str, text: &str) {
    put_name(table, name, b'S');
    table.extend_from_slice(&(text.len() as u32).to_be_bytes());
    table.extend_from_slice(text.as_bytes());
}

fn put_number(table: &mut Vec<u8>, name: &str, number: i64) {
    put_name(table, name, b'l');
    table.extend_from_slice(&number.to_be_bytes());
}

fn put_name(table: &mut Vec<u8>, name: &str, kind: u8) {
    // Ours have less than 256 bytes.
    table.push(name.len() as u8);
    table.extend_from_slice(name.as_bytes());
    table.push(kind);
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use super::{AROUND_PAYLOAD, BEFORE_PAYLOAD, BEFORE_PROPERTIES, BODY, END, Frames, HEADER};

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&[kind, 0, 1], &length[..], payload, &[END]].concat()
    }

    fn taken(frames: &mut Frames) -> Vec<u8> {
        let mut taken = vec![0; frames.ready.len() - frames.taken];
        frames.take(&mut taken);
        taken
    }

    /// The properties of a message and its body, as they are passed on.
    pub(crate) fn sieved(properties: &[u8], body: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let size = (body.len() as u64).to_be_bytes();
        let header = [&[0, 60, 0, 0], &size[..], properties].concat();
        let mut frames = Frames::new(0);
        frames.push(&frame(HEADER, &header));
        frames.push(&frame(BODY, body));
        let (mut left, mut payloads) = (&taken(&mut frames)[..], Vec::new());
        while let Some((&[_, _, _, a, b, c, d], _)) = left.split_first_chunk() {
            let end = u32::from_be_bytes([a, b, c, d]) as usize + AROUND_PAYLOAD;
            payloads.push(left[BEFORE_PAYLOAD..end - 1].to_vec());
            left = &left[end..];
        }
        assert!(left.is_empty());
        let header = payloads.remove(0);
        let body = payloads.concat();
        assert_eq!(header[4..BEFORE_PROPERTIES], (body.len() as u64).to_be_bytes());
        (header[BEFORE_PROPERTIES..].to_vec(), body)
    }

    /// A stream is sieved alike however it is cut into pieces.
    pub fn frames(bytes: &[u8]) {
        let mut whole = Frames::new(0);
        whole.push(bytes);
        let whole = taken(&mut whole);
        for size in [1, 2, 7, 13] {
            let mut pieces = Frames::new(0);
            let mut sieved = Vec::new();
            for piece in bytes.chunks(size) {
                pieces.push(piece);
                sieved.extend(taken(&mut pieces));
            }
            // A frame that is passed on as it comes is passed on before it is whole, too.
            assert_eq!(sieved, whole, "in pieces of {size}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&[kind, 0, 7], &length[..], payload, &[END]].concat()
    }

    fn header(body: u64, properties: &[u8]) -> Vec<u8> {
        frame(HEADER, &[&[0, 60, 0, 0], &body.to_be_bytes()[..], properties].concat())
    }

    fn sieved(frames: &mut Frames, bytes: &[u8]) -> Vec<u8> {
        frames.push(bytes);
        let mut taken = vec![0; frames.ready.len()];
        assert_eq!(frames.take(&mut taken), taken.len());
        taken
    }

    #[test]
    fn what_can_be_read_passes_unchanged() {
        let good = [
            frame(METHOD, b"\x00\x3c\x00\x3c\x01c\0\0\0\0\0\0\0\xff\0\x01e\x01k"),
            header(2, b"\x00\x20\x01k"),
            frame(BODY, b"\xff\xfe"),
            frame(HEARTBEAT, b""),
        ];
        assert_eq!(sieved(&mut Frames::new(0), &good.concat()), good.concat());
        let other = b"AMQP\0\0\x09\x01and so on";
        assert_eq!(sieved(&mut Frames::new(0), other), other, "the library judges it");
    }

    #[test]
    fn what_cannot_be_read_becomes_a_part_of_the_body() {
        let properties = b"\x00\x20\x02\xff\xfe";
        let sieved =
            sieved(&mut Frames::new(0), &[header(3, properties), frame(BODY, b"abc")].concat());
        let table = b"\x14x-keylane-unreadableS\0\0\0\x11type is not UTF-8\
            \x1ax-keylane-properties-bytesl\0\0\0\0\0\0\0\x05";
        let stand_in = [&[0x20, 0, 0, 0, 0, table.len() as u8], &table[..]].concat();
        let expected = [header(8, &stand_in), frame(BODY, properties), frame(BODY, b"abc")];
        assert_eq!(sieved, expected.concat());
    }

    #[test]
    fn a_header_that_is_larger_than_a_frame_comes_in_parts() {
        let mut frames = Frames::new(0);
        let tune = [&TUNE[..], &[0, 9], &4096_u32.to_be_bytes(), &[0, 10]].concat();
        sieved(&mut frames, &frame(METHOD, &tune));
        let text = |bytes: usize| {
            let entry = [b"\x01hS", &(bytes as u32).to_be_bytes()[..], &vec![b'x'; bytes]].concat();
            [&[0x20, 0], &(entry.len() as u32).to_be_bytes()[..], &entry].concat()
        };
        let fits = header(0, &text(4096 - 33));
        assert_eq!(fits.len(), 4096);
        assert_eq!(sieved(&mut frames, &fits), fits);
        let large = text(4096 - 32);
        let passed = sieved(&mut frames, &header(0, &large));
        assert!(passed.windows(20).any(|part| part == UNREADABLE.as_bytes()));
        assert_ne!(passed, header(0, &large));
        let large = text(10_000);
        let passed = sieved(&mut frames, &header(0, &large));
        assert!(passed.ends_with(&frame(BODY, &large[2 * 4088..])), "in parts that fit");
    }

    #[test]
    fn names_of_routes_are_made_readable() {
        let deliver = |tag: &[u8], key: &[u8]| {
            let numbers = b"\0\0\0\0\0\0\0\xff\x01";
            frame(METHOD, &[b"\x00\x3c\x00\x3c\x02", tag, numbers, b"\x01e\x03", key].concat())
        };
        let passed = sieved(&mut Frames::new(0), &deliver("ö".as_bytes(), b"a\xff\xfe"));
        assert_eq!(passed, deliver("ö".as_bytes(), b"a??"));
    }
}
