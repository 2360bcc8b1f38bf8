//! The record as connections use it: the store and the files, with each user's share of both.

mod names;

use std::sync::Arc;

use tokio::runtime::Handle;
use twinlock_core::id::{ConversationId, CredentialId, Name};
use twinlock_core::proto::{Limit, RefusalReason};
use twinlock_store::{ConversationForm, LookedUp, Store, StoreError};

use crate::barred::Barred;
use crate::config::Config;
use crate::files::{FilePolicy, LocalDisk};
use crate::limits::accounts::{Account, AccountTable, OverQuota, Unindexed};
use crate::limits::fair::{Fair, FairTurn};
use crate::limits::text_reserve::{AtReserve, TextReserve};
use crate::private::Failed;
use crate::refusal::{RETRY, RequestRefusal};
use names::Names;

/// Concurrent reads of the record by sessions. The store has one more connection.
const READS: usize = 3;

/// The record of a server.
pub(crate) struct Record {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) files: Arc<FilePolicy>,
    /// Rates and quotas of users.
    pub(crate) accounts: AccountTable,
    /// Revocations that are not written yet.
    pub(crate) barred: Arc<Barred>,
    text_reserve: Arc<TextReserve>,
    /// Turns for reads of the record by sessions ([`Record::read`]). Fewer than the store's
    /// connections, so that sessions leave one to logins.
    reads: Fair,
    /// Turns for searches.
    searches: Fair,
    names: Names,
    /// Where reads run.
    runtime: Handle,
}

impl Record {
    /// Opens the files of an open store.
    ///
    /// # Errors
    /// The directory of files cannot be used.
    pub(crate) fn open(
        config: &Config,
        store: Arc<dyn Store>,
        runtime: Handle,
    ) -> Result<Self, Failed> {
        let limits = &config.limits;
        let disk = Box::new(LocalDisk::open(config.data.join("files"), limits.disk_reserve)?);
        let text_reserve = Arc::new(TextReserve::new(config.data.clone(), limits.text_reserve));
        let barred = Arc::new(Barred::default());
        let files =
            FilePolicy::new(disk, store.clone(), limits, text_reserve.clone(), barred.clone());
        let indexed = store.clone();
        let unindexed = Unindexed(Arc::new(move || indexed.unindexed()));
        Ok(Self {
            store,
            files: Arc::new(files),
            accounts: AccountTable::new(limits, unindexed),
            barred,
            text_reserve,
            reads: Fair::new(READS),
            searches: Fair::new(1),
            names: Names::new(),
            runtime,
        })
    }

    #[cfg(test)]
    pub(crate) fn reads(&self) -> &Fair {
        &self.reads
    }

    /// Reads the record for a session when it is `user`'s turn.
    ///
    /// The turn lasts until the read has ended, even if this future is dropped: a running statement
    /// cannot be stopped, and it occupies one of the store's connections.
    pub(crate) async fn read<T, R>(
        &self,
        user: &Name,
        read: impl FnOnce(Arc<dyn Store>) -> R,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        R: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let read = read(self.store.clone());
        self.reads.run(&self.runtime, user, read).await.map_err(|_| StoreError::Closed)?
    }

    /// Waits for `user`'s turn to search.
    pub(crate) async fn search_turn(&self, user: &Name) -> FairTurn {
        self.searches.turn(user).await
    }

    /// Looks up a credential on the main runtime. A read occupies a connection of the store, so it
    /// must not run at the low priority of the handshake runtime.
    pub(crate) async fn look_up(
        &self,
        id: &CredentialId,
        now_ms: u64,
    ) -> Result<LookedUp, StoreError> {
        let (store, id) = (self.store.clone(), id.clone());
        let read = self.runtime.spawn(async move { store.look_up(&id, now_ms).await });
        read.await.map_err(|_| StoreError::Closed)?
    }

    /// Whether the user has logged in from this source recently. Reads like [`Record::look_up`].
    pub(crate) async fn is_known_source(
        &self,
        user: &Name,
        source: Vec<u8>,
        now_ms: u64,
    ) -> Result<bool, StoreError> {
        let (store, user) = (self.store.clone(), user.clone());
        let read =
            self.runtime.spawn(async move { store.is_known_source(&user, &source, now_ms).await });
        read.await.map_err(|_| StoreError::Closed)?
    }

    /// Whether a client's write other than a revocation is allowed: unwritten revocations come
    /// first.
    pub(crate) fn may_write(&self) -> Result<(), RequestRefusal> {
        if self.barred.is_unwritten() { Err(later(RETRY.as_secs())) } else { Ok(()) }
    }

    /// Whether `bytes` of this user's text may be handed to the recorder now. Charges them if so.
    pub(crate) fn may_record(
        &self,
        account: Option<&Account>,
        bytes: u64,
    ) -> Result<(), RequestRefusal> {
        self.may_write()?;
        let now = tokio::time::Instant::now().into_std();
        if let Err(AtReserve(reserve)) = self.text_reserve.take(bytes, now) {
            return Err(later(RETRY.as_secs()).at(Limit::TextReserve, reserve));
        }
        match account.map_or(Ok(()), |account| account.write(bytes, now)) {
            Ok(()) => Ok(()),
            Err(OverQuota { max, retry_after }) => {
                Err(later(retry_after.as_secs().max(1)).at(Limit::TextPerDay, max))
            }
        }
    }

    /// The name of a conversation for the log, if it is cached.
    pub(crate) fn cached_name(&self, id: ConversationId) -> Option<Arc<str>> {
        self.names.get(id)
    }

    /// The name of a conversation of this user for the log, read from the store if it is not
    /// cached.
    pub(crate) async fn conversation_name(&self, user: &Name, id: ConversationId) -> Arc<str> {
        if let Some(name) = self.names.get(id) {
            return name;
        }
        let reader = user.clone();
        let read = self.read(user, |store| async move { store.conversation(&reader, id).await });
        let name: Arc<str> = match read.await {
            Ok(Some(conversation)) => match conversation.form {
                ConversationForm::Room(name) => name.as_str().into(),
                ConversationForm::Direct(other) => {
                    format!("@{}+@{}", user.min(&other), user.max(&other)).into()
                }
            },
            // The user has left, or the row is damaged: only the conversation's id is logged.
            Ok(None) | Err(_) => return "?".into(),
        };
        self.names.put(id, name.clone());
        name
    }
}

fn later(seconds: u64) -> RequestRefusal {
    RequestRefusal::for_now(RefusalReason::Storage, u32::try_from(seconds).unwrap_or(u32::MAX))
}
