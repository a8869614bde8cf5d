//! The configuration file: the long names of the options, those of a command in a table
//! of the command's name.
//!
//! ```toml
//! namespace = "shop"
//! [work]
//! slots = 32
//! exec = "./handle.sh"
//! ```

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

/// A file that was read, and has nothing in it that no command knows.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    settings: Table,
}

impl File {
    /// The file that was named, or else the first that exists: the user's, the machine's.
    pub(super) fn find(named: Option<&Path>, root: &Command) -> anyhow::Result<Option<Self>> {
        let path = match named {
            Some(path) => Some(path.to_owned()),
            None => places().into_iter().find(|path| path.is_file()),
        };
        path.map(|path| Self::read(path, root)).transpose()
    }

    fn read(path: PathBuf, root: &Command) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        let settings = toml::from_str(&text)
            .with_context(|| format!("{} is no configuration in TOML", path.display()))?;
        check(root, &settings, "").with_context(|| format!("in {}", path.display()))?;
        Ok(Self { path, settings })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it says of an option; `path` are the subcommands that lead to it.
    pub(super) fn get(&self, path: &[&str], option: &Arg) -> Option<&Value> {
        let mut table = &self.settings;
        for command in path {
            table = table.get(*command)?.as_table()?;
        }
        table.get(option.get_long()?)
    }
}

fn places() -> Vec<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let user = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home);
    let below = |folder: PathBuf| folder.join("keylane").join("config.toml");
    user.into_iter().chain([PathBuf::from("/etc")]).map(below).collect()
}

/// Options of a command that a file, or the environment, may set.
pub(super) fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    let of_clap = ["help", "version"];
    command.get_arguments().filter(move |arg| {
        arg.get_long().is_some_and(|long| !of_clap.contains(&long) && long != "config")
    })
}

fn check(command: &Command, table: &Table, name: &str) -> anyhow::Result<()> {
    for (key, value) in table {
        if let (Some(inner), Some(table)) = (command.find_subcommand(key), value.as_table()) {
            check(inner, table, key)?;
            continue;
        }
        let Some(option) = options(command).find(|arg| arg.get_long() == Some(key)) else {
            let place = if name.is_empty() { String::new() } else { format!(" in [{name}]") };
            bail!("there is no setting {key:?}{place}{}", near(command, key));
        };
        arguments(option, value)?;
    }
    Ok(())
}

/// The settings that there are, of which one may have been meant.
fn near(command: &Command, key: &str) -> String {
    let names = options(command).filter_map(Arg::get_long);
    let commands = command.get_subcommands().filter(|c| !c.is_hide_set()).map(Command::get_name);
    let mut all: Vec<_> = names.chain(commands).collect();
    all.sort_by_key(|name| std::cmp::Reverse(common_start(name, key)));
    all.truncate(5);
    let mut text = String::from(": did you mean ");
    for (index, name) in all.iter().enumerate() {
        // A String takes everything.
        write!(text, "{}{name}", if index > 0 { ", " } else { "" }).ok();
    }
    text + "?"
}

fn common_start(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}

/// Whether it is there or not, and takes no value.
pub(super) fn is_flag(option: &Arg) -> bool {
    matches!(option.get_action(), ArgAction::SetTrue)
}

/// A setting as arguments of the command line.
pub(super) fn arguments(option: &Arg, value: &Value) -> anyhow::Result<Vec<OsString>> {
    let name = option.get_long().unwrap_or_default();
    let is_flag = is_flag(option);
    let one = |value: &Value| -> anyhow::Result<OsString> {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Boolean(_) => bail!("{name} takes a value, not true or false"),
            Value::Datetime(_) | Value::Array(_) | Value::Table(_) => {
                bail!("{name} takes a text or a number")
            }
        };
        Ok(format!("--{name}={text}").into())
    };
    match value {
        Value::Boolean(true) if is_flag => Ok(vec![format!("--{name}").into()]),
        Value::Boolean(false) if is_flag => Ok(Vec::new()),
        _ if is_flag => bail!("{name} is true or false"),
        Value::Array(values) => values.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}
