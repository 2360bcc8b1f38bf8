//! Runs work that waits for the disk apart from the runtime.

use twinlock_client::blocking::run_blocking;

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
    Ok(run_blocking(work).await??)
}
