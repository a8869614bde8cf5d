//! What the broker itself says of its queues.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Serialize;

use crate::provision::cluster::{Cluster, Node};

/// Prints name, ready and delivered messages, and consumers (waiting ones, and those that
/// are gone and not forgotten, included) of every quorum queue, from the state of its
/// leader: the columns of `list_queues` are seconds old. One that has no leader prints `?`.
const LOOK: &str = r#"
[begin
   {resource, _, queue, Name} = amqqueue:get_name(Q),
   case catch ra:leader_query(amqqueue:get_pid(Q), {rabbit_fifo, overview, []}) of
     {ok, {_, #{num_ready_messages := Ready, num_checked_out := Out} = State}, _} ->
       Consumers = max(maps:get(num_consumers, State), maps:get(num_active_consumers, State)),
       io:format("~ts ~b ~b ~b~n", [Name, Ready, Out, Consumers]);
     _ -> io:format("~ts ?~n", [Name])
   end
 end || Q <- rabbit_amqqueue:list(), amqqueue:get_type(Q) =:= rabbit_quorum_queue], ok."#;

/// A queue, as its leader has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(super) struct Queue {
    pub(super) ready: u64,
    /// Delivered, and neither settled nor returned.
    pub(super) unacked: u64,
    pub(super) consumers: u64,
}

/// All queues by their names; `None` is one without a leader that answers.
pub(super) type Queues = BTreeMap<String, Option<Queue>>;

/// Looks at all queues over one node.
pub(super) async fn look(cluster: &Cluster) -> anyhow::Result<Queues> {
    let printed = cluster.ctl(Node::ALL[0], &["eval", LOOK]).await?;
    read(&printed).with_context(|| format!("rabbitmqctl printed {printed:?}"))
}

fn read(printed: &str) -> Option<Queues> {
    let mut queues = Queues::new();
    for line in printed.lines().filter(|line| line.contains(' ')) {
        let mut words = line.split(' ');
        let name = words.next()?.to_owned();
        let numbers: Vec<&str> = words.collect();
        let queue = match numbers[..] {
            ["?"] => None,
            [ready, unacked, consumers] => Some(Queue {
                ready: ready.parse().ok()?,
                unacked: unacked.parse().ok()?,
                consumers: consumers.parse().ok()?,
            }),
            _ => return None,
        };
        queues.insert(name, queue);
    }
    Some(queues)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_read() {
        let queues = read("soak.g1.p0 3 2 1\nsoak.g1.p1 ?\nok").expect("lines");
        let queue = Queue { ready: 3, unacked: 2, consumers: 1 };
        let wanted = [("soak.g1.p0", Some(queue)), ("soak.g1.p1", None)];
        assert_eq!(queues, wanted.map(|(name, queue)| (name.to_owned(), queue)).into());
        assert_eq!(read("Error: what is this"), None);
    }
}
