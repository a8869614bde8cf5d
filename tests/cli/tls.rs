//! Brokers that speak TLS, with certificates of a CA of our own.

#![allow(clippy::unwrap_used, reason = "clippy spares #[test] functions only")]

use keylane::demo::{Plan, generate};
use keylane::testing::Broker;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};

use super::user::User;

/// Who signs certificates.
struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate and its key, in PEM.
    fn signs(&self, name: &str, hosts: &[&str]) -> (String, String) {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// A broker that speaks TLS on its port for it, and its plain port as before.
struct Secure {
    broker: Broker,
    ca: Ca,
    user: User,
}

impl Secure {
    async fn start(wants_certificate: bool) -> Self {
        let (broker, ca) = (Broker::start().await.unwrap(), Ca::new("the right CA"));
        let (certificate, key) = ca.signs("broker", &["localhost"]);
        let config = format!(
            "listeners.ssl.default = 5671\n\
             ssl_options.cacertfile = /etc/rabbitmq/ca.pem\n\
             ssl_options.certfile = /etc/rabbitmq/broker.pem\n\
             ssl_options.keyfile = /etc/rabbitmq/broker.key\n\
             ssl_options.verify = verify_peer\n\
             ssl_options.fail_if_no_peer_cert = {wants_certificate}\n"
        );
        for (name, content) in [
            ("ca.pem", ca.0.pem()),
            ("broker.pem", certificate),
            ("broker.key", key),
            ("conf.d/90-tls.conf", config),
        ] {
            let script = r#"printf %s "$2" >"/etc/rabbitmq/$1""#;
            let written = broker.exec(["sh", "-c", script, "sh", name, &content]).await.unwrap();
            assert!(written.status.success(), "{written:?}");
        }
        broker.restart().await.unwrap();
        // The plain port is served first.
        let started = broker.exec(["rabbitmqctl", "await_startup"]).await.unwrap();
        assert!(started.status.success(), "{started:?}");
        let mut user = User::on(&broker);
        user.url = format!("amqps://guest:guest@localhost:{}", broker.tls_port());
        user.file("ca.pem", ca.0.pem());
        Self { broker, ca, user }
    }

    /// Writes a certificate and its key for the user.
    fn hands_out(&self, ca: &Ca, name: &str) -> (String, String) {
        let (certificate, key) = ca.signs(name, &[]);
        let files = [format!("{name}.pem"), format!("{name}.key")];
        self.user.file(&files[0], certificate);
        self.user.file(&files[1], key);
        let [certificate, key] = files;
        (certificate, key)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_is_trusted_by_its_ca() {
    let secure = Secure::start(false).await;
    let user = &secure.user;
    let ca = ["--tls-ca", "ca.pem"];
    user.succeeds(&[&ca[..], &["init", "--partitions", "4"]].concat());
    user.file("tasks.ndjson", "{\"r\":\"a\"}\n{\"r\":\"b\"}\n");
    user.succeeds(&[&ca[..], &["publish", "tasks.ndjson", "--resource", "/r"]].concat());
    let worker = user.starts(&[&ca[..], &["work", "--exec", "echo >>done"]].concat());
    user.waits_for("both tasks", || user.lines_of("done").len() == 2);
    worker.signal("TERM");
    assert_eq!(worker.ends().code, Some(0));
    let mut from_environment = user.command(&["status"]);
    let status = from_environment.env("KEYLANE_TLS_CA", "ca.pem").output().unwrap();
    assert!(status.status.success(), "{status:?}");

    let port = secure.broker.tls_port().to_string();
    user.fails(1, &["status"], &["TLS", &port, "nobody we trust", "--tls-ca"]);
    user.file("other.pem", Ca::new("another CA").0.pem());
    let ran = user.fails(1, &["status", "--tls-ca", "other.pem"], &[&port, "--tls-ca"]);
    assert!(ran.err.contains("nobody we trust"), "{ran:?}");
    let ip = format!("amqps://guest:guest@127.0.0.1:{port}");
    let args = [&ca[..], &["status", "--amqp-url", &ip]].concat();
    user.fails(1, &args, &["another host", "localhost"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_wants_a_certificate_gets_ours() {
    let secure = Secure::start(true).await;
    let user = &secure.user;
    let (certificate, key) = secure.hands_out(&secure.ca, "we");
    let ours = ["--tls-ca", "ca.pem", "--tls-cert", &certificate, "--tls-key", &key];
    // Options stand on either side of the subcommand.
    user.succeeds(&[&ours[..4], &["init", "--partitions", "4"], &ours[4..]].concat());

    // Processes that keylane starts reach the broker as it does.
    let plan = Plan { commits: 200, files: 5, seed: 1 };
    let repository = tempfile::tempdir().unwrap();
    generate(repository.path(), &plan).unwrap();
    let repository = repository.path().to_str().unwrap();
    let demo = user.succeeds(&[&["demo", "--json", "--repo", repository], &ours[..]].concat());
    assert!(demo.out.contains(r#""ok":true"#), "{demo:?}");
    let memory = ["bench", "memory", "--memory-tasks", "10000", "--json"];
    user.succeeds(&[&memory, &ours[..]].concat());

    let port = secure.broker.tls_port().to_string();
    user.fails(1, &["status", "--tls-ca", "ca.pem"], &[&port, "--tls-cert", "--tls-key"]);
    let (foreign, foreign_key) = secure.hands_out(&Ca::new("another CA"), "they");
    let theirs = ["--tls-ca", "ca.pem", "--tls-cert", &foreign, "--tls-key", &foreign_key];
    let words = [port.as_str(), "refuses our certificate", "CA"];
    user.fails(1, &[&["status"], &theirs[..]].concat(), &words);
    let mixed = ["status", "--tls-cert", &certificate, "--tls-key", &foreign_key];
    user.fails(1, &mixed, &["they.key", "not the key of the certificate in we.pem"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_encrypted_is_told_with_the_way_out() {
    let mut user = User::new().await;
    let plain = user.url.clone();
    user.file("ca.pem", Ca::new("a CA").0.pem());
    user.fails(1, &["status", "--tls-ca", "ca.pem"], &["not encrypted", "amqps://"]);
    user.url = plain.replace("amqp://", "amqps://");
    user.fails(1, &["status", "--tls-ca", "ca.pem"], &["does not speak TLS", "amqp://", "5671"]);

    user.fails(1, &["status", "--tls-ca", "missing.pem"], &["missing.pem", "No such file", "PEM"]);
    user.file("empty.pem", "");
    user.fails(1, &["status", "--tls-ca", "empty.pem"], &["empty.pem", "no certificate in it"]);
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    user.file("broken.pem", broken);
    user.fails(1, &["status", "--tls-ca", "broken.pem"], &["broken.pem", "a certificate in it"]);
    let no_key = ["status", "--tls-cert", "ca.pem", "--tls-key", "ca.pem"];
    user.fails(1, &no_key, &["ca.pem", "no unencrypted private key in it"]);
    user.fails(2, &["status", "--tls-cert", "ca.pem"], &["--tls-cert and --tls-key"]);
    user.fails(2, &["--tls-key", "ca.pem", "status"], &["--tls-cert and --tls-key"]);
}
