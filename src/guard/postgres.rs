//! A guard inside a transaction of Postgres.
//!
//! ```no_run
//! # use keylane::{Attempt, Failure, guard};
//! # async fn handle(mut client: tokio_postgres::Client, attempt: Attempt)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! let token = attempt.fencing_token().await?;
//! let transaction = client.transaction().await?;
//! guard::postgres::admit(&transaction, attempt.task.resource.as_str(), token).await?;
//! // … the work …
//! transaction.commit().await?;
//! # Ok(()) }
//! ```

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{GenericClient, Row, Transaction};

use super::StaleToken;
use crate::protocol::fence::{FencingToken, TokenError};

/// Creates the table of the highest tokens.
pub const TABLE_SQL: &str = include_str!("table.sql");
/// Admits a token (`$2`) for a resource (`$1`): one row, or none if it is stale.
pub const ADMIT_SQL: &str = include_str!("admit.sql");
const HIGHEST_SQL: &str = include_str!("highest.sql");

/// Why a guard of Postgres did not admit a write.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostgresGuardError {
    /// A later owner has been there: roll back.
    #[error(transparent)]
    Stale(#[from] StaleToken),
    /// Postgres did not do it.
    #[error("the guard could not ask Postgres")]
    Postgres(#[from] tokio_postgres::Error),
    /// The table holds a number that is no token.
    #[error("table keylane_fence is broken")]
    Broken(#[from] TokenError),
}

/// Creates the table `keylane_fence` in the current schema, unless it is there.
/// It has one small row for each resource that was ever guarded.
///
/// # Errors
/// What Postgres says; two that create it at once may collide.
///
/// # Cancel safety
/// It is created or not.
pub async fn create_table(client: &impl GenericClient) -> Result<(), tokio_postgres::Error> {
    client.batch_execute(TABLE_SQL).await
}

/// Admits a write on `resource` into this transaction, or refuses it.
///
/// The row of the resource stays locked until the transaction ends. So a later
/// owner waits here for a former one that has been admitted: its write is
/// visible before the later owner reads, or is rolled back, never in between.
/// Ask at the beginning of the transaction, before anything of the resource is
/// read. A transaction it must be: outside of one the lock would end with the
/// statement, and the write could come any time later.
///
/// Any isolation level will do. Under `READ COMMITTED` who waited for the lock
/// sees the newest token. Under `REPEATABLE READ` and `SERIALIZABLE` Postgres may
/// end the transaction with a serialization failure (SQLSTATE 40001) instead:
/// try the task again.
///
/// # Errors
/// [`PostgresGuardError::Stale`] when a later owner has been there: roll back
/// and give up. Otherwise what Postgres says.
///
/// # Cancel safety
/// Drop the transaction with it.
pub async fn admit(
    transaction: &Transaction<'_>,
    resource: &str,
    token: FencingToken,
) -> Result<(), PostgresGuardError> {
    let number = token.number();
    let values: [(&(dyn ToSql + Sync), Type); 2] = [(&resource, Type::TEXT), (&number, Type::INT8)];
    if !transaction.query_typed(ADMIT_SQL, &values).await?.is_empty() {
        return Ok(());
    }
    let highest = transaction.query_typed(HIGHEST_SQL, &values[..1]).await?;
    let highest = highest.first().map_or(Ok(0), |row: &Row| row.try_get(0))?;
    Err(StaleToken {
        resource: resource.to_owned(),
        token,
        highest: FencingToken::try_from(highest)?,
    }
    .into())
}
