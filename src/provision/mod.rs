//! A throw-away broker for `keylane demo`, `keylane bench` and tests: in Docker,
//! or from a RabbitMQ that is installed.
//!
//! Whatever is started here ends with its owner, however the owner ends: see
//! [`RunningBroker`].

pub mod cluster;
mod command;
pub mod docker;
pub mod image;
pub mod local;
mod reaper;

use std::fmt;
use std::io;
use std::process::Child;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

pub(crate) use reaper::Reaper;

/// How long a broker may take until it serves: 4 s on two idle cores, so this
/// is a machine that is thirty times as busy.
pub(crate) const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// Pause between two looks at a broker that is not ready yet: short beside the
/// seconds that a start takes, long beside the cost of a look.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A version of RabbitMQ that can be provided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Version {
    /// RabbitMQ 4.3, what keylane is made for. The default.
    #[default]
    V4_3,
    /// RabbitMQ 4.0, the oldest that keylane works with.
    V4_0,
    /// RabbitMQ 3.10: too old for keylane, there to test that it says so.
    V3_10,
}

impl Version {
    /// Its number, such as `4.3`.
    #[must_use]
    pub const fn number(self) -> &'static str {
        match self {
            Self::V4_3 => "4.3",
            Self::V4_0 => "4.0",
            Self::V3_10 => "3.10",
        }
    }

    /// The tag of its image within the repository `rabbitmq`, such as
    /// `4.3-management`.
    #[must_use]
    pub fn tag(self) -> String {
        format!("{}-management", self.number())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.number())
    }
}

/// Where [`ensure_broker`] takes its broker from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Choice {
    /// Docker if it works, else the installed RabbitMQ. The default.
    #[default]
    Auto,
    /// Docker, or an error.
    Docker,
    /// The installed RabbitMQ, or an error.
    Local,
}

/// Why there is no broker. Every message says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProvisionError {
    /// A program could not be run at all.
    #[error("cannot run `{program}`: install {package}, or see that it is on the PATH")]
    Missing {
        /// The program.
        program: String,
        /// What it is a part of.
        package: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("`{command}` failed: {output}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// The last lines that it printed.
        output: String,
    },
    /// A program did not end in time, and was stopped.
    #[error("`{command}` did not answer within {} s", timeout.as_secs())]
    TimedOut {
        /// The program and its arguments.
        command: String,
        /// The time it had.
        timeout: Duration,
    },
    /// The image is not there, and no way to get it worked.
    #[error(
        "no image {image}. Pulling it: {pull}. Making it from Debian's packages: {build}. \
         Let this machine reach an image registry, or run scripts/broker-image.sh {version} \
         as root on a Debian, or use a broker that runs already"
    )]
    NoImage {
        /// The image.
        image: String,
        /// The version that it holds.
        version: Version,
        /// Why it could not be pulled.
        pull: Box<ProvisionError>,
        /// Why it could not be made.
        build: Box<ProvisionError>,
    },
    /// The broker was started, and ended or was not ready in time.
    #[error("the broker ({broker}) {what}. The end of its log:\n{log}")]
    NotReady {
        /// Which broker.
        broker: String,
        /// What became of it.
        what: String,
        /// The last lines of its log.
        log: String,
    },
    /// The installed RabbitMQ is older than 4.0.
    #[error(
        "the installed RabbitMQ is {found}, keylane needs 4.0 or later: install that, or Docker"
    )]
    TooOld {
        /// Its version.
        found: String,
    },
    /// The broker could not be removed.
    #[error("the broker ({broker}) could not be removed: {reason}")]
    NotRemoved {
        /// Which broker.
        broker: String,
        /// What its clean-up said.
        reason: String,
    },
    /// Neither Docker nor an installed RabbitMQ gave a broker.
    #[error(
        "there is no broker to start. With Docker: {docker}. With an installed RabbitMQ: {local}. \
         Install Docker or RabbitMQ 4.0 or later, or use a broker that runs already"
    )]
    NoBroker {
        /// What was wrong with Docker.
        docker: Box<ProvisionError>,
        /// What was wrong with the installed RabbitMQ.
        local: Box<ProvisionError>,
    },
    /// A file, a port or a process could not be made.
    #[error("cannot {what}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
}

impl ProvisionError {
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// A broker of our own. It listens on this machine only (127.0.0.1), and its
/// user `guest` has the password `guest`.
///
/// Dropping it removes it and its data, which blocks for about a second;
/// [`RunningBroker::stop`] does the same without blocking. It is removed as
/// well when this process ends without a drop, by SIGKILL even.
#[derive(Debug)]
pub struct RunningBroker {
    description: String,
    amqp_port: u16,
    management_port: u16,
    reaper: Reaper,
    /// The process of a broker without Docker, waited for after the reaper has
    /// killed it, so that no zombie stays.
    server: Option<Child>,
}

impl RunningBroker {
    /// The URL to connect to.
    #[must_use]
    pub fn amqp_url(&self) -> String {
        amqp_url(self.amqp_port)
    }

    /// The URL of the management pages.
    #[must_use]
    pub fn management_url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.management_port)
    }

    /// What it is, such as `container keylane-… of rabbitmq:4.3-management`.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The container that it runs in, if it does.
    #[cfg(feature = "cli")]
    pub(crate) fn container(&self) -> Option<&str> {
        self.description.strip_prefix("container ")?.split(' ').next()
    }

    /// Removes it and its data, and tells whether that worked.
    ///
    /// # Errors
    /// [`ProvisionError::NotRemoved`] when something may be left.
    ///
    /// # Cancel safety
    /// The removal goes on when the future is dropped.
    pub async fn stop(mut self) -> Result<(), ProvisionError> {
        let broker = self.description.clone();
        let removal = tokio::task::spawn_blocking(move || self.remove());
        let outcome = match removal.await {
            Ok(outcome) => outcome,
            Err(error) => Err(io::Error::other(error)),
        };
        outcome.map_err(|error| ProvisionError::NotRemoved { broker, reason: error.to_string() })
    }

    fn remove(&mut self) -> io::Result<()> {
        let removed = self.reaper.reap();
        if let Some(mut server) = self.server.take() {
            // Dead by now, unless the reaper failed: never wait for a living one.
            server.kill()?;
            server.wait()?;
        }
        removed
    }
}

impl Drop for RunningBroker {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(broker = self.description, %error, "the broker may not be removed");
        }
    }
}

/// Starts a broker, from Docker or from the installed RabbitMQ, and waits until
/// it serves: 5 to 10 seconds, a minute more when the image has to be made.
/// `progress` gets a line about each step that takes long.
///
/// # Errors
/// A [`ProvisionError`] that names all that was tried, and what to install.
///
/// # Cancel safety
/// Dropping the future removes whatever was started.
pub async fn ensure_broker(
    choice: Choice,
    progress: impl Fn(&str),
) -> Result<RunningBroker, ProvisionError> {
    match choice {
        Choice::Docker => with_docker(&progress).await,
        Choice::Local => local::start().await,
        Choice::Auto => match with_docker(&progress).await {
            Ok(broker) => Ok(broker),
            Err(docker) => match local::start().await {
                Ok(broker) => {
                    progress(&format!("using the installed RabbitMQ, without Docker: {docker}"));
                    Ok(broker)
                }
                Err(local) => Err(ProvisionError::NoBroker {
                    docker: Box::new(docker),
                    local: Box::new(local),
                }),
            },
        },
    }
}

async fn with_docker(progress: &impl Fn(&str)) -> Result<RunningBroker, ProvisionError> {
    docker::check().await?;
    let image = image::ensure(Version::default(), progress).await?;
    progress(&format!("starting a broker from {image}"));
    docker::start(&image).await
}

pub(crate) fn amqp_url(port: u16) -> String {
    format!("amqp://guest:guest@127.0.0.1:{port}/%2f")
}

/// A name that no other container, node or directory has.
pub(crate) fn unique_name(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::now_v7().simple())
}

/// A port that nothing listens on. Outside of the range that outgoing
/// connections take theirs from (32768 and up on Linux): otherwise a client that
/// retries while its broker restarts could take the broker's port, or even be
/// connected to itself.
pub(crate) fn free_port() -> Result<u16, ProvisionError> {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 12_000;
    let mut outcome = Err(io::Error::from(io::ErrorKind::AddrInUse));
    for _ in 0..100 {
        let random = uuid::Uuid::now_v7().as_u128() % u128::from(COUNT);
        let port = FIRST + u16::try_from(random).unwrap_or_default();
        outcome = std::net::TcpListener::bind(("127.0.0.1", port)).map(|_| port);
        if outcome.is_ok() {
            break;
        }
    }
    outcome.map_err(ProvisionError::io("find a free port"))
}

/// Waits until something on this port of 127.0.0.1 answers in AMQP. A listening
/// socket does not say enough: Docker's proxy listens before the broker does.
pub(crate) async fn wait_for_amqp(port: u16, timeout: Duration) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    while Instant::now() < deadline {
        match tokio::time::timeout_at(deadline, speaks_amqp(port)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => last = error,
            Err(_) => break,
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Err(last)
}

async fn speaks_amqp(port: u16) -> io::Result<()> {
    const METHOD_FRAME: u8 = 1;
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
    socket.write_all(b"AMQP\x00\x00\x09\x01").await?;
    match socket.read_u8().await? {
        METHOD_FRAME => Ok(()),
        other => Err(io::Error::other(format!("not AMQP 0-9-1: answered with byte {other}"))),
    }
}
