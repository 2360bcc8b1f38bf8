//! Disk work from async code.

use crate::error::ClientError;

/// Runs work that waits for the disk on a blocking thread.
///
/// # Errors
/// [`ClientError::Failed`] if the work panics, [`ClientError::Closed`] if the runtime is shutting
/// down.
pub async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ClientError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        if error.is_panic() {
            ClientError::Failed("work on a file ended early")
        } else {
            ClientError::Closed
        }
    })
}

/// [`run_blocking`] for work that fails with a [`ClientError`].
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> Result<T, ClientError> {
    run_blocking(work).await?
}
