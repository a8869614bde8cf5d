//! Where the broker is, and connections to it.

use std::fmt;
use std::io;
#[cfg(feature = "cli")]
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use lapin::Connection;
use lapin::runtime::default_runtime;
use lapin::tcp::AsyncTcpStream;
use lapin::uri::AMQPUri;
use lapin::{ConnectionProperties, ErrorKind, types::FieldTable, types::LongString};
use url::Url;

use super::error::{Doing, Error, reply};
use super::sieve::{self, Sieve};
use super::tls::{Tls, explained};
use super::version::{is_supported, version};
use crate::protocol::names::Namespace;

/// A node that does not accept a connection in this time is passed over: long
/// enough for a handshake across an ocean, short enough to try three nodes
/// while somebody waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A silent connection is given up after about twice this. The broker default
/// of 60 s would leave a partition without its owner for two minutes.
const HEARTBEAT_S: u16 = 10;

/// Where the broker is and which namespace to use. Cheap to clone; nothing
/// happens before something is opened with it.
#[derive(Clone)]
pub struct Connect {
    nodes: Vec<Url>,
    namespace: Namespace,
    name: String,
    tls: Tls,
}

impl Connect {
    /// One address, or the addresses of several nodes of one cluster, separated
    /// by commas: `amqp://user:password@host:5672/vhost`, `amqps://…` for TLS,
    /// which trusts the CAs that this machine trusts. They are tried in turn. The
    /// namespace is `keylane`.
    ///
    /// # Errors
    /// [`Error::BadUrl`] when an address cannot be read.
    pub fn new(urls: impl AsRef<str>) -> Result<Self, Error> {
        let nodes = urls.as_ref().split(',').map(|url| parse(url.trim()));
        let nodes = nodes.collect::<Result<_, _>>()?;
        let (namespace, tls) = (Namespace::default(), Tls::default());
        Ok(Self { nodes, namespace, name: "keylane".to_owned(), tls })
    }

    /// Uses another namespace.
    #[must_use]
    pub fn with_namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// Sets the name by which the broker's tools show the connections.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Trusts brokers whose certificates are signed by those in this file (PEM),
    /// and no others. It is read now, and not again.
    ///
    /// # Errors
    /// [`Error::BadTlsFile`], and [`Error::NotEncrypted`] when an address is not
    /// `amqps`.
    pub fn with_tls_ca(mut self, file: impl Into<PathBuf>) -> Result<Self, Error> {
        self.insist_on_tls()?;
        self.tls = self.tls.with_ca(file.into())?;
        Ok(self)
    }

    /// Shows the certificate in a file (PEM, with its chain) to brokers that ask
    /// for one; its key (PEM, not encrypted) is in another file. Both are read
    /// now, and not again.
    ///
    /// # Errors
    /// [`Error::BadTlsFile`], and [`Error::NotEncrypted`] when an address is not
    /// `amqps`.
    pub fn with_tls_identity(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Result<Self, Error> {
        self.insist_on_tls()?;
        self.tls = self.tls.with_identity(certificate.into(), key.into())?;
        Ok(self)
    }

    fn insist_on_tls(&self) -> Result<(), Error> {
        match self.nodes.iter().find(|node| node.scheme() != "amqps") {
            Some(node) => Err(Error::NotEncrypted { url: masked(node) }),
            None => Ok(()),
        }
    }

    /// Tries the next node first, and the first one last.
    #[must_use]
    pub(crate) fn with_next_node_first(mut self) -> Self {
        self.nodes.rotate_left(1);
        self
    }

    /// The namespace in use.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Refuses a broker that is too old for what keylane relies on.
    pub(crate) async fn check_version(&self) -> Result<(), Error> {
        for node in &self.nodes {
            match version(node.as_str(), &self.tls).await {
                Some(version) if !is_supported(&version) => {
                    return Err(Error::BrokerTooOld { url: masked(node), version });
                }
                Some(_) => return Ok(()),
                None => {}
            }
        }
        Ok(())
    }

    /// The addresses, with their passwords, for another process of ours.
    #[cfg(feature = "cli")]
    pub(crate) fn urls(&self) -> String {
        self.nodes.iter().map(Url::as_str).collect::<Vec<_>>().join(",")
    }

    /// The file of the CA, if it was given, for another process of ours.
    #[cfg(feature = "cli")]
    pub(crate) fn tls_ca(&self) -> Option<&Path> {
        self.tls.ca_file()
    }

    /// The files of our certificate and its key, for another process of ours.
    #[cfg(feature = "cli")]
    pub(crate) fn tls_identity(&self) -> Option<(&Path, &Path)> {
        self.tls.identity_files()
    }

    /// Opens a connection to the first node that answers.
    pub(crate) async fn open(&self, role: &str) -> Result<lapin::Connection, Error> {
        let mut tried = Vec::new();
        let mut refused_tls = None;
        let mut refused = None;
        for node in &self.nodes {
            let properties = ConnectionProperties::default()
                .with_connection_name(format!("{} {role}", self.name).into())
                .with_client_property("product".into(), LongString::from("keylane"));
            let connecting = self.connect(node, properties);
            match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => {
                    refused_tls = refused_tls.or_else(|| tls_refusal(node, &error));
                    refused = refused.or_else(|| passing_refusal(node, &error));
                    tried.push(refusal(node, &error)?);
                }
                Err(_) => tried.push(format!(
                    "{} (no answer in {} s)",
                    masked(node),
                    CONNECT_TIMEOUT.as_secs()
                )),
            }
        }
        Err(refused_tls
            .or(refused)
            .unwrap_or_else(|| Error::Unreachable { tried: tried.join(", ") }))
    }

    async fn connect(
        &self,
        node: &Url,
        properties: ConnectionProperties,
    ) -> Result<lapin::Connection, lapin::Error> {
        let uri: AMQPUri = node.as_str().parse().map_err(io::Error::other)?;
        let (tls, dialing) = (self.tls.clone(), default_runtime()?);
        let dial = async move |uri: AMQPUri, _| {
            let stream = tls.dial(&uri, &dialing).await?;
            let frame_max = uri.query.frame_max.unwrap_or_default();
            Ok(AsyncTcpStream::Plain(Sieve::new(stream, frame_max)))
        };
        lapin::Connection::connector(uri, sieve::runtime(), dial, properties).await
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("nodes", &self.nodes.iter().map(masked).collect::<Vec<_>>())
            .field("namespace", &self.namespace)
            .field("tls", &self.tls)
            .finish()
    }
}

fn parse(text: &str) -> Result<Url, Error> {
    // The text may hold a password even if it is no URL, so it is not repeated whole.
    let bad = |reason: String| Error::BadUrl { url: without_secrets(text), reason };
    let mut url = Url::parse(text).map_err(|e| bad(e.to_string()))?;
    if !matches!(url.scheme(), "amqp" | "amqps") {
        return Err(bad("the scheme must be amqp or amqps".to_owned()));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(bad("it has no host".to_owned()));
    }
    // A `/` in a password ends the host: what is left of it would be shown.
    if url.fragment().is_some() || format!("{}?{:?}", url.path(), url.query()).contains('@') {
        let reason = "percent-encode / ? # and @ in user and password";
        return Err(bad(reason.to_owned()));
    }
    // AMQP's own reading: no path at all is the default virtual host.
    if matches!(url.path(), "" | "/") {
        url.set_path("/%2f");
    }
    if !url.query_pairs().any(|(key, _)| key == "heartbeat") {
        url.query_pairs_mut().append_pair("heartbeat", &HEARTBEAT_S.to_string());
    }
    Ok(url)
}

/// What may be shown of a text that is no address: nothing that could be a part
/// of a password.
fn without_secrets(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").map_or((None, text), |(s, rest)| (Some(s), rest));
    let shown = match rest.rsplit_once('@') {
        Some((_, host)) => host.to_owned(),
        // `user:password`, with the host forgotten or lost.
        None => match rest.split_once(':') {
            Some((user, _)) => format!("{user}:…"),
            None => rest.to_owned(),
        },
    };
    scheme.map(|scheme| format!("{scheme}://{shown}")).unwrap_or(shown)
}

/// One address, or several, as they may be shown.
#[cfg(feature = "cli")]
pub(crate) fn shown(urls: &str) -> String {
    let shown = |url: &str| match parse(url) {
        Ok(url) => masked(&url),
        Err(_) => without_secrets(url),
    };
    urls.split(',').map(|url| shown(url.trim())).collect::<Vec<_>>().join(",")
}

/// The address as it may be shown.
fn masked(url: &Url) -> String {
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    let vhost = if url.path() == "/%2f" { "" } else { url.path() };
    format!("{}://{}{port}{vhost}", url.scheme(), url.host_str().unwrap_or_default())
}

/// A node answered, and no encrypted connection came about.
fn tls_refusal(node: &Url, error: &lapin::Error) -> Option<Error> {
    let ErrorKind::IOError(error) = error.kind() else { return None };
    let (reason, way_out) = explained(error)?;
    Some(Error::Tls { url: masked(node), reason, way_out })
}

/// A node answered, and takes no connection for a reason that passes.
fn passing_refusal(node: &Url, error: &lapin::Error) -> Option<Error> {
    // The code is that of a missing virtual host, too: the words decide.
    let passes = |reply: &String| reply.contains("limit") || reply.contains(" is down");
    let (_, reply) = reply(error).filter(|(code, reply)| *code == 530 && passes(reply))?;
    Some(Error::ConnectionRefused { url: masked(node), reply })
}

/// A node refused us: either that is final, or the next node is tried.
fn refusal(node: &Url, error: &lapin::Error) -> Result<String, Error> {
    let user = match node.username() {
        "" => "guest",
        user => user,
    };
    let (url, user) = (masked(node), user.to_owned());
    match reply(error) {
        _ if passing_refusal(node, error).is_some() => Ok(format!("{url} ({error})")),
        Some((403, _)) => Err(Error::AccessRefused { url, user }),
        Some((530, reply)) => {
            let vhost = node.path().trim_start_matches('/').replace("%2f", "/");
            Err(Error::VhostRefused { url, vhost, user, reply })
        }
        _ => Ok(format!("{url} ({error})")),
    }
}

/// Opens a channel whose publishes are confirmed.
pub(crate) async fn confirm_channel(
    connection: &lapin::Connection,
) -> Result<lapin::Channel, Error> {
    let channel = connection.create_channel().await.doing("open a channel")?;
    channel.confirm_select(Default::default()).await.doing("switch on publisher confirms")?;
    Ok(channel)
}

/// A broker that does not answer a goodbye in this time is not waited for.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Closes a channel; one that is closed already is as good.
pub(crate) async fn close(channel: &lapin::Channel) {
    match tokio::time::timeout(CLOSE_TIMEOUT, channel.close(200, "done".into())).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the channel was closed already"),
        Err(_) => tracing::debug!("the broker does not say goodbye to a channel"),
    }
}

/// Says goodbye, so that the broker's log does not complain.
pub(crate) async fn close_connection(connection: Connection) {
    say_goodbye(&connection).await;
}

/// As [`close_connection`], where the connection stays with its owner.
pub(super) async fn say_goodbye(connection: &Connection) {
    match tokio::time::timeout(CLOSE_TIMEOUT, connection.close(200, "done".into())).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the connection was closed already"),
        Err(_) => tracing::debug!("the broker does not say goodbye to a connection"),
    }
}

/// Arguments of a queue, exchange or consumer.
pub(crate) fn arguments<const N: usize>(pairs: [(&str, lapin::types::AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in pairs {
        table.insert(key.into(), value);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_and_completed() {
        let connect = Connect::new("amqp://h1, amqps://u:secret@h2:5671/team").expect("two nodes");
        let urls: Vec<_> = connect.nodes.iter().map(Url::as_str).collect();
        let expected = ["amqp://h1/%2f?heartbeat=10", "amqps://u:secret@h2:5671/team?heartbeat=10"];
        assert_eq!(urls, expected);
        for bad in ["", "h1:5672", "http://h1", "amqp://", "amqp://h:port"] {
            assert!(matches!(Connect::new(bad), Err(Error::BadUrl { .. })), "{bad:?}");
        }
    }

    #[test]
    fn no_password_is_shown() {
        let connect = Connect::new("amqp://u:secret@h1:1/v").expect("a node");
        assert!(!format!("{connect:?}").contains("secret"));
        for bad in [
            "amqq://u:secret@h1:1/v",
            "amqp://u:secret",
            "u:secret",
            "amqp://u:se,secret@h1",
            "amqp://u:1/secret@h1",
            "amqp://u:1?secret@h1",
            "amqp://u:1#secret@h1",
            "amqp://u:x/secret@h1",
        ] {
            let error = Connect::new(bad).expect_err(bad);
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
    }
}
