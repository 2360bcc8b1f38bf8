//! The conformance suite: tests of the [`Store`] contract that every store must pass.
//!
//! [`run_all`] runs each test on a new [`Ground`]. It returns the first failure instead of
//! panicking, so that the suite is ordinary library code. A store's own test is one call and one
//! assertion.

mod bounds;
mod classic;
mod files;
mod people;
mod record;
mod rooms;
mod search;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use thiserror::Error;
use twinlock_core::chain::{self, Kind, Linked, Position};
use twinlock_core::id::{ConversationId, DeviceId, InviteId, MessageId, Name, Sender, ServerKey};

use crate::{
    Appended, Bounds, Clock, Content, Entry, InviteTerms, Limit, NewDevice, NewEntry, NewInvite,
    Receipt, Registered, Registration, Role, Store, StoreError,
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
pub struct Failure {
    /// Name of the test.
    pub law: &'static str,
    /// What was found instead.
    pub why: String,
}

/// The outcome of a test.
type Lawful = Result<(), Why>;

/// A description of what was found instead.
#[derive(Debug)]
struct Why(String);

impl From<StoreError> for Why {
    fn from(error: StoreError) -> Self {
        Self(error.to_string())
    }
}

impl From<tokio::task::JoinError> for Why {
    fn from(error: tokio::task::JoinError) -> Self {
        Self(error.to_string())
    }
}

impl From<String> for Why {
    fn from(why: String) -> Self {
        Self(why)
    }
}

macro_rules! ensure {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err($crate::conformance::Why(format!($($why)+)));
        }
    };
}

macro_rules! equal {
    ($got:expr, $expected:expr $(,)?) => {
        $crate::conformance::same(&$got, &$expected, stringify!($got))?
    };
}

use {ensure, equal};

fn same<T: PartialEq + fmt::Debug>(got: &T, expected: &T, what: &str) -> Lawful {
    ensure!(got == expected, "{what} is {got:?}, expected {expected:?}");
    Ok(())
}

/// Runs every test on a separate ground and returns their number. Needs a Tokio runtime.
///
/// # Errors
/// The first test that fails.
pub async fn run_all<G: Ground + 'static>(new: impl Fn() -> G) -> Result<usize, Failure> {
    let mut held = 0;
    macro_rules! hold {
        ($($module:ident: $($law:ident)+;)+) => {$($({
            let bench = Bench::new(Box::new(new()));
            $module::$law(&bench)
                .await
                .map_err(|why| Failure { law: stringify!($law), why: why.0 })?;
            held += 1;
        })+)+};
    }
    hold! {
        record:
            entries_read_back_as_they_were_sent
            numbers_have_no_gaps_and_answers_keep_their_order
            a_message_id_is_recorded_once_wherever_it_comes_again
            only_members_are_recorded
            times_never_go_back
            pages_end_where_they_are_told_to
            watchers_hear_of_a_commit_before_its_ack_and_in_order
            many_at_once_lose_and_double_nothing
            an_append_whose_caller_goes_is_still_recorded
            what_is_recorded_outlives_the_store
            an_erased_entry_leaves_its_commit
            newest_entries_are_one_a_conversation;
        rooms:
            everybody_is_in_the_lobby_and_stays
            a_room_has_one_name_and_a_name_one_room
            rooms_are_joined_and_left
            a_topic_is_its_members_to_set
            two_people_have_one_direct_conversation
            lists_go_on_where_they_ended
            read_markers_only_go_forward
            a_conversation_shows_its_newest_entry;
        people:
            an_invite_makes_one_user
            an_invite_is_for_what_it_says
            of_many_who_use_an_invite_at_once_one_wins
            of_many_who_want_a_name_at_once_one_wins
            a_credential_is_what_was_registered
            a_password_is_replaced
            devices_come_and_go
            people_are_listed_by_name
            source_is_known_for_thirty_days_to_its_user_alone
            source_list_keeps_the_newest_of_a_user
            source_of_device_logins_replaces_no_other
            a_closed_store_says_so;
        search:
            all_words_are_found_newest_first
            a_search_goes_on_below_a_number
            a_search_stays_in_its_conversation
            what_was_just_recorded_is_found
            what_is_erased_is_not_found
            the_index_catches_up
            no_text_is_more_than_words
            a_search_in_slices_finds_what_one_finds
            a_search_ends_with_enough_bytes;
        bounds:
            rooms_of_a_user_are_bounded_under_a_race
            memberships_of_a_user_are_bounded
            invites_that_are_open_are_bounded
            devices_of_a_user_are_bounded_under_a_race
            classic_keys_of_a_user_are_bounded;
        files:
            a_file_is_known_from_its_entry_on_to_its_members
            usage_is_the_sum_of_what_a_user_sent
            content_is_referenced_until_its_last_entry_is_erased
            file_hashes_are_listed_once_in_order
            a_body_that_is_no_file_is_an_entry_and_no_more
            a_receipt_is_found_by_its_message_id
            a_file_is_found_by_the_words_of_its_name;
        classic:
            a_classic_key_is_there_until_it_is_revoked
            of_each_form_of_the_bridge_there_is_one_key
            a_classic_key_is_for_a_conversation_of_its_users
            classic_keys_are_listed_by_name
            what_came_under_a_classic_key_is_its_users
            nothing_is_recorded_under_a_key_that_is_revoked_or_for_elsewhere;
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
const ALL: Limit = Limit { entries: 1000, bytes: 1 << 30 };

impl Bench {
    fn new(ground: Box<dyn Ground>) -> Self {
        Self { ground, now: Arc::new(AtomicU64::new(START)) }
    }

    fn open(&self) -> Result<Arc<dyn Store>, Why> {
        self.open_within(Bounds::default())
    }

    fn open_within(&self, bounds: Bounds) -> Result<Arc<dyn Store>, Why> {
        let now = self.now.clone();
        let clock: Clock = Arc::new(move || now.load(Ordering::Relaxed));
        Ok(self.ground.open(clock, bounds)?)
    }

    fn set_clock(&self, now_ms: u64) {
        self.now.store(now_ms, Ordering::Relaxed);
    }

    /// Opens a store and registers these users.
    async fn with(&self, users: &[&str]) -> Result<Arc<dyn Store>, Why> {
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
    ) -> Result<Vec<Entry>, Why> {
        let link_0 = chain::link_0(&self.ground.server_key(), conversation);
        let mut position = Position::new(conversation, 0, link_0);
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let limit = Limit { entries: 100, bytes: 64 * 1024 };
            let page = store.read(conversation, position.n(), limit).await?;
            equal!(page.link_after, *position.link());
            if page.entries.is_empty() {
                equal!(page.head, position.n());
                return Ok(entries);
            }
            for entry in page.entries {
                advance(&mut position, conversation, &entry)?;
                entries.push(entry);
            }
        }
    }
}

/// Verifies one entry as a client does.
fn advance(position: &mut Position, conversation: ConversationId, entry: &Entry) -> Lawful {
    let commit = match &entry.content {
        Content::Body(salt, body) => chain::commit(salt, body),
        Content::Erased(commit) => *commit,
    };
    let linked = Linked {
        conversation,
        n: entry.n,
        time_ms: entry.time_ms,
        message_id: &entry.message_id,
        kind: entry.kind,
        sender: &entry.sender,
        commit: &commit,
    };
    position.advance(&linked, None).map_err(|broken| Why(broken.to_string()))?;
    Ok(())
}

fn name(name: &str) -> Result<Name, Why> {
    Name::new(name).map_err(|error| Why(format!("{name}: {error}")))
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

async fn invite(store: &dyn Store, terms: InviteTerms) -> Result<InviteId, Why> {
    let id = InviteId(unique().to_be_bytes());
    let record = vec![id.0[7]; RECORD];
    store.add_invite(NewInvite { id, record, terms, made_by: None, created_ms: START }).await?;
    Ok(id)
}

fn terms(role: Role) -> InviteTerms {
    InviteTerms { role, user: None, expires_ms: START + 1000 }
}

fn registration(invite: InviteId, user: &Name) -> Registration {
    Registration { invite, user: user.clone(), password: None, device: Some(device("first")) }
}

/// Registers a user with a new invite.
async fn join(store: &dyn Store, user: &str) -> Result<Name, Why> {
    let user = name(user)?;
    let invite = invite(store, terms(Role::Member)).await?;
    let registered = store.register(registration(invite, &user), START).await?;
    ensure!(matches!(registered, Registered::Done(_)), "{user} was not registered: {registered:?}");
    Ok(user)
}

fn entry(conversation: ConversationId, user: &Name, body: &str) -> NewEntry {
    NewEntry {
        conversation,
        sender: Sender::new(user, None),
        message_id: message_id(),
        kind: Kind::TEXT,
        body: Bytes::from(body.to_owned()),
    }
}

/// Appends one entry and returns its receipt.
async fn say(store: &dyn Store, new: NewEntry) -> Result<Receipt, Why> {
    let mut receipts = receipts(store.append(vec![new]).await?)?;
    receipts.pop().ok_or_else(|| Why("an append was not answered".into()))
}

fn receipts(answers: Vec<Appended>) -> Result<Vec<Receipt>, Why> {
    let receipt = |appended| match appended {
        Appended::Recorded(receipt) => Ok(receipt),
        Appended::NotAMember => Err(Why("a member was not let in".into())),
    };
    answers.into_iter().map(receipt).collect()
}

fn body(entry: &Entry) -> String {
    match &entry.content {
        Content::Body(_, body) => String::from_utf8_lossy(body).into_owned(),
        Content::Erased(_) => String::new(),
    }
}

fn distinct<T: Eq + std::hash::Hash>(items: impl IntoIterator<Item = T>) -> usize {
    items.into_iter().collect::<HashSet<_>>().len()
}
