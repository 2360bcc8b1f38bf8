//! The handshake runtime: threads for connections that are not authenticated yet.
//!
//! TLS, the handshake and every wait between them run only here. On the sessions' runtime, a fair
//! scheduler would queue a message behind every ready handshake, and a flood of logins makes
//! hundreds of them ready at once. Here handshakes wait for each other only. These threads have a
//! lower priority, so a flood costs sessions no more than the work of rejecting it.
//!
//! A socket stays with the runtime that accepted it, and so does the session on it.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;

/// Added to the niceness of these threads: they get about a tenth of a contended core.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// The runtime; its threads end when this is dropped.
#[derive(Debug)]
pub(crate) struct HandshakeRuntime(Option<Runtime>);

/// Handle for work on the runtime.
#[derive(Debug, Clone)]
pub(crate) struct HandshakeHandle(Handle);

impl HandshakeRuntime {
    /// Starts the threads.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(crate) fn open() -> io::Result<(Self, HandshakeHandle)> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let nice = nicer();
        let runtime = Builder::new_multi_thread()
            .worker_threads(cores)
            .thread_name("twinlock-login")
            .on_thread_start(move || be_nice(nice))
            .enable_time()
            .build()?;
        let handle = HandshakeHandle(runtime.handle().clone());
        Ok((Self(Some(runtime)), handle))
    }
}

impl Drop for HandshakeRuntime {
    fn drop(&mut self) {
        // This may run inside another runtime, which must not block on the end of threads.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl HandshakeHandle {
    /// Spawns the work on this runtime, as one of `tasks`.
    pub(crate) fn spawn(
        &self,
        tasks: &mut JoinSet<()>,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        tasks.spawn_on(work, &self.0);
    }

    /// Runs the work on this runtime; dropping the future cancels it. `None` if the task panicked
    /// or the runtime has ended.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let mut task = JoinSet::new();
        task.spawn_on(work, &self.0);
        match task.join_next().await? {
            Ok(done) => Some(done),
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(%error, "a login's task failed");
                }
                None
            }
        }
    }
}

/// Niceness of these threads. Only Linux has a priority per thread.
fn nicer() -> Option<i32> {
    #[cfg(target_os = "linux")]
    return rustix::process::getpriority_process(None).ok().map(|own| (own + NICE).min(19));
    #[cfg(not(target_os = "linux"))]
    return None;
}

fn be_nice(nice: Option<i32>) {
    if let Some(nice) = nice
        && let Err(error) = rustix::process::setpriority_process(None, nice)
    {
        tracing::debug!(%error, "the priority of the handshake runtime could not be lowered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn handshake_runtime__low_priority_and_cancelled_with_caller() {
        let (runtime, handle) = HandshakeRuntime::open().unwrap();
        let name = || std::thread::current().name().map(ToOwned::to_owned);
        assert_eq!(handle.run(async move { name() }).await.unwrap().unwrap(), "twinlock-login");
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let (own, nicer) = (nice(), nicer());
        if let Some(nicer) = nicer {
            assert_eq!(handle.run(async move { nice() }).await, Some(nicer));
            let blocking = async move { tokio::task::spawn_blocking(nice).await.unwrap() };
            assert_eq!(handle.run(blocking).await, Some(nicer));
            assert!(own < nicer || own == 19, "{own}");
        }
        assert_eq!(nice(), own);
        let (here, mut gone) = tokio::sync::oneshot::channel::<()>();
        let waits = handle.run(async move {
            std::future::pending::<()>().await;
            drop(here);
        });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1), waits).await.is_err());
        assert!((&mut gone).await.is_err());
        drop(runtime);
        assert_eq!(handle.run(async {}).await, None);
    }
}
