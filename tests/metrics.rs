//! Metrics as a real worker serves them, a real Prometheus reads them, and the manual,
//! the alerts and the dashboard name them.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

mod support;
#[path = "cli/user.rs"]
#[allow(dead_code, reason = "it is shared with the tests of the command line")]
mod user;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use keylane::testing::{Broker, Version};
use keylane::{Metrics, Producer, ProducerOptions, WorkerOptions};
use serde_json::Value;
use support::{Gate, Record, Worker, broker, cut_connections, eventually, named, space, task};
use user::{Running, User};

const MANUAL: &str = include_str!("../docs/metrics.md");
const SECURITY: &str = include_str!("../docs/security.md");
const ALERTS: &str = include_str!("../deploy/alerts.yml");
const DASHBOARD: &str = include_str!("../deploy/grafana-dashboard.json");

/// The names that the manual explains, with their types.
fn documented() -> BTreeMap<String, String> {
    let rows = MANUAL.lines().filter_map(|line| line.strip_prefix("| `keylane_"));
    let names = rows.map(|row| {
        let mut cells = row.split('|').map(str::trim);
        let name = cells.next().unwrap().trim_end_matches('`');
        (format!("keylane_{name}"), cells.next().unwrap().to_owned())
    });
    names.collect()
}

/// All words of a text that are names of metrics, without what histograms add.
fn named_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '_');
    let names = words.filter(|word| word.starts_with("keylane_"));
    let histograms: Vec<_> =
        documented().into_iter().filter(|(_, t)| t == "histogram").map(|(name, _)| name).collect();
    let family = |name: &str| {
        let of = histograms.iter().find(|h| {
            name.strip_prefix(h.as_str())
                .is_some_and(|s| ["_bucket", "_sum", "_count"].contains(&s))
        });
        of.cloned().unwrap_or_else(|| name.to_owned())
    };
    names.map(family).collect()
}

/// What a process serves.
#[derive(Debug, Clone)]
struct Scrape(String);

impl Scrape {
    fn of(address: &str) -> Self {
        let (head, body) = get(address, "/metrics");
        assert!(head.starts_with("HTTP/1.0 200") && head.contains("text/plain"), "{head}");
        Self(body)
    }

    fn families(&self) -> BTreeMap<String, String> {
        let types = self.0.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let types = types.map(|line| line.split_once(' ').unwrap());
        types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
    }

    /// The value of one series, named as it stands there but for the namespace.
    fn get(&self, series: &str) -> Option<f64> {
        let value = |line: &str| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned);
        let found =
            self.0.lines().find_map(|line| value(line).or_else(|| value(&without_namespace(line))));
        found.map(|value| value.parse().unwrap())
    }

    fn value(&self, series: &str) -> f64 {
        self.get(series).unwrap_or_else(|| panic!("no {series} in\n{}", self.0))
    }
}

/// A series as it would be if there were one namespace only.
fn without_namespace(line: &str) -> String {
    let Some((before, rest)) = line.split_once("namespace=\"") else { return line.to_owned() };
    let (_, after) = rest.split_once('"').unwrap();
    let line = format!("{before}{}", after.strip_prefix(',').unwrap_or(after));
    line.replace(",}", "}").replace("{}", "")
}

/// An answer: its head and its body.
fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    // Version 1.0: no chunks, and the end of the connection is that of the body.
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// Where a process says that it serves metrics. What it says later is read, and lost.
fn served(running: &mut Running) -> String {
    let mut lines = BufReader::new(running.0.stderr.take().unwrap()).lines();
    let found = lines.find_map(|line| {
        let line = line.unwrap();
        let url = line.strip_prefix("keylane: metrics on http://")?;
        Some(url.strip_suffix("/metrics").unwrap().to_owned())
    });
    std::thread::spawn(move || lines.count());
    found.unwrap_or_else(|| panic!("it ended without saying where"))
}

const LISTEN: [&str; 2] = ["--metrics-listen", "127.0.0.1:0"];

/// A worker that has executed some tasks and given one up, a router that has forwarded
/// one and a publisher that waits for more, where each serves its metrics.
struct House {
    user: User,
    processes: Vec<Running>,
    /// Of the worker, the router and the publisher.
    addresses: Vec<String>,
}

impl House {
    async fn new() -> Self {
        let user = User::with_partitions(4).await;
        let mut house = Self { user, processes: Vec::new(), addresses: Vec::new() };
        let work = r#"[ "$KEYLANE_RESOURCE" != bad ]"#;
        house.starts(
            &["work", "--exec", work, "--attempts", "2", "--retry-delay", "1ms", "--id", "w1"],
            &["--metrics-hot-resources", "4"],
        );
        house.starts(&["route", "--id", "r1"], &[]);
        let (_connection, channel) = support::amqp(Broker::shared().await.unwrap()).await;
        let inbox = format!("{}.inbox", house.user.namespace);
        let resource = lapin::types::AMQPValue::LongString("routed".into());
        let properties = support::header("resource", resource).with_delivery_mode(2);
        support::put(&channel, &inbox, properties, b"{}").await;
        let mut lines = String::new();
        for n in 0..30 {
            lines += &format!("{{\"r\":\"r{}\"}}\n", n % 3);
        }
        lines += "{\"r\":\"bad\"}\n";
        let mut publish =
            house.user.command(&[&["publish", "--resource", "/r"][..], &LISTEN].concat());
        let mut publisher = Running(publish.stdin(Stdio::piped()).spawn().unwrap());
        house.addresses.push(served(&mut publisher));
        publisher.types(&lines);
        house.processes.push(publisher);
        house.user.waits_for("31 executed tasks and a dead letter", || {
            let scrape = house.worker();
            let done = |outcome: &str| {
                scrape.value(&format!("keylane_tasks_total{{outcome=\"{outcome}\"}}"))
            };
            (done("executed"), done("dead_lettered")) == (31.0, 1.0)
        });
        house
    }

    fn starts(&mut self, args: &[&str], more: &[&str]) {
        let mut process = self.user.starts(&[args, &LISTEN, more].concat());
        self.addresses.push(served(&mut process));
        self.processes.push(process);
    }

    fn worker(&self) -> Scrape {
        Scrape::of(&self.addresses[0])
    }
}

/// Runs a tool of Prometheus, and insists on its success.
fn promtool(args: &[&str], input: &str) -> String {
    let mut promtool = Command::new(support::stores::program("promtool", "prometheus"))
        .args(args)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(output.status.success(), "promtool {args:?}: {said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_served_is_documented_and_right() {
    let house = House::new().await;
    // The first look at all partitions takes a minute, that at those with tasks 5 s.
    house.user.waits_for("a look at the backlog", || {
        house.worker().get("keylane_partition_ready_tasks{partition=\"0\"}") == Some(0.0)
    });
    let scrapes: Vec<_> = house.addresses.iter().map(|address| Scrape::of(address)).collect();
    let families: BTreeMap<_, _> = scrapes.iter().flat_map(Scrape::families).collect();
    assert_eq!(families, documented(), "served on the left, documented on the right");
    for scrape in &scrapes {
        assert_eq!(promtool(&["check", "metrics"], &scrape.0), "");
    }

    let [worker, router, publisher] = &scrapes[..] else { unreachable!() };
    let (namespace, version) = (&house.user.namespace, env!("CARGO_PKG_VERSION"));
    let info = format!(
        "keylane_worker_info{{namespace=\"{namespace}\",version=\"{version}\",worker=\"w1\"}}"
    );
    let first = "keylane_published_total{outcome=\"confirmed\"}";
    for (scrape, series, value) in [
        (worker, info.as_str(), 1.0),
        (worker, "keylane_slots", 16.0),
        (worker, "keylane_attempts_total{outcome=\"executed\"}", 31.0),
        (worker, "keylane_attempts_total{outcome=\"failed\"}", 2.0),
        (worker, "keylane_attempts_total{outcome=\"aborted\"}", 0.0),
        (worker, "keylane_retries_total", 1.0),
        (worker, "keylane_task_latency_seconds_count", 31.0),
        (worker, "keylane_handler_duration_seconds_count", 33.0),
        (worker, "keylane_held_tasks", 0.0),
        (worker, "keylane_running_tasks", 0.0),
        (worker, "keylane_lanes", 0.0),
        (worker, "keylane_reconnects_total", 0.0),
        (router, first, 1.0),
        (router, "keylane_partition_executed_total{partition=\"inbox\"}", 1.0),
        (publisher, first, 31.0),
        (publisher, "keylane_publish_confirm_seconds_count", 31.0),
        (publisher, "keylane_publish_in_flight", 0.0),
    ] {
        assert_eq!(scrape.value(series), value, "{series}");
    }
    // 33 attempts, and the dead letter.
    house
        .user
        .waits_for("34 records", || house.worker().value("keylane_journal_records_total") == 34.0);
    let handled = worker.value("keylane_handler_duration_seconds_sum");
    let latency = worker.value("keylane_task_latency_seconds_sum");
    assert!(handled > 0.0 && latency > handled / 2.0, "{handled} {latency}");
    assert!(worker.value("keylane_epochs_minted_total") > 0.0, "exec asks for tokens");
    let gained = worker.value("keylane_ownership_changes_total{change=\"gained\"}");
    assert_eq!(worker.value("keylane_owned_partitions"), gained);
    // One of three that have ten of 33 attempts each.
    let hot = worker.value("keylane_hottest_resource_attempts_ratio");
    assert!((hot - 10.0 / 33.0).abs() < 0.1, "{hot}");
    let named = worker.0.lines().filter(|line| line.starts_with("keylane_hot_resource_busy"));
    assert_eq!(named.count(), 4, "as many as were asked for, of five");
    assert_eq!(get(&house.addresses[0], "/").0.lines().next(), Some("HTTP/1.0 404 Not Found"));
}

#[test]
fn the_alerts_do_what_they_say_and_name_what_there_is() {
    assert!(promtool(&["check", "rules", "alerts.yml"], "").contains("6 rules"));
    assert!(promtool(&["test", "rules", "alerts_test.yml"], "").contains("SUCCESS"));
    let documented = documented();
    let unknown: Vec<_> =
        named_in(ALERTS).into_iter().filter(|name| !documented.contains_key(name)).collect();
    assert_eq!(unknown, Vec::<String>::new());
}

#[test]
fn the_dashboard_names_what_there_is_and_its_queries_are_valid() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    assert!(dashboard["schemaVersion"].as_u64() >= Some(36), "{dashboard}");
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "every panel has an id of its own");
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    let mut places = BTreeSet::new();
    for panel in panels {
        let at = ["x", "y", "w", "h"].map(|name| panel["gridPos"][name].as_u64().unwrap());
        assert!(at[0] + at[2] <= 24 && places.insert((at[0], at[1])), "{panel}");
        let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
        assert!(panel["type"] == "row" || !targets.is_empty(), "{panel}");
        for target in targets {
            assert!(target["refId"].is_string() && target["datasource"].is_object(), "{target}");
            let query = target["expr"].as_str().unwrap().replace("$__rate_interval", "5m");
            rules += &format!("  - record: dashboard:{}\n    expr: {query:?}\n", rules.len());
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.yml");
    std::fs::write(&file, rules).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()], "");
    let (shown, documented) = (named_in(DASHBOARD), documented());
    let unknown: Vec<_> = shown.iter().filter(|name| !documented.contains_key(*name)).collect();
    assert_eq!(unknown, Vec::<&String>::new());
}

/// A Prometheus that scrapes these addresses every second, with the alerts.
struct Prometheus {
    address: String,
    _process: Running,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(targets: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("prometheus.yml");
        let alerts = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/alerts.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{alerts:?}]\n\
             scrape_configs:\n- job_name: keylane\n  static_configs: [{{targets: {targets:?}}}]\n"
        );
        std::fs::write(&config, text).unwrap();
        let address = format!("127.0.0.1:{}", support::programs::free_port());
        let program: PathBuf = support::stores::program("prometheus", "prometheus");
        let process = Command::new(program)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { address, _process: Running(process), _folder: folder }
    }

    fn ask(&self, path: &str) -> Option<Value> {
        TcpStream::connect(&self.address).ok()?;
        let (head, body) = get(&self.address, path);
        head.starts_with("HTTP/1.0 200").then(|| serde_json::from_str(&body).unwrap())
    }

    /// The value of a query with one answer.
    fn query(&self, query: &str) -> Option<f64> {
        let escape = |byte: u8| format!("%{byte:02X}");
        let escaped: String = query.bytes().map(escape).collect();
        let answer = self.ask(&format!("/api/v1/query?query={escaped}"))?;
        answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_scrapes_and_answers() {
    let house = House::new().await;
    let prometheus = Prometheus::start(&house.addresses);
    for (query, wanted) in [
        ("sum(up{job=\"keylane\"})", 3.0),
        (
            "sum(keylane_tasks_total{outcome=\"executed\"} * on (instance) group_left (worker) keylane_worker_info{worker=\"w1\"})",
            31.0,
        ),
        ("sum(keylane_published_total{outcome=\"confirmed\"})", 32.0),
        (
            "histogram_quantile(1, sum by (le) (keylane_handler_duration_seconds_bucket)) > bool 0",
            1.0,
        ),
    ] {
        house.user.waits_for(query, || prometheus.query(query) == Some(wanted));
    }
    let mut rules = Value::Null;
    house.user.waits_for("the alerts", || {
        rules = prometheus.ask("/api/v1/rules").unwrap()["data"]["groups"][0]["rules"].clone();
        let evaluated = |rule: &Value| rule["health"] == "ok";
        rules.as_array().is_some_and(|rules| rules.len() == 6 && rules.iter().all(evaluated))
    });
    let state = |name: &str| {
        let rule = rules.as_array().unwrap().iter().find(|rule| rule["name"] == name);
        rule.unwrap()["state"].clone()
    };
    assert_eq!(state("KeylaneJournalStuck"), "inactive");
}

/// Answers 200 to everybody who comes to this port from now on.
fn serves(address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let head = reader.by_ref().lines().map_while(Result::ok);
            let head: Vec<_> = head.take_while(|line| !line.is_empty()).collect();
            let length = head.iter().find_map(|line| {
                let line = line.to_lowercase();
                line.strip_prefix("content-length:")?.trim().parse().ok()
            });
            std::io::copy(&mut reader.by_ref().take(length.unwrap_or(0)), &mut std::io::sink())
                .unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            reader.get_mut().write_all(answer).unwrap();
        }
    });
}

/// The first worker that answers, as `status` has it.
fn worker_of(user: &User) -> Value {
    user.status()["workers"][0].clone()
}

fn publish(user: &User, tasks: usize) {
    let input: String = (0..tasks).map(|n| format!("{{\"r\":\"r{}\"}}\n", n % 40)).collect();
    let input = user.file("tasks.ndjson", input);
    user.succeeds(&["publish", input.to_str().unwrap(), "--resource", "/r"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_out_of_reach_costs_no_attempt_and_is_said_everywhere() {
    let user = User::with_partitions(4).await;
    publish(&user, 400);
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let handler = free.local_addr().unwrap().to_string();
    drop(free);
    let url = format!("http://{handler}/tasks");
    let work = ["work", "--http", &url, "--attempts", "1", "--id", "w1"];
    let mut worker = user.starts(&[&work[..], &LISTEN].concat());
    let address = served(&mut worker);
    user.waits_for("an answer that it is not ready", || {
        let (head, body) = get(&address, "/readyz");
        head.contains("503") && body.contains("refused")
    });
    assert!(get(&address, "/healthz").0.contains("200"), "it lives");
    let scrape = Scrape::of(&address);
    assert_eq!(scrape.value("keylane_handler_unavailable"), 1.0);
    assert_eq!(scrape.value("keylane_connected"), 1.0);
    let attempts = || Scrape::of(&address).value("keylane_attempts_total{outcome=\"unavailable\"}");
    let before = attempts();
    std::thread::sleep(Duration::from_secs(3));
    assert!(attempts() - before <= 5.0, "one at a time, and seldom: {before} to {}", attempts());
    let reason = worker_of(&user)["unavailable"]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("refused"), "{reason}");
    let said = user.succeeds(&["status"]).out;
    assert!(said.contains("w1 reaches no handler for"), "{said}");
    assert!(said.contains("w1 cannot reach its handler"), "the cause of each partition: {said}");

    serves(&handler);
    user.waits_for_quiet();
    user.waits_for("that it is ready", || get(&address, "/readyz").0.contains("200"));
    let executed = |worker: &Value| worker["executed"].as_u64().unwrap();
    let seen = worker_of(&user);
    assert!(executed(&seen) == 400 && seen["dead_lettered"] == 0 && seen["failed"] == 0, "{seen}");
    assert!(seen.get("unavailable").is_none(), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_missing_costs_no_attempt_and_one_kind_of_task_holds_up_no_other() {
    let user = User::with_partitions(2).await;
    publish(&user, 40);
    for handler in ["--exec", "--pipe"] {
        let work = ["work", handler, "no-such-command", "--attempts", "1"];
        let mut worker = user.starts(&[&work[..], &LISTEN].concat());
        let address = served(&mut worker);
        user.waits_for("an answer that it is not ready", || {
            get(&address, "/readyz").1.contains("out of reach")
        });
        std::thread::sleep(Duration::from_secs(1));
        let seen = worker_of(&user);
        assert!(seen["failed"] == 0 && seen["dead_lettered"] == 0, "{seen}");
        worker.signal("TERM");
        worker.ends();
    }
    let handler = r#"[ "$KEYLANE_RESOURCE" != r7 ] || exec no-such-command"#;
    let mut worker =
        user.starts(&[&["work", "--exec", handler, "--attempts", "1"][..], &LISTEN].concat());
    let address = served(&mut worker);
    user.waits_for("the 39 others, and a letter", || {
        let seen = Scrape::of(&address);
        seen.get("keylane_tasks_total{outcome=\"executed\"}") == Some(39.0)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_waits_for_its_handler_takes_no_partition() {
    let user = User::with_partitions(2).await;
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let handler = free.local_addr().unwrap().to_string();
    drop(free);
    let url = format!("http://{handler}/");
    let work = ["work", "--http", &url, "--wait-for-handler"];
    let mut worker = user.starts(&[&work[..], &LISTEN].concat());
    let address = served(&mut worker);
    std::thread::sleep(Duration::from_secs(1));
    assert!(get(&address, "/readyz").0.contains("503"));
    assert_eq!(user.status()["workers"], Value::Array(vec![]));
    serves(&handler);
    user.waits_for("that it is ready", || get(&address, "/readyz").0.contains("200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_an_error_before_any_work() {
    let user = User::new().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let nowhere = ["--amqp-url", "amqp://127.0.0.1:1", "--metrics-listen", &address];
    for args in [&["work", "--exec", "true"][..], &["route"], &["publish", "--resource", "/r"]] {
        user.fails(1, &[args, &nowhere].concat(), &["cannot serve metrics on", &address, "use"]);
    }
    user.fails(1, &["route", "--metrics-listen", "nonsense"], &["nonsense", "HOST:PORT"]);
    user.fails(2, &["route", "--metrics-hot-resources", "3"], &["--metrics-listen"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_library_has_them_in_its_own_registry() {
    let broker = broker(Version::default()).await;
    let (connect, _) = space(broker, 1).await;
    let metrics = Metrics::new();
    let own = prometheus::IntCounter::new("own_total", "Something else.").unwrap();
    let registry = prometheus::Registry::new();
    registry.register(Box::new(own)).unwrap();
    registry.register(Box::new(metrics.clone())).unwrap();
    assert!(registry.register(Box::new(Metrics::new())).is_err(), "one registry for one worker");
    let scrape = || {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather());
        Scrape(text.unwrap())
    };
    assert_eq!(scrape().value("own_total"), 0.0);

    let (record, gate) = (Record::default(), Gate::default());
    let passed = gate.clone();
    let handler = record.handler("w", move |attempt| {
        let gate = passed.clone();
        async move {
            gate.passed().await;
            drop(attempt);
            Ok(())
        }
    });
    let options = WorkerOptions { metrics: Some(metrics.clone()), ..named("w") };
    let worker = Worker::start(&connect, options, handler);
    let (metrics, max_payload) = (Some(metrics), 8);
    let options = ProducerOptions { metrics, max_payload, ..ProducerOptions::default() };
    let producer = Producer::open(&connect, options).await.unwrap();
    for (resource, sequence) in [("a", 0), ("a", 1), ("b", 0)] {
        producer.publish(task(resource, sequence)).await.unwrap();
    }
    eventually("three tasks in hand, two of them running", async || {
        let scrape = scrape();
        let seen = ["held_tasks", "running_tasks", "lanes", "owned_partitions"]
            .map(|name| scrape.get(&format!("keylane_{name}")).unwrap_or(0.0));
        (seen == [3.0, 2.0, 2.0, 1.0]).then_some(())
    })
    .await;
    producer.publish(task("a", u64::MAX)).await.unwrap_err();
    for (outcome, count) in [("confirmed", 3.0), ("too_large", 1.0), ("nacked", 0.0)] {
        let series = format!("keylane_published_total{{outcome=\"{outcome}\"}}");
        assert_eq!(scrape().value(&series), count, "{outcome}");
    }
    assert_eq!(scrape().value("keylane_publish_in_flight"), 0.0);

    // The connection is lost with two tasks running: they are executed again.
    cut_connections(broker, "keylane w worker").await;
    eventually("the loss and the return", async || {
        let scrape = scrape();
        let change = |change| {
            scrape.value(&format!("keylane_ownership_changes_total{{change=\"{change}\"}}"))
        };
        let seen = (change("gained"), change("lost"), scrape.value("keylane_reconnects_total"));
        (seen == (2.0, 1.0, 1.0)).then_some(())
    })
    .await;
    assert_eq!(scrape().value("keylane_attempts_total{outcome=\"aborted\"}"), 2.0);
    gate.open();
    record.until_executed(3).await;
    let summary = worker.drain().await;
    let scrape = scrape();
    assert_eq!(scrape.value("keylane_redeliveries_total"), summary.redelivered as f64);
    assert_eq!(scrape.value("keylane_partition_executed_total{partition=\"0\"}"), 3.0);
    let given_up = "keylane_ownership_changes_total{change=\"given_up\"}";
    assert_eq!((scrape.value(given_up), scrape.value("keylane_owned_partitions")), (1.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_takes_no_records_shows() {
    let broker = Broker::start().await.unwrap();
    let (connect, _) = space(&broker, 1).await;
    let (record, gate) = (Record::default(), Gate::default());
    let handler = record.gated("w", &gate);
    let metrics = Metrics::new();
    let scrape = || Scrape(metrics.render().unwrap());
    let options = WorkerOptions { metrics: Some(metrics.clone()), ..named("w") };
    let worker = Worker::start(&connect, options, handler);
    support::publish(&connect, [task("a", 0)]).await;
    record.until("it runs", |runs| runs.len() == 1).await;
    assert_eq!(scrape().value("keylane_journal_lag_seconds"), 0.0);
    // The broker takes no messages now.
    support::rabbitmqctl(&broker, &["set_vm_memory_high_watermark", "0.00001"]).await;
    gate.open();
    eventually("a record that waits", async || {
        (scrape().value("keylane_journal_lag_seconds") > 2.0).then_some(())
    })
    .await;
    assert_eq!(scrape().value("keylane_journal_records_total"), 0.0);
    support::rabbitmqctl(&broker, &["set_vm_memory_high_watermark", "0.6"]).await;
    eventually("its record", async || {
        let scrape = scrape();
        let written = scrape.value("keylane_journal_records_total") == 1.0;
        (written && scrape.value("keylane_journal_lag_seconds") == 0.0).then_some(())
    })
    .await;
    worker.drain().await;
}

/// The address of somebody who has the rights of a worker, and no others.
async fn limited(user: &User) -> String {
    let rights =
        SECURITY.lines().find_map(|line| line.strip_prefix("rabbitmqctl set_permissions worker "));
    // A shell script on the way takes backslashes away.
    let rights: Vec<_> = rights.unwrap().split('\'').skip(1).step_by(2).collect();
    let rights = rights.iter().map(|r| r.replace("keylane", &user.namespace).replace("\\.", "[.]"));
    let (broker, name) = (Broker::shared().await.unwrap(), format!("worker-{}", user.namespace));
    support::rabbitmqctl(broker, &["add_user", &name, "pass"]).await;
    let rights: Vec<_> = rights.collect();
    let set =
        [&["set_permissions", &name][..], &rights.iter().map(String::as_str).collect::<Vec<_>>()];
    support::rabbitmqctl(broker, &set.concat()).await;
    format!("amqp://{name}:pass@{}", user.url.rsplit('@').next().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_seen_by_its_owner_with_the_documented_rights() {
    let mut user = User::new().await;
    user.succeeds(&["init", "--partitions", "1", "--prefetch", "4"]);
    let lines: String = (0..20).map(|_| "{\"r\":\"a\"}\n").collect();
    user.file("tasks", lines);
    user.succeeds(&["publish", "tasks", "--resource", "/r"]);
    user.url = limited(&user).await;
    let handler = "while [ ! -e go ]; do sleep 0.05; done";
    let mut worker = user.starts(&[&["work", "--exec", handler][..], &LISTEN].concat());
    let address = served(&mut worker);
    let ready = "keylane_partition_ready_tasks{partition=\"0\"}";
    let held = "keylane_partition_held_tasks{partition=\"0\"}";
    user.waits_for("16 on the broker, and 4 in hand", || {
        let scrape = Scrape::of(&address);
        (scrape.get(ready), scrape.get(held)) == (Some(16.0), Some(4.0))
    });
    user.file("go", "");
    user.waits_for("nothing left", || Scrape::of(&address).get(ready) == Some(0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_names_the_resource_that_is_hot() {
    let user = User::with_partitions(4).await;
    let mut lines = String::new();
    for n in 0..200 {
        let resource = if n % 2 == 0 { "hot".to_owned() } else { format!("cold{n}") };
        lines += &format!("{{\"r\":\"{resource}\"}}\n");
    }
    user.file("tasks", lines);
    user.succeeds(&["publish", "tasks", "--resource", "/r"]);
    let handler = r#"while read -r line; do echo '{"status":"executed"}'; done"#;
    let _worker = user.starts(&["work", "--pipe", handler, "--id", "w1"]);
    let mut status = Value::Null;
    user.waits_for("200 executed tasks", || {
        status = user.status();
        status["workers"][0]["executed"] == 200
    });
    // How long a handler takes is the machine's affair; the tasks are counted.
    let hot = status["hot"].as_array().unwrap();
    let found = hot.iter().find(|share| share["resource"] == "hot");
    let found = found.unwrap_or_else(|| panic!("{status}"));
    assert!(found["worker"] == "w1" && found["partition"].is_u64(), "{status}");
    // What is certain: half, less a partition's thirty-second.
    let share = found["attempts"].as_f64().unwrap();
    assert!((0.4..=0.6).contains(&share), "{status}");
    assert!(hot.len() <= 10, "{status}");
    let row = |line: &str| line.trim_start().starts_with("hot ") && line.contains("w1");
    user.waits_for("a row of it", || user.succeeds(&["status"]).out.lines().any(row));
}
