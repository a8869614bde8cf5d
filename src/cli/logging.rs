//! What is logged, and how.

use std::fmt::Debug;
use std::io::{self, IsTerminal};

use tracing::Level;
use tracing::field::Field;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, registry};

use crate::protocol::text::OneLine;

/// What log lines look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogFormat {
    /// For people
    Text,
    /// For programs: an object per line, the attempt that it belongs to in `span`
    Json,
}

#[derive(Debug, clap::Args)]
pub(super) struct Logging {
    /// What is logged, on standard error: `warn`, `info`, `debug`, or a filter
    /// such as `keylane=debug`. `trace` is for keylane alone: the client library's
    /// shows the password
    #[arg(
        long,
        global = true,
        env = "KEYLANE_LOG",
        value_name = "FILTER",
        help_heading = "Global options"
    )]
    log: Option<String>,
    /// What log lines look like
    #[arg(
        long,
        global = true,
        env = "KEYLANE_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        help_heading = "Global options"
    )]
    log_format: LogFormat,
}

impl Logging {
    /// Logs from now on; `usual` unless somebody said what.
    pub(super) fn init(&self, usual: &str) {
        // The client library traces whole frames, and one of them holds the password.
        let harmless = filter_fn(|event| {
            *event.level() < Level::TRACE || event.target().starts_with(env!("CARGO_CRATE_NAME"))
        });
        let filter = EnvFilter::builder().parse_lossy(self.log.as_deref().unwrap_or(usual));
        let lines = fmt::layer().with_writer(io::stderr).with_target(false);
        let lines = match self.log_format {
            LogFormat::Text => {
                let is_terminal = io::stderr().is_terminal();
                lines.with_ansi(is_terminal).fmt_fields(debug_fn(field).delimited(" ")).boxed()
            }
            LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
        };
        registry().with(filter).with(lines.with_filter(harmless)).init();
    }
}

/// Writes a field of a line for people. Whatever a publisher or a handler has put there, the line
/// stays one, and steers no terminal.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> std::fmt::Result {
    let value = format!("{value:?}");
    let value = OneLine(&value);
    match field.name() {
        "message" => write!(writer, "{value}"),
        name if writer.has_ansi_escapes() => {
            write!(writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{value}")
        }
        name => write!(writer, "{name}={value}"),
    }
}
