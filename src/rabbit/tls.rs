//! Encrypted connections: whom to trust, and who we are.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use async_rs::traits::Reactor;
use async_rs::{Tokio, TokioRuntime};
use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream, RustlsConnector, RustlsConnectorConfig};
use lapin::uri::{AMQPScheme, AMQPUri, AMQPUserInfo};
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CertificateError, RootCertStore};

use super::error::Error;

/// A connection, encrypted or not.
pub(super) type Stream = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// How connections with `amqps` are made. The files are read once.
#[derive(Clone, Default)]
pub(super) struct Tls {
    ca: Option<Ca>,
    identity: Option<Identity>,
    /// Made when first needed: the machine's own certificates take milliseconds.
    connector: Arc<OnceLock<RustlsConnector>>,
}

#[derive(Clone)]
struct Ca {
    file: PathBuf,
    certificates: Vec<CertificateDer<'static>>,
}

#[derive(Clone)]
struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    chain: Vec<CertificateDer<'static>>,
    secret: Arc<PrivateKeyDer<'static>>,
}

impl Tls {
    /// Trusts what is signed by the certificates in this file, and nothing else.
    pub(super) fn with_ca(self, file: PathBuf) -> Result<Self, Error> {
        let certificates = certificates(&file)?;
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store
                .add(certificate.clone())
                .map_err(|error| unusable(&file, format!("a certificate in it: {error}")))?;
        }
        Ok(Self { ca: Some(Ca { file, certificates }), connector: Arc::default(), ..self })
    }

    /// Shows this certificate to brokers that ask for one.
    pub(super) fn with_identity(self, certificate: PathBuf, key: PathBuf) -> Result<Self, Error> {
        let chain = certificates(&certificate)?;
        let secret = PrivateKeyDer::from_pem_slice(&read(&key)?).map_err(|error| {
            let none = "no unencrypted private key in it".to_owned();
            unusable(&key, if is_missing(&error) { none } else { error.to_string() })
        })?;
        let provider = ring::default_provider();
        CertifiedKey::from_der(chain.clone(), secret.clone_key(), &provider).map_err(|error| {
            let of = certificate.display();
            unusable(&key, format!("it is not the key of the certificate in {of}: {error}"))
        })?;
        let identity = Identity { certificate, key, chain, secret: Arc::new(secret) };
        Ok(Self { identity: Some(identity), connector: Arc::default(), ..self })
    }

    /// The file of the certificates that are trusted, if it is not the machine's.
    #[cfg(feature = "cli")]
    pub(super) fn ca_file(&self) -> Option<&Path> {
        self.ca.as_ref().map(|ca| ca.file.as_path())
    }

    /// The files of our certificate and its key.
    pub(super) fn identity_files(&self) -> Option<(&Path, &Path)> {
        self.identity.as_ref().map(|own| (own.certificate.as_path(), own.key.as_path()))
    }

    /// Connects to where `uri` says, encrypted if it says so.
    pub(super) async fn dial(&self, uri: &AMQPUri, runtime: &TokioRuntime) -> io::Result<Stream> {
        let mut plain = uri.clone();
        plain.scheme = AMQPScheme::AMQP;
        // The library logs what it is given, and needs no password for this.
        plain.authority.userinfo = AMQPUserInfo::default();
        let stream = plain.connect_async(runtime).await?;
        match uri.scheme {
            AMQPScheme::AMQP => Ok(stream),
            AMQPScheme::AMQPS => stream.into_rustls(&self.connector()?, &uri.authority.host).await,
        }
    }

    fn connector(&self) -> io::Result<RustlsConnector> {
        if let Some(connector) = self.connector.get() {
            return Ok(connector.clone());
        }
        let config = match &self.ca {
            Some(ca) => {
                RustlsConnectorConfig::default().with_parsable_certificates(ca.certificates.clone())
            }
            None => RustlsConnectorConfig::new_with_native_certs()
                .map_err(|error| io::Error::other(NoRoots(error)))?,
        };
        let connector = match &self.identity {
            Some(own) => {
                config.connector_with_single_cert(own.chain.clone(), own.secret.clone_key())
            }
            None => config.connector_with_no_client_auth(),
        }?;
        Ok(self.connector.get_or_init(|| connector).clone())
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("ca", &self.ca.as_ref().map(|ca| &ca.file))
            .field("identity", &self.identity_files())
            .finish()
    }
}

/// This machine trusts nobody.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NoRoots(#[source] io::Error);

/// What it means that an encrypted connection failed, and the way out; `None`
/// if it failed for a reason that has nothing to do with encryption.
pub(super) fn explained(error: &io::Error) -> Option<(String, &'static str)> {
    const CA: &str = "name the CA's certificate with --tls-ca (Connect::with_tls_ca)";
    let mut next: Option<&(dyn std::error::Error + 'static)> = error.get_ref().map(|e| e as _);
    while let Some(error) = next {
        if let Some(NoRoots(reason)) = error.downcast_ref() {
            return Some((format!("this machine has no CA certificates ({reason})"), CA));
        }
        if let Some(error) = error.downcast_ref() {
            return Some(meaning(error, CA));
        }
        next = match error.downcast_ref::<io::Error>() {
            Some(inner) => inner.get_ref().map(|e| e as _),
            None => error.source(),
        };
    }
    None
}

fn meaning(error: &rustls::Error, ca: &'static str) -> (String, &'static str) {
    use AlertDescription as Alert;
    use CertificateError as Bad;
    use rustls::Error as Tls;
    match error {
        Tls::InvalidCertificate(bad) => match bad {
            Bad::UnknownIssuer => ("nobody we trust has signed its certificate".to_owned(), ca),
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => (
                format!("its certificate is for another host ({bad})"),
                "connect to the name that stands in the certificate",
            ),
            Bad::Expired | Bad::ExpiredContext { .. } => {
                (format!("its certificate has expired ({bad})"), "renew it on the broker")
            }
            other => {
                (format!("its certificate is not valid ({other})"), "replace it on the broker")
            }
        },
        // TLS 1.2 has no alert of its own for a certificate that is missing.
        Tls::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure) => (
            "it refuses us without a certificate".to_owned(),
            "give ours with --tls-cert and --tls-key (Connect::with_tls_identity)",
        ),
        Tls::AlertReceived(
            alert @ (Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::UnsupportedCertificate
            | Alert::AccessDenied),
        ) => (
            format!("it refuses our certificate ({alert:?})"),
            "show one that a CA has signed which the broker trusts",
        ),
        Tls::InvalidMessage(_) => (
            "what answers there does not speak TLS".to_owned(),
            "write amqp:// for a plain port; TLS has port 5671 mostly",
        ),
        other => (other.to_string(), "check the broker's ssl_options"),
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
    let found = found.map_err(|error| unusable(file, error.to_string()))?;
    if found.is_empty() {
        return Err(unusable(file, "no certificate in it".to_owned()));
    }
    Ok(found)
}

fn read(file: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(file).map_err(|error| unusable(file, error.to_string()))
}

fn is_missing(error: &pem::Error) -> bool {
    matches!(error, pem::Error::NoItemsFound)
}

fn unusable(file: &Path, reason: String) -> Error {
    Error::BadTlsFile { file: file.to_owned(), reason }
}
