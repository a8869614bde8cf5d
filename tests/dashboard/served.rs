//! A dashboard that is served.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

use std::io::{BufRead, BufReader};

use serde_json::Value;

use super::http::{Answer, ask};
use super::user::{Running, User};

/// A process that serves.
pub(crate) struct Served {
    pub(crate) running: Running,
    /// Host and port.
    pub(crate) address: String,
}

impl Served {
    /// On a free port of 127.0.0.1, unless the arguments say otherwise.
    pub(crate) fn start(user: &User, args: &[&str]) -> Self {
        let mut all = vec!["dashboard", "--json"];
        if !args.contains(&"--listen") {
            all.extend(["--listen", "127.0.0.1:0"]);
        }
        all.extend(args);
        let mut running = user.starts(&all);
        let mut first = String::new();
        let said = running.0.stdout.as_mut().unwrap();
        BufReader::new(said).read_line(&mut first).unwrap();
        let Ok(started) = serde_json::from_str::<Value>(&first) else {
            panic!("it did not start: {:?}", running.ends());
        };
        let url = started["url"].as_str().unwrap();
        Self { running, address: url.strip_prefix("http://").unwrap().to_owned() }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        ask(&self.address, &format!("GET {path}"), &[], "")
    }

    /// The word that the page has to show.
    pub(crate) fn page_word(&self) -> String {
        let page = self.get("/").body;
        let word = page.split(r#"name="keylane-page" content=""#).nth(1).unwrap();
        word.split('"').next().unwrap().to_owned()
    }

    pub(crate) fn snapshot(&self) -> Value {
        serde_json::from_str(&self.get("/api/snapshot").body).unwrap()
    }
}
