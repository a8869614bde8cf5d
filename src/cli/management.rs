//! The management interface of the broker: the only place that tells how many deliveries of a
//! queue are not acked, and which policy applies to it. AMQP tells what is ready, and that somebody
//! beside the owner holds something; of policies it tells nothing.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use percent_encoding::percent_decode_str;
use reqwest::{Client, StatusCode, Url, redirect};
use rustls::crypto::{CryptoProvider, ring};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Broker;
use super::policies::{PolicedQueue, Policy, are_known, in_the_way};
use crate::Topology;
use crate::handler::is_loopback;
use crate::protocol::names::Namespace;

/// Where the management interface is.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ManagementOptions {
    /// Ask the broker's management interface, too: `http://host:15672`
    ///
    /// Names the policies of the broker that are in the way, and tasks that are delivered to a
    /// consumer that belongs to no worker, with their number (`init`: the policies only).
    /// User and password are those of `--amqp-url` unless the URL has others; the user needs the
    /// tag `monitoring`. Its numbers are up to ten seconds old.
    #[arg(long, env = "KEYLANE_MANAGEMENT_URL", hide_env_values = true, value_name = "URL")]
    management_url: Option<Url>,
}

/// The numbers are collected every five seconds, and a queue under load is late.
const STALE: Duration = Duration::from_secs(10);

/// Time between two looks at what is collected every five seconds.
const COLLECTED_PACE: Duration = Duration::from_millis(500);

const POLICY_COLUMNS: &str = "name,policy,operator_policy,effective_policy_definition";

/// A broker that is well answers within milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A client of the interface.
pub(super) struct Management {
    client: Client,
    queues: Url,
    login: (String, String),
    strays: Strays,
}

#[derive(Deserialize)]
struct Queue {
    name: String,
    /// Missing until the broker has collected it for the first time.
    #[serde(default)]
    messages_unacknowledged: u32,
}

impl ManagementOptions {
    /// A client, if there is an address.
    pub(super) fn open(&self, broker: &Broker) -> anyhow::Result<Option<Management>> {
        let Some(url) = &self.management_url else { return Ok(None) };
        let connect = broker.connect()?;
        let urls = connect.urls();
        let amqp = urls.split(',').next().unwrap_or_default();
        let amqp = Url::parse(amqp).context("the broker's address")?;
        let builder = match url.scheme() {
            // There is no certificate to check, so a machine without any will do.
            "http" => Client::builder().tls_certs_only([]),
            "https" => Client::builder(),
            other => bail!("the management interface speaks http or https, not {other}"),
        };
        if CryptoProvider::get_default().is_none() {
            // An error gives back ours: another thread was faster, which is fine.
            drop(ring::default_provider().install_default());
        }
        let builder = if is_loopback(url) { builder.no_proxy() } else { builder };
        let builder = builder.redirect(redirect::Policy::none()).timeout(TIMEOUT);
        let client = builder.build().context("cannot ask the management interface")?;
        let from = if url.username().is_empty() { &amqp } else { url };
        let login = (decoded(from.username()), decoded(from.password().unwrap_or_default()));
        let mut queues = url.clone();
        // Both fail for addresses without a host, which http has not.
        queues.set_username("").ok();
        queues.set_password(None).ok();
        let base = queues.path().trim_end_matches('/').to_owned();
        let vhost = match amqp.path().trim_start_matches('/') {
            "" => "%2F",
            vhost => vhost,
        };
        queues.set_path(&format!("{base}/api/queues/{vhost}"));
        Ok(Some(Management { client, queues, login, strays: Strays::default() }))
    }
}

impl Management {
    /// Adds to a look what is stray. Tells whether that is known: if not, the next look should be
    /// soon.
    pub(super) async fn add_strays(
        &mut self,
        namespace: &Namespace,
        status: &mut crate::Status,
    ) -> anyhow::Result<bool> {
        let unacked = self.unacked(namespace, &status.topology).await?;
        let held: Vec<_> = status.partitions.iter().map(|partition| partition.unsettled).collect();
        let strays = self.strays.note(Instant::now(), &unacked, &held);
        let known = strays.is_some();
        if let Some(strays) = strays {
            status.note_strays(&strays);
        }
        Ok(known || unacked.iter().zip(&held).all(|(unacked, held)| unacked <= held))
    }

    /// Deliveries of each partition that are not acked, in order.
    async fn unacked(
        &self,
        namespace: &Namespace,
        topology: &Topology,
    ) -> anyhow::Result<Vec<u32>> {
        let queues: Vec<Queue> = self.queues("name,messages_unacknowledged").await?;
        let counts: HashMap<_, _> =
            queues.into_iter().map(|queue| (queue.name, queue.messages_unacknowledged)).collect();
        let count = |partition| counts.get(&namespace.partition(topology, partition)).copied();
        Ok(topology.partitions().map(|partition| count(partition).unwrap_or(0)).collect())
    }
}

impl Management {
    /// The policies that are in the way of a namespace. Waits until the broker has collected them
    /// for queues that are new.
    pub(super) async fn policies(&self, namespace: &Namespace) -> anyhow::Result<Vec<Policy>> {
        let deadline = Instant::now() + STALE;
        loop {
            let queues = self.queues::<PolicedQueue>(POLICY_COLUMNS).await?;
            if are_known(namespace, &queues) || Instant::now() > deadline {
                return Ok(in_the_way(namespace, &queues));
            }
            tokio::time::sleep(COLLECTED_PACE).await;
        }
    }

    /// These columns of all queues of the virtual host.
    async fn queues<T: DeserializeOwned>(&self, columns: &str) -> anyhow::Result<Vec<T>> {
        let (user, password) = &self.login;
        let mut url = self.queues.clone();
        url.set_query(Some(&format!("columns={columns}")));
        let asking = self.client.get(url).basic_auth(user, Some(password)).send();
        let host = self.queues.host_str().unwrap_or_default();
        let doing = || format!("cannot ask the management interface at {host}");
        let answer = asking.await.map_err(reqwest::Error::without_url).with_context(doing)?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => bail!(
                "the management interface at {host} refuses user {user:?}: it needs the tag \
                 monitoring, and a right on the virtual host"
            ),
            other => {
                bail!("the management interface at {host} answers {other}: is its address right?")
            }
        }
        serde_json::from_str(&answer.text().await.with_context(doing)?).with_context(doing)
    }
}

/// A part of a URL as it was meant.
fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Compares what the broker counts with what the workers say, over [`STALE`]: the two are not of
/// the same moment, so what is stray is the least that was counted less the most that was said.
#[derive(Default)]
pub(super) struct Strays {
    looks: VecDeque<(Instant, Vec<(u32, u32)>)>,
}

impl Strays {
    /// Takes a look in, and tells the least number of stray tasks of each partition. `None` as long
    /// as the looks do not reach far enough.
    pub(super) fn note(&mut self, now: Instant, unacked: &[u32], held: &[u32]) -> Option<Vec<u32>> {
        let counts = unacked.iter().copied().zip(held.iter().copied()).collect();
        self.looks.push_back((now, counts));
        // One that is older is needed to reach far enough.
        while self.looks.get(1).is_some_and(|(at, _)| now - *at >= STALE) {
            self.looks.pop_front();
        }
        let enough = self.looks.front().is_some_and(|(at, _)| now - *at >= STALE);
        let least = |partition: usize| {
            let of = self.looks.iter().filter_map(|(_, counts)| counts.get(partition));
            let (counted, said): (Vec<u32>, Vec<u32>) = of.copied().unzip();
            let most = said.into_iter().max().unwrap_or(0);
            counted.into_iter().min().unwrap_or(0).saturating_sub(most)
        };
        enough.then(|| (0..held.len()).map(least).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_all_the_time_and_said_by_nobody_is_stray() {
        let (mut strays, began) = (Strays::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        // A fast fleet, five strays, and one that is about to be known.
        assert_eq!(strays.note(at(0), &[250, 5, 9], &[0, 0, 0]), None);
        assert_eq!(strays.note(at(5), &[3, 7, 9], &[256, 2, 0]), None);
        assert_eq!(strays.note(at(10), &[250, 7, 9], &[1, 0, 9]), Some(vec![0, 3, 0]));
        assert_eq!(strays.note(at(15), &[250, 5, 9], &[1, 0, 9]), Some(vec![0, 3, 0]));
        assert_eq!(strays.note(at(21), &[250, 5, 9], &[250, 0, 9]), Some(vec![0, 5, 0]));
    }

    #[test]
    fn names_in_urls_are_decoded() {
        assert_eq!(decoded("p%40ss%2Fw%zz"), "p@ss/w%zz");
    }
}
