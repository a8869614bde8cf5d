//! The broker's image: there already, pulled, or made from Debian's packages.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;
use tokio::time::{Instant, timeout_at};

use super::command::{Followed, shown};
use super::docker::{PACKAGE, docker};
use super::{ProvisionError, Version};

/// The script, so that an installed binary has it too.
const SCRIPT: &str = include_str!("../../scripts/broker-image.sh");

/// How long a pull may take: 100 MB at 1 MB/s. Slower than that, making the
/// image is as good.
const PULL_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a registry may take to say a first word. Docker itself waits far
/// longer for one that drops packets.
const PULL_ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the script may take: it needs a minute, and may have to wait for
/// that of another process before.
const BUILD_TIMEOUT: Duration = Duration::from_secs(600);

/// Makes sure that the image of this version is there, and gives its name, such
/// as `rabbitmq:4.3-management`. An image that is there is used as it is;
/// otherwise it is pulled (within 120 s, and a registry has to answer within
/// 20 s), otherwise made from Debian's packages (about a minute, within 600 s).
/// `progress` gets a line about each step.
///
/// # Errors
/// [`ProvisionError::NoImage`] with the reasons of both ways;
/// [`ProvisionError::Missing`] without Docker, and the other errors of a Docker
/// whose engine does not answer.
///
/// # Cancel safety
/// Dropping the future stops the pull or the making of the image. Neither
/// leaves a part of an image; the next call starts over.
pub async fn ensure(version: Version, progress: impl Fn(&str)) -> Result<String, ProvisionError> {
    let image = format!("rabbitmq:{}", version.tag());
    if exists(&image).await? {
        return Ok(image);
    }
    let pull = match pull(&image, &progress).await {
        Ok(()) => return Ok(image),
        Err(error) => error,
    };
    progress(&format!("{image} cannot be pulled, making it from Debian's packages"));
    match build(version, &image, &progress).await {
        Ok(()) => Ok(image),
        Err(build) => {
            let (pull, build) = (Box::new(pull), Box::new(build));
            Err(ProvisionError::NoImage { image, version, pull, build })
        }
    }
}

async fn exists(image: &str) -> Result<bool, ProvisionError> {
    let ids =
        docker(&["image", "ls", "--quiet", "--filter", &format!("reference={image}")]).await?;
    Ok(!ids.is_empty())
}

async fn pull(image: &str, progress: &impl Fn(&str)) -> Result<(), ProvisionError> {
    progress(&format!("pulling {image}"));
    let mut command = Command::new("docker");
    command.args(["pull", image]).kill_on_drop(true);
    let shown = shown(&command);
    let mut pulling = Followed::spawn(command, PACKAGE)?;
    let late = |timeout| ProvisionError::TimedOut { command: shown.clone(), timeout };

    let deadline = Instant::now() + PULL_TIMEOUT;
    let answer_by = Instant::now() + PULL_ANSWER_TIMEOUT;
    let first = timeout_at(answer_by, pulling.next_line()).await;
    let mut line = first.map_err(|_| late(PULL_ANSWER_TIMEOUT))?;
    while line.is_some() {
        let next = timeout_at(deadline, pulling.next_line()).await;
        line = next.map_err(|_| late(PULL_TIMEOUT))?;
    }
    outcome(&mut pulling, &shown).await
}

/// Runs the script with `sh -c`: on its standard input, apt would read it.
async fn build(
    version: Version,
    image: &str,
    progress: &impl Fn(&str),
) -> Result<(), ProvisionError> {
    const NAME: &str = "broker-image.sh";
    const OWN_LINE: &str = "broker-image: ";
    let shown = format!("{NAME} {version} {image}");
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, NAME, version.number(), image]).process_group(0);
    let mut making = Followed::spawn(command, "a POSIX shell")?;
    let mut group = Group::of(&making);

    let deadline = Instant::now() + BUILD_TIMEOUT;
    loop {
        match timeout_at(deadline, making.next_line()).await {
            Ok(Some(line)) => {
                if let Some(own) = line.strip_prefix(OWN_LINE) {
                    progress(own);
                }
            }
            Ok(None) => {
                let outcome = outcome(&mut making, &shown).await;
                group.0 = None;
                return outcome;
            }
            Err(_) => {
                return Err(ProvisionError::TimedOut { command: shown, timeout: BUILD_TIMEOUT });
            }
        }
    }
}

async fn outcome(ended: &mut Followed, shown: &str) -> Result<(), ProvisionError> {
    let status = ended.wait().await.map_err(ProvisionError::io("wait for a process"))?;
    if status.success() {
        Ok(())
    } else {
        let command = shown.to_owned();
        Err(ProvisionError::Failed { command, output: ended.tail() })
    }
}

/// Ends a script together with all that it runs, unless it has ended (`None`). By
/// SIGTERM, so that it can remove its files.
struct Group(Option<Pid>);

impl Group {
    fn of(script: &Followed) -> Self {
        let id = script.child.id().and_then(|id| i32::try_from(id).ok());
        Self(id.and_then(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It fails when the group has ended by itself, which is as well.
            kill_process_group(group, Signal::TERM).ok();
        }
    }
}
