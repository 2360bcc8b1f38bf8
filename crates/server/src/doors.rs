//! Threads for those who are not logged in yet: TLS, the handshake of lock 2 and whatever waits
//! between them run here and nowhere else.
//!
//! Why not beside the lines: a scheduler that takes turns lets a message wait behind every handshake
//! that came before it, and a flood of logins makes hundreds of them ready at once. Here they wait
//! for each other. These threads yield to the others, so a flood costs people who talk no more than
//! what it takes to turn it away.
//!
//! Sockets stay with the runtime that accepted them, and so does the line that comes of one.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;

/// How far these threads yield: they get about a tenth of a core that others want.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// The threads; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Doors(Option<Runtime>);

/// The way to them.
#[derive(Debug, Clone)]
pub(crate) struct Door(Handle);

impl Doors {
    /// # Errors
    /// No thread can be started.
    pub(crate) fn open() -> io::Result<(Self, Door)> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let nice = nicer();
        let runtime = Builder::new_multi_thread()
            .worker_threads(cores)
            .thread_name("twinlock-doors")
            .on_thread_start(move || be_nice(nice))
            .enable_time()
            .build()?;
        let door = Door(runtime.handle().clone());
        Ok((Self(Some(runtime)), door))
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        // Within another runtime, where nothing may wait for threads to end.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Door {
    /// Does the work there, as one of these tasks.
    pub(crate) fn spawn(
        &self,
        tasks: &mut JoinSet<()>,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        tasks.spawn_on(work, &self.0);
    }

    /// Does the work there; it ends if this is cancelled. `None`: it failed, or there are no
    /// threads any more.
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

/// How nice the threads are to be, if that can be said of a thread: on Linux alone.
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
        tracing::debug!(%error, "logins have the priority of everything else");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_on_threads_that_yield_and_ends_with_who_waits_for_it() {
        let (doors, door) = Doors::open().unwrap();
        let name = || std::thread::current().name().map(ToOwned::to_owned);
        assert_eq!(door.run(async move { name() }).await.unwrap().unwrap(), "twinlock-doors");
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let (own, nicer) = (nice(), nicer());
        if let Some(nicer) = nicer {
            assert_eq!(door.run(async move { nice() }).await, Some(nicer));
            let blocking = async move { tokio::task::spawn_blocking(nice).await.unwrap() };
            assert_eq!(door.run(blocking).await, Some(nicer));
            assert!(own < nicer || own == 19, "{own}");
        }
        assert_eq!(nice(), own);
        let (here, mut gone) = tokio::sync::oneshot::channel::<()>();
        let waits = door.run(async move {
            std::future::pending::<()>().await;
            drop(here);
        });
        assert!(tokio::time::timeout(std::time::Duration::from_millis(1), waits).await.is_err());
        assert!((&mut gone).await.is_err());
        drop(doors);
        assert_eq!(door.run(async {}).await, None);
    }
}
