//! Who may do what, and what is told to whom.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

use std::fs::{File, read_to_string};
use std::io::{BufRead, BufReader};
use std::process::Child;

use keylane::testing::Broker;

use super::http::ask;
use super::served::Served;
use super::user::{Running, User};

/// The commands that the manual gives, which this test tries.
const MANUAL: &str = include_str!("../../docs/security.md");

const PASSWORD: &str = "s3cret-Pa55word";

/// What a role needs on the broker.
#[derive(Debug, Clone)]
struct Rights([String; 3]);

const CONFIGURE: usize = 0;
const WRITE: usize = 1;
const READ: usize = 2;

impl Rights {
    /// As documented, for another namespace.
    fn of(role: &str, namespace: &str) -> Self {
        let start = format!("rabbitmqctl set_permissions {role} ");
        let line = MANUAL.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
        let patterns: Vec<&str> = line.split('\'').skip(1).step_by(2).collect();
        Self(<[&str; 3]>::try_from(patterns).unwrap().map(|p| p.replace("keylane", namespace)))
    }

    /// All of it but one thing, a pattern after the namespace's dot.
    fn without(&self, kind: usize, thing: &str, namespace: &str) -> Self {
        let mut rights = self.clone();
        let name = if thing.starts_with("amq") { thing } else { &format!("{namespace}\\.{thing}") };
        rights.0[kind] = format!("^(?!{name}$){}", &self.0[kind][1..]);
        rights
    }
}

/// A namespace, and users of the broker with limited rights.
struct House {
    broker: &'static Broker,
    user: User,
}

impl House {
    async fn new() -> Self {
        Self { broker: Broker::shared().await.unwrap(), user: User::new().await }
    }

    /// Makes users with these rights, all at once, and gives their addresses.
    async fn admits(&self, users: Vec<(String, Rights)>) -> Vec<String> {
        let (mut script, mut urls) = (String::new(), Vec::new());
        let host = self.user.url.rsplit('@').next().unwrap();
        for (name, Rights(rights)) in users {
            let name = format!("{name}-{}", self.user.namespace);
            // A shell script on the way takes backslashes away.
            let rights = rights.map(|pattern| format!("<<\"{}\">>", pattern.replace("\\.", "[.]")));
            let rights = rights.join(", ");
            script += &format!(
                "rabbit_auth_backend_internal:add_user(<<{name:?}>>, <<{PASSWORD:?}>>, <<>>),
                rabbit_auth_backend_internal:set_permissions(<<{name:?}>>, <<\"/\">>, {rights}, <<>>),"
            );
            urls.push(format!("amqp://{name}:{PASSWORD}@{host}"));
        }
        let done = self.broker.exec(["rabbitmqctl", "-q", "eval", &(script + "ok.")]).await;
        let done = done.unwrap();
        assert!(done.status.success() && done.stdout == b"ok\n", "{done:?}");
        urls
    }

    /// A user with the documented rights.
    async fn role(&self, role: &str) -> String {
        let rights = Rights::of(role, &self.user.namespace);
        self.admits(vec![(role.to_owned(), rights)]).await.remove(0)
    }

    /// A user with the documented rights but one.
    async fn limited(&self, role: &str, things: &[(usize, &str)]) -> Vec<String> {
        let rights = Rights::of(role, &self.user.namespace);
        let all = things.iter().enumerate();
        let users = all.map(|(n, (kind, thing))| {
            let rights = rights.without(*kind, thing, &self.user.namespace);
            (format!("{role}-{kind}-{n}-{}", thing.len()), rights)
        });
        self.admits(users.collect()).await
    }

    /// Runs a command that needs each of these things, without one of them.
    async fn needs(&self, role: &str, args: &[&str], things: &[(usize, &str)]) {
        let urls = self.limited(role, things).await;
        for ((_, thing), url) in things.iter().zip(urls) {
            let name = thing.split('\\').next().unwrap();
            let args = [args, &["--amqp-url", &url]].concat();
            let ran = self.user.fails(1, &args, &["not permitted", name, "refused"]);
            assert!(!ran.err.contains(PASSWORD), "{ran:?}");
        }
    }

    fn starts(&self, url: &str, args: &[&str]) -> Running {
        self.user.starts(&[args, &["--amqp-url", url]].concat())
    }
}

/// Reads what a process says until all of these words have stood in one line.
fn says(running: &mut Running, words: &[&str]) {
    let Child { stderr, .. } = &mut running.0;
    let mut lines = BufReader::new(stderr.take().unwrap()).lines();
    let found = lines.any(|line| words.iter().all(|word| line.as_ref().unwrap().contains(word)));
    assert!(found, "it ended without saying {words:?}");
    // It goes on talking, and must not fail at it.
    std::thread::spawn(move || lines.count());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_rights_are_enough_and_not_too_many() {
    let house = House::new().await;
    let user = &house.user;
    let init = ["init", "--partitions", "1"];
    let allowed = house.role("init").await;
    for _again in 0..2 {
        user.succeeds(&[&init[..], &["--amqp-url", &allowed]].concat());
    }
    let declared = [
        "init",
        "topology",
        "control",
        "fleet",
        "submit",
        "planner",
        "dead",
        "inbox",
        "journal",
        "steering",
        "g1",
        "g1\\.p0",
        "g1\\.p0\\.epoch",
    ]
    .map(|name| (CONFIGURE, name));
    house.needs("init", &init, &declared).await;
    let stored = [
        (WRITE, "amq\\.default"),
        (WRITE, "g1\\.p0"),
        (WRITE, "inbox"),
        (WRITE, "planner"),
        (READ, "topology"),
        (READ, "g1"),
        (READ, "submit"),
        (READ, "fleet"),
    ];
    house.needs("init", &init, &stored).await;

    user.file("one.ndjson", "{\"r\":\"a\"}\n");
    let publish = ["publish", "one.ndjson", "--resource", "/r"];
    let producer = house.role("producer").await;
    user.succeeds(&[&publish[..], &["--amqp-url", &producer]].concat());
    house.needs("producer", &publish, &[(WRITE, "g1"), (READ, "topology")]).await;

    // It runs the task, which fails and is buried.
    let work = ["work", "--exec", "exit 1", "--attempts", "1"];
    let start = [
        (CONFIGURE, "control\\..+"),
        (WRITE, "control\\..+"),
        (READ, "topology"),
        (READ, "journal"),
        (READ, "steering"),
        (READ, "planner"),
        (READ, "control"),
        (READ, "fleet"),
        (READ, "control\\..+"),
        (READ, "g1\\.p0"),
    ];
    house.needs("worker", &work, &start).await;
    // A task may ask for its token before the worker has found that there is none.
    let tokenless = house.limited("worker", &[(READ, "g1\\.p0\\.epoch")]).await;
    let ran = user.run(&[&work[..], &["--amqp-url", &tokenless[0]]].concat());
    let last = ran.err.lines().last().unwrap_or_default();
    assert!(ran.code == Some(1) && last.contains("not permitted"), "{ran:?}");
    assert!(last.contains("g1.p0.epoch") && last.contains("refused"), "{ran:?}");
    let mute = house.limited("worker", &[(WRITE, "amq\\.default")]).await;
    let mut mute = house.starts(&mute[0], &work);
    says(&mut mute, &["dead letter", "not permitted", "amq.default"]);
    drop(mute);
    let mut worker = house.starts(&house.role("worker").await, &work);
    says(&mut worker, &["to the dead letters"]);

    let status = ["status", "--json"];
    let seen = user.succeeds(&[&status[..], &["--amqp-url", &house.role("status").await]].concat());
    assert!(seen.out.contains(r#""slots":16"#), "the worker has answered: {seen:?}");
    let asked = [
        (CONFIGURE, "control\\..+"),
        (WRITE, "control"),
        (READ, "topology"),
        (READ, "steering"),
        (READ, "control\\..+"),
        (WRITE, "inbox"),
        (WRITE, "dead"),
        (WRITE, "g1\\.p0"),
    ];
    house.needs("status", &status, &asked).await;
    user.waits_for_quiet();
    let steer = house.role("steer").await;
    let pause = ["pause", "--all"];
    let paused = user.succeeds(&[&pause[..], &["--json", "--amqp-url", &steer]].concat());
    assert!(paused.out.contains(r#""workers":["#) && !paused.out.contains(r#""workers":[]"#));
    let orders = [
        (CONFIGURE, "control\\..+"),
        (WRITE, "amq\\.default"),
        (WRITE, "control"),
        (READ, "steering"),
        (READ, "control\\..+"),
    ];
    // Each is one that changes something.
    house.needs("steer", &["pause", "--resource", "never"], &orders).await;
    house.needs("steer", &["pause", "--partition", "0"], &[(READ, "topology")]).await;
    house.needs("steer", &["cancel", "never"], &[(READ, "journal")]).await;
    user.succeeds(&["resume", "--all", "--amqp-url", &steer]);
    user.succeeds(&["cancel", "never", "--amqp-url", &steer]);
    let name = user.status()["workers"][0]["worker"].as_str().unwrap().to_owned();
    user.succeeds(&["drain", &name, "--amqp-url", &steer]);
    assert_eq!(worker.ends().code, Some(0));

    let journal = house.role("journal").await;
    let read = ["verify", "history --resource a", "task none"].map(|line| {
        let words: Vec<_> = line.split(' ').chain(["--amqp-url", &journal]).collect();
        user.run(&words)
    });
    assert!(read[0].out.contains("1 dead-lettered") && read[1].code == Some(0), "{read:?}");
    assert!(read[2].err.contains("never published"), "{read:?}");
    house.needs("journal", &["verify"], &[(READ, "journal")]).await;
    let asked = [(CONFIGURE, "control\\..+"), (WRITE, "control"), (READ, "control\\..+")];
    house.needs("journal", &["task", "none"], &asked).await;

    let dead = house.role("dead").await;
    let listed = user.succeeds(&["dead", "list", "--json", "--amqp-url", &dead]);
    assert_eq!(listed.out.lines().count(), 1, "{listed:?}");
    house.needs("dead", &["dead", "list"], &[(READ, "topology"), (READ, "dead")]).await;
    let replay = ["dead", "replay", "--all"];
    house.needs("replay", &replay, &[(WRITE, "g1")]).await;
    let replayed =
        user.succeeds(&[&replay[..], &["--amqp-url", &house.role("replay").await]].concat());
    assert_eq!(replayed.out, "replayed 1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_needs_no_more_rights_than_documented() {
    let house = House::new().await;
    let user = &house.user;
    user.succeeds(&["init", "--partitions", "1"]);
    user.file("one.ndjson", "{\"r\":\"a\"}\n");
    user.succeeds(&["publish", "one.ndjson", "--resource", "/r"]);
    // The shell's parent is the worker.
    let work = ["work", "--exec", "kill -9 $PPID", "--max-crashes", "2"];
    let killed = house.starts(&user.url, &work).ends();
    assert_eq!(killed.code, None, "{killed:?}");

    let things = [(CONFIGURE, "g1\\.p0\\.claims"), (READ, "g1\\.p0\\.claims")];
    for url in house.limited("worker", &things).await {
        let killed = house.starts(&url, &work).ends();
        assert!(killed.err.contains("cannot tell who kills workers"), "{killed:?}");
        assert!(killed.err.contains("not permitted"), "{killed:?}");
    }
    let mute = house.limited("worker", &[(WRITE, "amq\\.default")]).await;
    let killed = house.starts(&mute[0], &work).ends();
    assert!(killed.err.contains("its claim could not be stored"), "{killed:?}");
    assert!(killed.err.contains("not permitted"), "{killed:?}");

    let worker = house.role("worker").await;
    let killed = house.starts(&worker, &work).ends();
    assert!(killed.code.is_none() && !killed.err.contains("not permitted"), "{killed:?}");
    let mut survivor = house.starts(&worker, &work);
    says(&mut survivor, &["to the dead letters", "the last time with nothing else running"]);
    user.waits_for_quiet();
    survivor.signal("TERM");
    assert_eq!(survivor.ends().code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_not_greet_says_so() {
    let house = House::new().await;
    house.user.succeeds(&["init", "--partitions", "1"]);
    let shy = house.limited("worker", &[(WRITE, "fleet")]).await;
    let mut shy = house.starts(&shy[0], &["work", "--exec", "true"]);
    says(&mut shy, &["fleet", "not permitted"]);
}

/// A channel of a user who speaks AMQP by himself.
async fn speaks(url: &str) -> lapin::Channel {
    let properties = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(url, properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(Default::default()).await.unwrap();
    channel
}

/// Whoever may ask says where the answer goes to, and a worker may write to every queue.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_only_to_who_asked() {
    let house = House::new().await;
    let (user, ns) = (&house.user, &house.user.namespace);
    user.succeeds(&["init", "--partitions", "1"]);
    let worker = user.starts(&["work", "--exec", "true"]);
    user.waits_for("a worker", || user.status()["workers"].as_array().unwrap().len() == 1);
    let channel = speaks(&house.role("status").await).await;
    let to = ["g1.p0.epoch", "g1.p0", "inbox", "dead", "control.g1.p0.epoch"];
    let long = "x".repeat(250);
    for to in to.into_iter().chain([long.as_str()]) {
        for said in [r#""report""#, r#"{"heed":{"position":0}}"#] {
            let to = format!("{ns}.{to}").chars().take(255).collect::<String>();
            let asks = lapin::BasicProperties::default().with_reply_to(to.as_str().into());
            let (exchange, options) = (format!("{ns}.control"), Default::default());
            let exchange = exchange.as_str().into();
            let sent = channel.basic_publish(exchange, "".into(), options, said.as_bytes(), asks);
            sent.await.unwrap().await.unwrap();
        }
    }
    // The worker hears this one last, and answers to it.
    let asked = user.succeeds(&["pause", "--resource", "r", "--json"]);
    assert!(!asked.out.contains(r#""workers":[]"#), "{asked:?}");
    let status = user.status();
    assert_eq!((&status["dead"], &status["inbox"]), (&0.into(), &0.into()), "{status}");
    let admin = speaks(&user.url).await;
    let look = lapin::options::QueueDeclareOptions { passive: true, ..Default::default() };
    let counter = format!("{ns}.g1.p0.epoch");
    let counted = admin.queue_declare(counter.as_str().into(), look, Default::default()).await;
    assert_eq!(counted.unwrap().message_count(), 1, "the counter is alone");
    worker.signal("TERM");
    assert_eq!(worker.ends().code, Some(0));
}

/// Publishes, and insists on the broker's answer to it.
async fn tells(channel: &lapin::Channel, exchange: &str, key: &str, said: &str) -> bool {
    let (options, properties) = (Default::default(), lapin::BasicProperties::default());
    let (exchange, key) = (exchange.into(), key.into());
    let sent = channel.basic_publish(exchange, key, options, said.as_bytes(), properties);
    sent.await.unwrap().await.is_ok()
}

/// A plan that takes everything away from everybody, and greetings of a giant.
#[tokio::test(flavor = "multi_thread")]
async fn only_members_of_the_fleet_say_who_stands_where() {
    use keylane::protocol::ownership::{Weight, WorkerId};
    use keylane::protocol::plan::{Member, Plan};
    let house = House::new().await;
    let (user, ns) = (&house.user, &house.user.namespace);
    user.succeeds(&["init", "--partitions", "4"]);
    let work = |name| user.starts(&["work", "--exec", "true", "--id", name, "--log", "off"]);
    let workers = [work("w1"), work("w2")];
    let plans = || {
        let status = user.status();
        let of = |worker: &serde_json::Value| worker["plan"].as_u64();
        let plans: Vec<_> = status["workers"].as_array().unwrap().iter().map(of).collect();
        let planned = |partition: &serde_json::Value| partition["planned"].to_string();
        let planned: Vec<_> =
            status["partitions"].as_array().unwrap().iter().map(planned).collect();
        (plans, planned)
    };
    user.waits_for("both in one plan", || {
        let (plans, planned) = plans();
        plans.len() == 2
            && plans[0].is_some()
            && plans[0] == plans[1]
            && ["w1", "w2"].iter().all(|w| planned.iter().any(|owner| owner.contains(w)))
    });
    let before = plans();

    let ghost = WorkerId::new("ghost").unwrap();
    let giant = Member { worker: ghost.clone(), weight: Weight::new(1000.0).unwrap() };
    let mut forged = Plan::next(None, &[giant], 4, &[]);
    forged.number = 1 << 40;
    let plan = serde_json::json!({ "plan": forged }).to_string();
    let attached = r#"{"attached":{"worker":"ghost","places":[[0,3600000,7],[1,3600000,7]]}}"#;
    let unattended = r#"{"unattended":{"partitions":[0,1,2,3]}}"#;
    let greeting = r#"{"report":{"worker":"ghost","weight":1000.0,"plan":null,"loads":[[0,1e6]]}}"#;
    let goodbye = r#"{"goodbye":{"worker":"w1"}}"#;
    let (control, fleet, planner) =
        (format!("{ns}.control"), format!("{ns}.fleet"), format!("{ns}.planner"));
    let steer = house.role("steer").await;
    let mut asking = vec![("steer", steer.clone())];
    for role in ["status", "top", "dashboard", "journal"] {
        asking.push((role, house.role(role).await));
    }
    for (role, url) in asking {
        let channel = speaks(&url).await;
        for said in ["\"call\"", &plan, attached, unattended] {
            assert!(tells(&channel, &control, "", said).await, "{role} asks workers");
        }
        for key in ["members", "planner"] {
            assert!(!tells(&speaks(&url).await, &fleet, key, &plan).await, "{role}");
        }
    }
    // These may publish to every queue.
    for url in [house.role("router").await, house.role("replay").await, steer] {
        let channel = speaks(&url).await;
        for said in [greeting, goodbye] {
            assert!(tells(&channel, "", &planner, said).await, "{url}");
        }
    }
    // A true one is planned for; by then the planner has heard the others.
    let third = work("w3");
    user.waits_for("a third one", || {
        let (plans, _) = plans();
        plans.len() == 3 && plans.iter().all(|plan| plan.is_some() && *plan == plans[0])
    });
    let (plans, planned) = plans();
    assert!(plans[0] < before.0[0].map(|number| number + 10), "{plans:?} after {before:?}");
    assert!(!planned.iter().any(|owner| owner.contains("ghost")), "{planned:?}");
    for worker in workers.into_iter().chain([third]) {
        worker.signal("TERM");
        assert_eq!(worker.ends().code, Some(0));
    }
}

/// One that cannot hash may publish tasks, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_to_the_inbox_reaches_no_other_queue() {
    let house = House::new().await;
    let (user, ns) = (&house.user, &house.user.namespace);
    user.succeeds(&["init", "--partitions", "1"]);
    let inbox = house.role("inbox").await;
    // The broker copies what has a header CC, if the exchange asks for keys.
    let channel = speaks(&inbox).await;
    let copies = ["dead", "g1.p0.epoch", "g1.p0"].map(|queue| format!("{ns}.{queue}"));
    let mut headers = lapin::types::FieldTable::default();
    let to = copies.iter().map(|to| lapin::types::AMQPValue::LongString(to.as_str().into()));
    let to = lapin::types::FieldArray::from(to.collect::<Vec<_>>());
    headers.insert("CC".into(), lapin::types::AMQPValue::FieldArray(to));
    let copied = lapin::BasicProperties::default().with_headers(headers);
    let (exchange, options) = (format!("{ns}.submit"), Default::default());
    let sent = channel.basic_publish(exchange.as_str().into(), "".into(), options, b"", copied);
    assert!(matches!(sent.await.unwrap().await.unwrap(), lapin::Confirmation::Ack(None)));
    let status = user.status();
    assert_eq!((&status["inbox"], &status["dead"]), (&1.into(), &0.into()), "{status}");
    assert_eq!(status["partitions"][0]["ready"], 0, "{status}");
    for (exchange, key) in [
        (String::new(), format!("{ns}.inbox")),
        (String::new(), format!("{ns}.g1.p0.epoch")),
        (format!("{ns}.g1"), "0".to_owned()),
        (format!("{ns}.control"), String::new()),
    ] {
        let channel = speaks(&inbox).await;
        let properties = lapin::BasicProperties::default();
        let (exchange, key) = (exchange.as_str().into(), key.as_str().into());
        let sent = channel.basic_publish(exchange, key, options, b"", properties).await.unwrap();
        let refused = sent.await.unwrap_err().to_string();
        assert!(refused.contains("ACCESS_REFUSED") || refused.contains("refused"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_needs_what_is_documented() {
    let house = House::new().await;
    let user = &house.user;
    user.succeeds(&["init", "--partitions", "1"]);
    house.needs("router", &["route"], &[(READ, "topology"), (READ, "inbox")]).await;
    let exchange = format!("{}.submit", user.namespace);
    let channel = speaks(&house.role("inbox").await).await;
    let mut resource = lapin::types::FieldTable::default();
    resource.insert("resource".into(), lapin::types::AMQPValue::LongString("a".into()));
    // A task, and something that is none. What a killed router has not acked comes again.
    let puts_both = async || {
        for headers in [resource.clone(), lapin::types::FieldTable::default()] {
            let properties = lapin::BasicProperties::default().with_headers(headers);
            let (exchange, options) = (exchange.as_str().into(), Default::default());
            let sent = channel.basic_publish(exchange, "".into(), options, b"", properties);
            assert!(matches!(sent.await.unwrap().await.unwrap(), lapin::Confirmation::Ack(None)));
        }
    };

    let missing = [(WRITE, "g1"), (WRITE, "amq\\.default")];
    for ((_, thing), url) in missing.iter().zip(house.limited("router", &missing).await) {
        puts_both().await;
        let mut limited = house.starts(&url, &["route"]);
        says(&mut limited, &["not permitted", thing.split('\\').next().unwrap()]);
    }
    puts_both().await;
    let router = house.starts(&house.role("router").await, &["route"]);
    user.waits_for("both to be routed", || {
        let status = user.status();
        let some = |count: &serde_json::Value| count.as_u64() > Some(0);
        status["inbox"] == 0 && some(&status["dead"]) && some(&status["partitions"][0]["ready"])
    });
    router.signal("TERM");
    assert_eq!(router.ends().code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dashboard_and_top_need_what_is_documented() {
    let house = House::new().await;
    let user = &house.user;
    user.succeeds(&["init", "--partitions", "1"]);
    let looks = [
        (CONFIGURE, "control\\..+"),
        (WRITE, "control"),
        (WRITE, "inbox"),
        (WRITE, "dead"),
        (WRITE, "g1\\.p0"),
        (READ, "topology"),
        (READ, "journal"),
        (READ, "control\\..+"),
    ];
    house.needs("top", &["top", "--once"], &looks).await;
    let top = house.role("top").await;
    user.succeeds(&["top", "--once", "--amqp-url", &top]);
    // Whoever may read the dead letters may count them.
    let looks = looks.map(|(kind, name)| if name == "dead" { (READ, name) } else { (kind, name) });
    house.needs("dashboard", &["dashboard", "--listen", "127.0.0.1:0"], &looks).await;

    user.file("one.ndjson", "{\"r\":\"a\"}\n");
    user.succeeds(&["publish", "one.ndjson", "--resource", "/r"]);
    let worker = user.starts(&["work", "--exec", "exit 1", "--attempts", "1"]);
    user.waits_for("a dead letter", || user.status()["dead"] == 1);
    worker.signal("TERM");
    worker.ends();
    let acts = |url: &str, what: &str| {
        let served = Served::start(user, &["--amqp-url", url]);
        let word = served.page_word();
        let headers = [("x-keylane-page", word.as_str()), ("Content-Type", "application/json")];
        let body = if what.starts_with("POST") { r#"{"all":true}"# } else { "" };
        ask(&served.address, what, &headers, body)
    };
    // Counting them is not reading them.
    let refused = acts(&top, "GET /api/dead");
    assert!(refused.status == 403 && refused.body.contains("not permitted"), "{refused:?}");
    let blind = house.limited("dashboard", &[(WRITE, "g1")]).await;
    let refused = acts(&blind[0], "POST /api/dead/replay");
    assert!(refused.body.contains(r#""done":0"#), "{refused:?}");
    assert!(refused.body.contains("not permitted"), "{refused:?}");
    let replayed = acts(&house.role("dashboard").await, "POST /api/dead/replay");
    assert!(replayed.body.contains(r#""done":1"#), "{replayed:?}");
    assert_eq!(user.status()["dead"], 0);
}

/// What a password looks like in a log, however it is written.
fn disguises(secret: &str) -> [String; 3] {
    let bytes: Vec<String> = secret.bytes().map(|byte| byte.to_string()).collect();
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    [secret.to_owned(), bytes.join(", "), hex]
}

fn tells_nothing(args: &[&str], said: &str) {
    for disguise in disguises(PASSWORD) {
        let at = said.find(&disguise);
        let around = at.map(|at| said[at.saturating_sub(300)..].chars().take(600));
        let around = around.map(Iterator::collect::<String>);
        assert_eq!(around, None, "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_is_told_whatever_happens() {
    let house = House::new().await;
    let user = &house.user;
    let everything = Rights([".*", ".*", ".*"].map(str::to_owned));
    let url = house.admits(vec![("chatty".to_owned(), everything)]).await.remove(0);
    let host = url.rsplit('@').next().unwrap();
    user.file("one.ndjson", "{\"r\":\"a\"}\n");
    let publish = ["publish", "one.ndjson", "--resource", "/r"];
    for log in ["debug", "trace"] {
        let runs = |url: &str, args: &[&str]| {
            let args = [args, &["--log", log, "--amqp-url", url]].concat();
            let ran = user.run(&args);
            tells_nothing(&args, &format!("{}{}", ran.out, ran.err));
            ran
        };
        let first: [&[&str]; 4] = [
            &["init", "--partitions", "1", "--json"],
            &publish,
            &["status", "--json"],
            &["status"],
        ];
        for args in first {
            let ran = runs(&url, args);
            assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
            assert!(
                ran.err.contains("create channel"),
                "what the client library logs is seen: {ran:?}"
            );
        }
        let args = ["work", "--exec", "exit 1", "--attempts", "1", "--json", "--log", log];
        let mut command = user.command(&args);
        // It says more than a pipe holds.
        let said = user.file("said", "");
        command.env("KEYLANE_AMQP_URL", &url).stderr(File::create(&said).unwrap());
        let worker = Running(command.spawn().unwrap());
        user.waits_for("dead letters", || user.status()["dead"].as_u64() > Some(0));
        worker.signal("TERM");
        let ran = worker.ends();
        assert_eq!(ran.code, Some(0), "{ran:?}");
        tells_nothing(&args, &(ran.out + &read_to_string(said).unwrap()));
        let then: [&[&str]; 4] = [
            &["dead", "list", "--json"],
            &["dead", "replay", "--all"],
            &["dead", "discard", "--all"],
            &["demo", "--limit", "3", "--json"],
        ];
        for args in then {
            let ran = runs(&url, args);
            assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
        }
        for wrong in [
            format!("amqp://nobody:{PASSWORD}@{host}"),
            format!("amqp://chatty:{PASSWORD}@127.0.0.1:1"),
            format!("amqp://chatty:{PASSWORD}@no-such-host.invalid"),
            format!("amqps://chatty:{PASSWORD}@{host}"),
            url.replace("%2f", "nope"),
            format!("http://chatty:{PASSWORD}@{host}"),
            format!("amqp://chatty:{PASSWORD}"),
            format!("amqp://chatty:1/{PASSWORD}@{host}"),
            format!("amqp://chatty:{PASSWORD},{PASSWORD}@{host}"),
        ] {
            let at_once = ["--wait-for-broker", "0s"];
            let work = [&["work", "--exec", "true"], &at_once[..]].concat();
            let route = [&["route"], &at_once[..]].concat();
            for args in [&["init"][..], &publish, &work, &route] {
                assert_eq!(runs(&wrong, args).code, Some(1), "{args:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_does_not_inherit_the_password() {
    let user = User::with_partitions(1).await;
    user.file("one.ndjson", "{\"r\":\"a\"}\n");
    let pipe = r#"env >seen; read -r line; echo '{"status":"executed"}'"#;
    for (kind, handler) in [("--exec", "env >seen"), ("--pipe", pipe)] {
        user.succeeds(&["publish", "one.ndjson", "--resource", "/r"]);
        let worker = user.starts(&["work", kind, handler]);
        user.waits_for_quiet();
        worker.signal("TERM");
        assert_eq!(worker.ends().code, Some(0));
        let seen = user.lines_of("seen");
        let has = |name: &str| seen.iter().any(|line| line.starts_with(name));
        assert!(has("PATH=") && has("KEYLANE_NAMESPACE="), "the rest is inherited: {seen:?}");
        assert!(!seen.iter().any(|line| line.contains("amqp://")), "{kind}: {seen:?}");
    }
}
