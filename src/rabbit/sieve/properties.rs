//! Properties of a message as bytes: can the client library read them?

use std::fmt;

/// Deepest nesting of arrays and tables in a header. The client library reads, writes and drops
/// them by recursion; some thousand levels overflow a thread's stack.
const MAX_DEPTH: usize = 128;

/// Why properties cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    NotUtf8(&'static str),
    TooDeep,
    TooLarge { bytes: usize, limit: usize },
    Malformed,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUtf8(name) => write!(f, "{name} is not UTF-8"),
            Self::TooDeep => write!(f, "a header is nested more than {MAX_DEPTH} levels deep"),
            Self::TooLarge { bytes, limit } => {
                write!(f, "its properties have {bytes} bytes, and a frame holds {limit}")
            }
            Self::Malformed => write!(f, "its properties are no AMQP"),
        }
    }
}

/// Strings before the headers, with the bits of their flags; and those behind.
const BEFORE: [(u16, &str); 2] = [(1 << 15, "content_type"), (1 << 14, "content_encoding")];
const HEADERS: u16 = 1 << 13;
const DELIVERY_MODE: u16 = 1 << 12;
const PRIORITY: u16 = 1 << 11;
const BEHIND: [(u16, &str); 4] = [
    (1 << 10, "correlation_id"),
    (1 << 9, "reply_to"),
    (1 << 8, "expiration"),
    (1 << 7, "message_id"),
];
const TIMESTAMP: u16 = 1 << 6;
const LAST: [(u16, &str); 4] =
    [(1 << 5, "type"), (1 << 4, "user_id"), (1 << 3, "app_id"), (1 << 2, "cluster_id")];
/// Flags that AMQP has no property for.
const UNKNOWN: u16 = 0b11;

/// Checks properties, flags first. Accepts nothing that the client library refuses.
pub(super) fn check(properties: &[u8]) -> Result<(), Flaw> {
    let mut bytes = Reader(properties);
    let flags = bytes.short_uint()?;
    if flags & UNKNOWN != 0 {
        return Err(Flaw::Malformed);
    }
    let has = |flag| flags & flag != 0;
    let strings = |bytes: &mut Reader<'_>, all: &[(u16, &'static str)]| {
        all.iter().filter(|(flag, _)| has(*flag)).try_for_each(|(_, name)| bytes.text(name))
    };
    strings(&mut bytes, &BEFORE)?;
    if has(HEADERS) {
        check_table(bytes.long_bytes()?)?;
    }
    bytes.skip(usize::from(has(DELIVERY_MODE)) + usize::from(has(PRIORITY)))?;
    strings(&mut bytes, &BEHIND)?;
    bytes.skip(if has(TIMESTAMP) { 8 } else { 0 })?;
    strings(&mut bytes, &LAST)?;
    if bytes.0.is_empty() { Ok(()) } else { Err(Flaw::Malformed) }
}

/// A table or an array that is being read: what is left of it.
struct Level<'a> {
    left: Reader<'a>,
    named: bool,
}

/// Without recursion, which is what it guards from.
fn check_table(table: &[u8]) -> Result<(), Flaw> {
    let mut outer: Vec<Level<'_>> = Vec::new();
    let mut level = Level { left: Reader(table), named: true };
    loop {
        if level.left.0.is_empty() {
            match outer.pop() {
                Some(up) => level = up,
                None => return Ok(()),
            }
            continue;
        }
        if level.named {
            level.left.text("the name of a header")?;
        }
        let kind = level.left.octet()?;
        if matches!(kind, b'A' | b'F') {
            if outer.len() + 1 == MAX_DEPTH {
                return Err(Flaw::TooDeep);
            }
            let inner = Reader(level.left.long_bytes()?);
            let inner = Level { left: inner, named: kind == b'F' };
            outer.push(std::mem::replace(&mut level, inner));
        } else {
            level.left.skip_scalar(kind)?;
        }
    }
}

/// Headers that the broker adds to a delivery, and that mean something to us, if they can be
/// found.
pub(super) fn brokers_counts(properties: &[u8]) -> Vec<(&'static str, i64)> {
    let mut found = Vec::new();
    // What cannot be read any further ends it.
    find_counts(properties, &mut found).ok();
    found
}

const COUNTS: [&str; 3] = ["x-stream-offset", "x-delivery-count", "x-acquired-count"];

fn find_counts(properties: &[u8], found: &mut Vec<(&'static str, i64)>) -> Result<(), Flaw> {
    let mut bytes = Reader(properties);
    let flags = bytes.short_uint()?;
    for (flag, _) in BEFORE {
        if flags & flag != 0 {
            bytes.short_bytes()?;
        }
    }
    if flags & HEADERS == 0 {
        return Ok(());
    }
    let mut table = Reader(bytes.long_bytes()?);
    while !table.0.is_empty() {
        let name = table.short_bytes()?;
        match table.octet()? {
            b'A' | b'F' => {
                table.long_bytes()?;
            }
            kind => {
                let value = table.skip_scalar(kind)?;
                let known = COUNTS.iter().find(|known| known.as_bytes() == name);
                let value = value.try_into().map(i64::from_be_bytes);
                if let (Some(known), b'l', Ok(value)) = (known, kind, value)
                    && found.iter().all(|(name, _)| name != known)
                {
                    found.push((known, value));
                }
            }
        }
    }
    Ok(())
}

/// Bytes that are left to be read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Flaw> {
        let (taken, left) = self.0.split_at_checked(bytes).ok_or(Flaw::Malformed)?;
        self.0 = left;
        Ok(taken)
    }

    fn skip(&mut self, bytes: usize) -> Result<(), Flaw> {
        self.take(bytes).map(drop)
    }

    fn octet(&mut self) -> Result<u8, Flaw> {
        Ok(self.take(1)?[0])
    }

    fn short_uint(&mut self) -> Result<u16, Flaw> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// As many bytes as an octet says.
    fn short_bytes(&mut self) -> Result<&'a [u8], Flaw> {
        let bytes = self.octet()?;
        self.take(usize::from(bytes))
    }

    /// As many bytes as four octets say.
    fn long_bytes(&mut self) -> Result<&'a [u8], Flaw> {
        let bytes = self.take(4)?;
        let bytes = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        self.take(usize::try_from(bytes).map_err(|_| Flaw::Malformed)?)
    }

    fn text(&mut self, name: &'static str) -> Result<(), Flaw> {
        let text = self.short_bytes()?;
        std::str::from_utf8(text).map(drop).map_err(|_| Flaw::NotUtf8(name))
    }

    /// A value of this type, which holds no others.
    fn skip_scalar(&mut self, kind: u8) -> Result<&'a [u8], Flaw> {
        match kind {
            b'V' => self.take(0),
            b't' | b'b' | b'B' => self.take(1),
            b's' | b'U' | b'u' => self.take(2),
            b'I' | b'i' | b'f' => self.take(4),
            b'D' => self.take(5),
            b'L' | b'l' | b'd' | b'T' => self.take(8),
            b'S' | b'x' => self.long_bytes(),
            _ => Err(Flaw::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Properties that are headers only.
    fn headers(table: &[u8]) -> Vec<u8> {
        let length = u32::try_from(table.len()).expect("a short table").to_be_bytes();
        [&[0x20, 0][..], &length, table].concat()
    }

    fn nested(levels: usize) -> Vec<u8> {
        let mut value = b"V".to_vec();
        for _ in 0..levels {
            let length = u32::try_from(value.len()).expect("short").to_be_bytes();
            value = [b"A", &length[..], &value[..]].concat();
        }
        headers(&[b"\x01h", &value[..]].concat())
    }

    #[test]
    fn every_string_must_be_utf8() {
        for (flag, name) in BEFORE.iter().chain(&BEHIND).chain(&LAST) {
            let with = |text: &[u8]| [&flag.to_be_bytes()[..], &[2], text].concat();
            assert_eq!(check(&with("ö".as_bytes())), Ok(()), "{name}");
            assert_eq!(check(&with(b"\xff\xfe")), Err(Flaw::NotUtf8(name)));
        }
        let name = Err(Flaw::NotUtf8("the name of a header"));
        assert_eq!(check(&headers(b"\x02\xff\xfeV")), name);
        assert_eq!(check(&headers(b"\x01tF\0\0\0\x04\x02\xff\xfeV")), name, "in a table");
        assert_eq!(check(&headers(b"\x01sS\0\0\0\x02\xff\xfe")), Ok(()), "a long string is bytes");
    }

    #[test]
    fn nesting_has_a_limit() {
        assert_eq!(check(&nested(MAX_DEPTH - 1)), Ok(()));
        assert_eq!(check(&nested(MAX_DEPTH)), Err(Flaw::TooDeep));
        assert_eq!(check(&nested(3_000)), Err(Flaw::TooDeep));
    }

    #[test]
    fn what_is_cut_or_too_long_is_malformed() {
        let whole = headers(b"\x01nI\0\0\0\x07\x01sS\0\0\0\x01a");
        assert_eq!(check(&whole), Ok(()));
        for end in 0..whole.len() {
            assert_eq!(check(&whole[..end]), Err(Flaw::Malformed), "{end}");
        }
        assert_eq!(check(&[&whole[..], b"x"].concat()), Err(Flaw::Malformed));
        assert_eq!(check(&headers(b"\x01nZ")), Err(Flaw::Malformed));
        assert_eq!(check(&[0, 1]), Err(Flaw::Malformed));
    }

    #[test]
    fn the_brokers_counts_are_found_beside_what_cannot_be_read() {
        let table =
            b"\x0fx-stream-offsetl\0\0\0\0\0\0\0\x09\x02\xff\xfeV\x10x-delivery-countS\0\0\0\0";
        assert_eq!(brokers_counts(&headers(table)), [("x-stream-offset", 9)]);
        assert_eq!(brokers_counts(b""), []);
    }
}
