//! How much a session reads from its peer while it waits.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep;
use twinlock_transport::connection::{Connection, ConnectionError, Wake};
use twinlock_transport::transport::Transport;

/// Interval between checks whether a peer that is not read has closed.
const LOOK: Duration = Duration::from_millis(250);

/// How much is read from the peer.
#[derive(Clone, Copy)]
pub(super) enum Ear {
    /// Everything.
    Open,
    /// Nothing, but a close by the peer is detected.
    Watching,
    /// Nothing: an upload waits for the disk, and its bytes are kept even if the peer has closed.
    Closed,
}

/// Writes and keeps the timers in any case, and reads as far as `ear` allows. Cancel-safe.
pub(super) async fn listen<S: Transport>(
    line: &mut Connection<S>,
    ear: Ear,
    room: Option<usize>,
) -> Result<Wake, ConnectionError> {
    match ear {
        Ear::Open => line.wait(room).await,
        Ear::Closed => hold_for(line, room).await,
        Ear::Watching => loop {
            if line.stream().has_peer_closed() {
                return Err(ConnectionError::Cut(None));
            }
            tokio::select! {
                wake = hold_for(line, room) => return wake,
                () = sleep(LOOK) => {}
            }
        },
    }
}

/// Reads nothing, and returns once there is room. Cancel-safe.
async fn hold_for<S: AsyncRead + AsyncWrite + Unpin>(
    line: &mut Connection<S>,
    room: Option<usize>,
) -> Result<Wake, ConnectionError> {
    poll_fn(|cx| {
        let held = pin!(line.hold()).poll(cx);
        match held {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending if room.is_some_and(|room| line.backlog() <= room) => {
                Poll::Ready(Ok(Wake::Room))
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
