//! Which RabbitMQ it is: what the broker says of itself before anybody has
//! logged in. The client library keeps that to itself, so it is asked once
//! more, when a namespace is set up.

use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use lapin::runtime::default_runtime;
use lapin::uri::AMQPUri;

use super::tls::Tls;

/// The first words of an AMQP 0-9-1 client.
const HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
/// A broker's first frame has some 500 bytes; more than this is none.
const LONGEST_GREETING: usize = 16 * 1024;
/// A broker greets at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// The version of the broker at `url`; `None` if it does not say.
pub(super) async fn version(url: &str, tls: &Tls) -> Option<String> {
    let ask = async {
        let uri: AMQPUri = url.parse().ok()?;
        let mut stream = tls.dial(&uri, &default_runtime().ok()?).await.ok()?;
        stream.write_all(HEADER).await.ok()?;
        stream.flush().await.ok()?;
        let mut greeting = Vec::new();
        let mut chunk = [0; 1024];
        while greeting.len() < LONGEST_GREETING {
            let read = stream.read(&mut chunk).await.ok().filter(|read| *read > 0)?;
            greeting.extend_from_slice(&chunk[..read]);
            if let Some(version) = version_in(&greeting) {
                return Some(version);
            }
        }
        None
    };
    tokio::time::timeout(PATIENCE, ask).await.ok().flatten()
}

/// Finds the server property `version`, a long string (type `S`: four bytes of
/// length, then the text).
fn version_in(greeting: &[u8]) -> Option<String> {
    const KEY: &[u8] = b"\x07versionS";
    let at = greeting.windows(KEY.len()).position(|window| window == KEY)? + KEY.len();
    let (length, rest) = greeting[at..].split_first_chunk()?;
    let text = rest.get(..u32::from_be_bytes(*length) as usize)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// Whether keylane works with it; what cannot be read is given the benefit of
/// the doubt.
pub(super) fn is_supported(version: &str) -> bool {
    version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_none_or(|m| m >= 4)
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz {
    use super::{is_supported, version_in};

    /// A broker's first bytes.
    pub fn greeting(bytes: &[u8]) {
        let Some(version) = version_in(bytes) else { return };
        let _ = is_supported(&version);
        let more = [bytes, b"\x07versionS\0\0\0\x011"].concat();
        assert_eq!(version_in(&more), Some(version), "what comes later changes nothing");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_once_it_is_complete() {
        let greeting = b"\x01\x00\x00....\x07productS\x00\x00\x00\x08RabbitMQ\x07versionS\x00\x00\x00\x054.3.6...";
        assert_eq!(version_in(greeting).as_deref(), Some("4.3.6"));
        assert_eq!(version_in(&greeting[..greeting.len() - 4]), None);
    }

    #[test]
    fn four_is_the_least() {
        assert!(is_supported("4.0.5") && is_supported("10.0") && is_supported("unknown"));
        assert!(!is_supported("3.13.7"));
    }
}
