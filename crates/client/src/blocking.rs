//! Disk work from async code.

use crate::error::ClientError;

/// Runs disk work on a blocking thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> Result<T, ClientError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => Err(ClientError::Failed("work on a file ended early")),
        // The runtime is shutting down.
        Err(_) => Err(ClientError::Closed),
    }
}
