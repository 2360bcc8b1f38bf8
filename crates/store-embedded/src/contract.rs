//! The traits of the contract for [`EmbeddedStore`]: each method delegates to a module.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{broadcast, oneshot};
use twinlock_core::classic::ClassicScheme;
use twinlock_core::id::{ConversationId, CredentialId, DeviceId, InviteId, MessageId, Name};
use twinlock_store::sequencer::PreparedEntry;
use twinlock_store::{
    Accounts, Act, Actor, AddedClassicKey, Administered, Administration, AppendAnswer, AppendReply,
    ClassicKeyStore, Close, Directory, EntryLog, EntryPage, EntrySearch, Erased, FileIndex,
    FileRef, FileUsage, Joined, ListedClassicKey, ListedInvite, LoginMethod, LookedUp, NewDevice,
    NewEntry, Newest, Order, PreparedInvite, Published, ReadLimit, Receipt, Registered,
    Registration, RevokedInvite, SearchFrom, SearchResult, StoreError, StoredClassicKey,
    StoredConversation, StoredDevice, StoredPerson,
};

use crate::people::{
    accounts, administration, classic, conversations, credentials, files, members, sources,
};
use crate::recorder::{AppendCommand, EraseCommand, RecorderCommand};
use crate::store::{EmbeddedStore, QUEUE, Threads};
use crate::words;
use crate::words::ENTRY;

#[async_trait]
impl EntryLog for EmbeddedStore {
    async fn hand_over(
        &self,
        batch: Vec<NewEntry>,
        order: &Order,
    ) -> Result<AppendAnswer, StoreError> {
        if batch.is_empty() {
            return Ok(Box::pin(std::future::ready(Ok(Vec::new()))));
        }
        let size = batch.iter().map(|entry| entry.body.len() + ENTRY).sum::<usize>().min(QUEUE);
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let entries = PreparedEntry::batch(batch, &self.salts)?;
        let (reply, answer) = AppendReply::new(order);
        let turn = self.turn.lock().await;
        let room = self.room.clone().acquire_many_owned(size).await;
        let room = room.map_err(|_| StoreError::Closed)?;
        let append = AppendCommand { entries, reply, room };
        self.commands.send(RecorderCommand::Append(append)).map_err(|_| StoreError::Closed)?;
        drop(turn);
        Ok(answer)
    }

    async fn read(
        &self,
        conversation: ConversationId,
        after: u64,
        limit: ReadLimit,
    ) -> Result<EntryPage, StoreError> {
        let key = self.server_key;
        self.readers
            .read(move |view| {
                let made = conversations::server_key(view.people()?, conversation)?;
                view.entries()?.page(conversation, after, limit, &made.unwrap_or(key))
            })
            .await
    }

    async fn newest(&self, entries: usize) -> Result<Vec<Newest>, StoreError> {
        self.readers.read(move |view| view.entries()?.newest(entries)).await
    }

    fn watch(&self) -> broadcast::Receiver<Arc<[Published]>> {
        self.commits.subscribe()
    }

    async fn erase(
        &self,
        conversation: ConversationId,
        n: u64,
    ) -> Result<Option<Erased>, StoreError> {
        let (reply, answer) = oneshot::channel();
        let command = RecorderCommand::Erase(EraseCommand { conversation, n, reply });
        self.commands.send(command).map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn receipt(
        &self,
        user: &Name,
        message_id: &MessageId,
    ) -> Result<Option<Receipt>, StoreError> {
        let (user, message_id) = (user.clone(), *message_id);
        self.readers
            .read(move |view| match credentials::user_number(view.people()?, &user)? {
                Some(user) => view.entries()?.receipt_of(user, &message_id),
                None => Ok(None),
            })
            .await
    }
}

#[async_trait]
impl Directory for EmbeddedStore {
    async fn conversations(
        &self,
        user: &Name,
        joinable: bool,
        after: ConversationId,
        limit: usize,
    ) -> Result<Vec<StoredConversation>, StoreError> {
        let user = user.clone();
        self.readers
            .read_people(move |conn, view| {
                conversations::list(conn, view, &user, joinable, after, limit)
            })
            .await
    }

    async fn room(
        &self,
        user: &Name,
        room: &Name,
    ) -> Result<Option<StoredConversation>, StoreError> {
        let (user, room) = (user.clone(), room.clone());
        self.readers
            .read_people(move |conn, view| conversations::named(conn, view, &user, &room))
            .await
    }

    async fn conversation(
        &self,
        user: &Name,
        id: ConversationId,
    ) -> Result<Option<StoredConversation>, StoreError> {
        let user = user.clone();
        self.readers.read_people(move |conn, view| conversations::one(conn, view, &user, id)).await
    }

    async fn create_room(
        &self,
        user: &Name,
        name: &Name,
        topic: &str,
    ) -> Result<Option<StoredConversation>, StoreError> {
        let (user, name, topic) = (user.clone(), name.clone(), topic.to_owned());
        let (key, bounds) = (self.server_key, self.bounds);
        self.write(move |transaction| {
            conversations::create_room(transaction, &user, &name, &topic, &key, &bounds)
        })
        .await
    }

    async fn join_room(&self, user: &Name, name: &Name) -> Result<Option<Joined>, StoreError> {
        let (user, name, bounds) = (user.clone(), name.clone(), self.bounds);
        self.write(move |transaction| conversations::join_room(transaction, &user, &name, &bounds))
            .await
    }

    async fn leave_room(&self, user: &Name, id: ConversationId) -> Result<bool, StoreError> {
        let user = user.clone();
        self.write(move |transaction| conversations::leave_room(transaction, &user, id)).await
    }

    async fn set_topic(
        &self,
        user: &Name,
        id: ConversationId,
        topic: &str,
    ) -> Result<Option<StoredConversation>, StoreError> {
        let (user, topic) = (user.clone(), topic.to_owned());
        self.write(move |transaction| conversations::set_topic(transaction, &user, id, &topic))
            .await
    }

    async fn open_direct(
        &self,
        user: &Name,
        other: &Name,
    ) -> Result<Option<StoredConversation>, StoreError> {
        let (user, other) = (user.clone(), other.clone());
        let (key, bounds) = (self.server_key, self.bounds);
        self.write(move |transaction| {
            conversations::open_direct(transaction, &user, &other, &key, &bounds)
        })
        .await
    }

    async fn members(
        &self,
        id: ConversationId,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<Name>, StoreError> {
        let after = after.cloned();
        self.readers
            .read_people(move |conn, _| members::list(conn, id, after.as_ref(), limit))
            .await
    }

    async fn mark_read(&self, user: &Name, id: ConversationId, n: u64) -> Result<(), StoreError> {
        let user = user.clone();
        self.write(move |transaction| {
            members::mark_read(transaction.conn, transaction.heads, &user, id, n)
        })
        .await
    }
}

#[async_trait]
impl Accounts for EmbeddedStore {
    async fn look_up(&self, id: &CredentialId, now_ms: u64) -> Result<LookedUp, StoreError> {
        let (id, key) = (id.clone(), self.row_key.clone());
        self.readers.read_people(move |conn, _| credentials::look_up(conn, &key, &id, now_ms)).await
    }

    async fn add_invite(&self, invite: PreparedInvite) -> Result<bool, StoreError> {
        let (key, bounds) = (self.row_key.clone(), self.bounds);
        self.write(move |transaction| accounts::add_invite(transaction, &key, &invite, &bounds))
            .await
    }

    async fn invites(
        &self,
        user: &Name,
        after: Option<InviteId>,
        limit: usize,
    ) -> Result<Vec<ListedInvite>, StoreError> {
        let (user, key) = (user.clone(), self.row_key.clone());
        self.readers
            .read_people(move |conn, _| accounts::invites(conn, &key, &user, after, limit))
            .await
    }

    async fn register(
        &self,
        registration: Registration,
        now_ms: u64,
    ) -> Result<Registered, StoreError> {
        let key = self.row_key.clone();
        self.write(move |transaction| accounts::register(transaction, &key, &registration, now_ms))
            .await
    }

    async fn add_device(
        &self,
        user: &Name,
        device: NewDevice,
        now_ms: u64,
    ) -> Result<bool, StoreError> {
        let (user, key, bounds) = (user.clone(), self.row_key.clone(), self.bounds);
        self.write(move |transaction| {
            accounts::add_device(transaction, &key, &user, &device, now_ms, &bounds)
        })
        .await
    }

    async fn set_password(
        &self,
        user: &Name,
        record: &[u8],
        now_ms: u64,
    ) -> Result<bool, StoreError> {
        let (user, key, record) = (user.clone(), self.row_key.clone(), record.to_vec());
        self.write(move |transaction| {
            accounts::set_password(transaction, &key, &user, &record, now_ms)
        })
        .await
    }

    async fn devices(&self, user: &Name) -> Result<Vec<StoredDevice>, StoreError> {
        let (user, key) = (user.clone(), self.row_key.clone());
        self.readers.read_people(move |conn, _| accounts::devices(conn, &key, &user)).await
    }

    async fn revoke_device(&self, user: &Name, device: &DeviceId) -> Result<bool, StoreError> {
        let (user, key, device) = (user.clone(), self.row_key.clone(), *device);
        self.write(move |transaction| accounts::revoke_device(transaction, &key, &user, &device))
            .await
    }

    async fn touch_device(&self, device: &DeviceId, now_ms: u64) -> Result<(), StoreError> {
        let device = *device;
        // Shares the next commit; the caller does not wait.
        self.begin_write(move |transaction| {
            accounts::touch_device(transaction.conn, &device, now_ms)
        })
        .map(|_| ())
    }

    async fn is_known_source(
        &self,
        user: &Name,
        source: &[u8],
        now_ms: u64,
    ) -> Result<bool, StoreError> {
        let (user, source, key) = (user.clone(), source.to_vec(), self.row_key.clone());
        self.readers
            .read_people(move |conn, _| sources::is_known(conn, &key, &user, &source, now_ms))
            .await
    }

    async fn note_source(
        &self,
        user: &Name,
        source: &[u8],
        method: LoginMethod,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        let (user, source, key) = (user.clone(), source.to_vec(), self.row_key.clone());
        // Shares the next commit; the caller does not wait.
        self.begin_write(move |transaction| {
            sources::note(transaction.conn, &key, &user, &source, method, now_ms)
        })
        .map(|_| ())
    }

    async fn forget_sources(&self, user: &Name) -> Result<u64, StoreError> {
        let user = user.clone();
        let removed =
            self.write(move |transaction| sources::forget(transaction.conn, &user)).await?;
        // They are not in the log, which syncs every other write.
        self.sync_people().await?;
        Ok(removed)
    }

    async fn person(&self, user: &Name) -> Result<Option<StoredPerson>, StoreError> {
        let (user, key) = (user.clone(), self.row_key.clone());
        self.readers.read_people(move |conn, _| credentials::person(conn, &key, &user)).await
    }

    async fn people(
        &self,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<StoredPerson>, StoreError> {
        let (after, key) = (after.cloned(), self.row_key.clone());
        self.readers
            .read_people(move |conn, _| accounts::list(conn, &key, after.as_ref(), limit))
            .await
    }
}

#[async_trait]
impl Administration for EmbeddedStore {
    async fn administer(&self, by: Actor, act: Act) -> Result<Administered, StoreError> {
        let (key, server_key) = (self.row_key.clone(), self.server_key);
        self.write(move |transaction| {
            administration::administer(transaction, &key, &server_key, &by, &act)
        })
        .await
    }

    async fn revoke_invite(&self, by: Actor, id: InviteId) -> Result<RevokedInvite, StoreError> {
        let (key, server_key) = (self.row_key.clone(), self.server_key);
        self.write(move |transaction| {
            administration::revoke_invite(transaction, &key, &server_key, &by, &id)
        })
        .await
    }
}

#[async_trait]
impl FileIndex for EmbeddedStore {
    async fn file(
        &self,
        user: &Name,
        conversation: ConversationId,
        n: u64,
    ) -> Result<Option<FileRef>, StoreError> {
        let user = user.clone();
        self.readers.read_people(move |conn, _| files::one(conn, &user, conversation, n)).await
    }

    async fn stored(&self, user: &Name) -> Result<FileUsage, StoreError> {
        let user = user.clone();
        self.readers.read_people(move |conn, _| files::stored(conn, &user)).await
    }

    async fn file_hashes(
        &self,
        after: Option<[u8; 32]>,
        limit: usize,
    ) -> Result<Vec<[u8; 32]>, StoreError> {
        self.readers.read_people(move |conn, _| files::hashes(conn, after, limit)).await
    }

    async fn is_referenced(&self, hash: &[u8; 32]) -> Result<bool, StoreError> {
        let hash = *hash;
        self.readers.read_people(move |conn, _| files::is_referenced(conn, &hash)).await
    }
}

#[async_trait]
impl EntrySearch for EmbeddedStore {
    async fn search_some(
        &self,
        conversation: ConversationId,
        text: &str,
        from: SearchFrom,
        limit: ReadLimit,
        time: Duration,
    ) -> Result<SearchResult, StoreError> {
        let text = text.to_owned();
        self.readers
            .read(move |view| {
                // From here on: the wait for a connection does not count.
                let until = Instant::now() + time;
                let (words, entries) = (view.words()?, view.entries()?);
                words::some(words, entries, conversation, &text, from, limit, until)
            })
            .await
    }

    fn unindexed(&self) -> u64 {
        let queued = QUEUE.saturating_sub(self.room.available_permits());
        self.words.backlog().saturating_add(queued as u64)
    }
}

#[async_trait]
impl ClassicKeyStore for EmbeddedStore {
    async fn add_classic_key(&self, new: StoredClassicKey) -> Result<AddedClassicKey, StoreError> {
        let (key, bounds) = (self.row_key.clone(), self.bounds);
        self.write(move |transaction| classic::add(transaction, &key, &new, &bounds)).await
    }

    async fn classic_key(&self, name: &Name) -> Result<Option<StoredClassicKey>, StoreError> {
        let (name, key) = (name.clone(), self.row_key.clone());
        self.readers.read_people(move |conn, _| classic::one(conn, &key, &name)).await
    }

    async fn classic_key_of(
        &self,
        form: ClassicScheme,
    ) -> Result<Option<StoredClassicKey>, StoreError> {
        let key = self.row_key.clone();
        self.readers.read_people(move |conn, _| classic::of_form(conn, &key, form)).await
    }

    async fn classic_keys(
        &self,
        of: Option<&Name>,
        after: Option<&Name>,
        limit: usize,
    ) -> Result<Vec<ListedClassicKey>, StoreError> {
        let (of, after, key) = (of.cloned(), after.cloned(), self.row_key.clone());
        self.readers
            .read_people(move |conn, _| {
                classic::list(conn, &key, of.as_ref(), after.as_ref(), limit)
            })
            .await
    }

    async fn revoke_classic_key(&self, name: &Name) -> Result<bool, StoreError> {
        let (name, key) = (name.clone(), self.row_key.clone());
        self.write(move |transaction| classic::revoke(transaction, &key, &name)).await
    }
}

#[async_trait]
impl Close for EmbeddedStore {
    async fn close(&self) -> Result<(), StoreError> {
        self.readers.close().await;
        let threads = self.end();
        let ended =
            tokio::task::spawn_blocking(move || threads.map_or(Ok(()), Threads::join)).await;
        ended.map_err(|error| StoreError::Database(error.to_string())).flatten()
    }
}
