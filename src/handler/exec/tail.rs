//! The end of what a command wrote, in constant memory.

use tokio::io::{AsyncRead, AsyncReadExt};

/// A reason travels in a header of the dead letter and in a line of the log:
/// 2 KiB hold a stack trace's interesting part.
const MAX_BYTES: usize = 2048;
/// Ten lines are what one reads at a glance.
const MAX_LINES: usize = 10;
/// One read of a pipe; at most this much is held beyond [`MAX_BYTES`].
const CHUNK_BYTES: usize = 4096;

/// Keeps the last bytes of a stream.
#[derive(Debug, Default)]
pub(in crate::handler) struct Tail {
    bytes: Vec<u8>,
}

impl Tail {
    /// Reads to the end of the stream, or to an error, which ends it as well.
    ///
    /// # Cancel safety
    /// What was read is kept; call it again to go on.
    pub(super) async fn read(&mut self, stream: Option<&mut (impl AsyncRead + Unpin)>) {
        let Some(stream) = stream else { return };
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(read @ 1..) = stream.read(&mut chunk).await {
            self.push(&chunk[..read]);
        }
    }

    pub(in crate::handler) fn push(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
        let surplus = self.bytes.len().saturating_sub(MAX_BYTES);
        self.bytes.drain(..surplus);
    }

    /// The last lines, or `None` if there is nothing but white space.
    pub(in crate::handler) fn lines(&self) -> Option<String> {
        let is_continuation = |byte: &u8| byte & 0b1100_0000 == 0b1000_0000;
        // The cut may have gone through a character.
        let cut = self.bytes.iter().take_while(|byte| is_continuation(byte)).count();
        let text = String::from_utf8_lossy(&self.bytes[cut..]);
        let text = text.trim();
        let start = text.rmatch_indices('\n').nth(MAX_LINES - 1).map_or(0, |(at, _)| at + 1);
        (!text.is_empty()).then(|| text[start..].to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(chunks: &[&[u8]]) -> Option<String> {
        let mut tail = Tail::default();
        chunks.iter().for_each(|chunk| tail.push(chunk));
        tail.lines()
    }

    #[test]
    fn a_short_text_is_kept_whole() {
        assert_eq!(tail(&[b"one\n", b"two\n"]).as_deref(), Some("one\ntwo"));
        assert_eq!(tail(&[]), None);
        assert_eq!(tail(&[b" \n\n"]), None);
    }

    #[test]
    fn the_last_ten_lines_are_kept() {
        let lines: Vec<String> = (1..=11).map(|n| n.to_string()).collect();
        let expected = lines[1..].join("\n");
        assert_eq!(tail(&[lines.join("\n").as_bytes(), b"\n"]), Some(expected));
        assert_eq!(tail(&[lines[1..].join("\n").as_bytes()]), Some(lines[1..].join("\n")));
    }

    #[test]
    fn a_long_line_keeps_its_end_and_whole_characters() {
        let text = "ä".repeat(MAX_BYTES);
        let kept = tail(&[text.as_bytes(), b"!"]).expect("a text");
        assert_eq!(kept, format!("{}!", "ä".repeat(MAX_BYTES / 2 - 1)));
    }

    #[test]
    fn memory_does_not_grow_with_the_stream() {
        let mut tail = Tail::default();
        (0..1000).for_each(|_| tail.push(&[b'x'; CHUNK_BYTES]));
        assert!(tail.bytes.capacity() <= 2 * (MAX_BYTES + CHUNK_BYTES));
    }
}
