//! A guard inside a script of Redis: the check and the write are one atomic
//! step.
//!
//! ```no_run
//! # use keylane::{Attempt, guard};
//! # async fn handle(mut connection: impl redis::aio::ConnectionLike, attempt: Attempt)
//! # -> Result<(), Box<dyn std::error::Error>> {
//! let token = attempt.fencing_token().await?;
//! let resource = attempt.task.resource.as_str();
//! guard::redis::set(&mut connection, resource, token, "balance:{7}", "42").await?;
//!
//! let add = guard::redis::GuardedScript::new("return redis.call('INCRBY', KEYS[2], ARGV[2])");
//! let balance: i64 =
//!     add.run(&mut connection, resource, token, &["balance:{7}"], &["5"]).await?;
//! # Ok(()) }
//! ```

use redis::aio::ConnectionLike;
use redis::{FromRedisValue, RedisError, Script, ToRedisArgs};

use super::StaleToken;
use crate::protocol::fence::{FencingToken, TokenError};

/// The beginning of every guarded script: refuses a stale token with the error
/// `STALETOKEN` and the highest one. `KEYS[1]` holds the highest token, `ARGV[1]`
/// is the token of the write.
pub const ADMIT_LUA: &str = include_str!("admit.lua");
/// A write that can follow: sets `KEYS[2]` to `ARGV[2]`.
pub const SET_LUA: &str = include_str!("set.lua");

/// What a refusal's error begins with.
const STALE: &str = "STALETOKEN";

/// Why a guarded script did not write.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisGuardError {
    /// A later owner has been there. Nothing was written.
    #[error(transparent)]
    Stale(#[from] StaleToken),
    /// Redis did not do it, or nobody knows.
    #[error("the guard could not ask Redis")]
    Redis(#[from] RedisError),
    /// The key of the highest token holds something else.
    #[error("the key of the highest token is broken")]
    Broken(#[from] TokenError),
}

/// The key of the highest token of a resource: `keylane:fence:{resource}`, with
/// the braces, so that in a cluster keys with the tag `{resource}` live beside
/// it, where one script can reach both.
#[must_use]
pub fn fence_key(resource: &str) -> String {
    format!("keylane:fence:{{{resource}}}")
}

/// A script of yours behind the guard.
#[derive(Debug, Clone)]
pub struct GuardedScript {
    script: Script,
}

impl GuardedScript {
    /// A script that runs only if the token is admitted. Its own keys begin with
    /// `KEYS[2]`, its own arguments with `ARGV[2]`.
    #[must_use]
    pub fn new(lua: &str) -> Self {
        Self { script: Script::new(&format!("{ADMIT_LUA}{lua}")) }
    }

    /// Runs it for a write on `resource`.
    ///
    /// # Errors
    /// [`RedisGuardError::Stale`] when a later owner has been there.
    ///
    /// # Cancel safety
    /// It may have run or not.
    pub async fn run<T: FromRedisValue>(
        &self,
        connection: &mut impl ConnectionLike,
        resource: &str,
        token: FencingToken,
        keys: &[impl ToRedisArgs],
        arguments: &[impl ToRedisArgs],
    ) -> Result<T, RedisGuardError> {
        let mut call = self.script.key(fence_key(resource));
        call.arg(token.number());
        for key in keys {
            call.key(key);
        }
        for argument in arguments {
            call.arg(argument);
        }
        match call.invoke_async(connection).await {
            Ok(value) => Ok(value),
            Err(error) if error.code() == Some(STALE) => {
                let highest = error.detail().unwrap_or_default().trim().parse()?;
                Err(StaleToken { resource: resource.to_owned(), token, highest }.into())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Sets `key` to `value` if no later owner of `resource` has been there.
///
/// # Errors
/// [`RedisGuardError::Stale`] when one has.
///
/// # Cancel safety
/// It may be set or not.
pub async fn set(
    connection: &mut impl ConnectionLike,
    resource: &str,
    token: FencingToken,
    key: &str,
    value: impl ToRedisArgs,
) -> Result<(), RedisGuardError> {
    GuardedScript::new(SET_LUA).run(connection, resource, token, &[key], &[value]).await
}
