//! A bot that answers `!ping` in the lobby, and continues where it stopped:
//! `cargo run -p twinlock-client --example bot`, with a profile that `twinlock join` has made.

use twinlock_client::{Client, ClientError};

#[tokio::main]
async fn main() -> Result<(), ClientError> {
    let client = Client::open("default").await?;
    let lobby = client.conversation("lobby").await?;
    let mut messages = lobby.messages().resume("bot");
    loop {
        let message = messages.next().await?;
        if !message.is_own() && message.text() == "!ping" {
            lobby.send("pong").await?.recorded().await?;
        }
        message.handled().await?;
    }
}
