//! Runs work that waits for the disk apart from the runtime.

use crate::exit::Failure;

/// Runs work that waits for the disk on a blocking thread.
pub(crate) async fn blocking<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, Failure>
where
    T: Send + 'static,
    E: Send + 'static,
    Failure: From<E>,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(Failure::usage("the state of the profile could not be used")),
    }
}
