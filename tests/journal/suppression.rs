//! What comes back to a new owner, or comes twice, leaves its resource in the state of its
//! newest task: owners are killed before their acks, and the effects are a list.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use keylane::{
    Attempt, Connect, Failure, Handler, PartitionId, WorkerOptions, handler_fn, status, verify,
};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use url::Url;

use crate::support::proxy::Proxy;
use crate::support::{
    Worker, amqp, dead_letters, eventually, header, named, open_dead_letters, publish, put, space,
    task,
};
use crate::{entries, shared};

/// The effects of all tasks, as a list of their payloads.
type Effects = Arc<Mutex<Vec<String>>>;

/// Whose acks come so late that it is killed before.
fn late(name: &str) -> WorkerOptions {
    WorkerOptions { ack_delay: Duration::from_secs(5), ..named(name) }
}

/// A worker whose connections can be cut, so that it is lost with what it has not acked.
struct Doomed {
    worker: Worker,
    proxy: Proxy,
}

impl Doomed {
    async fn start(connect: &Connect, options: WorkerOptions, handler: impl Handler) -> Self {
        let mut through = Url::parse(&shared().await.amqp_url()).unwrap();
        let proxy = Proxy::to(through.port().unwrap()).await;
        through.set_port(Some(proxy.port)).unwrap();
        let through = Connect::new(through).unwrap().with_namespace(connect.namespace().clone());
        Self { worker: Worker::start(&through, options, handler), proxy }
    }

    async fn dies(self) {
        self.proxy.fall_silent();
        self.worker.kill().await;
        self.proxy.cut();
    }
}

/// Adds its payload to the effects, after `before`.
fn effect<F, Fut>(effects: &Effects, before: F) -> impl Handler + use<F, Fut>
where
    F: Fn(Attempt) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Failure>> + Send,
{
    let effects = Arc::clone(effects);
    handler_fn(move |attempt: Attempt| {
        let (effects, payload) = (Arc::clone(&effects), attempt.task.payload.clone());
        let before = before(attempt);
        async move {
            before.await?;
            effects.lock().unwrap().push(String::from_utf8(payload.to_vec()).unwrap());
            Ok(())
        }
    })
}

/// Waits until so many attempts and dead letters are recorded.
async fn await_entries(connect: &Connect, count: usize) {
    let look = async || (entries(connect).await.len() >= count).then_some(());
    eventually(&format!("{count} records"), look).await;
}

/// One more task, after which everything before it on `r` is settled.
async fn end_with(connect: &Connect, effects: &Effects, last: u64) -> Vec<String> {
    publish(connect, [task("r", last)]).await;
    let ended = async || effects.lock().unwrap().last().is_some_and(|e| *e == last.to_string());
    eventually("the last task", async || ended().await.then_some(())).await;
    effects.lock().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_whose_ack_was_lost_is_not_tried_behind_its_successor() {
    let (connect, _) = space(shared().await, 1).await;
    publish(&connect, (0..3).map(|n| task("r", n))).await;
    let effects = Effects::default();
    let first = effect(&effects, async |attempt: Attempt| match &*attempt.task.payload {
        b"1" => Err(Failure::dead("for the test")),
        _ => Ok(()),
    });
    let worker = Doomed::start(&connect, late("one"), first).await;
    await_entries(&connect, 4).await;
    worker.dies().await;
    let worker = Worker::start(&connect, late("two"), effect(&effects, async |_| Ok(())));
    assert_eq!(end_with(&connect, &effects, 9).await, ["0", "2", "9"]);
    worker.drain().await;
    assert_eq!(dead_letters(&connect).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_nobody_guarantees_suppresses_nothing() {
    let broker = shared().await;
    let (connect, topology) = space(broker, 1).await;
    let (_connection, channel) = amqp(broker).await;
    let queue = connect.namespace().partition(&topology, PartitionId::new(0));
    let anybodys = || header("resource", AMQPValue::LongString("r".into()));
    publish(&connect, [task("r", 0)]).await;
    for payload in [b"1", b"2"] {
        put(&channel, &queue, anybodys().with_message_id("same".into()), payload).await;
    }
    publish(&connect, [task("r", 3)]).await;
    let effects = Effects::default();
    let first = effect(&effects, async |attempt: Attempt| match &*attempt.task.payload {
        b"2" => std::future::pending().await,
        _ => Ok(()),
    });
    let worker = Doomed::start(&connect, late("one"), first).await;
    await_entries(&connect, 2).await;
    worker.dies().await;
    let worker = Worker::start(&connect, late("two"), effect(&effects, async |_| Ok(())));
    let effects = end_with(&connect, &effects, 9).await;
    assert_eq!(effects, ["0", "1", "1", "2", "3", "9"], "another's task is lost");
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_again_is_executed_to_its_end() {
    let (connect, _) = space(shared().await, 1).await;
    publish(&connect, (0..2).map(|n| task("r", n))).await;
    let effects = Effects::default();
    let worker = Doomed::start(&connect, late("one"), effect(&effects, async |_| Ok(()))).await;
    await_entries(&connect, 2).await;
    worker.dies().await;
    // It looks nothing up, and says nothing of what it does.
    let again = effect(&effects, async |attempt: Attempt| match &*attempt.task.payload {
        b"1" => std::future::pending().await,
        _ => Ok(()),
    });
    let worker =
        Doomed::start(&connect, WorkerOptions { journal: false, ..late("two") }, again).await;
    let begun = async || (effects.lock().unwrap().len() == 3).then_some(());
    eventually("the first one again", begun).await;
    worker.dies().await;
    let worker = Worker::start(&connect, late("three"), effect(&effects, async |_| Ok(())));
    let effects = end_with(&connect, &effects, 9).await;
    assert_eq!(effects, ["0", "1", "0", "0", "1", "9"], "it ends in the state of an older task");
    worker.drain().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_task_is_not_taken_for_its_dead_letter() {
    let (connect, _) = space(shared().await, 1).await;
    publish(&connect, [task("r", 0)]).await;
    let effects = Effects::default();
    let first = effect(&effects, async |attempt: Attempt| match attempt.task.replayed {
        false => Err(Failure::dead("for the test")),
        true => std::future::pending().await,
    });
    let worker = Doomed::start(&connect, named("one"), first).await;
    let mut dead = open_dead_letters(&connect, 1).await;
    let letter = dead.next().await.unwrap().unwrap();
    dead.replay(letter).await.unwrap();
    dead.close().await;
    let runs = async || (status(&connect).await.ok()?.partitions[0].running == 1).then_some(());
    eventually("the replay", runs).await;
    worker.dies().await;
    let worker = Worker::start(&connect, named("two"), effect(&effects, async |_| Ok(())));
    assert_eq!(end_with(&connect, &effects, 9).await, ["0", "9"]);
    worker.drain().await;
    let (report, findings) = verify(&connect, None, Duration::ZERO).await.unwrap();
    assert_eq!((report.executed, report.replayed, findings), (2, 1, vec![]));
    assert_eq!(report.unended, 1, "whether that was all is not known");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_copy_is_superseded_and_a_replay_is_not() {
    let broker = shared().await;
    let (connect, topology) = space(broker, 1).await;
    let (_connection, channel) = amqp(broker).await;
    let queue = connect.namespace().partition(&topology, PartitionId::new(0));
    let again = |n| (n, Some("republished"));
    let first = |n| (n, None);
    // A node was frozen with 1 to 3; their producer has sent them again and gone on.
    let sent = [again(1), again(2), again(3), first(4), first(1), first(2), first(3)];
    for (n, mark) in sent.into_iter().chain([(2, Some("replayed"))]) {
        let mut headers = FieldTable::default();
        headers.insert("resource".into(), AMQPValue::LongString("r".into()));
        if let Some(mark) = mark {
            headers.insert(mark.into(), AMQPValue::Boolean(true));
        }
        let properties = BasicProperties::default()
            .with_headers(headers)
            .with_message_id(format!("t{n}").into())
            .with_app_id(format!("keylane/p/{n}").into());
        put(&channel, &queue, properties, n.to_string().as_bytes()).await;
    }
    let effects = Effects::default();
    let worker = Worker::start(&connect, named("w"), effect(&effects, async |_| Ok(())));
    assert_eq!(end_with(&connect, &effects, 9).await, ["1", "2", "3", "4", "2", "9"]);
    assert_eq!(worker.drain().await.superseded, 3);
    let (report, findings) = verify(&connect, None, Duration::ZERO).await.unwrap();
    assert_eq!((report.superseded, report.replayed, findings), (3, 1, vec![]));
}
