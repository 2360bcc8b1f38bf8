//! The owner's invite link, kept in `DIR/owner-invite` until it is used.

use std::path::{Path, PathBuf};

use twinlock_core::id::{CredentialId, TlsPin};
use twinlock_core::invite::{Address, InviteLink};
use twinlock_store::UserRole;
use zeroize::Zeroizing;

use super::make;
use crate::admission::Admission;
use crate::error::StartError;
use crate::private;
use crate::record::Record;

/// Maximum size of the file, bytes: an invite link with a long host name.
const MAX_BYTES: u64 = 1024;

fn path(data: &Path) -> PathBuf {
    data.join("owner-invite")
}

/// Creates the owner's invite link if no user has registered and no valid link exists.
///
/// Returns the link only if it is new or changed, so an unchanged restart shows nothing.
pub(crate) async fn invite(
    admission: &Admission,
    record: &Record,
    public: &Address,
    tls_pin: Option<TlsPin>,
) -> Result<Option<InviteLink>, StartError> {
    let config = &admission.env().config;
    if !record.store.people(None, 1).await?.is_empty() {
        forget(&config.data);
        return Ok(None);
    }
    let path = path(&config.data);
    let kept = read(&path);
    let (id, secret) = match kept.as_ref().and_then(|text| InviteLink::parse(text.trim()).ok()) {
        Some(link) if is_usable(admission, record, &link).await? => (link.id, link.secret),
        _ => {
            let (id, secret, _) = make(admission, record, UserRole::Owner, None, 0, None)
                .await
                .map_err(|_| StartError::OwnerInvite)?;
            (id, secret)
        }
    };
    // The public address may have changed since.
    let link = InviteLink {
        address: public.clone(),
        id,
        secret,
        server_key: admission.setup.server_key(),
        tls_pin,
        proxy: config.behind_proxy,
    };
    let mut text = link.to_link();
    text.push('\n');
    if kept.is_some_and(|kept| *kept == *text) {
        return Ok(None);
    }
    private::write(&path, text.as_bytes())?;
    Ok(Some(link))
}

async fn is_usable(
    admission: &Admission,
    record: &Record,
    link: &InviteLink,
) -> Result<bool, StartError> {
    let id = CredentialId::Invite(link.id);
    Ok(record.store.credential(&id, admission.env().now_ms()).await?.is_some())
}

/// Reads the file. An unreadable one counts as missing and is rewritten.
fn read(path: &Path) -> Option<Zeroizing<String>> {
    let mut bytes = private::read(path, MAX_BYTES).ok()??;
    String::from_utf8(std::mem::take(&mut *bytes)).ok().map(Zeroizing::new)
}

/// Removes the file after the invite was used.
pub(crate) fn forget(data: &Path) {
    let path = path(data);
    if let Err(failed) = private::remove(&path) {
        let error = failed.error;
        tracing::warn!(%error, path = %path.display(), "the used owner-invite file was not removed");
    }
}
