//! What is in force: the command line, else the environment, else the file, else the
//! default.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use anyhow::Context;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use toml::Value;

use super::file::{self, File};

/// Where a setting comes from, if nobody gave it on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    Variable(String),
    File(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => name.fmt(f),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// An option that the environment or the file sets.
struct Addition<'a> {
    option: &'a Arg,
    words: Vec<OsString>,
    origin: Origin,
}

/// Reads the command line, with what the environment and the file add to it.
pub(super) fn resolve(
    root: &Command,
    given: &[OsString],
) -> anyhow::Result<Result<ArgMatches, clap::Error>> {
    // What is missing may be set elsewhere; and a call for help needs nothing.
    let Ok(first) = root.clone().ignore_errors(true).try_get_matches_from(given) else {
        return Ok(root.clone().try_get_matches_from(given));
    };
    let named = first.get_one::<PathBuf>("config");
    let file = File::find(named.map(PathBuf::as_path), root)?;
    let added = additions(root, &first, file.as_ref())?;
    // They are options of the innermost command, or global ones, so they may stand last.
    let end = given.iter().position(|word| word == "--").unwrap_or(given.len());
    let ours = added.iter().flat_map(|addition| &addition.words);
    let words = given[..end].iter().chain(ours).chain(&given[end..]);
    let matches = root.clone().try_get_matches_from(words);
    Ok(matches.map_err(|error| blamed(error, &added)))
}

/// The variable that sets an option of a command, such as `KEYLANE_WORK_SLOTS`.
pub(super) fn variable(path: &[&str], option: &Arg) -> String {
    if let Some(name) = option.get_env() {
        return name.to_string_lossy().into_owned();
    }
    let long = option.get_long().unwrap_or_default();
    let parts = ["keylane"].into_iter().chain(path.iter().copied()).chain([long]);
    parts.collect::<Vec<_>>().join("_").to_uppercase().replace('-', "_")
}

/// What the environment says of an option.
pub(super) fn in_environment(path: &[&str], option: &Arg) -> Option<(String, Value)> {
    let name = variable(path, option);
    let text = std::env::var(&name).ok()?;
    let value = match text.as_str() {
        "true" | "1" if file::is_flag(option) => Value::Boolean(true),
        "false" | "0" | "" if file::is_flag(option) => Value::Boolean(false),
        _ => Value::String(text),
    };
    Some((name, value))
}

/// What is set elsewhere and not given: for the innermost command, and globally.
fn additions<'a>(
    root: &'a Command,
    first: &ArgMatches,
    file: Option<&File>,
) -> anyhow::Result<Vec<Addition<'a>>> {
    let (mut command, mut matches, mut path) = (root, first, Vec::new());
    while let Some((name, inner)) = matches.subcommand() {
        let Some(subcommand) = command.find_subcommand(name) else { break };
        (command, matches) = (subcommand, inner);
        path.push(name);
    }
    let mut added: Vec<Addition<'a>> = Vec::new();
    for from_file in [false, true] {
        for (path, command) in [(&[][..], root), (&path[..], command)] {
            for option in
                file::options(command).filter(|arg| !path.is_empty() || arg.is_global_set())
            {
                let (origin, value) = if from_file {
                    let Some(file) = file else { continue };
                    let Some(value) = file.get(path, option) else { continue };
                    (Origin::File(file.path().to_owned()), value.clone())
                } else {
                    // The parser looks for these itself.
                    if option.get_env().is_some() {
                        continue;
                    }
                    let Some((name, value)) = in_environment(path, option) else { continue };
                    (Origin::Variable(name), value)
                };
                let is_known =
                    |id: &str| is_given(first, id) || added.iter().any(|a| a.option.get_id() == id);
                if is_known(option.get_id().as_str()) || rivals(command, option).any(is_known) {
                    continue;
                }
                let words = file::arguments(option, &value);
                let words = words.with_context(|| format!("in {origin}"))?;
                added.push(Addition { option, words, origin });
            }
        }
    }
    Ok(added)
}

/// Whether the command line or the parser's environment has it, at whatever level.
fn is_given(matches: &ArgMatches, id: &str) -> bool {
    let known = matches.try_contains_id(id).is_ok();
    let source = known.then(|| matches.value_source(id)).flatten();
    matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
        || matches.subcommand().is_some_and(|(_, inner)| is_given(inner, id))
}

/// Others of a group that takes one only, such as `--exec`, `--pipe` and `--http`.
fn rivals<'a>(command: &'a Command, option: &'a Arg) -> impl Iterator<Item = &'a str> {
    let groups = command.get_groups().filter(|group| !(*group).clone().is_multiple());
    let ours = groups.filter(|group| group.get_args().any(|member| member == option.get_id()));
    ours.flat_map(|group| group.get_args()).map(|member| member.as_str())
}

/// Says where a wrong value was set, if it was not on the command line.
fn blamed(mut error: clap::Error, added: &[Addition<'_>]) -> clap::Error {
    let named = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(named)) => named.clone(),
        _ => return error,
    };
    let is_named = |addition: &&Addition<'_>| {
        let long = addition.option.get_long().unwrap_or_default();
        named.trim_start_matches('-').split([' ', '=']).next() == Some(long)
    };
    if let Some(Addition { origin, .. }) = added.iter().find(is_named) {
        let place = StyledStr::from(format!("it is set in {origin}"));
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![place]));
    }
    error
}
