//! A cluster of three brokers in containers, or one broker, and the faults that befall
//! its nodes.
//!
//! Every node is in two networks: over one it talks to its clients, over the
//! other to its peers. So it can be cut off from both, or from its peers alone
//! while its clients notice nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::docker::{PACKAGE, docker};
use super::{POLL_INTERVAL, Version, unique_name, wait_for_amqp};
use super::{ProvisionError, READY_TIMEOUT, Reaper, amqp_url, command, docker, free_port, image};

/// Time for a command that stops or asks a broker: its tools start an Erlang of
/// their own, which takes 2 s, or 20 s where everybody wants the processor.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a node may take to stop by itself before it is killed.
const STOP_TIMEOUT_S: &str = "60";

/// How long the cluster may take to become whole again: nodes find each other
/// within seconds, but one that was frozen or cut off is let in again only when
/// its silence was noticed.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Removes the containers and networks of the cluster `$1`, and looks once more:
/// Docker may be making one when its owner is killed.
const REMOVE: &str = r#"
left() {
  docker ps --all --quiet --filter "name=^/$1-[123]\$"
  docker network ls --quiet --filter "name=^$1-(clients|peers)\$"
}
remove() {
  docker rm --force --volumes "$1-1" "$1-2" "$1-3"
  docker network rm "$1-clients" "$1-peers"
}
remove "$1"
[ -z "$(left "$1")" ] || { sleep 2; remove "$1"; }
[ -z "$(left "$1")" ]
"#;

/// What a node does first, every time that it starts.
const ENTRYPOINT: &str = r#"
cookie=/var/lib/rabbitmq/.erlang.cookie
printf %s "$CLUSTER_COOKIE" >$cookie && chmod 400 $cookie
mkdir -p /etc/rabbitmq/conf.d && printf %s "$CLUSTER_CONFIG" >/etc/rabbitmq/conf.d/20-cluster.conf
unset CLUSTER_COOKIE CLUSTER_CONFIG
exec docker-entrypoint.sh rabbitmq-server
"#;

/// The waits of the brokers that decide how long a fault is felt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waits {
    /// `net_ticktime`: a node that says nothing for about so long is taken for
    /// lost (0.75 to 1.25 times of it). In whole seconds.
    pub net_ticktime: Duration,
    /// A policy `consumer-disconnected-timeout`: how long a queue waits for a consumer
    /// whose node is lost, before it hands on what that holds. Partitions wait for 12 s at the most.
    pub consumer_disconnected: Duration,
}

impl Default for Waits {
    /// RabbitMQ's own: a minute each.
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self { net_ticktime: minute, consumer_disconnected: minute }
    }
}

/// The brokers to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// Number of nodes: 1, or 3 that form a cluster. Other numbers count as the nearer one.
    pub nodes: u8,
    /// Version of RabbitMQ.
    pub version: Version,
    /// How long the nodes wait for one another and for consumers.
    pub waits: Waits,
}

/// One of the three nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(u8);

impl Node {
    /// All of them.
    pub const ALL: [Self; 3] = [Self(1), Self(2), Self(3)];

    /// Its place among [`Node::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0) - 1
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|node| name == format!("rabbit@{node}"))
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node{}", self.0)
    }
}

/// What can befall a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum NodeFault {
    /// Stopped as an operator does it.
    Stop,
    /// Killed with SIGKILL.
    Kill,
    /// Frozen: its connections stay open, and nothing answers.
    Pause,
    /// Cut off from its peers and its clients.
    Cut,
    /// Cut off from its peers; its clients still reach it.
    Split,
}

/// Three brokers, or one. Every one listens on 127.0.0.1 only, and their user `guest`
/// has the password `guest`.
///
/// Dropping it removes it and its data, which blocks for some seconds. It is
/// removed as well when this process ends without a drop.
///
/// # Cancel safety
/// A fault whose future is dropped may be carried out or not.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    nodes: &'static [Node],
    /// Of the nodes, in their order.
    ports: [u16; 3],
    reaper: Reaper,
}

/// A queue, and who has copies of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replicas {
    /// The node that leads it; `None` while there is none.
    pub leader: Option<Node>,
    /// Nodes that have a copy.
    pub members: usize,
    /// Those of them that take part.
    pub online: usize,
}

impl Cluster {
    /// Starts three nodes of RabbitMQ 4.3 and waits until they are one cluster:
    /// half a minute on two cores. `progress` gets a line about each step.
    ///
    /// # Errors
    /// Those of [`docker::check`] and [`image::ensure`]; what Docker said; a
    /// cluster that is not whole within five minutes.
    ///
    /// # Cancel safety
    /// Dropping the future removes whatever was started.
    pub async fn start(waits: Waits, progress: impl Fn(&str)) -> Result<Self, ProvisionError> {
        let version = Version::default();
        Self::start_with(Setup { nodes: 3, version, waits }, progress).await
    }

    /// Starts these nodes and waits until they serve. `progress` is told of each step.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    ///
    /// # Cancel safety
    /// Dropping the future removes whatever was started.
    pub async fn start_with(setup: Setup, progress: impl Fn(&str)) -> Result<Self, ProvisionError> {
        docker::check().await?;
        let image = image::ensure(setup.version, &progress).await?;
        let nodes: &[Node] = if setup.nodes > 1 { &Node::ALL } else { &Node::ALL[..1] };
        match nodes {
            [_] => progress(&format!("starting a broker from {image}")),
            _ => progress(&format!("starting a cluster of three from {image}")),
        }
        let name = unique_name("keylane-cluster");
        let reaper = Reaper::new(REMOVE, &[&name])
            .map_err(ProvisionError::io("start the cluster's reaper"))?;
        let ports = [free_port()?, free_port()?, free_port()?];
        let cluster = Self { name, nodes, ports, reaper };
        for network in [cluster.clients(), cluster.peers()] {
            docker(&["network", "create", "--label", "keylane=cluster", &network]).await?;
        }
        for &node in nodes {
            cluster.create(node, &image, setup).await?;
        }
        cluster.start_all().await?;
        cluster.whole().await?;
        cluster.shorten_waits(setup).await?;
        Ok(cluster)
    }

    /// The shorter time of a policy wins over a queue's own.
    async fn shorten_waits(
        &self,
        Setup { version, waits, .. }: Setup,
    ) -> Result<(), ProvisionError> {
        if version != Version::V4_3 || waits == Waits::default() {
            return Ok(());
        }
        let wait = waits.consumer_disconnected.as_millis();
        let wait = format!("{{\"consumer-disconnected-timeout\": {wait}}}");
        self.ctl(Node::ALL[0], &["set_policy", "waits", ".*", &wait]).await.map(drop)
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> &'static [Node] {
        self.nodes
    }

    /// The URL of every node, separated by commas, with this one first. They stay
    /// the same whatever happens.
    #[must_use]
    pub fn amqp_urls(&self, first: Node) -> String {
        let (start, count) = (first.index(), self.nodes.len());
        let ports = (0..count).map(|n| self.ports[(start + n) % count]);
        ports.map(amqp_url).collect::<Vec<_>>().join(",")
    }

    /// Where a node's AMQP is on 127.0.0.1. It stays the same whatever happens.
    #[must_use]
    pub fn port(&self, node: Node) -> u16 {
        self.ports[node.index()]
    }

    /// The name of a node's container, for Docker commands that this type lacks.
    #[must_use]
    pub fn container(&self, node: Node) -> String {
        format!("{}-{}", self.name, node.0)
    }

    /// Lets a fault befall a node.
    ///
    /// # Errors
    /// What Docker said.
    pub async fn inflict(&self, fault: NodeFault, node: Node) -> Result<(), ProvisionError> {
        let container = self.container(node);
        match fault {
            NodeFault::Stop => self.run(&["stop", "--time", STOP_TIMEOUT_S, &container]).await,
            NodeFault::Kill => self.run(&["kill", &container]).await,
            NodeFault::Pause => self.run(&["pause", &container]).await,
            NodeFault::Split => self.leave(&self.peers(), node).await,
            NodeFault::Cut => {
                self.leave(&self.peers(), node).await?;
                self.leave(&self.clients(), node).await
            }
        }
    }

    /// Undoes a fault, and does not wait until the cluster is [whole](Cluster::whole).
    ///
    /// # Errors
    /// What Docker said.
    pub async fn heal(&self, fault: NodeFault, node: Node) -> Result<(), ProvisionError> {
        let container = self.container(node);
        match fault {
            NodeFault::Stop | NodeFault::Kill => self.run(&["start", &container]).await,
            NodeFault::Pause => self.run(&["unpause", &container]).await,
            NodeFault::Split => self.join_peers(node).await,
            NodeFault::Cut => {
                self.run(&["network", "connect", &self.clients(), &container]).await?;
                self.join_peers(node).await
            }
        }
    }

    /// Stops all nodes at once, as an operator does it.
    ///
    /// # Errors
    /// What Docker said.
    pub async fn stop_all(&self) -> Result<(), ProvisionError> {
        let containers = self.containers();
        let mut words = vec!["stop", "--time", STOP_TIMEOUT_S];
        words.extend(containers.iter().map(String::as_str));
        self.run(&words).await
    }

    /// Starts all nodes that do not run.
    ///
    /// # Errors
    /// What Docker said.
    pub async fn start_all(&self) -> Result<(), ProvisionError> {
        let containers = self.containers();
        let mut words = vec!["start"];
        words.extend(containers.iter().map(String::as_str));
        self.run(&words).await
    }

    /// Waits until all nodes serve and every replicated queue that is there from the
    /// beginning has a leader and three copies that take part.
    ///
    /// # Errors
    /// [`ProvisionError::NotReady`], with what is missing, after five minutes.
    pub async fn whole(&self) -> Result<(), ProvisionError> {
        let deadline = Instant::now() + WHOLE_TIMEOUT;
        for &port in &self.ports[..self.nodes.len()] {
            wait_for_amqp(port, READY_TIMEOUT)
                .await
                .map_err(ProvisionError::io("speak AMQP to a node of the cluster"))?;
        }
        loop {
            let missing = self.missing().await;
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(ProvisionError::NotReady {
                    broker: self.name.clone(),
                    what: format!("is not whole within {} s", WHOLE_TIMEOUT.as_secs()),
                    log: missing,
                });
            }
            sleep(POLL_INTERVAL * 10).await;
        }
    }

    /// What the cluster lacks to be whole. Its tools take seconds of a processor each
    /// time, so one of them has to do; before there are queues, each node is asked.
    async fn missing(&self) -> String {
        let queues = match self.replicas(Node::ALL[0]).await {
            Ok(queues) => queues,
            Err(error) => return error.to_string(),
        };
        // What is declared when it is needed may be so while a node is lost, and that
        // node's copy never starts then.
        let lasts = |queue: &str| !queue.contains(".pulse.") && !queue.ends_with(".claims");
        let lacks = |q: &Replicas| q.leader.is_none() || q.online < self.nodes.len();
        let mut missing = Vec::new();
        if queues.is_empty() {
            let count = self.nodes.len().to_string();
            for &node in self.nodes {
                let online = self.ctl(node, &["await_online_nodes", &count, "-t", "20"]).await;
                missing.extend(online.err().map(|error| format!("{node}: {error}")));
            }
        }
        let lacking = queues.into_iter().filter(|(queue, found)| lasts(queue) && lacks(found));
        missing.extend(lacking.map(|(queue, found)| format!("{queue}: {found:?}")));
        missing.join("\n")
    }

    /// All replicated queues and streams, as a node sees them.
    ///
    /// # Errors
    /// What the node's tools said.
    pub async fn replicas(&self, by: Node) -> Result<BTreeMap<String, Replicas>, ProvisionError> {
        let container = self.container(by);
        let columns = ["name", "type", "leader", "members", "online"];
        let words =
            [&["rabbitmqctl", "--silent", "--formatter", "json", "list_queues"], &columns[..]];
        let printed = exec(&container, &words.concat()).await?;
        let listed: Vec<Listed> =
            serde_json::from_str(&printed).map_err(|error| ProvisionError::Failed {
                command: "rabbitmqctl list_queues".to_owned(),
                output: format!("{error}: {printed}"),
            })?;
        let replicated = listed.into_iter().filter(|queue| queue.kind != "classic");
        Ok(replicated.map(Listed::into_replicas).collect())
    }

    /// Runs `rabbitmqctl` on a node, and gives what it printed.
    ///
    /// # Errors
    /// What it said, or that it did not end within two minutes.
    pub async fn ctl(&self, node: Node, words: &[&str]) -> Result<String, ProvisionError> {
        exec(&self.container(node), &[&["rabbitmqctl", "--quiet"], words].concat()).await
    }

    /// Restarts the server that leads a quorum queue: what makes a broker forget a
    /// consumer that is gone and that it hands messages to.
    ///
    /// # Errors
    /// What the node's tools said.
    pub async fn restart_leader(&self, queue: &str) -> Result<(), ProvisionError> {
        let restart = format!(
            "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)),
            P = amqqueue:get_pid(Q), ok = ra:stop_server(quorum_queues, P),
            ok = ra:restart_server(quorum_queues, P)."
        );
        self.ctl(Node::ALL[0], &["eval", &restart]).await.map(drop)
    }

    /// Removes it and its data, and tells whether that worked.
    ///
    /// # Errors
    /// [`ProvisionError::NotRemoved`] when something may be left.
    ///
    /// # Cancel safety
    /// The removal goes on when the future is dropped.
    pub async fn stop(mut self) -> Result<(), ProvisionError> {
        let broker = self.name.clone();
        let removal = tokio::task::spawn_blocking(move || self.reaper.reap()).await;
        let outcome = removal.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        outcome.map_err(|error| ProvisionError::NotRemoved { broker, reason: error.to_string() })
    }

    async fn create(&self, node: Node, image: &str, setup: Setup) -> Result<(), ProvisionError> {
        let (container, alias) = (self.container(node), node.to_string());
        let port = format!("127.0.0.1:{}:5672", self.ports[node.index()]);
        // Its own name has to be known to it when it is cut off as well.
        let own_name = format!("{alias}:127.0.0.1");
        let environment = [
            format!("RABBITMQ_NODENAME=rabbit@{alias}"),
            format!("CLUSTER_COOKIE={}", self.name),
            format!("CLUSTER_CONFIG={}", config(self.nodes)),
            format!(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-kernel net_ticktime {}",
                setup.waits.net_ticktime.as_secs().max(1)
            ),
        ];
        let clients = self.clients();
        let mut words = vec!["create", "--name", &container, "--label", "keylane=cluster"];
        words.extend(["--network", &clients, "--publish", &port, "--add-host", &own_name]);
        for variable in &environment {
            words.extend(["--env", variable]);
        }
        words.extend(["--entrypoint", "sh", image, "-c", ENTRYPOINT]);
        docker(&words).await?;
        self.join_peers(node).await
    }

    fn containers(&self) -> Vec<String> {
        self.nodes.iter().map(|&node| self.container(node)).collect()
    }

    async fn join_peers(&self, node: Node) -> Result<(), ProvisionError> {
        let (network, alias) = (self.peers(), node.to_string());
        self.run(&["network", "connect", "--alias", &alias, &network, &self.container(node)]).await
    }

    async fn leave(&self, network: &str, node: Node) -> Result<(), ProvisionError> {
        self.run(&["network", "disconnect", network, &self.container(node)]).await
    }

    /// Where the ports are published: Docker takes the network for that whose name
    /// comes first.
    fn clients(&self) -> String {
        format!("{}-clients", self.name)
    }

    fn peers(&self) -> String {
        format!("{}-peers", self.name)
    }

    async fn run(&self, words: &[&str]) -> Result<(), ProvisionError> {
        let mut docker = Command::new("docker");
        docker.args(words);
        command::output(docker, PACKAGE, COMMAND_TIMEOUT).await.map(drop)
    }
}

/// A queue as `rabbitmqctl list_queues` shows it; what it cannot find out now is
/// an empty text.
#[derive(Deserialize)]
struct Listed {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    leader: serde_json::Value,
    members: serde_json::Value,
    online: serde_json::Value,
}

impl Listed {
    fn into_replicas(self) -> (String, Replicas) {
        let count = |nodes: &serde_json::Value| nodes.as_array().map_or(0, Vec::len);
        let replicas = Replicas {
            leader: self.leader.as_str().and_then(Node::of_name),
            members: count(&self.members),
            online: count(&self.online),
        };
        (self.name, replicas)
    }
}

fn config(nodes: &[Node]) -> String {
    let mut config = "cluster_formation.peer_discovery_backend = classic_config\n".to_owned();
    for node in nodes {
        config += &format!("cluster_formation.classic_config.nodes.{} = rabbit@{node}\n", node.0);
    }
    config.push_str("queue_leader_locator = balanced\n");
    config
}

async fn exec(container: &str, words: &[&str]) -> Result<String, ProvisionError> {
    let mut docker = Command::new("docker");
    docker.args(["exec", container]).args(words);
    command::output(docker, PACKAGE, COMMAND_TIMEOUT).await
}
