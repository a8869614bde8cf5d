//! `keylane config`

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory};
use comfy_table::{Table, presets};
use serde::Serialize;
use toml::Value;

use super::file::{self, File};
use super::resolve::{in_environment, variable};
use crate::cli::Args;
use crate::rabbit::connection::shown;

/// Show the settings that are in force, and where they come from
///
/// Every option can be set on the command line, by a variable (`keylane work --slots` by
/// KEYLANE_WORK_SLOTS) or in a file, in this order. The file is in TOML: the long names of the
/// options, those of a command in a table of its name. It is the one of --config, or
/// ~/.config/keylane/config.toml, or /etc/keylane/config.toml. Passwords are not shown.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Config {
    /// Settings of this command too, such as `work`, whether anybody set them or not
    command: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A setting in force.
#[derive(Debug, Serialize)]
struct Setting {
    /// With the table that it would be in.
    name: String,
    value: Option<String>,
    /// `the command line`, the name of a variable, the path of a file, or `default`.
    from: String,
    variable: String,
    /// Why the command would refuse it.
    #[serde(skip_serializing_if = "Option::is_none")]
    wrong: Option<String>,
}

#[derive(Debug, Serialize)]
struct Settings {
    /// The file that was read.
    file: Option<PathBuf>,
    settings: Vec<Setting>,
}

impl Config {
    pub(in crate::cli) fn run(self, named: Option<PathBuf>) -> anyhow::Result<ExitCode> {
        let mut root = Args::command();
        root.build();
        if let Some(name) = &self.command
            && root.find_subcommand(name).is_none()
        {
            anyhow::bail!("there is no command {name:?}: keylane --help names them");
        }
        let file = File::find(named.as_deref(), &root)?;
        let given = root.clone().ignore_errors(true).get_matches_from(std::env::args_os());
        let wanted = self.command.as_deref();
        let mut found = Found { file: file.as_ref(), given, wanted, settings: Vec::new() };
        found.collect(&root, &mut Vec::new());
        let settings = found.settings;
        let is_wrong = settings.iter().any(|setting| setting.wrong.is_some());
        let code = if is_wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        let file = file.map(|file| file.path().to_owned());
        if self.json {
            out!("{}", serde_json::to_string(&Settings { file, settings })?);
            return Ok(code);
        }
        match file {
            Some(path) => out!("file: {}\n", path.display()),
            None => out!("file: none\n"),
        }
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(["setting", "value", "from"]);
        for Setting { name, value, from, wrong, .. } in &settings {
            let from = wrong.as_ref().map_or(from.clone(), |_| format!("{from}, and is refused"));
            table.add_row([name, value.as_deref().unwrap_or("-"), &from]);
        }
        out!("{table}");
        for Setting { name, from, wrong, .. } in settings {
            if let Some(wrong) = wrong {
                eprintln!("keylane: {name}, set in {from}: {wrong}");
            }
        }
        Ok(code)
    }
}

/// Looks for settings everywhere.
struct Found<'a> {
    file: Option<&'a File>,
    /// What this command was given.
    given: ArgMatches,
    wanted: Option<&'a str>,
    settings: Vec<Setting>,
}

impl Found<'_> {
    /// The global settings, those of the command that was asked for, and what anybody has
    /// set.
    fn collect<'a>(&mut self, command: &'a Command, path: &mut Vec<&'a str>) {
        let shows_all = path.first().is_none_or(|first| Some(*first) == self.wanted);
        let is_global = path.is_empty();
        for option in file::options(command).filter(|arg| is_global || !arg.is_global_set()) {
            let set = self.set(path, option);
            if set.is_none() && !shows_all {
                continue;
            }
            let wrong = set.as_ref().and_then(|(_, value)| refusal(command, option, value));
            let names = path.iter().copied().chain(option.get_long());
            self.settings.push(Setting {
                name: names.collect::<Vec<_>>().join("."),
                value: match &set {
                    Some((_, value)) => Some(harmless(option, value)),
                    None => default(option),
                },
                from: set.map_or_else(|| "default".to_owned(), |(from, _)| from),
                variable: variable(path, option),
                wrong,
            });
        }
        let inner = command.get_subcommands();
        for inner in inner.filter(|c| !c.is_hide_set() && c.get_name() != "help") {
            path.push(inner.get_name());
            self.collect(inner, path);
            path.pop();
        }
    }

    fn set(&self, path: &[&str], option: &Arg) -> Option<(String, Value)> {
        if path.is_empty()
            && let Some(text) = given(&self.given, option.get_id().as_str())
        {
            return Some(("the command line".to_owned(), Value::String(text)));
        }
        in_environment(path, option).or_else(|| {
            let file = self.file?;
            Some((file.path().display().to_string(), file.get(path, option)?.clone()))
        })
    }
}

/// Why a command would refuse a value, if it would. What it needs besides is not asked.
fn refusal(command: &Command, option: &Arg, value: &Value) -> Option<String> {
    let words = match file::arguments(option, value) {
        Ok(words) => words,
        Err(error) => return Some(error.to_string()),
    };
    let name = OsString::from(command.get_name());
    let parsed = command.clone().try_get_matches_from([name].into_iter().chain(words));
    let error = parsed.err().filter(|error| {
        matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation)
    })?;
    // The first line says it; a password has no place in it.
    let said = error.to_string();
    let said = said.lines().next().unwrap_or_default().trim_start_matches("error: ");
    let is_secret = option.is_hide_env_values_set() || option.get_long() == Some("amqp-url");
    Some(if is_secret { "its value is invalid".to_owned() } else { said.to_owned() })
}

/// What the command line says of a global option.
fn given(matches: &ArgMatches, id: &str) -> Option<String> {
    let known = matches.try_contains_id(id).is_ok();
    let source = known.then(|| matches.value_source(id)).flatten();
    if source == Some(ValueSource::CommandLine) {
        let texts: Vec<_> = matches.get_raw(id)?.map(|text| text.to_string_lossy()).collect();
        return Some(texts.join(","));
    }
    given(matches.subcommand()?.1, id)
}

fn default(option: &Arg) -> Option<String> {
    let values: Vec<_> =
        option.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    match values.is_empty() {
        true if file::is_flag(option) => Some("false".to_owned()),
        true => None,
        false => Some(values.join(",")),
    }
}

/// A value without what must not be shown.
fn harmless(option: &Arg, value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match option.get_long() {
        Some("amqp-url") => shown(&text),
        _ if option.is_hide_env_values_set() => "(set, not shown)".to_owned(),
        _ => text,
    }
}
