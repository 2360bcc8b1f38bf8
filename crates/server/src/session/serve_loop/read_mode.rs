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
const CLOSE_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// How much is read from the peer.
#[derive(Clone, Copy)]
pub(super) enum ReadMode {
    /// Everything.
    All,
    /// Nothing, but a close by the peer is detected.
    CloseOnly,
    /// Nothing: an upload waits for the disk, and its bytes are kept even if the peer has closed.
    Nothing,
}

/// Writes and keeps the timers in any case, and reads as far as `mode` allows. Cancel-safe.
pub(super) async fn wait_for_peer<S: Transport>(
    connection: &mut Connection<S>,
    mode: ReadMode,
    room: Option<usize>,
) -> Result<Wake, ConnectionError> {
    match mode {
        ReadMode::All => connection.wait(room).await,
        ReadMode::Nothing => wait_without_reading(connection, room).await,
        ReadMode::CloseOnly => loop {
            if connection.stream().has_peer_closed() {
                return Err(ConnectionError::Cut(None));
            }
            tokio::select! {
                wake = wait_without_reading(connection, room) => return wake,
                () = sleep(CLOSE_CHECK_INTERVAL) => {}
            }
        },
    }
}

/// Reads nothing, and returns once there is room. Cancel-safe.
async fn wait_without_reading<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut Connection<S>,
    room: Option<usize>,
) -> Result<Wake, ConnectionError> {
    poll_fn(|cx| {
        let polled = pin!(connection.wait_without_reading()).poll(cx);
        match polled {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending if room.is_some_and(|room| connection.backlog() <= room) => {
                Poll::Ready(Ok(Wake::Room))
            }
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
