//! Settings: the command line, the environment, a file, the defaults, in this order.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const FILE: &str = r#"
namespace = "of-the-file"
amqp-url = "amqp://user:secret@127.0.0.1:1/v"
[work]
slots = 3
exec = "true"
no-journal = true
[dead.list]
limit = 5
"#;

/// A folder with a file of settings in it, and nothing else to read.
struct Place {
    folder: TempDir,
}

impl Place {
    fn with(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("settings.toml"), text).unwrap();
        Self { folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("settings.toml")
    }

    fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keylane"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KEYLANE_")) {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .env("HOME", self.folder.path())
            .env_remove("XDG_CONFIG_HOME")
            .env("KEYLANE_CONFIG", self.file())
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    }

    /// Value and origin of a setting.
    fn setting(
        &self,
        name: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> (Value, String) {
        let output = self.run(&[&["config", "--json"], arguments].concat(), variables);
        let text = String::from_utf8_lossy(&output.stderr);
        let shown: Value = serde_json::from_slice(&output.stdout).expect(&text);
        let settings = shown["settings"].as_array().unwrap();
        let setting = settings.iter().find(|setting| setting["name"] == name).expect(name);
        (setting["value"].clone(), setting["from"].as_str().unwrap().to_owned())
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_nearer_one_wins() {
    let place = Place::with(FILE);
    let file = place.file().display().to_string();
    let namespace = |arguments: &[&str], variables: &[(&str, &str)]| {
        place.setting("namespace", arguments, variables)
    };
    let variable = [("KEYLANE_NAMESPACE", "of-the-variable")];
    let nearest = namespace(&["--namespace", "given"], &variable);
    assert_eq!(nearest, ("given".into(), "the command line".to_owned()));
    let next = ("of-the-variable".into(), "KEYLANE_NAMESPACE".to_owned());
    assert_eq!(namespace(&[], &variable), next);
    assert_eq!(namespace(&[], &[]), ("of-the-file".into(), file.clone()));
    let none = Place::with("");
    assert_eq!(none.setting("namespace", &[], &[]), ("keylane".into(), "default".to_owned()));
    // Options of a command have a variable each.
    let slots = |variables: &[(&str, &str)]| place.setting("work.slots", &["work"], variables);
    assert_eq!(slots(&[]), ("3".into(), file.clone()));
    let variable = ("7".into(), "KEYLANE_WORK_SLOTS".to_owned());
    assert_eq!(slots(&[("KEYLANE_WORK_SLOTS", "7")]), variable);
    assert_eq!(place.setting("work.no-journal", &[], &[]), ("true".into(), file.clone()));
    assert_eq!(place.setting("dead.list.limit", &[], &[]), ("5".into(), file));
}

#[test]
fn the_users_file_is_found() {
    let place = Place::with("");
    let folder = place.folder.path().join(".config").join("keylane");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.toml"), "namespace = \"mine\"").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_keylane"));
    command.args(["config"]).env("HOME", place.folder.path());
    for name in ["XDG_CONFIG_HOME", "KEYLANE_CONFIG", "KEYLANE_NAMESPACE"] {
        command.env_remove(name);
    }
    let shown = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(shown.contains(&folder.join("config.toml").display().to_string()), "{shown}");
    assert!(shown.contains("mine"), "{shown}");
}

/// What is set is what a command goes by: the broker's address and the handler.
#[test]
fn a_command_goes_by_them() {
    let place = Place::with(FILE);
    let at_once = ["--wait-for-broker", "0s"];
    for arguments in [
        &["status"][..],
        &[&["work"], &at_once[..]].concat(),
        &[&["work", "--http", "http://127.0.0.1:1"], &at_once[..]].concat(),
    ] {
        let output = place.run(arguments, &[]);
        let said = stderr(&output);
        assert!(said.contains("no broker answers at amqp://127.0.0.1:1/v"), "{said}");
        assert_eq!(output.status.code(), Some(1), "{said}");
    }
    // Without it, there is no handler.
    let output = Place::with("").run(&["work"], &[]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    // A given one is not in the way of one that the file has.
    let two = place.run(&[&["work"], &at_once[..]].concat(), &[("KEYLANE_WORK_PIPE", "cat")]);
    assert_eq!(two.status.code(), Some(1), "{}", stderr(&two));
}

#[test]
fn no_password_is_shown() {
    let place = Place::with(FILE);
    for arguments in [&["config"][..], &["config", "--json"], &["config", "work"]] {
        let output = place.run(arguments, &[]);
        let shown = String::from_utf8(output.stdout.clone()).unwrap();
        assert!(shown.contains("amqp://127.0.0.1:1/v"), "{shown}{}", stderr(&output));
        assert!(!format!("{shown}{}", stderr(&output)).contains("secret"));
    }
}

#[test]
fn a_value_that_a_command_would_refuse_is_not_shown_as_in_force() {
    let place = Place::with("[work]\nslots = \"many\"");
    let output = place.run(&["config", "work"], &[("KEYLANE_WORK_ATTEMPTS", "-1")]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = stderr(&output);
    let file = place.file().display().to_string();
    assert!(said.contains(&format!("work.slots, set in {file}: invalid value 'many'")), "{said}");
    assert!(said.contains("work.attempts, set in KEYLANE_WORK_ATTEMPTS: "), "{said}");
    let shown = String::from_utf8(output.stdout).unwrap();
    let line = shown.lines().find(|line| line.contains("work.slots")).unwrap();
    assert!(line.contains("many") && line.trim_end().ends_with("and is refused"), "{line}");
    let output = place.run(&["config", "work"], &[("KEYLANE_WORK_SLOTS", "4")]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let cases: [(&str, &[&str]); 8] = [
        ("[work]\nslot = 3", &["no setting \"slot\" in [work]", "slots"]),
        ("namespce = \"x\"", &["no setting \"namespce\"", "namespace"]),
        ("[wrok]\nslots = 3", &["no setting \"wrok\"", "work"]),
        ("[work]\nslots = true", &["slots takes a value"]),
        ("[work]\nno-journal = 3", &["no-journal is true or false"]),
        ("[work]\nslots = 1970-01-01", &["slots takes a text or a number"]),
        ("[work]\nslots = \"3", &["no configuration in TOML"]),
        ("[work]\nslots = 0", &["invalid value '0' for '--slots", "it is set in"]),
    ];
    for (text, wanted) in cases {
        let place = Place::with(text);
        let output = place.run(&["work", "--exec", "true"], &[]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        let file = place.file().display().to_string();
        for part in wanted.iter().chain([&file.as_str()]) {
            assert!(said.contains(part), "{part:?} is not in {said}");
        }
    }
    let output = Place::with("").run(&["work", "--exec", "true"], &[("KEYLANE_WORK_SLOTS", "x")]);
    assert!(stderr(&output).contains("it is set in KEYLANE_WORK_SLOTS"), "{}", stderr(&output));
    let output = Place::with("").run(&["status"], &[("KEYLANE_CONFIG", "/nowhere/x.toml")]);
    assert!(stderr(&output).contains("cannot read the configuration /nowhere/x.toml"));
}
