//! Spans for an OpenTelemetry collector, where the environment names one.

use std::env;
use std::time::Duration;

use anyhow::Context;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use reqwest::Url;
use reqwest::blocking::Client;
use rustls::crypto::{CryptoProvider, ring};

use crate::handler::is_loopback;

/// Where spans go to: all signals, or traces alone.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// A collector that is there takes the last spans in milliseconds.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Exports spans for as long as it is there.
pub(super) struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Spans of this process go to the collector that `OTEL_EXPORTER_OTLP_ENDPOINT`
    /// names. `None` if there is none, or if `OTEL_SDK_DISABLED` says so.
    pub(super) fn init() -> anyhow::Result<Option<Self>> {
        let set = |name: &&str| env::var(name).is_ok_and(|value: String| !value.trim().is_empty());
        let off = env::var("OTEL_SDK_DISABLED").is_ok_and(|off| off.eq_ignore_ascii_case("true"));
        let Some(endpoint) = ENDPOINTS.into_iter().find(set).filter(|_| !off) else {
            return Ok(None);
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(client(endpoint)?)
            .build()
            .with_context(|| format!("cannot export spans: is {endpoint} a URL?"))?;
        let resource = Resource::builder();
        let resource = match resource_is_named() {
            true => resource,
            false => resource.with_service_name(env!("CARGO_PKG_NAME")),
        };
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.with_attribute(version).build())
            .build();
        global::set_tracer_provider(provider.clone());
        Ok(Some(Self(provider)))
    }

    /// Exports what is left.
    pub(super) fn close(self) {
        if let Err(error) = self.0.shutdown_with_timeout(CLOSE_TIMEOUT) {
            tracing::warn!(%error, "the last spans could not be exported");
        }
    }
}

fn resource_is_named() -> bool {
    env::var("OTEL_SERVICE_NAME").is_ok()
        || env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|all| all.contains("service.name="))
}

/// Blocking, for the thread that exports.
fn client(endpoint: &str) -> anyhow::Result<Client> {
    if CryptoProvider::get_default().is_none() {
        // An error gives back ours: another thread was faster, which is fine.
        drop(ring::default_provider().install_default());
    }
    let url = env::var(endpoint).unwrap_or_default();
    let builder = match url.starts_with("http:") {
        // There is no certificate to check, so a machine without any will do.
        true => Client::builder().tls_certs_only([]),
        false => Client::builder(),
    };
    let is_near = Url::parse(&url).is_ok_and(|url| is_loopback(&url));
    let builder = if is_near { builder.no_proxy() } else { builder };
    builder.build().context("cannot set up the client that exports spans")
}
