//! A real Chromium without a screen.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use axum::http::Method;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use url::{ParseError, Url};

use super::programs::{free_port, program};

/// Nothing that is waited for takes longer, on a slow machine under load.
const PATIENCE: Duration = Duration::from_secs(120);

/// A browser with a profile of its own; gone when this is dropped.
pub(crate) struct Browser {
    pub(crate) client: Client,
    driver: Driver,
}

/// Leads a process group, of which the browser is a part.
struct Driver {
    process: Child,
    _profile: tempfile::TempDir,
}

impl Drop for Driver {
    fn drop(&mut self) {
        let group = format!("-{}", self.process.id());
        Command::new("kill").args(["-KILL", "--", &group]).status().ok();
        self.process.wait().ok();
    }
}

/// Something that only Chromium understands.
#[derive(Debug)]
struct ChromeCommand {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for ChromeCommand {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}

impl Browser {
    pub(crate) async fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let port = free_port();
        let (chromium, driver) =
            (program("chromium", "chromium"), program("chromedriver", "chromium-driver"));
        let process = Command::new(driver)
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let data = profile.path().display().to_string();
        let driver = Driver { process, _profile: profile };
        let options = json!({
            "browserName": "chrome",
            "goog:loggingPrefs": { "browser": "ALL" },
            "goog:chromeOptions": { "binary": chromium, "args": [
                "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
                "--window-size=1440,1000", "--force-device-scale-factor=1", "--hide-scrollbars",
                format!("--user-data-dir={data}"),
            ] },
        });
        let Value::Object(options) = options else { unreachable!() };
        let url = format!("http://127.0.0.1:{port}");
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(options);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let client = loop {
            match builder.connect(&url).await {
                Ok(client) => break client,
                Err(error) => {
                    let said = error.to_string();
                    assert!(tokio::time::Instant::now() < deadline, "no browser: {said}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        Self { client, driver }
    }

    /// Ends it. What was written to its console since the last look is no error.
    pub(crate) async fn close(self) {
        let errors = self.errors().await;
        assert!(errors.is_empty(), "on the console: {errors:#?}");
        self.client.close().await.unwrap();
        drop(self.driver);
    }

    /// What the console was told since the last look, but for plain messages.
    pub(crate) async fn errors(&self) -> Vec<Value> {
        let log = self.chrome("se/log", json!({ "type": "browser" })).await;
        let Value::Array(entries) = log else { panic!("{log}") };
        let is_bad = |entry: &Value| matches!(entry["level"].as_str(), Some("SEVERE" | "WARNING"));
        entries.into_iter().filter(is_bad).collect()
    }

    async fn chrome(&self, path: &'static str, body: Value) -> Value {
        self.client.issue_cmd(ChromeCommand { path, body }).await.unwrap()
    }

    async fn devtools(&self, command: &str, parameters: Value) {
        let body = json!({ "cmd": command, "params": parameters });
        self.chrome("goog/cdp/execute", body).await;
    }

    /// Makes the window so large, as a phone or a screen has it.
    pub(crate) async fn resize(&self, width: u32, height: u32, phone: bool) {
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone,
        });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// What the system prefers: `light` or `dark`.
    pub(crate) async fn prefer(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// What an expression of JavaScript comes to, awaited.
    pub(crate) async fn value(&self, expression: &str) -> Value {
        self.run(expression, Vec::new()).await
    }

    pub(crate) async fn run(&self, expression: &str, args: Vec<Value>) -> Value {
        let script = format!(
            "const given = arguments; const done = given[given.length - 1];
             (async () => ({expression}))().then(done, (error) => done(`failed: ${{error}}`));"
        );
        self.client.execute_async(&script, args).await.unwrap()
    }

    /// Waits until an expression of JavaScript is true.
    pub(crate) async fn until(&self, what: &str, expression: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let seen = self.value(expression).await;
            if seen == Value::Bool(true) {
                return;
            }
            if tokio::time::Instant::now() > deadline {
                let text = self.value("document.body.innerText").await;
                panic!("{what}: not within {PATIENCE:?} ({seen}); the page says: {text}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) async fn click(&self, selector: &str) {
        let found = self.client.find(Locator::Css(selector)).await;
        found.unwrap_or_else(|error| panic!("{selector}: {error}")).click().await.unwrap();
    }

    pub(crate) async fn types(&self, selector: &str, text: &str) {
        let found = self.client.find(Locator::Css(selector)).await.unwrap();
        found.clear().await.unwrap();
        found.send_keys(text).await.unwrap();
    }
}
