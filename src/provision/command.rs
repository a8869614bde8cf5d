//! Running the programs that provide a broker.

use std::collections::VecDeque;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};

use super::ProvisionError;

/// As many of the last lines go into an error as a screen shows at a glance,
/// and as hold the reason in what RabbitMQ, apt and Docker print.
const TAIL_LINES: usize = 20;

/// A command as a user would type it.
pub(super) fn shown(command: &Command) -> String {
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Runs a command to its end and gives what it printed to standard output,
/// trimmed. Dropping the future kills it.
pub(super) async fn output(
    mut command: Command,
    package: &'static str,
    timeout: Duration,
) -> Result<String, ProvisionError> {
    let shown = shown(&command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(timeout, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(source)) => return Err(missing(&command, package, source)),
        Err(_) => return Err(ProvisionError::TimedOut { command: shown, timeout }),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        let said = text(&output.stderr);
        let output = if said.is_empty() { output.status.to_string() } else { said };
        Err(ProvisionError::Failed { command: shown, output })
    }
}

pub(super) fn missing(
    command: &Command,
    package: &'static str,
    source: io::Error,
) -> ProvisionError {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    ProvisionError::Missing { program, package, source }
}

/// The last lines of a text.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// A running command whose lines are read as it prints them, standard output
/// and standard error alike.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) child: Child,
    lines: Lines<BufReader<Receiver>>,
    tail: VecDeque<String>,
}

impl Followed {
    /// Takes the command by value: it holds the writing end of the pipe, whose
    /// end would not come while it lives.
    pub(super) fn spawn(
        mut command: Command,
        package: &'static str,
    ) -> Result<Self, ProvisionError> {
        let pipe = || {
            let (reader, writer) = io::pipe()?;
            let receiver = Receiver::from_owned_fd(reader.into())?;
            io::Result::Ok((receiver, writer.try_clone()?, writer))
        };
        let (receiver, stdout, stderr) = pipe().map_err(ProvisionError::io("make a pipe"))?;
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let child = command.spawn().map_err(|source| missing(&command, package, source))?;
        Ok(Self { child, lines: BufReader::new(receiver).lines(), tail: VecDeque::new() })
    }

    /// The next line, `None` at the end. Cancel safe: no line is lost.
    pub(super) async fn next_line(&mut self) -> Option<String> {
        // A line that is not UTF-8 ends the reading: none of these programs prints one.
        let line = self.lines.next_line().await.ok().flatten()?;
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line.clone());
        Some(line)
    }

    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// The last lines that were read.
    pub(super) fn tail(&self) -> String {
        self.tail.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}
