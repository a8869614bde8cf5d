//! A worker whose handler stores values in Postgres or Redis behind a guard: of
//! a worker that was paused and goes on after its partition has moved, nothing
//! is taken any more.
//!
//! ```sh
//! keylane init --partitions 8
//! cargo run --example fenced_worker --features guard-postgres,guard-redis -- \
//!     'host=127.0.0.1 user=postgres'
//! cargo run --example fenced_worker --features guard-postgres,guard-redis -- \
//!     redis://127.0.0.1/
//! ```
//!
//! A task's payload is the new value of its resource: a row of the table
//! `balance`, or the key `balance:{resource}`. `KEYLANE_AMQP_URL`,
//! `KEYLANE_NAMESPACE` and `KEYLANE_WORKER` say where to work and under which
//! name. `UNGUARDED=1` leaves the guard out. With `PAUSE_UNTIL=FILE` every write
//! waits until that file is there, on a thread that nobody can abort, as code
//! that blocks does. What became of a write is told on standard output, a line
//! for each.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keylane::guard::postgres::PostgresGuardError;
use keylane::guard::redis::RedisGuardError;
use keylane::guard::{self, StaleToken};
use keylane::{
    Attempt, Connect, Failure, FencingToken, Handler, Namespace, WorkerId, WorkerOptions, work,
};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::block_in_place;
use tokio_postgres::NoTls;
use tokio_util::sync::CancellationToken;

/// Why a value was not stored.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Stale(#[from] StaleToken),
    #[error("the store failed: {0}")]
    Store(Box<dyn std::error::Error + Send + Sync>),
}

impl WriteError {
    fn store(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Store(Box::new(error))
    }
}

impl From<PostgresGuardError> for WriteError {
    fn from(error: PostgresGuardError) -> Self {
        match error {
            PostgresGuardError::Stale(stale) => Self::Stale(stale),
            other => Self::store(other),
        }
    }
}

impl From<RedisGuardError> for WriteError {
    fn from(error: RedisGuardError) -> Self {
        match error {
            RedisGuardError::Stale(stale) => Self::Stale(stale),
            other => Self::store(other),
        }
    }
}

enum Store {
    Postgres(Box<Mutex<tokio_postgres::Client>>),
    Redis(redis::aio::MultiplexedConnection),
}

impl Store {
    async fn open(address: &str) -> Result<Self, Box<dyn std::error::Error>> {
        if address.starts_with("redis:") {
            let client = redis::Client::open(address)?;
            return Ok(Self::Redis(client.get_multiplexed_async_connection().await?));
        }
        let (client, connection) = tokio_postgres::connect(address, NoTls).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("lost Postgres: {error}");
            }
        });
        Ok(Self::Postgres(Box::new(Mutex::new(client))))
    }

    /// Stores a value; behind the guard if there is a token.
    async fn write(
        &self,
        resource: &str,
        value: &str,
        token: Option<FencingToken>,
    ) -> Result<(), WriteError> {
        match self {
            Self::Postgres(client) => {
                let mut client = client.lock().await;
                let transaction = client.transaction().await.map_err(WriteError::store)?;
                if let Some(token) = token {
                    guard::postgres::admit(&transaction, resource, token).await?;
                }
                let write = "INSERT INTO balance VALUES ($1, $2)
                    ON CONFLICT (resource) DO UPDATE SET value = EXCLUDED.value";
                let written = transaction.execute(write, &[&resource, &value]).await;
                written.map_err(WriteError::store)?;
                transaction.commit().await.map_err(WriteError::store)
            }
            Self::Redis(connection) => {
                let (mut connection, key) = (connection.clone(), format!("balance:{{{resource}}}"));
                if let Some(token) = token {
                    guard::redis::set(&mut connection, resource, token, &key, value).await?;
                    return Ok(());
                }
                let set = redis::cmd("SET").arg(key).arg(value).exec_async(&mut connection).await;
                set.map_err(WriteError::store)
            }
        }
    }
}

struct Fenced {
    store: Store,
    guarded: bool,
    pause_until: Option<PathBuf>,
}

impl Handler for Fenced {
    async fn handle(&self, attempt: Attempt) -> Result<(), Failure> {
        // Before the work begins, or it would prove nothing.
        let token = attempt.fencing_token().await?;
        let resource = attempt.task.resource.as_str();
        let value = String::from_utf8_lossy(&attempt.task.payload);
        println!("started {resource}={value} with {token}");
        let token = self.guarded.then_some(token);
        let written = match &self.pause_until {
            None => self.store.write(resource, &value, token).await,
            Some(file) => block_in_place(|| {
                wait_for(file);
                Handle::current().block_on(self.store.write(resource, &value, token))
            }),
        };
        match &written {
            Ok(()) => println!("written {resource}={value}"),
            Err(WriteError::Stale(stale)) => println!("refused {resource}={value}: {stale}"),
            Err(WriteError::Store(error)) => println!("failed {resource}={value}: {error}"),
        }
        written.map_err(|error| Failure::failed(error.to_string()))
    }
}

fn wait_for(file: &Path) {
    while !file.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).ok_or("usage: fenced_worker POSTGRES|REDIS")?;
    let variable = |name: &str| std::env::var(name).ok();
    let url = variable("KEYLANE_AMQP_URL").unwrap_or_else(|| "amqp://localhost".to_owned());
    let mut connect = Connect::new(url)?;
    if let Some(namespace) = variable("KEYLANE_NAMESPACE") {
        connect = connect.with_namespace(Namespace::new(namespace)?);
    }
    let mut options = WorkerOptions::default();
    if let Some(name) = variable("KEYLANE_WORKER") {
        options.id = WorkerId::new(name)?;
    }
    let handler = Fenced {
        store: Store::open(&address).await?,
        guarded: variable("UNGUARDED").is_none(),
        pause_until: variable("PAUSE_UNTIL").map(PathBuf::from),
    };
    if let Store::Postgres(client) = &handler.store {
        let client = client.lock().await;
        guard::postgres::create_table(&*client).await?;
        let table = "CREATE TABLE IF NOT EXISTS balance (resource text PRIMARY KEY, value text)";
        client.batch_execute(table).await?;
    }
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    println!("{:?}", work(&connect, options, handler, shutdown).await?);
    Ok(())
}
