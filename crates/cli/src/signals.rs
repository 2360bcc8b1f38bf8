//! The signals that end a command, and the one that must not.

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Resolves at SIGINT (Ctrl-C) or SIGTERM; signals are caught from this call on.
pub(crate) fn interrupted() -> impl Future<Output = ()> {
    let wait = async |caught: std::io::Result<Signal>| match caught {
        Ok(mut caught) => _ = caught.recv().await,
        Err(_) => std::future::pending().await,
    };
    let (int, term) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    async move {
        tokio::select! {
            () = wait(int) => {}
            () = wait(term) => {}
        }
    }
}

/// Turns SIGXFSZ into a write error. A file that reaches the process's size limit (`ulimit -f`,
/// systemd's `LimitFSIZE=`) then fails like a full disk, instead of killing the program silently.
/// The signal is caught, not ignored, because the commands of `--exec` would inherit that.
pub(crate) fn outlive_large_files(runtime: &Runtime) {
    let _inside = runtime.enter();
    // If catching fails, the default action stays. Once caught, it stays caught.
    let _nobody_waits = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()));
}
