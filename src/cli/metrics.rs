//! `--metrics-listen`: the figures of this process, for Prometheus, and its health.

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::Metrics;

#[derive(Debug, clap::Args)]
pub(super) struct MetricsArgs {
    /// Serve metrics for Prometheus on this address, under /metrics, and the health of this
    /// process: /healthz answers 200 while it lives, /readyz while it can work (else 503 and the
    /// reasons). Port 0 is any that is free, and is shown on standard error. Nothing in them is
    /// secret, and whoever reaches the port can read them
    #[arg(long, value_name = "HOST:PORT")]
    metrics_listen: Option<String>,
    /// Show so many of the hottest resources in the metrics, by name
    #[arg(
        long,
        default_value_t = 0,
        value_name = "N",
        requires = "metrics_listen",
        value_parser = clap::value_parser!(u16).range(..=1_000)
    )]
    metrics_hot_resources: u16,
}

impl MetricsArgs {
    /// Serves them from now on, if that is wanted.
    pub(super) async fn serve(&self) -> anyhow::Result<Option<Metrics>> {
        let Some(address) = &self.metrics_listen else { return Ok(None) };
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot serve metrics on {address}: choose another --metrics-listen HOST:PORT")
        })?;
        eprintln!("keylane: metrics on http://{}/metrics", listener.local_addr()?);
        let metrics = Metrics::new().with_hot_resources(self.metrics_hot_resources.into());
        let served = metrics.clone();
        let ready = metrics.clone();
        let router = Router::new()
            .route("/metrics", get(move || std::future::ready(render(&served))))
            .route("/healthz", get(async || "alive\n"))
            .route("/readyz", get(move || std::future::ready(readiness(&ready))));
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "metrics are not served any more");
            }
        });
        Ok(Some(metrics))
    }
}

fn readiness(metrics: &Metrics) -> Response {
    match metrics.readiness() {
        Ok(()) => "ready\n".into_response(),
        Err(reasons) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reasons}\n")).into_response(),
    }
}

fn render(metrics: &Metrics) -> Response {
    match metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
