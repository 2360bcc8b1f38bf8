//! How long the tests wait for what has to happen.

use std::time::Duration;

use tokio::time::timeout;

/// Timeout of one step of a connection: nothing takes longer unless it hangs.
pub const SOON: Duration = Duration::from_secs(20);

/// Timeout of a whole operation, which may include Argon2 on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);

/// Waits up to [`SOON`].
///
/// # Panics
/// If it takes longer; the message names `what`.
pub async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    timeout(SOON, work).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}
