//! A broker in a container.

use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, timeout_at};

use super::command::{self, Followed};
use super::{ProvisionError, READY_TIMEOUT, Reaper, RunningBroker, unique_name, wait_for_amqp};

/// What to install when there is no `docker`.
pub(super) const PACKAGE: &str = "Docker";

/// How long Docker may take for a simple answer: it takes 50 ms, and some
/// seconds while it unpacks an image. An engine that hangs is found out in time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What RabbitMQ logs once all its listeners and plugins are up.
pub(crate) const READY_LINE: &str = "Server startup complete";

/// Removes the container `$1` with its volumes. Docker may still be making it
/// when its owner is killed, so a container that is not there is looked for once
/// more.
const REMOVE: &str = r#"
remove() { [ -n "$(docker rm --force --volumes "$1")" ]; }
remove "$1" || { sleep 2; remove "$1"; } || [ -z "$(docker ps --all --quiet --filter "name=^/$1\$")" ]
"#;

/// Checks that the `docker` command is there and that its engine answers.
///
/// # Errors
/// [`ProvisionError::Missing`], [`ProvisionError::Failed`] or
/// [`ProvisionError::TimedOut`], each with what Docker said.
///
/// # Cancel safety
/// Dropping the future ends the check.
pub async fn check() -> Result<(), ProvisionError> {
    docker(&["version", "--format", "{{.Server.Version}}"]).await.map(drop)
}

/// Starts a broker from an image and waits, for up to 120 s, until it serves.
/// Its AMQP and management ports are published on free ports of 127.0.0.1; its
/// container has the label `keylane=demo`.
///
/// # Errors
/// [`ProvisionError::NotReady`] with the end of the broker's log when it ends or
/// takes too long; otherwise what Docker said.
///
/// # Cancel safety
/// Dropping the future removes the container, which blocks for about a second.
pub async fn start(image: &str) -> Result<RunningBroker, ProvisionError> {
    let name = unique_name("keylane-demo");
    let description = format!("container {name} of {image}");
    let reaper = reaper(&name)?;
    docker(&[
        "run",
        "--detach",
        "--rm",
        "--name",
        &name,
        "--label",
        "keylane=demo",
        "--publish",
        "127.0.0.1::5672",
        "--publish",
        "127.0.0.1::15672",
        image,
    ])
    .await?;
    wait_for_log(&name, &description).await?;
    let amqp_port = published_port(&name, 5672).await?;
    let management_port = published_port(&name, 15672).await?;
    wait_for_amqp(amqp_port, READY_TIMEOUT)
        .await
        .map_err(ProvisionError::io("speak AMQP to the started broker"))?;
    Ok(RunningBroker { description, amqp_port, management_port, reaper, server: None })
}

/// Removes the container of this name when dropped, or when this process is gone.
/// To be made before the container, so that none is ever without one.
pub(crate) fn reaper(name: &str) -> Result<Reaper, ProvisionError> {
    Reaper::new(REMOVE, &[name]).map_err(ProvisionError::io("start the container's reaper"))
}

/// Runs `docker` with these arguments, and gives what it printed.
pub(crate) async fn docker(arguments: &[&str]) -> Result<String, ProvisionError> {
    let mut docker = Command::new("docker");
    docker.args(arguments);
    command::output(docker, PACKAGE, ANSWER_TIMEOUT).await
}

async fn wait_for_log(name: &str, description: &str) -> Result<(), ProvisionError> {
    let mut command = Command::new("docker");
    command.args(["logs", "--follow", name]).kill_on_drop(true);
    let mut log = Followed::spawn(command, PACKAGE)?;
    let deadline = Instant::now() + READY_TIMEOUT;
    let what = loop {
        match timeout_at(deadline, log.next_line()).await {
            Ok(Some(line)) if line.contains(READY_LINE) => return Ok(()),
            Ok(Some(_)) => {}
            Ok(None) => break "ended while starting".to_owned(),
            Err(_) => break format!("was not ready within {} s", READY_TIMEOUT.as_secs()),
        }
    };
    Err(ProvisionError::NotReady { broker: description.to_owned(), what, log: log.tail() })
}

/// The port of 127.0.0.1 that a port of the container is published on.
async fn published_port(name: &str, inner: u16) -> Result<u16, ProvisionError> {
    let arguments = ["port", name, &inner.to_string()];
    let published = docker(&arguments).await?;
    // One line a published address: `127.0.0.1:49153`.
    let port = published.lines().next().and_then(|line| line.rsplit(':').next()?.parse().ok());
    port.ok_or_else(|| ProvisionError::Failed {
        command: format!("docker {}", arguments.join(" ")),
        output: format!("no port in {published:?}"),
    })
}
