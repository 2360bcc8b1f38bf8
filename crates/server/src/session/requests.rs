//! Requests of a device session other than append and follow (section 8).

use std::slice::from_ref;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tokio::time::{Instant, timeout_at};
use twinlock_core::Entropy as _;
use twinlock_core::chain::Kind;
use twinlock_core::credential::Credential;
use twinlock_core::handshake::self_register;
use twinlock_core::id::{ConversationId, DeviceId, InviteId, Link, MessageId, Name, Sender};
use twinlock_core::keys::InviteSecret;
use twinlock_core::limits::{MAX_BODY, MAX_SEARCH, MAX_TOPIC};
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered};
use twinlock_store::{
    Appended, Content, Conversation, Entry, InviteTerms, Joined, Limit, NewEntry, NewInvite, Page,
    Person, Role, SLICE, SearchFrom, Store, StoreError,
};
use twinlock_transport::OsEntropy;
use zeroize::Zeroizing;

use crate::barred::Revocation;
use crate::convert::{self, copy};
use crate::refusal::{Refused, bad_name, needs, refuse, storage, too_large};
use crate::server::Shared;

/// Rows of a list in one answer.
pub(crate) const LIST: usize = 100;
/// The same for conversations: 100 with long topics do not fit in a frame.
const CONVERSATIONS: usize = 64;
/// Maximum entries of one answer, and bytes of bodies requested from the store.
const PAGE: Limit = Limit { entries: 512, bytes: 32 * 1024 };
/// Maximum overhead of a frame of entries, bytes.
pub(crate) const FRAME_HEAD: usize = 512;
/// Maximum tag and length before an encoded entry, bytes.
pub(crate) const ENTRY_HEAD: usize = 6;
/// When to retry a search that took too long, seconds.
const SEARCH_AGAIN: u32 = 5;

/// The device session that sent the request.
pub(crate) struct Asker<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) person: &'a Person,
    pub(crate) device: &'a DeviceId,
}

pub(crate) type Answer = Result<Answered, Refused>;

impl Asker<'_> {
    // ---- reading

    pub(crate) async fn read(&self, want: proto::Read) -> Answer {
        let conversation = self.own(want.conversation).await?;
        if want.after > conversation.head {
            return refuse(RefusalReason::Ahead);
        }
        let limit = Limit { entries: at_most(want.limit, PAGE.entries), ..PAGE };
        let page = self.page(want.conversation, want.after, limit).await?;
        let entries = page.entries.iter().map(|entry| {
            let link = if want.links { copy(&entry.link.0) } else { Bytes::new() };
            proto::Entry { link, ..convert::entry(entry) }
        });
        Ok(Answered::Page(proto::Page {
            conversation: want.conversation,
            after: want.after,
            link_after: copy(&page.link_after.0),
            head: page.head,
            entries: fit_a_frame(entries),
        }))
    }

    /// The stored link of entry `n`, or the initial link if `n` is 0.
    async fn link(&self, conversation: ConversationId, n: u64) -> Result<Link, Refused> {
        let one = Limit { entries: 1, bytes: 0 };
        Ok(self.page(conversation, n, one).await?.link_after)
    }

    async fn page(
        &self,
        conversation: ConversationId,
        after: u64,
        limit: Limit,
    ) -> Result<Page, Refused> {
        self.reading(|store| async move { store.read(conversation, after, limit).await }).await
    }

    /// The answer to a follow from `want.after`, if it may begin.
    pub(crate) async fn look_to_follow(
        &self,
        want: &proto::Follow,
    ) -> Result<proto::Following, Refused> {
        let conversation = self.own(want.conversation).await?;
        if want.after > conversation.head {
            return refuse(RefusalReason::Ahead);
        }
        Ok(proto::Following {
            conversation: want.conversation,
            after: want.after,
            link_after: copy(&self.link(want.conversation, want.after).await?.0),
            head: conversation.head,
        })
    }

    pub(crate) async fn search(&self, want: proto::Search) -> Answer {
        let conversation = self.own(want.conversation).await?;
        if want.text.len() > MAX_SEARCH {
            return too_large(proto::Limit::SearchBytes, MAX_SEARCH);
        }
        let before = if want.before == 0 { u64::MAX } else { want.before };
        let most = at_most(want.limit, LIST);
        let time = self.shared.config.limits.search;
        let until = Instant::now() + time;
        let found = timeout_at(until, self.search_slices(&want, before, most, until)).await;
        let Some(found) = found.unwrap_or(Ok(None))? else {
            let busy = Refused::for_now(RefusalReason::Busy, SEARCH_AGAIN);
            return Err(busy.at(proto::Limit::SearchSeconds, time.as_secs()));
        };
        Ok(Answered::Page(proto::Page {
            conversation: want.conversation,
            head: conversation.head,
            entries: fit_a_frame(found.iter().map(convert::entry)),
            ..proto::Page::default()
        }))
    }

    /// Runs the slices of a search in order, each when it is this user's turn. `None`: not complete
    /// at `until`. If this future is dropped, the search ends with the current slice.
    async fn search_slices(
        &self,
        want: &proto::Search,
        before: u64,
        most: usize,
        until: Instant,
    ) -> Result<Option<Vec<Entry>>, Refused> {
        let mut all = Vec::new();
        let mut room = MAX_BODY;
        let mut from = Some(SearchFrom::below(before));
        while let Some(at) = from
            && all.len() < most
        {
            if Instant::now() >= until {
                return Ok(None);
            }
            let limit = Limit { entries: most - all.len(), bytes: room };
            let turn = self.shared.searches.turn(&self.person.user).await;
            let (conversation, text) = (want.conversation, want.text.clone());
            // Both turns last until the slice ends, even if the session has ended.
            let slice = self.reading(|store| async move {
                let found = store.search_some(conversation, &text, at, limit, SLICE).await;
                drop(turn);
                found
            });
            let found = slice.await?;
            let bytes: usize = found.entries.iter().map(size).sum();
            all.extend(found.entries);
            // The answer has no room for more.
            if bytes >= room {
                break;
            }
            room -= bytes;
            from = found.next;
        }
        Ok(Some(all))
    }

    /// Reads the record when it is this user's turn.
    pub(crate) async fn reading<T, R>(
        &self,
        read: impl FnOnce(Arc<dyn Store>) -> R,
    ) -> Result<T, Refused>
    where
        T: Send + 'static,
        R: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        self.shared.read(&self.person.user, read).await.map_err(|e| storage(&e))
    }

    /// This user as currently recorded.
    pub(crate) async fn me(&self) -> Result<Option<Person>, Refused> {
        let user = self.person.user.clone();
        self.reading(|store| async move { store.person(&user).await }).await
    }

    /// Counts a change that the server announces to others.
    fn change(&self) -> Result<(), Refused> {
        let account = self.shared.accounts.of(&self.person.user);
        account.change(Instant::now().into_std()).map_err(|wait| {
            let most = self.shared.config.limits.changes_per_minute;
            let again = u32::try_from(wait.as_secs().saturating_add(1)).unwrap_or(u32::MAX);
            Refused::for_now(RefusalReason::Busy, again).at(proto::Limit::ChangesPerMinute, most)
        })
    }

    pub(crate) async fn mark(&self, want: proto::Mark) -> Answer {
        self.own(want.conversation).await?;
        let marked =
            self.shared.store.mark_read(&self.person.user, want.conversation, want.n).await;
        marked.map_err(|e| storage(&e))?;
        self.shared.bus.conversation_changed(from_ref(&self.person.user), want.conversation);
        done()
    }

    // ---- conversations

    pub(crate) async fn list_conversations(&self, want: proto::ListConversations) -> Answer {
        let (user, most) = (self.person.user.clone(), CONVERSATIONS + 1);
        let rows = self.reading(|store| async move {
            store.conversations(&user, want.joinable, want.after, most).await
        });
        let rows = rows.await?;
        Ok(Answered::Conversations(proto::Conversations {
            more: rows.len() > CONVERSATIONS,
            conversations: rows.iter().take(CONVERSATIONS).map(convert::conversation).collect(),
        }))
    }

    pub(crate) async fn create_room(&self, want: proto::CreateRoom) -> Answer {
        let name = Name::new(&want.name).map_err(bad_name)?;
        if want.topic.len() > MAX_TOPIC {
            return too_large(proto::Limit::TopicBytes, MAX_TOPIC);
        }
        self.change()?;
        let made = self.shared.store.create_room(&self.person.user, &name, &want.topic).await;
        let Some(made) = made.map_err(|e| storage(&e))? else {
            return refuse(RefusalReason::NameTaken);
        };
        self.shared.bus.conversation_changed(from_ref(&self.person.user), made.id);
        Ok(Answered::Conversation(convert::conversation(&made)))
    }

    pub(crate) async fn find_room(&self, want: proto::FindRoom) -> Answer {
        let name = Name::new(&want.name).map_err(bad_name)?;
        let user = self.person.user.clone();
        match self.reading(|store| async move { store.room(&user, &name).await }).await? {
            Some(room) => Ok(Answered::Conversation(convert::conversation(&room))),
            None => refuse(RefusalReason::NotFound),
        }
    }

    pub(crate) async fn join_room(&self, want: proto::JoinRoom) -> Answer {
        let name = Name::new(&want.name).map_err(bad_name)?;
        self.change()?;
        let joined = self.shared.store.join_room(&self.person.user, &name).await;
        let Some(joined) = joined.map_err(|e| storage(&e))? else {
            return refuse(RefusalReason::NotFound);
        };
        let Joined { conversation: joined, new } = joined;
        if new {
            self.tell_members(joined.id).await?;
            self.say(joined.id, &format!("{} joined", self.person.user)).await;
        }
        Ok(Answered::Conversation(convert::conversation(&joined)))
    }

    pub(crate) async fn leave_room(&self, want: proto::LeaveRoom) -> Answer {
        self.own(want.conversation).await?;
        self.change()?;
        let left = self.shared.store.leave_room(&self.person.user, want.conversation).await;
        if !left.map_err(|e| storage(&e))? {
            return refuse(RefusalReason::NotAllowed);
        }
        // First, so that the user's other sessions stop following it.
        self.shared.bus.conversation_changed(from_ref(&self.person.user), want.conversation);
        self.tell_members(want.conversation).await?;
        self.say(want.conversation, &format!("{} left", self.person.user)).await;
        done()
    }

    pub(crate) async fn set_topic(&self, want: proto::SetTopic) -> Answer {
        if want.topic.len() > MAX_TOPIC {
            return too_large(proto::Limit::TopicBytes, MAX_TOPIC);
        }
        self.change()?;
        let changed = self
            .shared
            .store
            .set_topic(&self.person.user, want.conversation, &want.topic)
            .await
            .map_err(|e| storage(&e))?;
        let Some(changed) = changed else { return refuse(RefusalReason::NotFound) };
        let said = format!("{} set the topic: {}", self.person.user, want.topic);
        self.tell_members(want.conversation).await?;
        self.say(want.conversation, &said).await;
        Ok(Answered::Conversation(convert::conversation(&changed)))
    }

    pub(crate) async fn open_direct(&self, want: proto::OpenDirect) -> Answer {
        let other = Name::new(&want.user).map_err(bad_name)?;
        self.change()?;
        let opened = self.shared.store.open_direct(&self.person.user, &other).await;
        let Some(opened) = opened.map_err(|e| storage(&e))? else {
            return refuse(RefusalReason::NotFound);
        };
        if opened.head == 0 {
            self.shared.bus.conversation_changed(&[self.person.user.clone(), other], opened.id);
        }
        Ok(Answered::Conversation(convert::conversation(&opened)))
    }

    pub(crate) async fn list_members(&self, want: proto::ListMembers) -> Answer {
        self.own(want.conversation).await?;
        let after = page_after(&want.after)?;
        let rows = self.members(want.conversation, after, LIST + 1).await?;
        Ok(Answered::Members(proto::Members {
            more: rows.len() > LIST,
            users: rows.iter().take(LIST).map(Name::to_string).collect(),
        }))
    }

    // ---- people, invites, devices

    pub(crate) async fn list_people(&self, want: proto::ListPeople) -> Answer {
        let after = page_after(&want.after)?;
        let rows =
            self.reading(|store| async move { store.people(after.as_ref(), LIST + 1).await });
        let rows = rows.await?;
        let online = |person: &Person| self.shared.bus.is_online(&person.user);
        Ok(Answered::People(proto::People {
            more: rows.len() > LIST,
            people: rows.iter().take(LIST).map(|p| convert::person(p, online(p))).collect(),
        }))
    }

    pub(crate) async fn make_invite(&self, want: proto::MakeInvite) -> Answer {
        let role = convert::role_from(want.role).unwrap_or(Role::Member);
        // The role may have been withdrawn since the session began.
        let Some(me) = self.me().await?.filter(|me| me.role >= Role::Admin && me.role >= role)
        else {
            return needs(convert::role(role.max(Role::Admin)));
        };
        let user = match want.user.as_str() {
            "" => None,
            user => Some(Name::new(user).map_err(bad_name)?),
        };
        if let Some(user) = user.clone()
            && self.reading(|store| async move { store.person(&user).await }).await?.is_some()
        {
            return refuse(RefusalReason::NameTaken);
        }
        let (id, secret, expires_ms) =
            make_invite(self.shared, role, user, want.seconds, Some(me.user)).await?;
        Ok(Answered::Invite(proto::Invite {
            id: copy(&id.0),
            secret: copy(secret.expose_secret()),
            expires_ms,
        }))
    }

    pub(crate) async fn list_devices(&self) -> Answer {
        list_devices(self.shared, &self.person.user, Some(self.device)).await
    }

    /// Revokes the session's own device and no other: a stolen device must not lock out the rest.
    pub(crate) async fn revoke_device(&self, want: proto::RevokeDevice) -> Answer {
        match DeviceId::from_slice(&want.device) {
            None => refuse(RefusalReason::Malformed),
            Some(id) if id == *self.device => {
                revoke_device(self.shared, &self.person.user, &id).await
            }
            Some(_) => refuse(RefusalReason::NotAllowed),
        }
    }

    // ---- helpers

    /// A conversation of which this user is a member.
    pub(crate) async fn own(&self, id: ConversationId) -> Result<Conversation, Refused> {
        let user = self.person.user.clone();
        let found =
            self.reading(|store| async move { store.conversation(&user, id).await }).await?;
        found.ok_or_else(|| RefusalReason::NotFound.into())
    }

    async fn members(
        &self,
        id: ConversationId,
        after: Option<Name>,
        most: usize,
    ) -> Result<Vec<Name>, Refused> {
        self.reading(|store| async move { store.members(id, after.as_ref(), most).await }).await
    }

    /// Appends a notice of the server to a conversation.
    async fn say(&self, conversation: ConversationId, text: &str) {
        let entry = NewEntry {
            conversation,
            sender: Sender::Server,
            message_id: MessageId::fresh(self.shared.now_ms(), &mut OsEntropy),
            kind: Kind::SYSTEM,
            body: text.to_owned().into(),
        };
        // The announced change is complete, whether or not the notice can be recorded.
        match self.shared.store.append(vec![entry]).await {
            Ok(said) if said.contains(&Appended::NotAMember) => {
                tracing::warn!(conversation, "a notice of the server was not recorded");
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "a notice of the server was not recorded"),
        }
    }

    async fn tell_members(&self, id: ConversationId) -> Result<(), Refused> {
        let mut after = None;
        loop {
            let rows = self.members(id, after, LIST).await?;
            self.shared.bus.conversation_changed(&rows, id);
            match rows.last() {
                Some(last) if rows.len() == LIST => after = Some(last.clone()),
                _ => return Ok(()),
            }
        }
    }
}

pub(crate) async fn list_devices(
    shared: &Shared,
    user: &Name,
    current: Option<&DeviceId>,
) -> Answer {
    let owner = user.clone();
    let devices = shared.read(user, |store| async move { store.devices(&owner).await }).await;
    let devices = devices.map_err(|e| storage(&e))?;
    let devices = devices.iter().map(|device| proto::Device {
        id: copy(&device.id.0),
        label: device.label.clone(),
        created_ms: device.created_ms,
        seen_ms: device.seen_ms,
        current: Some(&device.id) == current,
        online: shared.bus.is_device_online(&device.id),
    });
    // A frame holds about 400 devices. No user has that many, and omitting the rest is harmless.
    Ok(Answered::Devices(proto::Devices { devices: devices.take(4 * LIST).collect() }))
}

pub(crate) async fn revoke_device(shared: &Shared, user: &Name, device: &DeviceId) -> Answer {
    match shared.store.revoke_device(user, device).await {
        Ok(true) => {}
        Ok(false) => return refuse(RefusalReason::NotFound),
        Err(error) => {
            let no = storage(&error);
            // If the record cannot be read either, a live session shows whose device it is.
            let is_own = match shared.store.devices(user).await {
                Ok(own) => own.iter().any(|own| own.id == *device),
                Err(_) => shared.bus.is_device_of(user, device),
            };
            if !is_own {
                return refuse(RefusalReason::NotFound);
            }
            tracing::warn!(%user, %device, "device barred until a restart: not recorded");
            shared.barred.bar(Revocation::Device(user.clone(), *device));
            shared.bus.device_revoked(device);
            return Err(Refused { barred: true, ..no });
        }
    }
    tracing::info!(%user, %device, "device revoked");
    shared.barred.written(&Revocation::Device(user.clone(), *device));
    shared.bus.device_revoked(device);
    done()
}

/// Creates an invite. Its secret exists only in the returned copy.
pub(crate) async fn make_invite(
    shared: &Shared,
    role: Role,
    user: Option<Name>,
    seconds: u64,
    made_by: Option<Name>,
) -> Result<(InviteId, InviteSecret, u64), Refused> {
    let limits = &shared.config.limits;
    let seconds = match seconds {
        0 => limits.invite.as_secs(),
        seconds => seconds.min(limits.longest_invite.as_secs()),
    };
    let created_ms = shared.now_ms();
    let expires_ms = created_ms.saturating_add(seconds.saturating_mul(1000));
    let mut id = [0; 8];
    OsEntropy.fill(&mut id);
    let mut secret = Zeroizing::new([0; 16]);
    OsEntropy.fill(secret.as_mut());
    let id = InviteId(id);
    let credential = Credential::Invite(id, InviteSecret::new(&secret));
    let record = self_register(&shared.setup, &credential, &mut OsEntropy)
        .map_err(|_| Refused::from(RefusalReason::Storage))?
        .to_vec();
    let terms = InviteTerms { role, user, expires_ms };
    let invite = NewInvite { id, record, terms, made_by, created_ms };
    shared.store.add_invite(invite).await.map_err(|e| storage(&e))?;
    Ok((id, InviteSecret::new(&secret), expires_ms))
}

/// Bytes of an entry's body.
fn size(entry: &Entry) -> usize {
    if let Content::Body(_, body) = &entry.content { body.len() } else { 0 }
}

/// As many entries as fit in a frame, at least one; the client continues after the last.
pub(crate) fn fit_a_frame(entries: impl Iterator<Item = proto::Entry>) -> Vec<proto::Entry> {
    let mut bytes = 0;
    let fits = |entry: &proto::Entry| {
        let first = bytes == 0;
        bytes += entry.encoded_len() + ENTRY_HEAD;
        first || bytes + FRAME_HEAD <= MAX_BODY
    };
    entries.take_while(fits).collect()
}

/// The number of items in an answer: as requested, at most `most`; `most` if not specified.
fn at_most(wanted: u32, most: usize) -> usize {
    match usize::try_from(wanted) {
        Ok(wanted @ 1..) => wanted.min(most),
        _ => most,
    }
}

pub(crate) fn page_after(after: &str) -> Result<Option<Name>, Refused> {
    if after.is_empty() { Ok(None) } else { Name::new(after).map(Some).map_err(bad_name) }
}

pub(crate) fn done() -> Answer {
    Ok(Answered::Done(proto::Done {}))
}
