//! A handler that posts every task to a URL.

use std::error::Error;
use std::fmt::{self, Write};
use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use rustls::crypto::{CryptoProvider, ring};
use tokio::time::timeout;
use url::Host;

use super::{Attempt, Failure, Handler, fencing};
use crate::protocol::fence::FencingToken;
use crate::protocol::retry::RetryPolicy;
use crate::protocol::trace_context::TraceContext;

#[cfg(test)]
mod tests;

/// A peer in the same network answers a SYN in milliseconds; ten seconds
/// outlast a few lost ones. Without it a dead host costs two minutes a try.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection is used again once its answer has been read. Reading more than
/// this costs more than a new connection.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// The verdict is the status; this long we wait for the rest of the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// The header of an answer that is kept as the task's result.
const RESULT: &str = "keylane-result";
/// What is shown of an answer: enough to recognise it in a log line.
const SHOWN_CHARS: usize = 200;
/// What a payload is if the task does not say, or says what no header can hold.
const DEFAULT_CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Posts every task to a URL, with the payload as the body.
///
/// | header | holds | |
/// |---|---|---|
/// | `content-type` | MIME type of the payload | `application/octet-stream` if none |
/// | `keylane-task-id` | the task's id, encoded | |
/// | `keylane-resource` | the resource key, encoded | |
/// | `keylane-kind` | the kind, encoded | missing if none |
/// | `keylane-partition` | number of the partition | |
/// | `keylane-attempt` | number of the attempt, from 1 | |
/// | `keylane-redelivered` | `1` if the task may have been executed before, else `0` | |
/// | `keylane-fencing-token` | the fencing token, a whole number | missing with `--no-fencing` |
/// | `traceparent`, `tracestate` | W3C trace context | missing if none |
///
/// *Encoded*: `%` and every byte that is not visible ASCII stands as `%` and two
/// hex digits. Decoding percent escapes always yields the original.
///
/// | answer | the task |
/// |---|---|
/// | 2xx | is Executed; a header `keylane-result` (visible ASCII, at most 1 KiB) is its [result](Attempt::set_result) |
/// | 408, 409, 425, 429, 5xx | is to be retried, after `retry-after` (seconds or a date, at most a day) if given: [`Failure::Retry`] |
/// | other 4xx | can never be executed: [`Failure::Dead`] |
/// | 3xx | failed: [`Failure::Failed`]. Redirects are not followed: the URL is wrong, not the task |
/// | none, since no connection came about | waits: [`Failure::Unavailable`] |
/// | none (connection lost, time-out) | failed: [`Failure::Failed`] |
///
/// The status and the first 200 characters of the answer are the reason. It
/// shows neither user, password nor query of the URL. At most 64 KiB of an
/// answer are read, for at most a second after its status.
///
/// Connections are kept and used again. To connect may take 10 s; from then on
/// only the task's own time limit counts. The usual proxy variables of the
/// environment (`HTTP_PROXY` …) are honoured, but for this machine itself (`localhost`,
/// `127.0.0.1`, `[::1]`), which no proxy can reach. A user and password in the URL are
/// sent as basic authentication.
///
/// # Cancel safety
/// Dropping the future closes the connection (over HTTP/2: resets the stream).
/// The peer may have begun, and may not notice: it should be idempotent.
#[derive(Clone)]
pub struct Http {
    client: Client,
    url: Url,
}

/// Why a URL cannot be posted to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// It is no URL.
    #[error("not a URL")]
    Parse(#[from] url::ParseError),
    /// It is a URL, but not of the web.
    #[error("a URL to post to begins with http:// or https://")]
    Scheme,
    /// The client cannot be set up, for want of root certificates mostly.
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

impl Http {
    /// A handler that posts to this URL (`http` or `https`).
    ///
    /// Makes ring the process's default provider of rustls unless one is
    /// installed.
    ///
    /// # Errors
    /// [`HttpError`] when this is no such URL, or when the client cannot be set
    /// up. None shows the URL.
    pub fn new(url: impl AsRef<str>) -> Result<Self, HttpError> {
        let url = Url::parse(url.as_ref())?;
        let builder = match url.scheme() {
            // There is no certificate to check, so a machine without any will do.
            "http" => Client::builder().tls_certs_only([]),
            "https" => Client::builder(),
            _ => return Err(HttpError::Scheme),
        };
        if CryptoProvider::get_default().is_none() {
            // An error gives back ours: another thread was faster, which is fine.
            drop(ring::default_provider().install_default());
        }
        let client = if is_loopback(&url) { builder.no_proxy() } else { builder }
            .user_agent(concat!("keylane/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(HttpError::Client)?;
        Ok(Self { client, url })
    }
}

impl Http {
    /// Tells whether a connection comes about, by a HEAD of the URL. Any answer will do.
    ///
    /// # Errors
    /// The reason, without what may be secret in the URL.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn reachable(&self) -> Result<(), String> {
        match self.client.head(self.url.clone()).timeout(CONNECT_TIMEOUT).send().await {
            Err(error) if error.is_connect() => {
                Err(format!("{}: {}", shown(&self.url), chain(&error.without_url())))
            }
            // It is there, whatever it makes of a HEAD.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

/// Whether a URL is one of this machine: there, a proxy would find another machine.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("url", &shown(&self.url)).finish_non_exhaustive()
    }
}

impl Handler for Http {
    async fn handle(&self, attempt: Attempt) -> Result<(), Failure> {
        let headers = headers(&attempt, fencing::token(&attempt).await?);
        let request = self.client.post(self.url.clone()).headers(headers);
        let payload = attempt.task.payload.clone();
        let response = request.body(payload).send().await.map_err(|error| {
            let no_connection = error.is_connect();
            let reason = format!("POST {}: {}", shown(&self.url), chain(&error.without_url()));
            match no_connection {
                true => Failure::unavailable(reason),
                false => Failure::failed(reason),
            }
        })?;
        let status = response.status();
        let after = retry_after(response.headers(), SystemTime::now());
        let result = response.headers().get(RESULT).and_then(|value| value.to_str().ok());
        attempt.set_result(result.map(str::to_owned));
        let answer = read(response).await;
        verdict(status, after, &answer)
    }
}

fn verdict(status: StatusCode, after: Option<Duration>, answer: &[u8]) -> Result<(), Failure> {
    let text = String::from_utf8_lossy(answer);
    let text: String = text.trim().chars().take(SHOWN_CHARS).collect();
    let mut reason = format!("HTTP {}", status.as_u16());
    if !text.is_empty() {
        reason = format!("{reason}: {text}");
    }
    match status.as_u16() {
        200..=299 => Ok(()),
        408 | 409 | 425 | 429 | 500..=599 => Err(Failure::retry(after, reason)),
        400..=499 => Err(Failure::dead(reason)),
        _ => Err(Failure::failed(reason)),
    }
}

fn headers(attempt: &Attempt, token: Option<FencingToken>) -> HeaderMap {
    let task = &attempt.task;
    let content_type = task.content_type.as_ref();
    let content_type = content_type.and_then(|value| HeaderValue::from_str(value).ok());
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, content_type.unwrap_or(DEFAULT_CONTENT_TYPE));
    let trace = attempt.trace_context();
    let facts = [
        ("keylane-task-id", Some(encode(attempt.id.as_str()))),
        ("keylane-resource", Some(encode(task.resource.as_str()))),
        ("keylane-kind", task.kind.as_deref().map(encode)),
        ("keylane-partition", Some(attempt.partition.to_string())),
        ("keylane-attempt", Some(attempt.number.to_string())),
        ("keylane-redelivered", Some(u8::from(attempt.redelivered).to_string())),
        ("keylane-fencing-token", token.map(|token| token.to_string())),
        ("traceparent", trace.map(TraceContext::traceparent)),
        ("tracestate", trace.and_then(TraceContext::tracestate).map(str::to_owned)),
    ];
    for (name, value) in facts {
        // All of them fit into a header.
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    headers
}

fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_graphic() && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            write!(encoded, "%{byte:02X}").unwrap_or_default();
        }
        encoded
    })
}

fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let after = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        // A date that has passed means now.
        Err(_) => {
            httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or(Duration::ZERO)
        }
    };
    Some(after.min(RetryPolicy::MAX_AFTER))
}

/// The beginning of an answer. Read to its end if that is near, so that the
/// connection can be used again.
async fn read(mut response: Response) -> Vec<u8> {
    let mut answer = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            answer.extend_from_slice(&chunk);
            if answer.len() >= MAX_ANSWER_BYTES {
                break;
            }
        }
    };
    // Half an answer is better than none, and the status is known.
    timeout(ANSWER_TIMEOUT, read).await.unwrap_or_default();
    answer
}

/// The URL without what may be secret in it.
fn shown(url: &Url) -> String {
    let mut shown = url[..url::Position::AfterPath].to_owned();
    if !url.username().is_empty() || url.password().is_some() {
        let host = &url[url::Position::BeforeHost..url::Position::AfterPath];
        shown = format!("{}://***@{host}", url.scheme());
    }
    if url.query().is_some() {
        shown.push_str("?***");
    }
    shown
}

/// An error and its causes, in one line.
fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
