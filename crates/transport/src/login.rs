//! The handshake over a stream, both sides, up to a [`Connection`].
//!
//! On the server each step is a separate call, because limits, the semaphore and the record come
//! between the steps. Every wait has a deadline (section 9).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};
use twinlock_core::credential::Credential;
use twinlock_core::frame::{BadHeader, CHALLENGE, Due, ErrorCode, FrameType, HEADER, Header, KE3};
use twinlock_core::handshake::{
    AwaitChallenge, Established, Hello, HelloFault, LoginRefused, NotLoggedIn, check_hello,
};
use twinlock_core::id::{CredentialId, ServerKey};
use twinlock_core::session::{Session, SessionConfig};

use crate::OsEntropy;
use crate::connection::{Connection, linger, now};

/// Time from TLS to HELLO (section 9).
pub const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// Time from CHALLENGE to PROOF, in which a slow device stretches its password.
pub const PROOF_DEADLINE: Duration = Duration::from_secs(30);
/// How long a client waits for CHALLENGE, because the server may queue it.
pub const CHALLENGE_DEADLINE: Duration = Duration::from_secs(30);

/// A failed login.
#[derive(Debug, Error)]
pub enum LoginError {
    /// The server refuses. Only a hint, because any attacker in between could send it.
    #[error(transparent)]
    Server(ErrorCode),
    /// The server failed to authenticate itself, or the secret is wrong.
    #[error(transparent)]
    Refused(#[from] LoginRefused),
    /// The server authenticated itself but is not the pinned one. The client sends nothing more.
    #[error("the server's key is {shown}, not {known}")]
    OtherServer {
        /// The pinned key.
        known: ServerKey,
        /// The key that the server showed.
        shown: ServerKey,
    },
    /// The thread that stretches the password failed.
    #[error("the password could not be stretched")]
    Failed,
    /// A HELLO that the server cannot answer with CHALLENGE.
    #[error(transparent)]
    Hello(HelloFault),
    /// A frame that was not due.
    #[error(transparent)]
    Header(#[from] BadHeader),
    /// The stream broke or ended.
    #[error("the connection was lost during the login: {}", crate::io_words(.0))]
    Io(#[from] io::Error),
    /// The peer took too long.
    #[error("the login took too long")]
    Timeout,
}

impl From<NotLoggedIn> for LoginError {
    fn from(error: NotLoggedIn) -> Self {
        match error {
            NotLoggedIn::Refused => Self::Refused(LoginRefused),
            NotLoggedIn::OtherServer { known, shown } => Self::OtherServer { known, shown },
        }
    }
}

/// Logs in over `io` and returns the connection, with READY outgoing and the server's still due.
///
/// # Errors
/// [`LoginError`].
pub async fn login<S: AsyncRead + AsyncWrite + Unpin>(
    mut io: S,
    credential: impl Into<Arc<Credential>>,
    pin: Option<ServerKey>,
    config: SessionConfig,
) -> Result<Connection<S>, LoginError> {
    let credential = credential.into();
    let slow = matches!(credential.id(), CredentialId::User(_));
    let (state, hello) = AwaitChallenge::start(credential, pin, &mut OsEntropy)?;
    let challenge: Box<[u8; CHALLENGE]> = within(CHALLENGE_DEADLINE, async {
        io.write_all(&hello).await?;
        io.flush().await?;
        let header = read_header(&mut io, Due::Challenge).await?;
        if header.frame == FrameType::Error {
            let mut payload = [0; 3];
            io.read_exact(&mut payload).await?;
            return Err(LoginError::Server(ErrorCode::parse(payload)));
        }
        let mut challenge = Box::new([0; CHALLENGE]);
        io.read_exact(challenge.as_mut_slice()).await?;
        Ok(challenge)
    })
    .await?;
    let finish = move || state.handle_challenge(&challenge, &mut OsEntropy);
    let (established, proof) = if slow {
        tokio::task::spawn_blocking(finish).await.map_err(|_| LoginError::Failed)??
    } else {
        finish()?
    };
    within(PROOF_DEADLINE, async { Ok(io.write_all(&proof).await?) }).await?;
    Ok(Connection::new(io, Session::new(established, config, now())))
}

/// The server's side of a login, over a stream.
pub struct Acceptor<S> {
    io: S,
    /// When HELLO must be complete; `None`: [`HELLO_DEADLINE`] after the call that waits for it.
    hello_by: Option<Instant>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Acceptor<S> {
    /// Takes a stream on which no byte of the handshake has passed.
    pub fn new(io: S) -> Self {
        Self { io, hello_by: None }
    }

    /// The same with the time when HELLO must be complete, since the transport has used a part of
    /// [`HELLO_DEADLINE`].
    pub fn with_deadline(io: S, hello_by: Instant) -> Self {
        Self { io, hello_by: Some(hello_by) }
    }

    /// Waits for HELLO.
    ///
    /// Keeps at most 1316 bytes and does not check the group elements: [`Hello::parse`] does, after
    /// the limiter.
    ///
    /// # Errors
    /// [`LoginError::Hello`]: answer with [`Acceptor::refuse`]. Any other: drop the connection.
    pub async fn read_hello(&mut self) -> Result<Vec<u8>, LoginError> {
        let by = self.hello_by.unwrap_or_else(|| Instant::now() + HELLO_DEADLINE);
        within(by.saturating_duration_since(Instant::now()), async {
            let header = read_header(&mut self.io, Due::Hello).await?;
            let version = self.io.read_u8().await?;
            check_hello(version, header.len).map_err(LoginError::Hello)?;
            let mut payload = vec![0; header.len];
            let (first, rest) = payload.split_at_mut(1);
            first.copy_from_slice(&[version]);
            self.io.read_exact(rest).await?;
            Ok(payload)
        })
        .await
    }

    /// Sends CHALLENGE and waits for PROOF.
    ///
    /// # Errors
    /// [`LoginError`]: drop the connection.
    pub async fn exchange(&mut self, challenge: &[u8]) -> Result<[u8; KE3], LoginError> {
        within(PROOF_DEADLINE, async {
            self.io.write_all(challenge).await?;
            self.io.flush().await?;
            read_header(&mut self.io, Due::Proof).await?;
            let mut proof = [0; KE3];
            self.io.read_exact(&mut proof).await?;
            Ok(proof)
        })
        .await
    }

    /// Answers with an ERROR and ends the connection.
    pub async fn refuse(mut self, code: ErrorCode) {
        let sent = within(HELLO_DEADLINE, async {
            self.io.write_all(&code.to_frame()).await?;
            Ok(self.io.flush().await?)
        });
        if sent.await.is_ok() {
            linger(&mut self.io).await;
        }
    }

    /// The connection, once PROOF is accepted.
    pub fn into_connection(self, established: Established, config: SessionConfig) -> Connection<S> {
        Connection::new(self.io, Session::new(established, config, now()))
    }
}

/// Calls [`Hello::parse`] and returns its fault as a [`LoginError`].
///
/// # Errors
/// [`LoginError::Hello`].
pub fn parse_hello(payload: &[u8]) -> Result<Hello, LoginError> {
    Hello::parse(payload).map_err(LoginError::Hello)
}

async fn read_header<S: AsyncRead + Unpin>(io: &mut S, due: Due) -> Result<Header, LoginError> {
    let mut bytes = [0; HEADER];
    io.read_exact(&mut bytes).await?;
    Ok(Header::parse(bytes, due)?)
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, LoginError>>,
) -> Result<T, LoginError> {
    timeout(limit, work).await.unwrap_or(Err(LoginError::Timeout))
}
