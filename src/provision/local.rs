//! A broker without Docker: the installed `rabbitmq-server`, as a process of
//! its own in a directory of its own.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use super::docker::READY_LINE;
use super::{
    POLL_INTERVAL, ProvisionError, READY_TIMEOUT, Reaper, RunningBroker, command, free_port,
    unique_name, wait_for_amqp,
};

/// What to install when there is no `rabbitmq-server`.
const PACKAGE: &str = "RabbitMQ 4.0 or later";

/// The oldest major version that keylane works with.
const OLDEST_MAJOR: u32 = 4;

/// How long `rabbitmqctl version` may take: a second, of which most is the start
/// of Erlang; far longer on a busy machine.
const VERSION_TIMEOUT: Duration = Duration::from_secs(30);

/// Kills the process group `$told`, ends the port mapper on port `$1`, which left
/// the group when Erlang started it, and removes the directory `$2`. The port
/// mapper refuses to end while it knows a living node, hence the second try.
const REMOVE: &str = r#"
case $told in
  ''|*[!0-9]*) ;;
  *) kill -s KILL -- "-$told" ;; # dash knows no `kill -KILL --`
esac
mapper=$(command -v epmd) ||
  mapper=$(erl -noshell -eval 'io:put_chars(code:root_dir()), halt().')/bin/epmd
export ERL_EPMD_PORT="$1"
tries=0
while "$mapper" -names && [ "$tries" -lt 50 ]; do
  "$mapper" -kill || sleep 0.1
  tries=$((tries + 1))
done
rm -rf -- "$2"
[ ! -e "$2" ] && ! "$mapper" -names
"#;

/// Starts the `rabbitmq-server` that is on the PATH and waits, for up to 120 s,
/// until it serves. It listens on free ports of 127.0.0.1 and keeps all its files
/// in a temporary directory; it neither sees nor disturbs another RabbitMQ or
/// Erlang of this machine.
///
/// # Errors
/// [`ProvisionError::Missing`] when none is installed,
/// [`ProvisionError::TooOld`] when it is older than 4.0, and
/// [`ProvisionError::NotReady`] with the end of its log when it ends or takes too
/// long.
///
/// # Cancel safety
/// Dropping the future ends the server and removes its files, which blocks for
/// about a second.
pub async fn start() -> Result<RunningBroker, ProvisionError> {
    let script = find("rabbitmq-server")?;
    let home = Home::create()?;
    let reaper = Reaper::new(REMOVE, &[&home.epmd_port.to_string(), &home.path("")]);
    let reaper = reaper.map_err(ProvisionError::io("start the broker's reaper"))?;
    let found = version(&home).await?;
    let description = format!("RabbitMQ {found} of {}", script.display());

    let mut broker = RunningBroker {
        description,
        amqp_port: home.amqp_port,
        management_port: home.management_port,
        reaper,
        server: None,
    };
    let server = home.server(&script)?;
    broker
        .reaper
        .tell(&server.id().to_string())
        .map_err(ProvisionError::io("tell the reaper about the broker"))?;
    let server = broker.server.insert(server);
    if let Err(what) = home.wait_until_ready(server).await {
        let broker = broker.description.clone();
        return Err(ProvisionError::NotReady { broker, what, log: home.log_tail() });
    }
    Ok(broker)
}

/// The version of the installed RabbitMQ, such as `4.3.6`.
async fn version(home: &Home) -> Result<String, ProvisionError> {
    let mut rabbitmqctl = home.command(&find("rabbitmqctl")?);
    rabbitmqctl.arg("version");
    let printed = command::output(rabbitmqctl.into(), PACKAGE, VERSION_TIMEOUT).await?;
    // Warnings come first.
    let found = printed.lines().last().unwrap_or_default().trim().to_owned();
    let major = found.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major >= OLDEST_MAJOR) {
        Ok(found)
    } else {
        Err(ProvisionError::TooOld { found })
    }
}

/// Finds a script of RabbitMQ. What a package puts on the PATH may be a wrapper
/// that changes the user and with it the directory; the script itself then lies
/// beside the file that the wrapper's links lead to.
fn find(script: &str) -> Result<PathBuf, ProvisionError> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    // Where packages put it, and where the PATH of a user may not lead.
    let more = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let on_path = std::env::split_paths(&paths)
        .chain(more)
        .map(|directory| directory.join(script))
        .find(|file| file.is_file());
    let Some(on_path) = on_path else {
        let source = io::Error::from(io::ErrorKind::NotFound);
        return Err(ProvisionError::Missing {
            program: script.to_owned(),
            package: PACKAGE,
            source,
        });
    };
    let real = fs::canonicalize(&on_path).map_err(ProvisionError::io("follow a link"))?;
    let beside = real.with_file_name(script);
    Ok(if beside.is_file() { beside } else { on_path })
}

/// The directory and the ports of one server.
struct Home {
    directory: PathBuf,
    amqp_port: u16,
    management_port: u16,
    distribution_port: u16,
    epmd_port: u16,
}

impl Home {
    /// Makes the directory, for our user only: the Erlang cookie will be in it.
    fn create() -> Result<Self, ProvisionError> {
        let home = Self {
            directory: std::env::temp_dir().join(unique_name("keylane-broker")),
            amqp_port: free_port()?,
            management_port: free_port()?,
            distribution_port: free_port()?,
            epmd_port: free_port()?,
        };
        let Self { amqp_port, management_port, .. } = home;
        let configuration = format!(
            "listeners.tcp.local = 127.0.0.1:{amqp_port}\n\
             management.tcp.ip = 127.0.0.1\n\
             management.tcp.port = {management_port}\n\
             log.console = true\n\
             log.file = false\n"
        );
        let write = || {
            DirBuilder::new().mode(0o700).create(&home.directory)?;
            fs::write(home.directory.join("rabbitmq.conf"), configuration)?;
            fs::write(home.directory.join("enabled_plugins"), "[rabbitmq_management].\n")?;
            fs::write(home.directory.join("environment"), "")
        };
        write().map_err(ProvisionError::io("write the broker's directory"))?;
        Ok(home)
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_string_lossy().into_owned()
    }

    /// A command of RabbitMQ that reads none of the machine's settings.
    fn command(&self, script: &Path) -> Command {
        let mut command = Command::new(script);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("RABBITMQ_") || text.starts_with("ERL_") {
                command.env_remove(&name);
            }
        }
        command
            .current_dir(&self.directory)
            .env("HOME", &self.directory)
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("RABBITMQ_NODENAME", format!("keylane-{}@localhost", std::process::id()))
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("RABBITMQ_NODE_PORT", self.amqp_port.to_string())
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1}",
            )
            .env("RABBITMQ_LOGS", "-");
        for (variable, name) in [
            ("RABBITMQ_CONF_ENV_FILE", "environment"),
            ("RABBITMQ_CONFIG_FILE", "rabbitmq.conf"),
            ("RABBITMQ_CONFIG_FILES", "conf.d/*.conf"),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", "advanced.config"),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", "enabled_plugins"),
            ("RABBITMQ_MNESIA_BASE", "data"),
            ("RABBITMQ_LOG_BASE", "log"),
            ("RABBITMQ_PID_FILE", "pid"),
        ] {
            command.env(variable, self.directory.join(name));
        }
        command
    }

    /// Runs the server in a process group of its own, so that Ctrl-C is left to
    /// us and all of it can be killed at once.
    fn server(&self, script: &Path) -> Result<Child, ProvisionError> {
        let mut command = self.command(script);
        let log = || {
            let log = File::create(self.path(LOG))?;
            io::Result::Ok((log.try_clone()?, log))
        };
        let (stdout, stderr) = log().map_err(ProvisionError::io("write the broker's log"))?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).process_group(0);
        command.spawn().map_err(|source| {
            let program = script.to_string_lossy().into_owned();
            ProvisionError::Missing { program, package: PACKAGE, source }
        })
    }

    /// # Errors
    /// What became of the server instead.
    async fn wait_until_ready(&self, server: &mut Child) -> Result<(), String> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while !self.log().contains(READY_LINE) {
            if let Some(status) = server.try_wait().map_err(|error| error.to_string())? {
                return Err(format!("ended while starting, {status}"));
            }
            if Instant::now() >= deadline {
                return Err(format!("was not ready within {} s", READY_TIMEOUT.as_secs()));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        wait_for_amqp(self.amqp_port, READY_TIMEOUT)
            .await
            .map_err(|error| format!("does not speak AMQP: {error}"))
    }

    /// Empty when it cannot be read: then the reason shows elsewhere.
    fn log(&self) -> String {
        let bytes = fs::read(self.path(LOG)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn log_tail(&self) -> String {
        command::tail(&self.log())
    }
}

/// The file that the server's output goes to. A pipe would fill up.
const LOG: &str = "output.log";
