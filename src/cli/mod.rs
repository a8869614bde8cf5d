//! The command line: one file a subcommand.
//!
//! Exit codes: 0 done; 1 failed; 2 wrong usage; 3 done, but lines of the input
//! were skipped; 130 interrupted.

#[macro_use]
mod output;

mod abort;
mod bench;
mod cancel;
mod config;
mod dashboard;
mod dead;
mod demo;
mod drain;
mod history;
mod init;
pub(crate) mod lines;
mod logging;
mod management;
mod manual;
mod metrics;
mod operator;
#[cfg(feature = "otlp")]
mod otlp;
mod pause;
mod policies;
mod process_one;
mod progress;
mod publish;
mod rejects;
mod route;
mod running;
mod scratch;
mod signals;
mod since;
mod soak;
mod status;
mod top;
mod verify;
mod watch;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use self::logging::Logging;
use crate::protocol::text::Printable;
use crate::provision::{Choice, RunningBroker, ensure_broker};
use crate::{Connect, Error, Namespace};

/// Distributes tasks over RabbitMQ: at most one worker on a resource at any
/// time, in publish order, without a lock per task.
#[derive(Debug, Parser)]
#[command(name = "keylane", version, max_term_width = 100)]
struct Args {
    #[command(flatten)]
    broker: Broker,
    #[command(flatten)]
    logging: Logging,
    /// The file of settings (TOML), see `keylane config`
    #[arg(
        long,
        global = true,
        env = "KEYLANE_CONFIG",
        value_name = "FILE",
        help_heading = "Global options"
    )]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

/// Where the broker is.
#[derive(Debug, clap::Args)]
struct Broker {
    /// Address of the broker, or of several nodes separated by commas:
    /// `amqp://user:password@host:5672/vhost`, `amqps://` for TLS
    #[arg(
        long,
        global = true,
        env = "KEYLANE_AMQP_URL",
        hide_env_values = true,
        value_name = "URL",
        help_heading = "Global options"
    )]
    amqp_url: Option<String>,
    /// With `amqps://`: certificate of the CA to trust (PEM), instead of the CAs
    /// that this machine trusts
    #[arg(
        long,
        global = true,
        env = "KEYLANE_TLS_CA",
        value_name = "FILE",
        help_heading = "Global options"
    )]
    tls_ca: Option<PathBuf>,
    /// With `amqps://`: our own certificate (PEM), for brokers that ask for one
    #[arg(
        long,
        global = true,
        env = "KEYLANE_TLS_CERT",
        value_name = "FILE",
        help_heading = "Global options"
    )]
    tls_cert: Option<PathBuf>,
    /// Key of that certificate (PEM, not encrypted)
    #[arg(
        long,
        global = true,
        env = "KEYLANE_TLS_KEY",
        value_name = "FILE",
        help_heading = "Global options"
    )]
    tls_key: Option<PathBuf>,
    /// Prefix of all names on the broker
    #[arg(
        long,
        global = true,
        env = "KEYLANE_NAMESPACE",
        value_name = "NAME",
        default_value = "keylane",
        help_heading = "Global options"
    )]
    namespace: Namespace,
}

impl Broker {
    /// Where it is unless somebody says otherwise.
    const DEFAULT_URL: &str = "amqp://guest:guest@127.0.0.1:5672/%2f";

    /// Makes sure of a broker: the one that was given, or one of our own that
    /// ends with the guard. `purpose` names the namespace, unless one was chosen.
    async fn ensure(&self, purpose: &str) -> anyhow::Result<(Connect, Option<RunningBroker>)> {
        let (url, running) = match &self.amqp_url {
            Some(url) => (url.clone(), None),
            None => {
                let say = |line: &str| eprintln!("keylane: {line}");
                let running = ensure_broker(Choice::Auto, say).await?;
                (running.amqp_url().to_owned(), Some(running))
            }
        };
        let namespace = if self.namespace == Namespace::default() {
            Namespace::new(format!("{}-{purpose}", self.namespace))?
        } else {
            self.namespace.clone()
        };
        let connect = match &running {
            Some(_) => Connect::new(url)?,
            None => self.encrypted(Connect::new(url)?)?,
        };
        Ok((connect.with_namespace(namespace), running))
    }

    fn connect(&self) -> Result<Connect, Error> {
        let url = self.amqp_url.as_deref().unwrap_or(Self::DEFAULT_URL);
        Ok(self.encrypted(Connect::new(url)?)?.with_namespace(self.namespace.clone()))
    }

    /// With the certificates that were given.
    fn encrypted(&self, mut connect: Connect) -> Result<Connect, Error> {
        if let Some(ca) = &self.tls_ca {
            connect = connect.with_tls_ca(ca)?;
        }
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => connect.with_tls_identity(certificate, key),
            _ => Ok(connect),
        }
    }
}

/// Has a process of ours use the same broker: in its environment, which other
/// users are not shown, and whatever stands in our own.
fn hand_over(connect: &Connect, command: &mut tokio::process::Command) {
    let identity = connect.tls_identity();
    command.env("KEYLANE_AMQP_URL", connect.urls());
    for (name, file) in [
        ("KEYLANE_TLS_CA", connect.tls_ca()),
        ("KEYLANE_TLS_CERT", identity.map(|(certificate, _)| certificate)),
        ("KEYLANE_TLS_KEY", identity.map(|(_, key)| key)),
    ] {
        match file {
            Some(file) => command.env(name, file),
            None => command.env_remove(name),
        };
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Init),
    Publish(publish::Publish),
    Route(route::Route),
    Work(Box<work::Work>),
    Status(status::Status),
    Watch(watch::Watch),
    Pause(pause::Pause),
    Resume(pause::Resume),
    Cancel(cancel::Cancel),
    Abort(abort::Abort),
    Running(running::RunningNow),
    Drain(drain::Drain),
    Top(top::Top),
    Dashboard(dashboard::DashboardArgs),
    Task(history::Task),
    History(history::History),
    Verify(verify::Verify),
    Dead(dead::Dead),
    Demo(demo::Demo),
    #[command(hide = true)]
    DemoWorker(demo::DemoWorker),
    Bench(bench::Bench),
    Config(config::Config),
    Completions(manual::Completions),
    Man(manual::Man),
    #[command(hide = true)]
    BenchWorker(bench::BenchWorker),
    Soak(soak::Soak),
    #[command(hide = true)]
    SoakWorker(soak::SoakWorker),
}

/// Runs the command line; the process ends with this code.
#[must_use]
pub fn main() -> ExitCode {
    if process_one::is_it() {
        return process_one::run().unwrap_or_else(|error| failed(&error));
    }
    let args = config::parse();
    // `requires` does not see a global option on the other side of the subcommand.
    if args.broker.tls_cert.is_some() != args.broker.tls_key.is_some() {
        let reason = "--tls-cert and --tls-key belong together: give both";
        Args::command().error(ErrorKind::MissingRequiredArgument, reason).exit();
    }
    let serves = matches!(args.command, Command::Route(_) | Command::Work(_));
    // The client library reports every lost connection itself; we say it better.
    args.logging.init(if serves { "info,lapin=off" } else { "warn,lapin=off" });
    #[cfg(feature = "otlp")]
    let spans = match (serves || matches!(args.command, Command::Publish(_)))
        .then(otlp::Exporter::init)
        .transpose()
    {
        Ok(spans) => spans.flatten(),
        Err(error) => return failed(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&anyhow::Error::from(error).context("cannot start")),
    };
    let code = match runtime.block_on(args.command.run(&args.broker, args.config)) {
        Ok(code) => output::ended(code),
        Err(error) => failed(&error),
    };
    // Ends every task at once, and with it every child process; a read of
    // standard input that still blocks is not waited for.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    #[cfg(feature = "otlp")]
    if let Some(spans) = spans {
        spans.close();
    }
    code
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("keylane: {}", Printable(&format!("{error:#}")));
    ExitCode::FAILURE
}

impl Command {
    async fn run(self, broker: &Broker, file: Option<PathBuf>) -> anyhow::Result<ExitCode> {
        match self {
            Self::Init(init) => init.run(broker).await,
            Self::Publish(publish) => publish.run(broker).await,
            Self::Route(route) => route.run(broker).await,
            Self::Work(work) => work.run(broker).await,
            Self::Status(status) => status.run(broker).await,
            Self::Watch(watch) => watch.run(broker).await,
            Self::Pause(pause) => pause.run(broker).await,
            Self::Resume(resume) => resume.run(broker).await,
            Self::Cancel(cancel) => cancel.run(broker).await,
            Self::Abort(abort) => abort.run(broker).await,
            Self::Running(running) => running.run(broker).await,
            Self::Drain(drain) => drain.run(broker).await,
            Self::Top(top) => top.run(broker).await,
            Self::Dashboard(dashboard) => dashboard.run(broker).await,
            Self::Task(task) => task.run(broker).await,
            Self::History(history) => history.run(broker).await,
            Self::Verify(verify) => verify.run(broker).await,
            Self::Dead(dead) => dead.run(broker).await,
            Self::Demo(demo) => demo.run(broker).await,
            Self::DemoWorker(worker) => worker.run(broker).await,
            Self::Bench(bench) => bench.run(broker).await,
            Self::Config(config) => config.run(file),
            Self::Completions(completions) => completions.run(),
            Self::Man(man) => man.run(),
            Self::BenchWorker(worker) => worker.run(broker).await,
            Self::Soak(soak) => soak.run().await,
            Self::SoakWorker(worker) => worker.run(broker).await,
        }
    }
}
