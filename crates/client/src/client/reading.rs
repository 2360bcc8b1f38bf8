//! Reading and searching the record.

use twinlock_core::id::ConversationId;
use twinlock_core::proto::{self, RefusalReason, answer::Result as Answered, request::Op};

use super::{Client, unexpected};
use crate::blocking::blocking;
use crate::error::ClientError;
use crate::model::Entry;
use crate::record::{self, Page};

impl Client {
    /// Reads entries with numbers greater than `after`, at most `limit`; the server may return
    /// fewer. Verifies their links against each other and against those that this profile knows.
    ///
    /// # Errors
    /// [`ClientError`]; those with [`crate::error::Fault::Record`] are tamper evidence.
    pub async fn read(
        &self,
        conversation: ConversationId,
        after: u64,
        limit: u32,
    ) -> Result<Page, ClientError> {
        self.read_page(conversation, after, limit).await?.whole()
    }

    /// [`Self::read`] that returns the good entries together with the faults of the others.
    ///
    /// # Errors
    /// [`ClientError`] if nothing could be read.
    pub async fn read_page(
        &self,
        conversation: ConversationId,
        after: u64,
        limit: u32,
    ) -> Result<Page, ClientError> {
        self.read_as(proto::Read { conversation, after, limit, links: false }).await
    }

    /// [`Self::read`] that also compares each entry with the link that the server has stored for
    /// it. So a change is found at the changed entry.
    pub(crate) async fn read_stored_links(
        &self,
        conversation: ConversationId,
        after: u64,
        limit: u32,
    ) -> Result<Page, ClientError> {
        self.read_as(proto::Read { conversation, after, limit, links: true }).await?.whole()
    }

    async fn read_as(&self, read: proto::Read) -> Result<Page, ClientError> {
        let proto::Read { conversation, after, .. } = read;
        let receipts = self.state.receipts();
        let known = {
            let receipts = receipts.clone();
            blocking(move || record::known_head(&receipts, conversation)).await?
        };
        match self.request(Op::Read(read)).await {
            Ok(Answered::Page(page)) => {
                let check = move || record::check_page(&receipts, conversation, after, known, page);
                blocking(check).await
            }
            Ok(_) => Err(unexpected()),
            // The record ends before `after`: tamper evidence if that entry is known to be
            // recorded.
            Err(ClientError::Refused(no)) if no.why == RefusalReason::Ahead => {
                record::check_head(conversation, after.saturating_sub(1), known)?;
                Err(ClientError::Refused(no))
            }
            Err(error) => Err(error),
        }
    }

    /// Finds entries that contain all words of `text`, newest first, with numbers below `before`
    /// (0: all).
    ///
    /// The results have gaps, so their links cannot be verified. Entries that cannot be shown are
    /// among the faults.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::BadList`] if the numbers do not decrease.
    pub async fn search(
        &self,
        conversation: ConversationId,
        text: &str,
        before: u64,
        limit: u32,
    ) -> Result<(Vec<Entry>, Vec<ClientError>), ClientError> {
        let text = text.to_owned();
        let search = proto::Search { conversation, text, before, limit };
        let Answered::Page(page) = self.request(Op::Search(search)).await? else {
            return Err(unexpected());
        };
        let (mut entries, mut faults) = (Vec::new(), Vec::new());
        let mut below = if before == 0 { u64::MAX } else { before };
        for entry in &page.entries {
            if entry.n >= below {
                return Err(ClientError::BadList("search results"));
            }
            below = entry.n;
            match record::unchecked(conversation, entry) {
                Ok(entry) => entries.push(entry),
                Err(fault) => faults.push(fault),
            }
        }
        Ok((entries, faults))
    }
}
