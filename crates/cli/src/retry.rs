//! Repeats requests across reconnects.

use twinlock_client::{Client, ClientError};

use crate::exit::Failure;

/// Repeats a request until a connection delivers the answer.
pub(crate) async fn until_answered<T>(
    client: &Client,
    ask: impl AsyncFn(&Client) -> Result<T, ClientError>,
) -> Result<T, Failure> {
    loop {
        match ask(client).await {
            Err(ClientError::Lost(_)) => {}
            Err(ClientError::Closed) => {
                // The client's last event carries the reason.
                std::future::pending::<()>().await;
            }
            answered => return Ok(answered?),
        }
    }
}
