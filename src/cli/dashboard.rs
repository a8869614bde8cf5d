//! `keylane dashboard`

use std::net::SocketAddr;
use std::process::ExitCode;

use serde::Serialize;

use super::Broker;
use super::signals::until_signalled;
use crate::dashboard::{Dashboard, Options};

/// Serve a web page that shows the namespace, live, until Ctrl-C
///
/// Fleet, partitions, throughput, hot and retrying resources, dead letters (with
/// replay and discard), and the history of any task or resource.
#[derive(Debug, clap::Args)]
pub(super) struct DashboardArgs {
    /// Where. Whatever other machines can reach needs a token
    #[arg(long, default_value = "127.0.0.1:7070", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// What one has to know to look: 16 characters or more. Other users of this
    /// machine see options, so set the variable
    #[arg(long, env = "KEYLANE_DASHBOARD_TOKEN", hide_env_values = true, value_name = "SECRET")]
    token: Option<String>,
    /// Offer nothing that changes anything: no replay, no discard
    #[arg(long)]
    read_only: bool,
    /// Print the address as a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Started<'a> {
    url: &'a str,
}

impl DashboardArgs {
    pub(super) async fn run(self, broker: &Broker) -> anyhow::Result<ExitCode> {
        let connect = broker.connect()?;
        let Self { listen, token, read_only, json } = self;
        // An empty variable is none.
        let token = token.filter(|token| !token.is_empty());
        until_signalled("closing the dashboard", async |shutdown| {
            let options = Options { listen, token, read_only };
            let dashboard = Dashboard::start(&connect, options).await?;
            let url = dashboard.url();
            if json {
                out!("{}", serde_json::to_string(&Started { url: &url })?);
            } else {
                out!("namespace {:?} on {url}, until Ctrl-C", connect.namespace().as_str());
            }
            dashboard.serve(shutdown).await?;
            Ok(ExitCode::SUCCESS)
        })
        .await
    }
}
