//! A namespace to look at: what `keylane dashboard` serves and `keylane top` shows.
//! No part of the API; `docs/dashboard.md` tells users.
//!
//! `observer` looks and follows the journal, `view` remembers and judges, and
//! [`snapshot`] is all that it gives. `server` hands that to pages, behind `guard`.
//! What is kept is bounded, whatever the namespace goes through: rings, lists that
//! forget, and as many pages as there is room for.

#![cfg_attr(not(feature = "cli"), allow(dead_code, reason = "only the command line serves it"))]

mod activity;
mod assets;
mod dead;
mod guard;
mod hot;
pub(crate) mod observer;
mod retrying;
mod search;
mod server;
pub mod snapshot;
mod verdict;
mod view;

#[cfg(any(test, feature = "testing"))]
pub mod sample;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::dead::Desk;
use self::guard::{Guard, MIN_TOKEN_CHARS};
use self::observer::{Looks, Observer};
use self::search::Searcher;
use self::server::{Site, router};
use crate::rabbit::connection::Connect;
use crate::rabbit::error::Error;

/// How a dashboard is served.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Where.
    pub(crate) listen: SocketAddr,
    /// What one has to know to look; not needed where only this machine can.
    pub(crate) token: Option<String>,
    /// Whether nothing may be changed.
    pub(crate) read_only: bool,
}

/// Why there is no dashboard.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DashboardError {
    /// Anybody could look, and change things.
    #[error(
        "{listen} can be reached from other machines: set KEYLANE_DASHBOARD_TOKEN to a secret \
         of {MIN_TOKEN_CHARS} characters or more, or listen on 127.0.0.1"
    )]
    NoToken { listen: SocketAddr },
    /// It could be guessed.
    #[error(
        "the token is too short: {MIN_TOKEN_CHARS} characters or more are needed \
         (openssl rand -hex 16 makes one)"
    )]
    ShortToken,
    /// Nothing can be served there.
    #[error("cannot listen on {listen} ({source}): choose another address with --listen")]
    Listen { listen: SocketAddr, source: io::Error },
    /// Nothing can be looked at.
    #[error(transparent)]
    Broker(#[from] Error),
    /// The server ended by itself.
    #[error("the server has ended: {0}")]
    Serve(#[source] io::Error),
}

/// After a Ctrl-C: time for what is being replayed, and for pages to go.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A dashboard that can be served.
pub(crate) struct Dashboard {
    listener: TcpListener,
    address: SocketAddr,
    site: Arc<Site>,
}

impl Dashboard {
    /// Takes its place, and looks at the namespace once.
    ///
    /// # Errors
    /// [`DashboardError`].
    pub(crate) async fn start(connect: &Connect, options: Options) -> Result<Self, DashboardError> {
        let Options { listen, token, read_only } = options;
        if token.is_none() && !listen.ip().is_loopback() {
            return Err(DashboardError::NoToken { listen });
        }
        if token.as_ref().is_some_and(|token| token.chars().count() < MIN_TOKEN_CHARS) {
            return Err(DashboardError::ShortToken);
        }
        let refused = |source| DashboardError::Listen { listen, source };
        let listener = TcpListener::bind(listen).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let looks = Arc::new(Looks::default());
        let observer = Observer::start(connect, "dashboard", Arc::clone(&looks)).await?;
        let site = Site {
            connect: connect.clone(),
            guard: Guard::new(address, token, read_only),
            observer,
            desk: Desk::new(connect, looks),
            searcher: Searcher::new(connect),
            live: Site::room(),
            shutdown: CancellationToken::new(),
        };
        Ok(Self { listener, address, site: Arc::new(site) })
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// When the listening socket fails.
    pub(crate) async fn serve(self, shutdown: CancellationToken) -> Result<(), DashboardError> {
        let Self { listener, site, .. } = self;
        let live = site.shutdown.clone();
        let closing = shutdown.clone();
        let serving = axum::serve(listener, router(site)).with_graceful_shutdown(async move {
            closing.cancelled().await;
            live.cancel();
        });
        let deadline = async {
            shutdown.cancelled().await;
            tokio::time::sleep(CLOSE_TIMEOUT).await;
        };
        tokio::select! {
            served = async { serving.await } => served.map_err(DashboardError::Serve),
            () = deadline => Ok(()),
        }
    }
}
