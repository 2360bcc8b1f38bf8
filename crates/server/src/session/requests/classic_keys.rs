//! Requests that create, list and revoke classic keys.

use bytes::Bytes;
use twinlock_core::Entropy as _;
use twinlock_core::classic::ClassicScheme;
use twinlock_core::id::Name;
use twinlock_core::keys;
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered};
use twinlock_store::{AddedClassicKey, StoredClassicKey, UserRole, rights};
use twinlock_transport::OsEntropy;
use zeroize::Zeroizing;

use super::{LIST, RequestContext, RequestResult, done, page_after};
use crate::admission::ListenerKind;
use crate::append_log::with_name;
use crate::barred::Revocation;
use crate::convert::copy;
use crate::refusal::{RequestRefusal, bad_name, needs, refuse, storage};
use crate::services::Services;

impl RequestContext<'_> {
    /// Reads the role from the record, because it may have been withdrawn since the session began.
    async fn manages_classic_keys(&self) -> Result<bool, RequestRefusal> {
        Ok(self.me().await?.is_some_and(|me| rights::manages_classic_keys(me.role)))
    }

    pub(crate) async fn add_classic_key(&self, want: proto::AddClassicKey) -> RequestResult {
        if !self.manages_classic_keys().await? {
            return needs(UserRole::Admin);
        }
        let name = Name::new(&want.name).map_err(bad_name)?;
        let Some(form) = form_from(want.form()) else { return refuse(RefusalReason::Malformed) };
        let mut salt = [0; 32];
        OsEntropy.fill(&mut salt);
        let sealed = match <[u8; 32]>::try_from(want.key.as_ref()) {
            // The key of JWE lines is always generated here: no existing program has one.
            Ok(key) if form != ClassicScheme::Jwe => {
                let key = keys::ClassicSecret::new(&Zeroizing::new(key));
                Some(self.services.admission.seal_imported(&name, &salt, &key))
            }
            Err(_) if want.key.is_empty() => None,
            _ => return refuse(RefusalReason::Malformed),
        };
        let row = StoredClassicKey {
            name,
            user: self.person.user.clone(),
            conversation: want.conversation,
            form,
            salt,
            sealed,
            created_ms: self.services.env.now_ms(),
        };
        let record = &self.services.record;
        let added = record.barred.add_classic_key(&*record.store, row.clone()).await;
        match added.map_err(|e| storage(&e))? {
            AddedClassicKey::Added => {}
            AddedClassicKey::NameTaken => return refuse(RefusalReason::NameTaken),
            AddedClassicKey::FormTaken => return refuse(RefusalReason::AlreadyUsed),
            AddedClassicKey::NotAMember => return refuse(RefusalReason::NotFound),
        }
        let Services { admission, .. } = self.services;
        let StoredClassicKey { name, user, conversation, .. } = &row;
        let (made_by, key, conversation) = (user.clone(), name.clone(), *conversation);
        let (form_word, imported) = (form.word(), sealed.is_some());
        with_name(&self.services.record, user, conversation, move |room| {
            tracing::info!(user = %made_by, %key, room, conversation, form = form_word, imported, "classic key made");
        });
        let port = admission.port(match form {
            ClassicScheme::Jwe => ListenerKind::Classic,
            ClassicScheme::Origin | ClassicScheme::OriginHmac => ListenerKind::Origin,
        });
        Ok(Answered::NewClassicKey(proto::NewClassicKey {
            // The importer has an imported key already.
            key: match sealed {
                None => copy(admission.classic_key(name, Some(&row)).expose_secret()),
                Some(_) => Bytes::new(),
            },
            port: port.address.map_or(0, |address| address.port().into()),
        }))
    }

    pub(crate) async fn list_classic_keys(&self, want: proto::ListClassicKeys) -> RequestResult {
        let all = self.manages_classic_keys().await?;
        let after = page_after(&want.after)?;
        let own = (!all).then(|| self.person.user.clone());
        let rows = self.reading(|store| async move {
            store.classic_keys(own.as_ref(), after.as_ref(), LIST).await
        });
        let rows = rows.await?;
        let more = rows.len() == LIST;
        let keys = rows.into_iter().map(|listed| proto::ClassicKey {
            name: listed.key.name.to_string(),
            user: listed.key.user.to_string(),
            conversation: listed.key.conversation,
            room: listed.room.map(|room| room.to_string()).unwrap_or_default(),
            form: form(listed.key.form).into(),
            created_ms: listed.key.created_ms,
        });
        Ok(Answered::ClassicKeys(proto::ClassicKeys { keys: keys.collect(), more }))
    }

    pub(crate) async fn revoke_classic_key(&self, want: proto::RevokeClassicKey) -> RequestResult {
        let name = Name::new(&want.name).map_err(bad_name)?;
        let searched = name.clone();
        let key = self.reading(|store| async move { store.classic_key(&searched).await }).await?;
        let Some(key) = key else { return refuse(RefusalReason::NotFound) };
        // Only users who may see another user's key learn that it exists.
        if key.user != self.person.user && !self.manages_classic_keys().await? {
            return refuse(RefusalReason::NotFound);
        }
        let by = &self.person.user;
        let answer = match self.services.record.store.revoke_classic_key(&name).await {
            Ok(true) => {
                tracing::info!(%by, key = %name, "classic key revoked");
                self.services.record.barred.written(&Revocation::Key(name));
                done()
            }
            Ok(false) => return refuse(RefusalReason::NotFound),
            Err(error) => {
                tracing::warn!(%by, key = %name, "classic key barred until a restart: not recorded");
                self.services.record.barred.bar(Revocation::Key(name));
                Err(RequestRefusal { barred: true, ..storage(&error) })
            }
        };
        self.services.bus.key_revoked();
        answer
    }
}

fn form(form: ClassicScheme) -> proto::ClassicForm {
    match form {
        ClassicScheme::Jwe => proto::ClassicForm::JweLines,
        ClassicScheme::Origin => proto::ClassicForm::Origin,
        ClassicScheme::OriginHmac => proto::ClassicForm::OriginHmac,
    }
}

fn form_from(form: proto::ClassicForm) -> Option<ClassicScheme> {
    match form {
        proto::ClassicForm::FormNone => None,
        proto::ClassicForm::JweLines => Some(ClassicScheme::Jwe),
        proto::ClassicForm::Origin => Some(ClassicScheme::Origin),
        proto::ClassicForm::OriginHmac => Some(ClassicScheme::OriginHmac),
    }
}
