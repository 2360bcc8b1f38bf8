//! Step-up: proof of the user's password inside a device session (section 8).

use bytes::Bytes;
use twinlock_core::credential::{Credential, Password};
use twinlock_core::frame::KE2;
use twinlock_core::id::Name;
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};
use twinlock_core::step_up::StepUp;
use twinlock_transport::OsEntropy;

use super::Client;
use crate::error::{ClientError, Refusal};
use crate::register::{self, Ask};

impl Ask for &Client {
    async fn ask(&mut self, op: Op) -> Result<Answered, ClientError> {
        self.request(op).await
    }
}

impl Client {
    /// Proves the password of this client's user. Takes a second and 256 MiB.
    ///
    /// For five minutes after that, over the same connection, [`Client::revoke_device`] revokes any
    /// device of the user, and [`Client::set_password`] replaces the password.
    ///
    /// # Errors
    /// [`ClientError::WrongPassword`]; other errors say nothing about the password.
    pub async fn prove_password(&self, user: &Name, password: Password) -> Result<(), ClientError> {
        let facts = self.facts().await?;
        if !facts.up.server.password {
            return Err(ClientError::NoPassword(user.clone()));
        }
        let credential = Credential::User(user.clone(), password);
        let (state, ke1) = StepUp::start(credential, &facts.id, &mut OsEntropy)
            .map_err(|_| ClientError::Failed("the password cannot be blinded"))?;
        let begin = proto::StepUpBegin { ke1: Bytes::copy_from_slice(&ke1) };
        let Answered::StepUpChallenge(challenge) = self.request(Op::StepUpBegin(begin)).await?
        else {
            return Err(ClientError::Protocol("another answer than a challenge"));
        };
        let ke2: [u8; KE2] = challenge
            .ke2
            .as_ref()
            .try_into()
            .map_err(|_| ClientError::Protocol("length of a challenge"))?;
        let key = facts.server_key;
        let ke3 = register::stretch(move || state.finish(&ke2, &key, &mut OsEntropy)).await?;
        let ke3 = ke3.map_err(|_| ClientError::WrongPassword)?;
        let finish = proto::StepUpFinish { ke3: Bytes::copy_from_slice(&ke3) };
        match self.request(Op::StepUpFinish(finish)).await {
            Ok(Answered::Done(_)) => Ok(()),
            Ok(_) => Err(ClientError::Protocol("another answer than done")),
            Err(ClientError::Refused(Refusal { why: RefusalReason::WrongPassword, .. })) => {
                Err(ClientError::WrongPassword)
            }
            Err(error) => Err(error),
        }
    }

    /// Replaces the password of this client's user; requires [`Client::prove_password`].
    ///
    /// # Errors
    /// [`ClientError`]; the old password stays valid then.
    pub async fn set_password(&self, user: &Name, new: Password) -> Result<(), ClientError> {
        let key = self.facts().await?.server_key;
        let session = &mut &*self;
        let begin = proto::RegisterBegin { password: true, ..proto::RegisterBegin::default() };
        register::begin(session, begin, &key).await?;
        let new = Credential::User(user.clone(), new);
        let records = register::evaluate(session, Some(new), None, &key).await?;
        register::finish(session, records).await
    }
}
