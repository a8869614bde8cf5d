//! What the demo needs and removes again: a broker, a repository, a directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::Demo;
use super::fleet::{Fleet, FleetCommand};
use super::queues::Queues;
use super::run::Run;
use super::show::Show;
use super::source::Source;
use super::summary::{Goal, Judgement, Summary};
use crate::cli::Broker;
use crate::cli::progress::grouped;
use crate::cli::scratch::Scratch;
use crate::demo::verify::files;
use crate::demo::{Report, Repository, Store, VerifyError, verify};
use crate::provision::{Choice, RunningBroker, ensure_broker};
use crate::{Connect, Namespace};

/// How long removing the namespace may take: it takes a second, and a broker that
/// is gone is not waited for.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(15);

/// Everything that the demo made before its first worker.
pub(super) struct Scene {
    source: Source,
    queues: Queues,
    namespace: Namespace,
    connect: Connect,
    /// `None` if a broker was given; then the namespace is removed from it.
    started: Option<RunningBroker>,
    /// Dropped last: what was killed above may still write to it.
    scratch: Scratch,
}

impl Scene {
    pub(super) async fn set(demo: &Demo, broker: &Broker) -> anyhow::Result<Self> {
        if let Some(keep) = &demo.keep {
            check_empty(keep)?;
        }
        let scratch = Scratch::new("demo").context("cannot make a directory for the demo")?;
        let (repo, generated) = (demo.repo.clone(), scratch.path().join("generated.git"));
        let limit = demo.limit;
        let source = spawn_blocking(move || {
            let mut source = Source::choose(repo, &generated)?;
            if let Some(limit) = limit {
                source.repository = source.repository.oldest(limit)?;
            }
            anyhow::Ok(source)
        });
        let source = source.await??;
        let (connect, started) = match &broker.amqp_url {
            Some(_) => (broker.connect()?, None),
            None => {
                let progress = |line: &str| eprintln!("keylane: {line}");
                let broker = ensure_broker(Choice::Auto, progress).await;
                let broker = broker.context("the demo needs a broker (--amqp-url)")?;
                (Connect::new(broker.amqp_url())?, Some(broker))
            }
        };
        let id = uuid::Uuid::now_v7().simple().to_string();
        // The last digits are random. What is removed in the end must be nobody else's, so
        // a namespace that was chosen only begins the name.
        let purpose = format!("demo-{}", &id[id.len() - 8..]);
        let namespace = match &broker.namespace {
            usual if *usual == Namespace::default() => Namespace::new(purpose)?,
            chosen => Namespace::new(format!("{chosen}-{purpose}"))?,
        };
        let connect = connect.with_namespace(namespace.clone());
        let queues = Queues::new(connect.clone().with_name("keylane demo"), demo.naive);
        Ok(Self { source, queues, namespace, connect, started, scratch })
    }

    /// Runs the demo. Dropping the future kills the workers.
    pub(super) async fn play(&mut self, demo: &Demo) -> anyhow::Result<Summary> {
        let repository = self.source.repository.clone();
        let counted = spawn_blocking(move || {
            anyhow::Ok((repository.commits()?, repository.count()?, files(&repository)?))
        });
        let (commits, tasks, files) = counted.await??;
        let mut show = Show::new(tasks);
        show.line(&format!(
            "{} tasks from {} commits; setting up queues",
            grouped(tasks),
            grouped(commits)
        ));
        self.queues.declare().await?;
        let store = self.scratch.path().join("store");
        let (words, said) = mpsc::unbounded_channel();
        let fleet = Fleet::new(self.command(demo, &store), words);
        let run = Run { queues: &self.queues, fleet, show: &mut show, said, tasks };
        let done = run.play(demo.workers.into(), self.source.repository.clone()).await?;
        let obituaries = match done.dead_letters {
            0 => Vec::new(),
            _ => self.queues.obituaries().await?,
        };
        let (repository, out) = (self.source.repository.clone(), self.out_dir(demo));
        let judged = spawn_blocking(move || judge(&repository, store, &out, files)).await??;
        let goal = Goal {
            name: self.source.name.clone(),
            head: self.source.repository.head().clone(),
            commits,
            tasks,
            naive: demo.naive,
        };
        Ok(Summary::new(goal, done, judged, obituaries))
    }

    fn command(&self, demo: &Demo, store: &Path) -> FleetCommand {
        let repository = &self.source.repository;
        let mut arguments = vec!["demo-worker".into(), "--namespace".into()];
        arguments.push(self.namespace.as_str().into());
        arguments.extend(["--repo".into(), repository.git_dir().into()]);
        arguments.extend(["--head".into(), repository.head().as_str().into()]);
        arguments.extend(["--store".into(), store.into()]);
        arguments.extend(demo.naive.then(|| "--naive".into()));
        FleetCommand { arguments, connect: self.connect.clone() }
    }

    fn out_dir(&self, demo: &Demo) -> PathBuf {
        demo.keep.clone().unwrap_or_else(|| self.scratch.path().join("out"))
    }

    /// Removes everything.
    ///
    /// # Errors
    /// When something may be left on the broker.
    pub(super) async fn remove(self) -> anyhow::Result<()> {
        if let Some(broker) = self.started {
            return Ok(broker.stop().await?);
        }
        let left = || format!("the queues of namespace {} may be left", self.namespace.as_str());
        let removal = tokio::time::timeout(REMOVAL_TIMEOUT, self.queues.remove()).await;
        removal.with_context(left)?.with_context(left)
    }
}

/// Reads what the workers recorded, and compares what they wrote with the commit.
fn judge(
    repository: &Repository,
    store: PathBuf,
    out: &Path,
    files: u64,
) -> anyhow::Result<Judgement> {
    let store = Store::open(store)?;
    let verified = match verify(repository, &store, out) {
        Ok(verified) => Ok(verified),
        Err(VerifyError::Different(differences)) => Err(differences),
        Err(error) => return Err(error.into()),
    };
    let report = Report::read(&store).context("cannot read what the workers recorded")?;
    let corruptions = store.corruptions(usize::MAX).context("cannot read the corruptions")?;
    Ok(Judgement { report, verified, files, corruptions })
}

/// Before anything else is done.
fn check_empty(directory: &Path) -> anyhow::Result<()> {
    match std::fs::read_dir(directory).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => bail!("`{}` is not empty", directory.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot use `{}`", directory.display())),
    }
}
