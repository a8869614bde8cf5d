//! The W3C trace context of a task: which trace it belongs to, and which span of it
//! published the task. Read strictly, by the rules of the specification
//! (<https://www.w3.org/TR/trace-context-2/>), and only carried on.

use std::fmt;
use std::sync::Arc;

use self::TraceContextError::Malformed;

/// A trace, and a place in it.
///
/// It is what the headers `traceparent` and `tracestate` hold. Flags that the
/// specification does not name are cleared, and a later version of it is carried on
/// as version 00, as it asks for.
///
/// ```
/// use keylane::TraceContext;
/// let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let context = TraceContext::new(parent, Some("vendor=opaque"))?;
/// assert_eq!(context.traceparent(), parent);
/// assert_eq!(context.tracestate(), Some("vendor=opaque"));
/// # Ok::<(), keylane::TraceContextError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TraceContext {
    trace_id: [u8; 16],
    parent_id: [u8; 8],
    flags: u8,
    state: Option<Arc<str>>,
}

/// A `traceparent` that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TraceContextError {
    /// It has not the form of one.
    #[error("a traceparent is 00-TRACE-PARENT-FLAGS, in 32, 16 and 2 lower-case hex digits")]
    Malformed,
    /// Version ff, which there will never be.
    #[error("a traceparent has no version ff")]
    Version,
    /// The trace id or the parent id is all zero.
    #[error("the ids of a traceparent are not zero")]
    Zero,
}

/// Bytes of a `traceparent` of version 00, and of what later versions begin with.
const PARENT_BYTES: usize = 55;

/// The flags that the specification names: sampled, and random trace id.
const KNOWN_FLAGS: u8 = 0b11;

impl TraceContext {
    /// Most entries of a `tracestate`: one with more counts as none.
    pub const MAX_STATE_ENTRIES: usize = 32;

    /// Longest `tracestate` that is carried on, in bytes; whole entries are left out
    /// at its end. The specification asks for 512 at least, and what takes a task's
    /// headers (a web server, an environment) often takes no more than 8 KiB in all.
    pub const MAX_STATE_BYTES: usize = 2048;

    /// Reads the two headers. A `tracestate` that is not valid counts as none: it
    /// does not make the `traceparent` any worse.
    ///
    /// # Errors
    /// [`TraceContextError`] when the `traceparent` is none.
    pub fn new(
        traceparent: impl AsRef<str>,
        tracestate: Option<&str>,
    ) -> Result<Self, TraceContextError> {
        let text = traceparent.as_ref().as_bytes();
        let (known, rest) = text.split_at_checked(PARENT_BYTES).ok_or(Malformed)?;
        let &[v1, v2, b'-', ref ids @ .., b'-', f1, f2] = known else { return Err(Malformed) };
        let (trace_id, parent_id) = ids.split_at_checked(32).ok_or(Malformed)?;
        let parent_id = parent_id.strip_prefix(b"-").ok_or(Malformed)?;
        let [version] = hex([v1, v2].as_slice()).ok_or(Malformed)?;
        // A later version may add to the end, after a hyphen.
        match (version, rest) {
            (0xff, _) => return Err(TraceContextError::Version),
            (0, []) | (1.., [] | [b'-', ..]) => {}
            (0 | 1.., _) => return Err(Malformed),
        }
        let [flags] = hex([f1, f2].as_slice()).ok_or(Malformed)?;
        let trace_id: [u8; 16] = hex(trace_id).ok_or(Malformed)?;
        let parent_id: [u8; 8] = hex(parent_id).ok_or(Malformed)?;
        let state = tracestate.and_then(state).map(Arc::from);
        Self::from_ids(trace_id, parent_id, flags)
            .map(|context| Self { state, ..context })
            .ok_or(TraceContextError::Zero)
    }

    /// Of these ids. `None` if one of them is all zero, which means that there is none.
    #[must_use]
    pub fn from_ids(trace_id: [u8; 16], parent_id: [u8; 8], flags: u8) -> Option<Self> {
        let valid = trace_id != [0; 16] && parent_id != [0; 8];
        let flags = flags & KNOWN_FLAGS;
        valid.then_some(Self { trace_id, parent_id, flags, state: None })
    }

    /// With this `tracestate`; with none if it is not valid.
    #[must_use]
    pub fn with_tracestate(self, tracestate: &str) -> Self {
        Self { state: state(tracestate).map(Arc::from), ..self }
    }

    /// The header `traceparent`, of version 00.
    #[must_use]
    pub fn traceparent(&self) -> String {
        self.to_string()
    }

    /// The header `tracestate`, if there is anything in it.
    #[must_use]
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }

    /// The trace.
    #[must_use]
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// The span of it that the next one is a child of.
    #[must_use]
    pub fn parent_id(&self) -> [u8; 8] {
        self.parent_id
    }

    /// Bit 0: whoever has published may have recorded the trace. Bit 1: the trace id
    /// is random.
    #[must_use]
    pub fn flags(&self) -> u8 {
        self.flags
    }
}

/// The `traceparent`.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.parent_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", self.flags)
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        self.state.as_deref().map_or(Ok(()), |state| write!(f, " {state}"))
    }
}

/// Lower-case hex digits as bytes.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        for digit in pair {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            *byte = *byte << 4 | value;
        }
    }
    Some(bytes)
}

/// What is carried on of a `tracestate`; `None` if it is not valid, or empty.
fn state(text: &str) -> Option<String> {
    let mut keys = Vec::new();
    let (mut kept, mut full) = (String::new(), false);
    // Entries may be empty.
    for entry in text.split(',').map(|entry| entry.trim_matches([' ', '\t'])) {
        if entry.is_empty() {
            continue;
        }
        let (key, value) = entry.split_once('=')?;
        let valid = is_key(key) && is_value(value) && !keys.contains(&key);
        if !valid || keys.len() == TraceContext::MAX_STATE_ENTRIES {
            return None;
        }
        keys.push(key);
        let comma = usize::from(!kept.is_empty());
        full |= kept.len() + comma + entry.len() > TraceContext::MAX_STATE_BYTES;
        if !full {
            kept.extend((comma > 0).then_some(','));
            kept.push_str(entry);
        }
    }
    (!kept.is_empty()).then_some(kept)
}

fn is_key(key: &str) -> bool {
    let first = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let other = |byte: &u8| first(byte) || b"_-*/@".contains(byte);
    let bytes = key.as_bytes();
    bytes.len() <= 256 && bytes.first().is_some_and(first) && bytes.iter().all(other)
}

fn is_value(value: &str) -> bool {
    let may = |byte: &u8| (b' '..=b'~').contains(byte) && !b",=".contains(byte);
    let bytes = value.as_bytes();
    (1..=256).contains(&bytes.len()) && bytes.iter().all(may) && bytes.last() != Some(&b' ')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const PARENT: &str = "b7ad6b7169203331";

    fn read(traceparent: &str) -> Result<String, TraceContextError> {
        TraceContext::new(traceparent, None).map(|context| context.traceparent())
    }

    fn carried(tracestate: &str) -> Option<String> {
        let parent = format!("00-{TRACE}-{PARENT}-01");
        let context = TraceContext::new(parent, Some(tracestate)).expect("the parent is valid");
        context.tracestate().map(str::to_owned)
    }

    #[test]
    fn a_valid_traceparent_is_carried_on() {
        for flags in ["00", "01", "02", "03"] {
            let parent = format!("00-{TRACE}-{PARENT}-{flags}");
            assert_eq!(read(&parent), Ok(parent));
        }
        // The examples of the specification.
        for parent in [
            "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        ] {
            assert_eq!(read(parent).as_deref(), Ok(parent));
        }
    }

    #[test]
    fn flags_that_nobody_knows_are_cleared() {
        assert_eq!(read(&format!("00-{TRACE}-{PARENT}-ff")), Ok(format!("00-{TRACE}-{PARENT}-03")));
        assert_eq!(read(&format!("00-{TRACE}-{PARENT}-fc")), Ok(format!("00-{TRACE}-{PARENT}-00")));
    }

    /// The cases of the specification's own test suite.
    #[test]
    fn what_is_no_traceparent_is_refused() {
        let short = &TRACE[1..];
        for malformed in [
            String::new(),
            "foo".to_owned(),
            format!("00-{TRACE}-{PARENT}"),
            format!("00-{TRACE}-{PARENT}-"),
            format!("00-{TRACE}-{PARENT}-1"),
            format!("00-{TRACE}-{PARENT}-001"),
            format!("00-{TRACE}-{PARENT}-.0"),
            format!("00-{TRACE}-{PARENT}-0."),
            format!("00-{TRACE}-{PARENT}-01."),
            format!("00-{TRACE}-{PARENT}-01-"),
            format!("00-{TRACE}-{PARENT}-01-what-the-future-holds"),
            format!("0-{TRACE}-{PARENT}-01"),
            format!("000-{TRACE}-{PARENT}-01"),
            format!(".0-{TRACE}-{PARENT}-01"),
            format!("0.-{TRACE}-{PARENT}-01"),
            format!("00-{short}-{PARENT}-01"),
            format!("00-{short}-0{PARENT}-01"),
            format!("00-{TRACE}0-{PARENT}-01"),
            format!("00-.{short}-{PARENT}-01"),
            format!("00-{TRACE}-.{}-01", &PARENT[1..]),
            format!("00-{TRACE}-{}-01", &PARENT[1..]),
            format!("00-{TRACE}-{PARENT}0-01"),
            format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{}-01", PARENT.to_uppercase()),
            format!("00-{TRACE}-{PARENT}-0A"),
            format!("0A-{TRACE}-{PARENT}-01"),
            format!(" 00-{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}-01 "),
            format!("00_{TRACE}-{PARENT}-01"),
            format!("00-{TRACE}_{PARENT}-01"),
            format!("00-{TRACE}-{PARENT}_01"),
            format!("cc-{TRACE}-{PARENT}-01.what-the-future-will-not-be-like"),
            format!("00-{TRACE}-{}ä-01", &PARENT[2..]),
        ] {
            assert_eq!(read(&malformed), Err(Malformed), "{malformed:?}");
        }
        let version = format!("ff-{TRACE}-{PARENT}-01");
        assert_eq!(read(&version), Err(TraceContextError::Version));
        for zero in [format!("00-{:032}-{PARENT}-01", 0), format!("00-{TRACE}-{:016}-01", 0)] {
            assert_eq!(read(&zero), Err(TraceContextError::Zero), "{zero:?}");
        }
    }

    #[test]
    fn a_later_version_is_carried_on_as_the_one_that_is_known() {
        let known = format!("00-{TRACE}-{PARENT}-01");
        for later in [
            format!("01-{TRACE}-{PARENT}-01"),
            format!("cc-{TRACE}-{PARENT}-01"),
            format!("cc-{TRACE}-{PARENT}-01-"),
            format!("cc-{TRACE}-{PARENT}-01-what-the-future-holds"),
            format!("fe-{TRACE}-{PARENT}-f1"),
        ] {
            assert_eq!(read(&later).as_ref(), Ok(&known), "{later:?}");
        }
    }

    #[test]
    fn a_valid_tracestate_is_carried_on() {
        let longest = format!("{}={}", "k".repeat(256), "v".repeat(256));
        for valid in [
            "foo=1",
            "foo=1,bar=2",
            "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
            "a-tenant@vendor_/*=a value: with {all} sorts [of] things;~",
            "0digit=1",
            &longest,
        ] {
            assert_eq!(carried(valid).as_deref(), Some(valid));
        }
        let most: Vec<_> = (0..32).map(|n| format!("k{n}=1")).collect();
        assert_eq!(carried(&most.join(",")), Some(most.join(",")));
        assert_eq!(carried(" foo=1 \t,, ,\tbar=2,").as_deref(), Some("foo=1,bar=2"));
        assert_eq!(carried("foo= 1").as_deref(), Some("foo= 1"), "a value may begin so");
    }

    #[test]
    fn what_is_no_tracestate_counts_as_none() {
        let too_many: Vec<_> = (0..33).map(|n| format!("k{n}=1")).collect();
        for invalid in [
            "",
            ",",
            "foo",
            "foo=",
            "=1",
            "foo=1,foo=2",
            "foo =1",
            "Foo=1",
            "_foo=1",
            "@foo=1",
            "foo.bar=1",
            "foo=a=b",
            "foo=\u{7f}",
            "foo=ä",
            "foo=a\nb",
            "foo=1;bar=2,bar",
            &format!("{}=1", "k".repeat(257)),
            &format!("k={}", "v".repeat(257)),
            &too_many.join(","),
        ] {
            assert_eq!(carried(invalid), None, "{invalid:?}");
        }
    }

    #[test]
    fn a_long_tracestate_loses_whole_entries_at_its_end() {
        let entry = |n| format!("k{n:02}={}", "v".repeat(200));
        let mut long: Vec<_> = (0..31).map(entry).collect();
        long.push("short=1".to_owned());
        let kept = carried(&long.join(",")).expect("some of it");
        assert!((512..=TraceContext::MAX_STATE_BYTES).contains(&kept.len()));
        assert!(kept.split(',').eq(long.iter().take(9)), "{kept}");
    }

    proptest! {
        #[test]
        fn what_was_read_is_read_again(parent in "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", state in ".{0,600}") {
            if let Ok(context) = TraceContext::new(&parent, Some(&state)) {
                let again = TraceContext::new(context.traceparent(), context.tracestate());
                prop_assert_eq!(again, Ok(context));
            }
        }

        #[test]
        fn anything_may_come(parent in ".{0,80}", state in "\\PC{0,80}") {
            drop(TraceContext::new(parent, Some(&state)));
        }
    }
}
