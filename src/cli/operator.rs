//! Who steers.

/// Signs an order.
#[derive(Debug, clap::Args)]
pub(super) struct Operator {
    /// Who wants it, for the others to read [default: user and host]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

impl Operator {
    pub(super) fn name(&self) -> String {
        self.by.clone().unwrap_or_else(|| {
            let user = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
            let user = user.filter(|user| !user.is_empty());
            let host = rustix::system::uname();
            let host = host.nodename().to_string_lossy();
            format!("{}@{host}", user.as_deref().unwrap_or("somebody"))
        })
    }
}
