//! A child process that takes its whole process group along.

use std::io;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

use super::guardian;

/// A child that leads a process group of its own. Dropped before the child was
/// awaited to its end, it kills the group at once and reaps the child. If this
/// process is killed, the group is killed as well.
#[derive(Debug)]
pub(in crate::handler) struct Group {
    /// `None` only while it is being dropped.
    child: Option<Child>,
    id: Option<Pid>,
}

impl Group {
    /// Starts the command as the leader of a new group.
    pub(in crate::handler) fn spawn(command: &mut Command) -> io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        let id = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        id.into_iter().for_each(guardian::watch);
        Ok(Self { child: Some(child), id })
    }

    /// The leader.
    pub(in crate::handler) fn child(&mut self) -> &mut Child {
        match &mut self.child {
            Some(child) => child,
            None => unreachable!("only drop takes the child"),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let (Some(mut child), Some(pid)) = (self.child.take(), self.id) else { return };
        // An awaited child has no id any more: its number may be another's.
        if child.id().is_none() {
            guardian::forget(pid);
            return;
        }
        if let Err(error) = kill_process_group(pid, Signal::KILL) {
            tracing::warn!(%pid, %error, "cannot kill the process group of a handler");
        }
        guardian::forget(pid);
        // Without a runtime the worker is ending, and init reaps the child.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { child.wait().await });
        }
    }
}
