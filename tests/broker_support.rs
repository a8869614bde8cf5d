//! The broker that tests get: it starts, it fails on request, and it is gone
//! afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use keylane::testing::{Broker, Version};

/// Makes this test binary start a shared broker and wait to be killed.
const CHILD_VARIABLE: &str = "KEYLANE_TEST_BROKER_CHILD";

type TestResult = Result<(), Box<dyn std::error::Error>>;

fn port(broker: &Broker) -> u16 {
    url::Url::parse(&broker.amqp_url()).unwrap().port().unwrap()
}

/// The class and method of the first frame that a broker sends.
fn handshake(port: u16, timeout: Duration) -> std::io::Result<[u8; 4]> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(timeout))?;
    socket.write_all(b"AMQP\x00\x00\x09\x01")?;
    let mut frame = [0; 11];
    socket.read_exact(&mut frame)?;
    Ok([frame[7], frame[8], frame[9], frame[10]])
}

const CONNECTION_START: [u8; 4] = [0, 10, 0, 10];
const TIMEOUT: Duration = Duration::from_secs(10);

async fn version_of(broker: &Broker) -> String {
    let output = broker.exec(["rabbitmqctl", "version"]).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn containers(name: &str) -> String {
    let filter = format!("name={name}");
    let listing = Command::new("docker").args(["ps", "-a", "-q", "--filter", &filter]).output();
    String::from_utf8(listing.unwrap().stdout).unwrap()
}

#[tokio::test]
async fn starts_4_3_and_shares_it() -> TestResult {
    let broker = Broker::shared().await?;
    assert_eq!(handshake(port(broker), TIMEOUT)?, CONNECTION_START);
    let version = version_of(broker).await;
    assert!(version.starts_with("4.3."), "{version}");
    assert_eq!(Broker::shared().await?.container(), broker.container());

    let (one, other) = (broker.namespace(), broker.namespace());
    assert_ne!(one, other);
    assert!(one.starts_with("test-") && one.len() == 17, "{one}");
    Ok(())
}

#[tokio::test]
async fn starts_4_0_and_removes_it_on_drop() -> TestResult {
    let broker = Broker::start_version(Version::V4_0).await?;
    assert_eq!(handshake(port(&broker), TIMEOUT)?, CONNECTION_START);
    let version = version_of(&broker).await;
    assert!(version.starts_with("4.0."), "{version}");

    let container = broker.container().to_owned();
    assert_ne!(containers(&container), "");
    drop(broker);
    assert_eq!(containers(&container), "");
    Ok(())
}

#[tokio::test]
async fn faults_keep_port_and_data() -> TestResult {
    let broker = Broker::start().await?;
    let url = broker.amqp_url();
    let add = broker.exec(["rabbitmqctl", "add_vhost", "kept"]).await?;
    assert!(add.status.success(), "{add:?}");

    broker.restart().await?;
    assert_eq!(broker.amqp_url(), url);
    assert_eq!(handshake(port(&broker), TIMEOUT)?, CONNECTION_START);

    broker.pause().await?;
    assert!(handshake(port(&broker), Duration::from_millis(300)).is_err());
    broker.unpause().await?;
    assert_eq!(handshake(port(&broker), TIMEOUT)?, CONNECTION_START);

    broker.kill().await?;
    assert!(handshake(port(&broker), TIMEOUT).is_err());
    let error = broker.kill().await.unwrap_err().to_string();
    assert!(error.contains("is not running"), "{error}");
    broker.restart().await?;
    assert_eq!(handshake(port(&broker), TIMEOUT)?, CONNECTION_START);

    let vhosts = broker.exec(["rabbitmqctl", "-q", "list_vhosts"]).await?;
    assert!(String::from_utf8(vhosts.stdout)?.contains("kept"));
    let failing = broker.exec(["sh", "-c", "exit 3"]).await?;
    assert_eq!(failing.status.code(), Some(3));
    Ok(())
}

/// Not a test of its own: what the next one runs in another process.
#[tokio::test]
async fn child_holds_a_shared_broker() -> TestResult {
    if std::env::var_os(CHILD_VARIABLE).is_none() {
        return Ok(());
    }
    let broker = Broker::shared().await?;
    println!("\ncontainer {}", broker.container());
    std::future::pending().await
}

#[test]
fn a_killed_test_process_leaves_no_container() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_holds_a_shared_broker", "--nocapture"])
        .env(CHILD_VARIABLE, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let container = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("container ").map(str::to_owned))
        .expect("the child ends without a broker");
    assert_ne!(containers(&container), "");
    child.kill().unwrap();
    child.wait().unwrap();

    // Nothing tells of the removal but Docker's listing.
    let deadline = Instant::now() + Duration::from_secs(180);
    while !containers(&container).is_empty() {
        assert!(Instant::now() < deadline, "{container} is left");
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn a_missing_docker_fails() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "child_holds_a_shared_broker", "--nocapture"]);
    let output = child.env(CHILD_VARIABLE, "1").env("PATH", "").output().unwrap();
    assert!(!output.status.success());
    let said = format!("{output:?}");
    assert!(said.contains("cannot run `docker`: install Docker"), "{said}");
}
