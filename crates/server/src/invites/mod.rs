//! Invites: creation, and the invite of the first user.

pub(crate) mod owner;

use twinlock_core::Entropy as _;
use twinlock_core::credential::Credential;
use twinlock_core::handshake::self_register;
use twinlock_core::id::{InviteId, Name};
use twinlock_core::keys::InviteSecret;
use twinlock_core::proto::RefusalReason;
use twinlock_store::rights::{self, Right};
use twinlock_store::{InviteTerms, PreparedInvite, UserRole};
use twinlock_transport::OsEntropy;
use zeroize::Zeroizing;

use crate::admission::Admission;
use crate::record::Record;
use crate::refusal::{RequestRefusal, needs, storage};

/// Creates an invite. Its secret exists only in the returned copy.
pub(crate) async fn make(
    admission: &Admission,
    record: &Record,
    role: UserRole,
    user: Option<Name>,
    seconds: u64,
    made_by: Option<Name>,
) -> Result<(InviteId, InviteSecret, u64), RequestRefusal> {
    let limits = &admission.env().config.limits;
    let seconds = match seconds {
        0 => limits.invite.as_secs(),
        seconds => seconds.min(limits.longest_invite.as_secs()),
    };
    let created_ms = admission.env().now_ms();
    let expires_ms = created_ms.saturating_add(seconds.saturating_mul(1000));
    let mut id = [0; 8];
    OsEntropy.fill(&mut id);
    let mut secret = Zeroizing::new([0; 16]);
    OsEntropy.fill(secret.as_mut());
    let id = InviteId(id);
    let credential = Credential::Invite(id, InviteSecret::new(&secret));
    let opaque_record = self_register(&admission.setup, &credential, &mut OsEntropy)
        .map_err(|_| RequestRefusal::from(RefusalReason::Storage))?
        .to_vec();
    let terms = InviteTerms { role, user, expires_ms };
    let invite = PreparedInvite { id, record: opaque_record, terms, made_by, created_ms };
    if !record.store.add_invite(invite).await.map_err(|e| storage(&e))? {
        return needs(rights::required(Right::Invite, role));
    }
    Ok((id, InviteSecret::new(&secret), expires_ms))
}
