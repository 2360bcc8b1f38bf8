//! The conformance suite: tests of the [`Store`] contract that every store must pass.
//!
//! [`run_all`] runs each test on a new [`Ground`]. It returns the first failure instead of
//! panicking, so that the suite is ordinary library code. A store's own test is one call and one
//! assertion.

#![allow(non_snake_case, reason = "tests are named feature__property")]

mod administration;
mod bounds;
mod classic;
mod files;
mod people;
mod record;
mod rooms;
mod search;

use std::collections::HashSet;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use thiserror::Error;
use twinlock_core::chain::{self, EntryKind, Position};
use twinlock_core::id::{ConversationId, DeviceId, InviteId, MessageId, Name, Sender, ServerKey};

use crate::{
    Appended, Bounds, Clock, InviteTerms, NewDevice, NewEntry, PreparedInvite, ReadLimit, Receipt,
    Registered, Registration, Store, StoreError, StoredContent, StoredEntry, UserRole,
};

/// A location of one record that can be opened repeatedly.
pub trait Ground: Send + Sync {
    /// Opens the record, and creates it on the first call. The suite closes or drops the store
    /// before it opens the record again.
    ///
    /// # Errors
    /// A description of the failure.
    fn open(&self, clock: Clock, bounds: Bounds) -> Result<Arc<dyn Store>, String>;

    /// The server key that the record is opened with.
    fn server_key(&self) -> ServerKey;
}

/// A conformance test that failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{law}: {why}")]
pub struct ConformanceFailure {
    /// Name of the test.
    pub law: &'static str,
    /// The result found instead.
    pub why: String,
}

/// The outcome of a test.
type Lawful = Result<(), Violation>;

/// The result found instead, and the line of the test that found it.
#[derive(Debug)]
struct Violation(String);

impl Violation {
    /// Prefixes `why` with the line that found it.
    #[track_caller]
    fn new(why: impl fmt::Display) -> Self {
        Self(format!("{}: {why}", Location::caller()))
    }
}

impl From<StoreError> for Violation {
    #[track_caller]
    fn from(error: StoreError) -> Self {
        Self::new(error)
    }
}

impl From<tokio::task::JoinError> for Violation {
    #[track_caller]
    fn from(error: tokio::task::JoinError) -> Self {
        Self::new(error)
    }
}

impl From<String> for Violation {
    #[track_caller]
    fn from(why: String) -> Self {
        Self::new(why)
    }
}

macro_rules! ensure {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err($crate::conformance::Violation::new(format!($($why)+)));
        }
    };
}

macro_rules! equal {
    ($got:expr, $expected:expr $(,)?) => {
        $crate::conformance::same(&$got, &$expected, stringify!($got))?
    };
}

use {ensure, equal};

#[track_caller]
fn same<T: PartialEq<U> + fmt::Debug, U: fmt::Debug>(got: &T, expected: &U, what: &str) -> Lawful {
    ensure!(got == expected, "{what} is {got:?}, expected {expected:?}");
    Ok(())
}

/// Runs every test on a separate ground and returns their number. Needs a Tokio runtime.
///
/// # Errors
/// The first test that fails.
pub async fn run_all<G: Ground + 'static>(
    new: impl Fn() -> G,
) -> Result<usize, ConformanceFailure> {
    let mut held = 0;
    macro_rules! hold {
        ($($module:ident: $($law:ident)+;)+) => {$($({
            let bench = Bench::new(Box::new(new()));
            $module::$law(&bench)
                .await
                .map_err(|why| ConformanceFailure { law: stringify!($law), why: why.0 })?;
            held += 1;
        })+)+};
    }
    hold! {
        record:
            entry__reads_back_as_sent
            append__numbers_have_no_gaps_and_answers_keep_order
            append__repeated_message_id_is_recorded_once
            append__non_members_are_refused
            append__time_never_decreases_in_a_conversation
            read__pages_respect_entry_and_byte_limits
            watch__commit_is_published_before_its_ack_and_in_order
            append__concurrent_calls_lose_and_duplicate_nothing
            append__is_recorded_after_its_caller_is_dropped
            record__entries_survive_close_and_reopen
            erased_entry__keeps_its_commitment
            newest_entries__are_one_per_conversation;
        rooms:
            lobby__every_user_is_a_permanent_member
            room__name_is_unique_under_concurrency
            room__can_be_joined_and_left
            room__topic_is_set_only_by_members
            direct_conversation__is_unique_for_two_people
            conversation__list_pages_continue_without_gaps
            read_marker__only_advances
            conversation__head_is_its_newest_entry;
        people:
            invite__registers_exactly_one_user
            invite__is_limited_to_its_name_role_and_expiry
            invite__one_of_concurrent_uses_succeeds
            registration__concurrent_same_name_succeeds_once
            credential__reads_back_as_registered
            password__is_set_and_replaced
            device__is_usable_and_listed_until_revoked
            people__list_is_sorted_by_name
            source__is_known_for_30_days_to_its_user_only
            source__list_keeps_the_newest_of_a_user
            source__device_login_replaces_no_other_source
            store__closed_refuses_requests_and_keeps_acked_entries;
        search:
            search__all_words_match_newest_first
            search__continues_below_a_number
            search__stays_in_its_conversation
            search__just_recorded_entries_are_found
            search__erased_entries_are_not_found
            index__catches_up_and_skips_erased_entries
            search__text_is_never_query_syntax
            search__slices_find_the_same_as_one_search
            search__stops_at_its_byte_limit;
        bounds:
            bounds__rooms_of_a_user_are_limited_under_concurrency
            bounds__memberships_of_a_user_are_limited
            bounds__open_invites_of_a_user_are_limited
            bounds__devices_of_a_user_are_limited_under_concurrency
            bounds__classic_keys_of_a_user_are_limited;
        files:
            file__is_found_by_members_once_its_entry_is_recorded
            file__usage_is_the_sum_of_files_sent_by_a_user
            file__content_is_referenced_until_last_entry_is_erased
            file__hashes_are_listed_once_in_order
            file__malformed_body_is_an_entry_without_a_file
            receipt__is_found_by_its_message_id
            file__is_found_by_words_of_its_name;
        classic:
            classic_key__is_found_until_revoked
            classic_key__origin_bridge_has_one_key_per_form
            classic_key__requires_membership_in_its_conversation
            classic_key__list_is_sorted_by_name
            classic_key__entry_sender_names_user_and_key
            classic_key__revoked_or_for_other_conversation_is_refused;
        administration:
            act__role_changes_with_an_entry_in_the_audit
            act__one_owner_stays_under_concurrency
            invite__is_listed_and_revoked_by_those_who_could_make_it
            act__demotion_revokes_invites_that_it_no_longer_allows
            act__suspension_holds_until_restored
            act__removal_is_final_and_keeps_name_and_entries
            act__device_of_another_person_is_revoked
            act__nothing_is_recorded_after_the_answer_to_a_removal
            audit__is_read_by_owners_and_written_by_the_server;
    }
    Ok(held)
}

/// A ground, with a clock that changes only when it is set.
struct Bench {
    ground: Box<dyn Ground>,
    now: Arc<AtomicU64>,
}

/// Initial time of the clock, ms since 1970 UTC.
const START: u64 = 1_700_000_000_000;
/// Length of an OPAQUE record, bytes; the store accepts any.
const RECORD: usize = 192;
/// No limit, for short conversations.
const ALL: ReadLimit = ReadLimit { entries: 1000, bytes: 1 << 30 };

impl Bench {
    fn new(ground: Box<dyn Ground>) -> Self {
        Self { ground, now: Arc::new(AtomicU64::new(START)) }
    }

    fn open(&self) -> Result<Arc<dyn Store>, Violation> {
        self.open_within(Bounds::default())
    }

    fn open_within(&self, bounds: Bounds) -> Result<Arc<dyn Store>, Violation> {
        let now = self.now.clone();
        let clock: Clock = Arc::new(move || now.load(Ordering::Relaxed));
        Ok(self.ground.open(clock, bounds)?)
    }

    fn set_clock(&self, now_ms: u64) {
        self.now.store(now_ms, Ordering::Relaxed);
    }

    /// Opens a store and registers these users.
    async fn with(&self, users: &[&str]) -> Result<Arc<dyn Store>, Violation> {
        let store = self.open()?;
        for user in users {
            join(&*store, user).await?;
        }
        Ok(store)
    }

    /// Reads a whole conversation in small pages and verifies every link from `link_0` to the head.
    async fn verified(
        &self,
        store: &dyn Store,
        conversation: ConversationId,
    ) -> Result<Vec<StoredEntry>, Violation> {
        let link_0 = chain::link_0(&self.ground.server_key(), conversation);
        let mut position = Position::new(conversation, 0, link_0);
        let mut entries: Vec<StoredEntry> = Vec::new();
        loop {
            let limit = ReadLimit { entries: 100, bytes: 64 * 1024 };
            let page = store.read(conversation, position.n(), limit).await?;
            equal!(page.link_after, *position.link());
            if page.entries.is_empty() {
                equal!(page.head, position.n());
                return Ok(entries);
            }
            for entry in page.entries {
                entry.advance(&mut position, conversation).map_err(Violation::new)?;
                entries.push(entry);
            }
        }
    }
}

fn name(name: &str) -> Result<Name, Violation> {
    Name::new(name).map_err(|error| Violation::new(format!("{name}: {error}")))
}

/// Returns a number that no other call returns.
fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn message_id() -> MessageId {
    let mut id = [0; 16];
    let (head, _) = id.split_at_mut(8);
    head.copy_from_slice(&unique().to_be_bytes());
    MessageId(id)
}

fn device(label: &str) -> NewDevice {
    let id = DeviceId(message_id().0);
    NewDevice { id, label: label.to_owned(), record: vec![id.0[7]; RECORD] }
}

async fn invite(store: &dyn Store, terms: InviteTerms) -> Result<InviteId, Violation> {
    let id = InviteId(unique().to_be_bytes());
    let record = vec![id.0[7]; RECORD];
    let invite = PreparedInvite { id, record, terms, made_by: None, created_ms: START };
    equal!(store.add_invite(invite).await?, true);
    Ok(id)
}

fn terms(role: UserRole) -> InviteTerms {
    InviteTerms { role, user: None, expires_ms: START + 1000 }
}

fn registration(invite: InviteId, user: &Name) -> Registration {
    Registration { invite, user: user.clone(), password: None, device: Some(device("first")) }
}

/// Registers a member with a new invite.
async fn join(store: &dyn Store, user: &str) -> Result<Name, Violation> {
    join_as(store, user, UserRole::Member).await
}

/// Registers a user of this role with a new invite.
async fn join_as(store: &dyn Store, user: &str, role: UserRole) -> Result<Name, Violation> {
    let user = name(user)?;
    let invite = invite(store, terms(role)).await?;
    let registered = store.register(registration(invite, &user), START).await?;
    ensure!(matches!(registered, Registered::Done(_)), "{user} was not registered: {registered:?}");
    Ok(user)
}

fn entry(conversation: ConversationId, user: &Name, body: &str) -> NewEntry {
    NewEntry {
        conversation,
        sender: Sender::new(user, None),
        message_id: message_id(),
        kind: EntryKind::TEXT,
        body: Bytes::from(body.to_owned()),
    }
}

/// Appends one entry and returns its receipt.
async fn say(store: &dyn Store, new: NewEntry) -> Result<Receipt, Violation> {
    let mut receipts = receipts(store.append(vec![new]).await?)?;
    receipts.pop().ok_or_else(|| Violation::new("an append was not answered"))
}

fn receipts(answers: Vec<Appended>) -> Result<Vec<Receipt>, Violation> {
    let receipt = |appended| match appended {
        Appended::Recorded(receipt) => Ok(receipt),
        refused => Err(Violation::new(format!("a member was not let in: {refused:?}"))),
    };
    answers.into_iter().map(receipt).collect()
}

fn body(entry: &StoredEntry) -> String {
    match &entry.content {
        StoredContent::Body(_, body) => String::from_utf8_lossy(body).into_owned(),
        StoredContent::Erased(_) => String::new(),
    }
}

fn distinct<T: Eq + std::hash::Hash>(items: impl IntoIterator<Item = T>) -> usize {
    items.into_iter().collect::<HashSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conformance__failure_names_the_line_that_found_it() {
        fn compared() -> Lawful {
            equal!(1, 2);
            Ok(())
        }
        fn ensured() -> Lawful {
            ensure!(1 > 2, "no");
            Ok(())
        }
        fn converted() -> Lawful {
            Err(StoreError::Closed)?;
            Ok(())
        }
        // The line of each function's check, counted from this one.
        let here = line!();
        for (outcome, above) in [(compared(), 12), (ensured(), 8), (converted(), 4)] {
            let why = outcome.unwrap_err().0;
            assert!(why.starts_with(&format!("{}:{}:", file!(), here - above)), "{why}");
        }
    }
}
