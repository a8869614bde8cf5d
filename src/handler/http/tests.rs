use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::protocol::task::{Task, TaskId};

/// Far beyond what anything here takes, far below a hanging build.
const PATIENCE: Duration = Duration::from_secs(30);

fn attempt(payload: impl Into<Bytes>) -> Attempt {
    let task = Task::new("account/7", payload).expect("a resource");
    Attempt::new(TaskId::new("t-1").expect("an id"), task)
}

/// A request as the server saw it.
#[derive(Debug)]
struct Seen {
    /// Lines in lower case up to the empty one.
    head: Vec<String>,
    body: Vec<u8>,
    /// Which connection it came over.
    connection: usize,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.iter().find(|line| line.starts_with(&format!("{name}: ")))?;
        Some(&line[name.len() + 2..])
    }
}

/// A server on loopback that gives every request the same answer.
struct Server {
    address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Seen>,
}

impl Server {
    async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = Bytes::from(answer.into());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (sender, seen) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                tokio::spawn(serve(stream, connection, answer.clone(), sender.clone()));
            }
        });
        Self { address, seen }
    }

    async fn handle(&self, attempt: Attempt) -> Result<(), Failure> {
        post(&Http::new(format!("http://{}/tasks", self.address)).expect("a handler"), attempt)
            .await
    }

    async fn seen(&mut self) -> Seen {
        timeout(PATIENCE, self.seen.recv()).await.expect("in time").expect("a request")
    }
}

async fn serve(
    stream: TcpStream,
    connection: usize,
    answer: Bytes,
    seen: mpsc::UnboundedSender<Seen>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            let 1.. = stream.read_line(&mut line).await.ok()? else { return None };
            match line.trim_end() {
                "" => break,
                line => head.push(line.to_owned()),
            }
        }
        let mut request = Seen { head, body: Vec::new(), connection };
        let length = request.header("content-length").map_or(0, |n| n.parse().expect("a length"));
        request.body.resize(length, 0);
        stream.read_exact(&mut request.body).await.ok()?;
        seen.send(request).ok()?;
        stream.write_all(&answer).await.ok()?;
    }
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

async fn post(http: &Http, attempt: Attempt) -> Result<(), Failure> {
    timeout(PATIENCE, http.handle(attempt)).await.expect("the handler hangs")
}

#[tokio::test]
async fn a_task_is_posted() {
    let mut server = Server::answering(answer("204 No Content", "", "")).await;
    let mut attempt = attempt(vec![7; 1 << 20]);
    attempt.task = attempt.task.with_kind("Über weisung").with_content_type("image/png");
    attempt.task.resource = "100% ä\n".to_owned().try_into().expect("a resource");
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    attempt.task.trace_context = TraceContext::new(parent, Some("a=1")).ok();
    attempt.number = 3;
    attempt.redelivered = true;
    let attempt = attempt.with_fencing_token(FencingToken::try_from(7).expect("a token"));
    assert_eq!(server.handle(attempt).await, Ok(()));
    let seen = server.seen().await;
    assert_eq!(seen.head[0], "POST /tasks HTTP/1.1");
    assert_eq!(seen.header("content-type"), Some("image/png"));
    assert_eq!(seen.header("keylane-task-id"), Some("t-1"));
    assert_eq!(seen.header("keylane-resource"), Some("100%25%20%C3%A4%0A"));
    assert_eq!(seen.header("keylane-kind"), Some("%C3%9Cber%20weisung"));
    assert_eq!(seen.header("keylane-partition"), Some("0"));
    assert_eq!(seen.header("keylane-attempt"), Some("3"));
    assert_eq!(seen.header("keylane-redelivered"), Some("1"));
    assert_eq!(seen.header("keylane-fencing-token"), Some("7"));
    assert_eq!(seen.header("traceparent"), Some(parent));
    assert_eq!(seen.header("tracestate"), Some("a=1"));
    assert!(seen.body == vec![7; 1 << 20]);
}

#[tokio::test]
async fn what_a_task_lacks_has_no_header() {
    let mut server = Server::answering(answer("200 OK", "", "")).await;
    let mut attempt = attempt("");
    attempt.task.content_type = Some("a\nb".to_owned());
    assert_eq!(server.handle(attempt).await, Ok(()));
    let seen = server.seen().await;
    assert_eq!(seen.header("content-type"), Some("application/octet-stream"));
    assert_eq!(seen.header("keylane-redelivered"), Some("0"));
    assert_eq!(seen.header("keylane-fencing-token"), None);
    for missing in ["keylane-kind", "traceparent", "tracestate"] {
        assert_eq!(seen.header(missing), None, "{missing}");
    }
}

#[tokio::test]
async fn the_status_decides() {
    let retry = Failure::retry;
    let cases = [
        ("201 Created", Ok(())),
        ("302 Found", Err(Failure::failed("HTTP 302: why"))),
        ("400 Bad Request", Err(Failure::dead("HTTP 400: why"))),
        ("404 Not Found", Err(Failure::dead("HTTP 404: why"))),
        ("408 Request Timeout", Err(retry(None, "HTTP 408: why"))),
        ("409 Conflict", Err(retry(None, "HTTP 409: why"))),
        ("425 Too Early", Err(retry(None, "HTTP 425: why"))),
        ("429 Too Many Requests", Err(retry(None, "HTTP 429: why"))),
        ("500 Internal Server Error", Err(retry(None, "HTTP 500: why"))),
        ("599 Other", Err(retry(None, "HTTP 599: why"))),
    ];
    for (status, expected) in cases {
        // Were the redirect followed, nobody would be there.
        let headers = "location: http://127.0.0.1:1/\r\n";
        let server = Server::answering(answer(status, headers, " why\n")).await;
        assert_eq!(server.handle(attempt("")).await, expected, "{status}");
    }
}

#[tokio::test]
async fn a_header_is_the_result() {
    for (headers, expected) in [("keylane-result: balance 12\r\n", Some("balance 12")), ("", None)]
    {
        let attempt = attempt("");
        let server = Server::answering(answer("200 OK", headers, "a page")).await;
        assert_eq!(server.handle(attempt.clone()).await, Ok(()));
        assert_eq!(attempt.result().as_str(), expected);
    }
}

#[tokio::test]
async fn the_peer_says_when_to_try_again() {
    let busy = answer("503 Busy", "retry-after: 120\r\n", &"ä".repeat(300));
    let expected =
        Failure::retry(Some(Duration::from_secs(120)), format!("HTTP 503: {}", "ä".repeat(200)));
    assert_eq!(Server::answering(busy).await.handle(attempt("")).await, Err(expected));
}

#[test]
fn retry_after_is_seconds_or_a_date() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let read = |value: &str| {
        let value = HeaderValue::from_str(value).expect("a value");
        retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]), now)
    };
    let date = |offset: i64| {
        let seconds = 1_000_000_000_u64.checked_add_signed(offset).expect("a time");
        httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    };
    assert_eq!(read("0"), Some(Duration::ZERO));
    assert_eq!(read(&date(90)), Some(Duration::from_secs(90)));
    assert_eq!(read(&date(-90)), Some(Duration::ZERO));
    assert_eq!(read("soon"), None);
    assert_eq!(read("-1"), None);
    assert_eq!(read(&u64::MAX.to_string()), Some(RetryPolicy::MAX_AFTER));
    assert_eq!(read(&date(1_000_000)), Some(RetryPolicy::MAX_AFTER));
    assert_eq!(retry_after(&HeaderMap::new(), now), None);
}

#[tokio::test]
async fn connections_are_used_again() {
    let mut server = Server::answering(answer("200 OK", "", &"x".repeat(60_000))).await;
    let http = Http::new(format!("http://{}", server.address)).expect("a handler");
    for _ in 0..3 {
        assert_eq!(post(&http, attempt("x")).await, Ok(()));
        assert_eq!(server.seen().await.connection, 0);
    }
}

#[tokio::test]
async fn an_answer_without_end_is_left() {
    let mut endless = answer("500 Oh", "", "").replace("length: 0", "length: 99999999999");
    endless.push_str(&"x".repeat(8 * MAX_ANSWER_BYTES));
    let server = Server::answering(endless).await;
    let http = Http::new(format!("http://{}", server.address)).expect("a handler");
    let response = http.client.post(http.url.clone()).send().await.expect("an answer");
    let read = timeout(PATIENCE, read(response)).await.expect("the handler hangs");
    // The last chunk is kept whole.
    assert!((MAX_ANSWER_BYTES..3 * MAX_ANSWER_BYTES).contains(&read.len()), "{}", read.len());
    let expected = Failure::retry(None, format!("HTTP 500: {}", "x".repeat(200)));
    assert_eq!(server.handle(attempt("")).await, Err(expected));
}

#[tokio::test]
async fn a_2xx_whose_body_never_comes_is_executed() {
    let silent = answer("200 OK", "", "").replace("length: 0", "length: 9");
    assert_eq!(Server::answering(silent).await.handle(attempt("")).await, Ok(()));
}

#[tokio::test]
async fn without_a_connection_nothing_was_tried_and_no_secret_is_shown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let url = format!("http://root:hunter2@{address}/tasks?token=hunter2");
    let http = Http::new(url).expect("a handler");
    assert!(http.reachable().await.is_err_and(|reason| reason.contains("refused")));
    let Err(Failure::Unavailable { reason, .. }) = post(&http, attempt("")).await else {
        panic!("not unavailable")
    };
    assert!(reason.starts_with(&format!("POST http://***@{address}/tasks?***: ")), "{reason}");
    assert!(reason.contains("refused"), "the cause is named: {reason}");
    assert!(!reason.contains("hunter2") && !reason.contains("root"), "{reason}");
}

#[tokio::test]
async fn a_user_in_the_url_is_sent() {
    let mut server = Server::answering(answer("200 OK", "", "")).await;
    let http = Http::new(format!("http://root:hunter2@{}", server.address)).expect("a handler");
    assert_eq!(post(&http, attempt("")).await, Ok(()));
    assert_eq!(server.seen().await.header("authorization"), Some("Basic cm9vdDpodW50ZXIy"));
}

#[tokio::test]
async fn a_connection_cut_before_the_answer_failed() {
    let Server { address, seen } = Server::answering("").await;
    // With nobody to tell, the server hangs up once it has read the request.
    drop(seen);
    let http = Http::new(format!("http://{address}")).expect("a handler");
    let Err(Failure::Failed { reason }) = post(&http, attempt("")).await else {
        panic!("not failed")
    };
    assert!(reason.starts_with(&format!("POST http://{address}/: ")), "{reason}");
}

#[test]
fn a_url_that_cannot_be_posted_to_is_refused() {
    let refused = |url: &str| chain(&Http::new(url).expect_err("must be refused"));
    let scheme = "a URL to post to begins with http:// or https://";
    assert_eq!(refused("root:hunter2@host"), scheme);
    assert_eq!(refused("amqp://root:hunter2@host"), scheme);
    assert_eq!(refused("http://root:hunter2@host:port/"), "not a URL: invalid port number");
    assert!(Http::new("https://root:hunter2@host/").is_ok());
}

#[test]
fn debug_output_shows_no_secret() {
    let http = Http::new("http://root:hunter2@host/?token=hunter2").expect("a handler");
    assert!(!format!("{http:?}").contains("hunter2"), "{http:?}");
}

#[test]
fn no_proxy_is_asked_for_this_machine() {
    for (url, is_near) in [
        ("http://localhost/", true),
        ("http://LOCALHOST.:80/", true),
        ("http://tasks.localhost/", true),
        ("http://127.0.0.1:8080/", true),
        ("http://127.1/", true),
        ("http://[::1]/", true),
        ("http://[::ffff:127.0.0.1]/", true),
        ("http://localhost.example.com/", false),
        ("http://10.0.0.1/", false),
        ("http://0.0.0.0/", false),
    ] {
        assert_eq!(is_loopback(&Url::parse(url).expect("a URL")), is_near, "{url}");
    }
}
