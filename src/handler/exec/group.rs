//! A child process that takes its whole process group along.

use std::io;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

/// A child that leads a process group of its own. Dropped before the child was
/// awaited to its end, it kills the group at once and reaps the child.
#[derive(Debug)]
pub(in crate::handler) struct Group {
    /// `None` only while it is being dropped.
    child: Option<Child>,
}

impl Group {
    /// Starts the command as the leader of a new group.
    pub(in crate::handler) fn spawn(command: &mut Command) -> io::Result<Self> {
        Ok(Self { child: Some(command.process_group(0).spawn()?) })
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
        let Some(mut child) = self.child.take() else { return };
        // An awaited child has no id any more: its number may be another's.
        let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) else { return };
        if let Err(error) = kill_process_group(pid, Signal::KILL) {
            tracing::warn!(%pid, %error, "cannot kill the process group of a handler");
        }
        // Without a runtime the worker is ending, and init reaps the child.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { child.wait().await });
        }
    }
}
