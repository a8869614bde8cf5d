//! A broker for integration tests, in two lines: RabbitMQ in a container, a
//! fresh namespace for each test, and faults on request.
//!
//! ```no_run
//! # async fn test() -> Result<(), keylane::testing::BrokerError> {
//! let broker = keylane::testing::Broker::shared().await?;
//! let (url, namespace) = (broker.amqp_url(), broker.namespace());
//! # Ok(())
//! # }
//! ```
//!
//! Without a Docker whose engine answers, starting a broker is an error: a test
//! that skips itself promises what it does not keep. The engine has to be that
//! of this machine, for the ports are published on 127.0.0.1.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use testcontainers::bollard::models::PortBinding;
use testcontainers::core::WaitFor;
use testcontainers::runners::AsyncRunner;
use testcontainers::{GenericImage, ImageExt, TestcontainersError};
use tokio::process::Command;
use tokio::sync::OnceCell;

pub use crate::provision::{ProvisionError, Version};
use crate::provision::{READY_TIMEOUT, Reaper, amqp_url, docker, free_port, image};
use crate::provision::{unique_name, wait_for_amqp};

/// How long Docker may take to carry out a fault: it takes a second, and up to
/// thirty more where it waits for the broker to stop by itself.
const FAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// How often another port is tried when one that was free has been taken in the
/// meantime. Twice in a row is rare already, with 12,000 to choose from.
const PORT_ATTEMPTS: usize = 5;

/// Why a broker for tests cannot be had, or does not do as told.
///
/// A failing test shows its error by `Debug`, so that is the message, with its
/// sources, for people.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// Docker or the image is missing.
    #[error("there is no broker for this test")]
    Provision(#[from] ProvisionError),
    /// The container did not start, or not within 120 s.
    #[error("the container {container} of {image} did not start")]
    Container {
        /// Its name.
        container: String,
        /// Its image.
        image: String,
        /// What testcontainers said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Docker did not carry out a command.
    #[error("`docker {command}` failed: {reason}")]
    Docker {
        /// The command.
        command: String,
        /// What Docker said.
        reason: String,
    },
    /// The broker did not serve again after a restart.
    #[error("the broker in {container} does not serve")]
    NotServing {
        /// Its name.
        container: String,
        /// The last failure to speak AMQP to it.
        #[source]
        source: io::Error,
    },
}

impl fmt::Debug for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut source = self.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// A RabbitMQ of our own, in a container with the label `keylane=test`.
///
/// It is removed, with its data, when this value is dropped, which blocks for
/// about a second, or when the test process is gone, however it ended. The
/// helpers for faults work on the container from outside, so tests that use them
/// want a broker that is not [shared](Broker::shared).
///
/// # Cancel safety
/// A fault whose future is dropped may be carried out or not.
#[derive(Debug)]
pub struct Broker {
    container: String,
    port: u16,
    tls_port: u16,
    management_port: u16,
    version: Version,
    /// Held for its drop.
    _reaper: Reaper,
}

impl Broker {
    /// Starts RabbitMQ 4.3. See [`Broker::start_version`].
    ///
    /// # Errors
    /// As [`Broker::start_version`].
    ///
    /// # Cancel safety
    /// Dropping the future removes the container.
    pub async fn start() -> Result<Self, BrokerError> {
        Self::start_version(Version::default()).await
    }

    /// Starts RabbitMQ of this version and waits, for up to 120 s, until it
    /// serves; 5 s are usual. An image that is not there yet is pulled or made
    /// first (see [`image::ensure`]), which may take a minute and is told on
    /// standard error.
    ///
    /// # Errors
    /// [`BrokerError::Provision`] without Docker or the image, otherwise
    /// [`BrokerError::Container`].
    ///
    /// # Cancel safety
    /// Dropping the future removes the container.
    pub async fn start_version(version: Version) -> Result<Self, BrokerError> {
        docker::check().await?;
        image::ensure(version, |line| eprintln!("keylane: {line}")).await?;
        let mut attempt = 1;
        loop {
            let ports = [free_port()?, free_port()?, free_port()?];
            match Self::start_on(ports, version).await {
                Err(error) if attempt < PORT_ATTEMPTS && port_was_taken(&error) => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    /// One RabbitMQ 4.3 for all the tests of this process: the first call starts
    /// it, and the end of the process removes it. Give each test a
    /// [namespace](Broker::namespace) of its own.
    ///
    /// # Errors
    /// As [`Broker::start_version`]. The next call tries again.
    ///
    /// # Cancel safety
    /// Dropping the future of the first call removes the container, and the next
    /// call starts one.
    pub async fn shared() -> Result<&'static Self, BrokerError> {
        // A static is never dropped: it is the reaper that removes this broker.
        static SHARED: OnceCell<Broker> = OnceCell::const_new();
        SHARED.get_or_try_init(Self::start).await
    }

    async fn start_on(ports: [u16; 3], version: Version) -> Result<Self, BrokerError> {
        let [port, tls_port, management_port] = ports;
        let container = unique_name("keylane-test");
        let reaper = docker::reaper(&container)?;
        // The ports are chosen here, not by Docker, which would choose others at
        // each restart.
        let bindings = ["5672/tcp", "5671/tcp", "15672/tcp"].into_iter().zip(ports);
        let bindings = bindings.map(|(inside, outside)| {
            let host_ip = Some("127.0.0.1".to_owned());
            let outside = PortBinding { host_ip, host_port: Some(outside.to_string()) };
            (inside.to_owned(), Some(vec![outside]))
        });
        let bindings: HashMap<_, _> = bindings.collect();
        let image = GenericImage::new("rabbitmq", &version.tag())
            .with_wait_for(WaitFor::message_on_stdout(docker::READY_LINE))
            .with_container_name(&container)
            .with_label("keylane", "test")
            .with_startup_timeout(READY_TIMEOUT)
            .with_host_config_modifier(move |host| {
                host.port_bindings = Some(bindings.clone());
                host.publish_all_ports = Some(false);
            });
        let started = image.start().await.map_err(|error: TestcontainersError| {
            let (container, image) = (container.clone(), format!("rabbitmq:{}", version.tag()));
            BrokerError::Container { container, image, source: error.into() }
        })?;
        let broker = Self { container, port, tls_port, management_port, version, _reaper: reaper };
        // Its drop needs the runtime of this test; a shared broker outlives that.
        // The reaper removes the container instead.
        std::mem::forget(started);
        broker.wait_until_serving().await?;
        Ok(broker)
    }

    /// The URL to connect to. It stays the same over restarts.
    #[must_use]
    pub fn amqp_url(&self) -> String {
        amqp_url(self.port)
    }

    /// Where its port 5671 is on 127.0.0.1. Nothing listens there before a test has
    /// configured it: with [`Broker::exec`], and a [restart](Broker::restart).
    #[must_use]
    pub fn tls_port(&self) -> u16 {
        self.tls_port
    }

    /// The URL of its management interface, for the same user. It stays the same over restarts.
    #[must_use]
    pub fn management_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.management_port)
    }

    /// Which RabbitMQ it is.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The name of its container, for Docker commands that this type lacks.
    #[must_use]
    pub fn container(&self) -> &str {
        &self.container
    }

    /// A namespace that nobody else has, such as `test-6f0c1e5d2ab4`.
    #[must_use]
    pub fn namespace(&self) -> String {
        // The first digits are the time, the last ones are random.
        let id = uuid::Uuid::now_v7().simple().to_string();
        format!("test-{}", &id[id.len() - 12..])
    }

    /// Stops the broker as an operator would, starts it again and waits, for up to 120 s, until it serves.
    /// What is durable is kept, connections are not. Also brings a
    /// [killed](Broker::kill) broker back.
    ///
    /// # Errors
    /// [`BrokerError::Docker`] or [`BrokerError::NotServing`].
    pub async fn restart(&self) -> Result<(), BrokerError> {
        self.docker("restart", &["--time", "30"]).await?;
        self.wait_until_serving().await
    }

    /// Kills the broker with SIGKILL: for its clients, a machine that crashed.
    /// [`Broker::restart`] brings it back with what it had on disk.
    ///
    /// # Errors
    /// [`BrokerError::Docker`], when it is not running for example.
    pub async fn kill(&self) -> Result<(), BrokerError> {
        self.docker("kill", &[]).await
    }

    /// Freezes the broker: its connections stay open and nothing answers.
    ///
    /// # Errors
    /// [`BrokerError::Docker`], when it is paused already for example.
    pub async fn pause(&self) -> Result<(), BrokerError> {
        self.docker("pause", &[]).await
    }

    /// Lets a paused broker go on.
    ///
    /// # Errors
    /// [`BrokerError::Docker`], when it is not paused for example.
    pub async fn unpause(&self) -> Result<(), BrokerError> {
        self.docker("unpause", &[]).await
    }

    /// Runs a command in the container, such as
    /// `["rabbitmqctl", "close_all_connections", "test"]`, and gives its exit
    /// status and what it printed. A command that fails is not an error here.
    ///
    /// # Errors
    /// [`BrokerError::Docker`] when `docker` cannot be run or takes over 60 s.
    pub async fn exec<I, S>(&self, command: I) -> Result<Output, BrokerError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<str>,
    {
        let mut arguments = vec!["exec".to_owned(), self.container.clone()];
        arguments.extend(command.into_iter().map(|word| word.as_ref().to_owned()));
        run(&arguments).await
    }

    async fn docker(&self, verb: &str, options: &[&str]) -> Result<(), BrokerError> {
        let words = [&[verb], options, &[self.container.as_str()]].concat();
        let arguments: Vec<String> = words.into_iter().map(str::to_owned).collect();
        let output = run(&arguments).await?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(BrokerError::Docker { command: arguments.join(" "), reason })
    }

    async fn wait_until_serving(&self) -> Result<(), BrokerError> {
        wait_for_amqp(self.port, READY_TIMEOUT).await.map_err(|source| {
            let container = self.container.clone();
            BrokerError::NotServing { container, source }
        })
    }
}

async fn run(arguments: &[String]) -> Result<Output, BrokerError> {
    let mut docker = Command::new("docker");
    docker.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let failed = |reason| BrokerError::Docker { command: arguments.join(" "), reason };
    match tokio::time::timeout(FAULT_TIMEOUT, docker.output()).await {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no end within {} s", FAULT_TIMEOUT.as_secs()))),
    }
}

/// Docker has no code for it, only these words.
fn port_was_taken(error: &BrokerError) -> bool {
    let BrokerError::Container { source, .. } = error else { return false };
    let said = source.to_string();
    said.contains("port is already allocated") || said.contains("address already in use")
}
