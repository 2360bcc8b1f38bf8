//! Requests about classic keys.

use bytes::Bytes;
use twinlock_core::id::{ConversationId, Name};
use twinlock_core::keys::ClassicSecret;
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};

use super::listing::Listing;
use super::{Client, unexpected};
use crate::directory::{ClassicForm, ClassicKeyInfo};
use crate::error::ClientError;
use crate::model::NewClassicKey;

impl Client {
    /// Creates a key for a classic connection or the origin bridge, for one conversation of this
    /// user.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn add_classic_key(
        &self,
        name: &Name,
        conversation: ConversationId,
        form: ClassicForm,
    ) -> Result<NewClassicKey, ClientError> {
        let new = self.add_key(name, conversation, form, Bytes::new()).await?;
        let key = <[u8; 32]>::try_from(new.key.as_ref()).map_err(|_| unexpected())?;
        Ok(NewClassicKey { key: ClassicSecret::new(&key), port: port(&new) })
    }

    /// Adds a key that unchanged clients of the origin bridge already have. Returns their port;
    /// `None`: the server does not listen for them now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn import_classic_key(
        &self,
        name: &Name,
        conversation: ConversationId,
        form: ClassicForm,
        key: &ClassicSecret,
    ) -> Result<Option<u16>, ClientError> {
        let key = Bytes::copy_from_slice(key.expose_secret());
        let new = self.add_key(name, conversation, form, key).await?;
        // An older server ignores the field and creates a key, which the clients do not have.
        if !new.key.is_empty() {
            self.revoke_classic_key(name).await?;
            return Err(ClientError::Refused(RefusalReason::Unsupported.into()));
        }
        Ok(port(&new))
    }

    async fn add_key(
        &self,
        name: &Name,
        conversation: ConversationId,
        form: ClassicForm,
        key: Bytes,
    ) -> Result<proto::NewClassicKey, ClientError> {
        let form = form.into();
        let add = proto::AddClassicKey { name: name.to_string(), conversation, form, key };
        match self.request(Op::AddClassicKey(add)).await? {
            Answered::NewClassicKey(new) => Ok(new),
            _ => Err(unexpected()),
        }
    }

    /// The valid classic keys: all for admins and owners, this user's for others.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn classic_keys(&self) -> Result<Vec<ClassicKeyInfo>, ClientError> {
        let mut all = Listing::new("keys", |key: &proto::ClassicKey| key.name.clone());
        loop {
            let after = all.last().unwrap_or_default();
            let list = proto::ListClassicKeys { after };
            match self.request(Op::ListClassicKeys(list)).await? {
                Answered::ClassicKeys(some) => {
                    if let Some(all) = all.add(some.keys, some.more)? {
                        return Ok(all.into_iter().map(ClassicKeyInfo::from).collect());
                    }
                }
                _ => return Err(unexpected()),
            }
        }
    }

    /// Revokes a classic key of this user; admins and owners may revoke any.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke_classic_key(&self, name: &Name) -> Result<(), ClientError> {
        let revoke = proto::RevokeClassicKey { name: name.to_string() };
        self.done(Op::RevokeClassicKey(revoke)).await
    }
}

fn port(new: &proto::NewClassicKey) -> Option<u16> {
    u16::try_from(new.port).ok().filter(|port| *port != 0)
}
