//! A process that outlives this one by a moment, and takes the process groups of its handlers along.
//!
//! A worker that is killed drops nothing, so its children would go on beside those of the next
//! owner. The guardian is a small shell that reads from us which groups there are. When its input
//! ends, this process is gone, whatever ended it; then it kills what is left.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::process::Pid;

/// Reads `+ GROUP` and `- GROUP`. Nothing but the end of its input ends it: a signal for us may be
/// sent to everybody.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM USR1 USR2 ALRM
groups=' '
while read -r sign group; do
    case $sign in
        +) groups="$groups$group " ;;
        -) case $groups in
            *" $group "*) groups="${groups%% $group *} ${groups#* $group }" ;;
        esac ;;
    esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
"#;

static GUARDIAN: Mutex<Guardian> = Mutex::new(Guardian { groups: BTreeSet::new(), shell: None });

struct Guardian {
    groups: BTreeSet<i32>,
    shell: Option<(Child, ChildStdin)>,
}

/// The group dies with this process from now on.
pub(super) fn watch(group: Pid) {
    with(|guardian| {
        guardian.groups.insert(group.as_raw_nonzero().get());
        guardian.tell('+', group)
    });
}

/// The group has ended.
pub(super) fn forget(group: Pid) {
    with(|guardian| {
        guardian.groups.remove(&group.as_raw_nonzero().get());
        guardian.tell('-', group)
    });
}

fn with(change: impl FnOnce(&mut Guardian) -> io::Result<()>) {
    let mut guardian = GUARDIAN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = change(&mut guardian) {
        tracing::warn!(%error, "children of this process may outlive it if it is killed");
    }
}

impl Guardian {
    fn tell(&mut self, sign: char, group: Pid) -> io::Result<()> {
        if let Some((_, input)) = &mut self.shell {
            if writeln!(input, "{sign} {group}").is_ok() {
                return Ok(());
            }
            // Somebody has killed it.
            if let Some((mut shell, input)) = self.shell.take() {
                drop(input);
                shell.wait()?;
            }
        }
        if self.groups.is_empty() {
            return Ok(());
        }
        let mut command = Command::new("/bin/sh");
        // It keeps nothing of ours: no password, no folder, no terminal.
        command.args(["-c", SCRIPT, "keylane-guardian"]).env_clear().current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut shell = command.process_group(0).spawn()?;
        let mut input = shell.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        for group in &self.groups {
            writeln!(input, "+ {group}")?;
        }
        self.shell = Some((shell, input));
        Ok(())
    }
}
