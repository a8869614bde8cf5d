//! What the integration tests share: brokers, workers inside the test process,
//! and a record of what ran that knows nothing of keylane's own bookkeeping.

#![allow(dead_code, reason = "no test binary uses all of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "clippy spares #[test] functions only")]

pub(crate) mod programs;
pub(crate) mod proxy;
pub(crate) mod stores;
pub(crate) mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_lite::{StreamExt, stream};
use keylane::testing::{Broker, Version};
use keylane::{
    Attempt, Connect, DeadLetter, DeadLetters, Error, Failure, Handler, Namespace, PartitionCount,
    PartitionId, Producer, ProducerOptions, Receipt, Resource, Task, Topology, WorkerId,
    WorkerOptions, WorkerSummary, handler_fn, init, work,
};
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Nothing that is waited for takes longer, on a slow machine under load.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks at something that tells nobody when it changes.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The same after a look with the broker's tools, each of which starts an Erlang of its own: it
/// slows down what is waited for.
pub(crate) const TOOL_INTERVAL: Duration = Duration::from_secs(1);

/// The result of a future that must not take for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(PATIENCE, future).await;
    result.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Looks again and again until there is something to see.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    soon(what, looking).await
}

/// One broker of each version for all the tests of this process.
pub(crate) async fn broker(version: Version) -> &'static Broker {
    static V4_0: OnceCell<Broker> = OnceCell::const_new();
    match version {
        Version::V4_0 => {
            V4_0.get_or_try_init(|| Broker::start_version(Version::V4_0)).await.unwrap()
        }
        _ => Broker::shared().await.unwrap(),
    }
}

/// A namespace that nobody else has, not set up yet.
pub(crate) fn connect(broker: &Broker) -> Connect {
    let namespace = Namespace::new(broker.namespace()).unwrap();
    Connect::new(broker.amqp_url()).unwrap().with_namespace(namespace)
}

/// A namespace that nobody else has, with this many partitions.
pub(crate) async fn space(broker: &Broker, partitions: u32) -> (Connect, Topology) {
    let connect = connect(broker);
    let topology = init(&connect, count(partitions)).await.unwrap();
    (connect, topology)
}

pub(crate) fn count(partitions: u32) -> PartitionCount {
    PartitionCount::new(partitions).unwrap()
}

/// Resources of every partition: `per_partition` for each, in the order of the
/// partitions.
pub(crate) fn resources(topology: &Topology, per_partition: usize) -> Vec<Vec<String>> {
    let mut found = vec![Vec::new(); topology.partitions.get() as usize];
    for number in 0.. {
        let name = format!("r{number}");
        let partition = topology.partition_of(&Resource::new(&name).unwrap()).number();
        let names = &mut found[partition as usize];
        if names.len() < per_partition {
            names.push(name);
        } else if found.iter().all(|names| names.len() == per_partition) {
            return found;
        }
    }
    unreachable!()
}

/// The task of this place in the order of its resource.
pub(crate) fn task(resource: &str, sequence: u64) -> Task {
    Task::new(resource, sequence.to_string()).unwrap()
}

/// `per_resource` tasks of each resource, the resources taking turns.
pub(crate) fn tasks<'a>(
    resources: impl IntoIterator<Item = &'a String, IntoIter: Clone>,
    per_resource: u64,
) -> Vec<Task> {
    let resources = resources.into_iter();
    let round = |sequence| resources.clone().map(move |resource| task(resource, sequence));
    (0..per_resource).flat_map(round).collect()
}

/// Publishes tasks and insists on every confirm.
pub(crate) async fn publish(
    connect: &Connect,
    tasks: impl IntoIterator<Item = Task>,
) -> Vec<Receipt> {
    let producer = Producer::open(connect, ProducerOptions::default()).await.unwrap();
    let outcomes = producer.publish_all(stream::iter(tasks)).map(|p| p.outcome.unwrap());
    let receipts = soon("publishing", outcomes.collect()).await;
    producer.close().await;
    receipts
}

/// A plain AMQP channel, as a stranger to keylane has it.
pub(crate) async fn amqp(broker: &Broker) -> (Connection, Channel) {
    let properties = ConnectionProperties::default();
    let connection = Connection::connect(&broker.amqp_url(), properties).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(Default::default()).await.unwrap();
    (connection, channel)
}

/// Publishes straight into a queue.
pub(crate) async fn put(
    channel: &Channel,
    queue: &str,
    properties: BasicProperties,
    payload: &[u8],
) {
    let options = BasicPublishOptions { mandatory: true, ..Default::default() };
    let sent = channel.basic_publish("".into(), queue.into(), options, payload, properties);
    let confirm = sent.await.unwrap().await.unwrap();
    assert!(matches!(confirm, lapin::Confirmation::Ack(None)), "{confirm:?}");
}

/// How many messages of a queue nobody holds. The broker says none, too, when the queue's leader
/// does not answer in time, so that is asked again.
pub(crate) async fn ready(channel: &Channel, queue: &str) -> u32 {
    let look = QueueDeclareOptions { passive: true, ..Default::default() };
    for again in (0..3).rev() {
        let found = channel.queue_declare(queue.into(), look, FieldTable::default()).await.unwrap();
        if found.message_count() > 0 {
            return found.message_count();
        }
        if again > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    0
}

/// Everything that a queue holds, taken out of it. Getting is not possible from
/// a queue with a single active consumer.
pub(crate) async fn take_all(channel: &Channel, queue: &str) -> Vec<lapin::message::Delivery> {
    let count = ready(channel, queue).await as usize;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
    let mut consumer = consumer.await.unwrap();
    let mut messages = Vec::new();
    while messages.len() < count {
        messages.push(soon("a message", consumer.next()).await.unwrap().unwrap());
    }
    let tag = consumer.tag();
    channel.basic_cancel(tag, BasicCancelOptions::default()).await.unwrap();
    messages
}

/// Properties with nothing but one header.
pub(crate) fn header(name: &str, value: AMQPValue) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert(name.into(), value);
    BasicProperties::default().with_headers(headers)
}

/// Runs a command in the broker's container and insists on its success.
pub(crate) async fn rabbitmqctl(broker: &Broker, words: &[&str]) -> String {
    let output = broker.exec([&["rabbitmqctl", "-q"], words].concat()).await.unwrap();
    assert!(output.status.success(), "rabbitmqctl {words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Declares the queue of a partition anew, empty, with this consumer timeout in place of the
/// week's.
pub(crate) async fn set_consumer_timeout(
    broker: &Broker,
    connect: &Connect,
    topology: &Topology,
    partition: PartitionId,
    timeout: Duration,
) {
    let (connection, channel) = amqp(broker).await;
    declare_anew(&channel, connect, topology, partition, ("x-consumer-timeout", timeout)).await;
    connection.close(200, "done".into()).await.unwrap();
}

/// Declares the queue of a partition anew, empty, with this time in place of `init`'s.
pub(crate) async fn declare_anew(
    channel: &Channel,
    connect: &Connect,
    topology: &Topology,
    partition: PartitionId,
    (argument, time): (&str, Duration),
) {
    let (queue, exchange) = (
        connect.namespace().partition(topology, partition),
        connect.namespace().exchange(topology),
    );
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    let millis = i64::try_from(time.as_millis()).unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(-1));
    arguments.insert(argument.into(), AMQPValue::LongLongInt(millis));
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.as_str().into(), durable, arguments).await.unwrap();
    let key = partition.number().to_string();
    let bound = channel.queue_bind(
        queue.as_str().into(),
        exchange.as_str().into(),
        key.as_str().into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bound.await.unwrap();
}

/// Has a policy apply to the queues of this name, a regular expression.
pub(crate) async fn set_policy(broker: &Broker, queues: &str, definition: &str) {
    let pattern = format!("^{queues}$");
    rabbitmqctl(broker, &["set_policy", queues, &pattern, definition]).await;
}

/// Restarts the server of a queue: it forgets consumers that are gone.
pub(crate) async fn restart_server(broker: &Broker, queue: &str) {
    let restart = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)),
        P = amqqueue:get_pid(Q), ra:stop_server(quorum_queues, P),
        ra:restart_server(quorum_queues, P)."
    );
    rabbitmqctl(broker, &["eval", &restart]).await;
}

/// Cuts the connections whose name contains `part`, and nobody else's. One that
/// has not said who it is yet has no properties.
pub(crate) async fn cut_connections(broker: &Broker, part: &str) {
    let cut = try_cut_connections(broker, part).await;
    assert!(cut, "no connection of {part} was cut");
}

/// The same; says whether there was one.
pub(crate) async fn try_cut_connections(broker: &Broker, part: &str) -> bool {
    let cut = format!(
        "Named = fun({{<<\"connection_name\">>, _, Name}}) ->
                binary:match(Name, <<\"{part}\">>) =/= nomatch;
            (_) -> false end,
        All = rabbit_networking:connection_info_all([pid, client_properties]),
        [rabbit_networking:close_connection(Pid, \"test\")
            || [{{pid, Pid}}, {{client_properties, Properties}}] <- All,
            is_list(Properties), lists:any(Named, Properties)]."
    );
    rabbitmqctl(broker, &["eval", &cut]).await.contains("ok")
}

/// The dead letters, left where they are.
pub(crate) async fn dead_letters(connect: &Connect) -> Vec<DeadLetter> {
    let mut dead = DeadLetters::open(connect).await.unwrap();
    let mut letters = Vec::new();
    while let Some(letter) = dead.next().await.unwrap() {
        letters.push(letter);
    }
    dead.close().await;
    letters
}

/// The dead letters, as soon as there are so many.
pub(crate) async fn await_dead_letters(connect: &Connect, count: usize) -> Vec<DeadLetter> {
    eventually(&format!("{count} dead letters"), async || {
        let letters = dead_letters(connect).await;
        (letters.len() >= count).then_some(letters)
    })
    .await
}

/// The dead letters to take from, as soon as so many are there: what was looked at comes back a
/// moment after the look.
pub(crate) async fn open_dead_letters(connect: &Connect, count: u32) -> DeadLetters {
    eventually(&format!("{count} dead letters"), async || {
        let dead = DeadLetters::open(connect).await.unwrap();
        if dead.left() >= count {
            return Some(dead);
        }
        dead.close().await;
        None
    })
    .await
}

/// Waits until every queue of this kind (`.g1.p`, `.inbox`) has so many
/// consumers, standbys included.
pub(crate) async fn await_consumers(broker: &Broker, connect: &Connect, kind: &str, count: u32) {
    let prefix = format!("{}{kind}", connect.namespace());
    let end = format!("\t{count}");
    let of_kind = |line: &&str| {
        line.starts_with(&prefix) && !line.contains(".claims") && !line.contains(".epoch")
    };
    eventually(&format!("{count} consumers"), async || {
        let list = rabbitmqctl(broker, &["list_queues", "name", "consumers"]).await;
        let mut queues = list.lines().filter(of_kind).peekable();
        if queues.peek().is_some() && queues.all(|line| line.ends_with(&end)) {
            return Some(());
        }
        tokio::time::sleep(TOOL_INTERVAL).await;
        None
    })
    .await;
}

/// Options of a worker of this name.
pub(crate) fn named(name: &str) -> WorkerOptions {
    WorkerOptions { id: WorkerId::new(name).unwrap(), ..WorkerOptions::default() }
}

/// A worker that runs in the test process.
pub(crate) struct Worker {
    shutdown: CancellationToken,
    task: JoinHandle<Result<WorkerSummary, Error>>,
}

impl Worker {
    pub(crate) fn start(connect: &Connect, options: WorkerOptions, handler: impl Handler) -> Self {
        let (connect, shutdown) = (connect.clone(), CancellationToken::new());
        let token = shutdown.clone();
        let task = tokio::spawn(async move { work(&connect, options, handler, token).await });
        Self { shutdown, task }
    }

    /// Asks it to finish, and gives it time to hear that: other threads do, on a
    /// busy machine later.
    pub(crate) async fn shut_down(&self) {
        self.shutdown.cancel();
        tokio::time::sleep(Duration::from_secs(3)).await;
    }

    /// Waits for its end.
    pub(crate) async fn ended(self) -> WorkerSummary {
        soon("the end of a worker", self.task).await.unwrap().unwrap()
    }

    /// Lets it finish what runs, and waits for its end.
    pub(crate) async fn drain(self) -> WorkerSummary {
        self.shutdown.cancel();
        self.ended().await
    }

    /// Drops the future of [`work`] wherever it is.
    pub(crate) async fn kill(self) {
        self.task.abort();
        self.task.await.unwrap_err();
    }
}

/// One call of a handler.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) worker: String,
    pub(crate) resource: String,
    pub(crate) sequence: u64,
    pub(crate) attempt: u32,
    pub(crate) redelivered: bool,
    pub(crate) end: Option<End>,
}

/// How a call of a handler ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Executed,
    Failed,
    /// Its future was dropped.
    Aborted,
}

/// What ran, in the order in which it started, as the handlers themselves saw
/// it. Checks the rules at each start.
#[derive(Clone, Default)]
pub(crate) struct Record(Arc<Book>);

#[derive(Default)]
struct Book {
    pages: Mutex<Pages>,
    version: watch::Sender<u64>,
}

#[derive(Default)]
struct Pages {
    runs: Vec<Run>,
    truth: HashMap<String, Truth>,
    violations: Vec<String>,
}

/// What is true of a resource.
#[derive(Default)]
struct Truth {
    running: Option<usize>,
    /// Tasks 0 to this one, exclusive, are executed.
    executed: u64,
}

impl Record {
    /// A handler of the worker `name` that writes itself down around `body`.
    pub(crate) fn handler<F, Fut>(&self, name: &str, body: F) -> impl Handler + use<F, Fut>
    where
        F: Fn(Attempt) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failure>> + Send,
    {
        let (record, name) = (self.clone(), name.to_owned());
        handler_fn(move |attempt: Attempt| {
            let entry = record.start(&name, &attempt);
            let body = body(attempt);
            async move {
                let result = body.await;
                entry.finish(if result.is_ok() { End::Executed } else { End::Failed });
                result
            }
        })
    }

    /// One whose tasks wait at the gate.
    pub(crate) fn gated(&self, name: &str, gate: &Gate) -> impl Handler + use<> {
        let gate = gate.clone();
        self.handler(name, move |_| {
            let gate = gate.clone();
            async move {
                gate.passed().await;
                Ok(())
            }
        })
    }

    fn start(&self, worker: &str, attempt: &Attempt) -> Entry {
        let resource = attempt.task.resource.to_string();
        let sequence = std::str::from_utf8(&attempt.task.payload).unwrap().parse().unwrap();
        let mut pages = self.0.pages.lock().unwrap();
        let Pages { runs, truth, violations } = &mut *pages;
        let truth = truth.entry(resource.clone()).or_default();
        if let Some(other) = truth.running {
            let (at, other) = (format!("{resource}/{sequence}"), &runs[other]);
            violations.push(format!("{at} started on {worker} while {other:?} ran"));
        }
        if sequence > truth.executed {
            let missing = truth.executed;
            violations.push(format!("{resource}/{sequence} started before {missing} was executed"));
        }
        let index = runs.len();
        truth.running = Some(index);
        runs.push(Run {
            worker: worker.to_owned(),
            resource,
            sequence,
            attempt: attempt.number,
            redelivered: attempt.redelivered,
            end: None,
        });
        drop(pages);
        self.0.version.send_modify(|version| *version += 1);
        Entry { record: self.clone(), index, ended: false }
    }

    fn end(&self, index: usize, end: End) {
        let mut pages = self.0.pages.lock().unwrap();
        let Pages { runs, truth, .. } = &mut *pages;
        let run = &mut runs[index];
        let truth = truth.entry(run.resource.clone()).or_default();
        if truth.running == Some(index) {
            truth.running = None;
        }
        if end == End::Executed {
            truth.executed = truth.executed.max(run.sequence + 1);
        }
        run.end = Some(end);
        drop(pages);
        self.0.version.send_modify(|version| *version += 1);
    }

    pub(crate) fn runs(&self) -> Vec<Run> {
        self.0.pages.lock().unwrap().runs.clone()
    }

    /// Waits until the runs are as wanted.
    pub(crate) async fn until(&self, what: &str, wanted: impl Fn(&[Run]) -> bool) {
        let mut changes = self.0.version.subscribe();
        let looked = changes.wait_for(|_| wanted(&self.0.pages.lock().unwrap().runs));
        let waited = tokio::time::timeout(PATIENCE, looked).await.is_ok();
        let runs = self.runs();
        let last = &runs[runs.len().saturating_sub(5)..];
        let violations = self.violations();
        assert!(waited, "{what}: not within {PATIENCE:?}; {violations:?}, the last runs: {last:?}");
    }

    /// Waits until so many different tasks are executed.
    pub(crate) async fn until_executed(&self, tasks: usize) {
        let mut changes = self.0.version.subscribe();
        let executed = || {
            let pages = self.0.pages.lock().unwrap();
            pages.truth.values().map(|truth| truth.executed as usize).sum::<usize>()
        };
        let waited = tokio::time::timeout(PATIENCE, changes.wait_for(|_| executed() >= tasks));
        let waited = waited.await.is_ok();
        let violations = self.violations();
        assert!(waited, "only {} of {tasks} are executed; {violations:?}", executed());
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.0.pages.lock().unwrap().violations.clone()
    }

    /// No two ran at once on one resource, and each started after those before
    /// it were executed.
    pub(crate) fn assert_exclusive_and_in_order(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "{} violations: {violations:#?}", violations.len());
    }

    /// And nothing was started twice.
    pub(crate) fn assert_once(&self) {
        self.assert_exclusive_and_in_order();
        let mut seen = HashMap::new();
        for run in self.runs() {
            let key = (run.resource.clone(), run.sequence);
            if let Some(first) = seen.insert(key, run.clone()) {
                panic!("{run:?} came after {first:?}");
            }
        }
    }
}

/// A run that has begun; one that is dropped was aborted.
struct Entry {
    record: Record,
    index: usize,
    ended: bool,
}

impl Entry {
    fn finish(mut self, end: End) {
        self.ended = true;
        self.record.end(self.index, end);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.ended {
            self.record.end(self.index, End::Aborted);
        }
    }
}

/// Handlers wait at it until it is opened, and then no more.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<watch::Sender<bool>>);

impl Gate {
    pub(crate) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn is_open(&self) -> bool {
        *self.0.borrow()
    }

    pub(crate) async fn passed(&self) {
        self.0.subscribe().wait_for(|open| *open).await.unwrap();
    }
}
