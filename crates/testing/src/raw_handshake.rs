//! The first frames of a login, one by one.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use twinlock_core::credential::Credential;
use twinlock_core::frame::{CHALLENGE, ErrorCode};
use twinlock_core::handshake::AwaitChallenge;
use twinlock_transport::OsEntropy;

use crate::endpoint::Io;
use crate::soon;

/// Sends HELLO and waits for CHALLENGE.
///
/// # Errors
/// The code of the ERROR that the server sent instead.
///
/// # Panics
/// If neither arrives.
pub async fn hello(
    io: &mut Io,
    credential: Credential,
) -> Result<(AwaitChallenge, Box<[u8; CHALLENGE]>), ErrorCode> {
    let (state, hello) = AwaitChallenge::start(credential, None, &mut OsEntropy).unwrap();
    io.write_all(&hello).await.unwrap();
    io.flush().await.unwrap();
    let mut header = [0; 4];
    soon("CHALLENGE", io.read_exact(&mut header)).await.unwrap();
    if header == [0x0e, 0, 0, 3] {
        return Err(error(io).await);
    }
    assert_eq!(header, [0x02, 0, 5, 128]);
    let mut challenge = Box::new([0; CHALLENGE]);
    io.read_exact(challenge.as_mut_slice()).await.unwrap();
    Ok((state, challenge))
}

/// Reads an ERROR whose header has been read.
///
/// # Panics
/// If it does not arrive.
pub async fn error(io: &mut Io) -> ErrorCode {
    let mut payload = [0; 3];
    soon("ERROR", io.read_exact(&mut payload)).await.unwrap();
    ErrorCode::parse(payload)
}

/// Reads until the server ends the stream; a reset also ends it.
///
/// # Panics
/// If the stream does not end.
pub async fn read_to_end(io: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    let _reset = soon("end of the stream", io.read_to_end(&mut all)).await;
    all
}
