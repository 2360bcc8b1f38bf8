//! Tests of outbox and receipts, with a real database file.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use twinlock_client::home::Home;
use twinlock_client::outbox::{Ack, MessageOutcome, Outbox, message_id};
use twinlock_client::receipts::{Handled, Known, Seen};
use twinlock_client::state::{State, StateError};
use twinlock_core::Entropy;
use twinlock_core::id::{Link, MessageId, Name, Salt, ServerKey};
use twinlock_core::limits::MAX_TEXT;
use twinlock_core::proto::RefusalReason;

const NOW: u64 = 1_750_000_000_000;

/// A counter, so that all ids differ.
struct Counter(u64);

impl Entropy for Counter {
    fn fill(&mut self, out: &mut [u8]) {
        self.0 += 1;
        out.fill(0);
        let count = self.0.to_be_bytes();
        let at = out.len() - count.len();
        out[at..].copy_from_slice(&count);
    }
}

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

struct Fixture {
    _dir: tempfile::TempDir,
    home: Home,
    entropy: Counter,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        Self { _dir: dir, home, entropy: Counter(0) }
    }

    fn open(&self) -> State {
        self.open_for(1, "ada")
    }

    fn open_for(&self, server: u8, user: &str) -> State {
        State::open_for(&self.home, &name("p"), &ServerKey([server; 32]), &name(user)).unwrap()
    }

    fn enqueue(&mut self, outbox: &Outbox, target: &str, body: &str) -> MessageId {
        outbox.enqueue(target, body.as_bytes(), NOW, &mut self.entropy).unwrap()
    }
}

fn ack(n: u64) -> Ack {
    Ack {
        conversation: 1,
        n,
        time_ms: NOW + n,
        salt: Some(Salt([n as u8; 16])),
        link: Link([n as u8; 32]),
    }
}

fn known(n: u64) -> Known {
    Known { conversation: 1, n, link: Link([n as u8; 32]), time_ms: NOW + n }
}

/// A run from the beginning of the conversation.
fn seen(n: u64) -> Seen {
    Seen { last: known(n), after: 0 }
}

fn forged(n: u64) -> Known {
    Known { link: Link([0xff; 32]), ..known(n) }
}

fn conflict(n: u64) -> StateError {
    StateError::Conflict { conversation: 1, n, known: known(n).link, got: forged(n).link }
}

fn bodies(messages: &[twinlock_client::outbox::Pending]) -> Vec<String> {
    messages.iter().map(|m| String::from_utf8(m.body.to_vec()).unwrap()).collect()
}

#[test]
fn outbox__order_survives_reopening() {
    let mut f = Fixture::new();
    let outbox = f.open().outbox();
    // Later times first: the order is that of the calls, not of the clock.
    let one = outbox.enqueue("ops", b"1", NOW + 5, &mut f.entropy).unwrap();
    let two = outbox.enqueue("@bob", b"2", NOW, &mut f.entropy).unwrap();
    let more = outbox.enqueue_many([("ops", &b"3"[..]), ("ops", b"4")], NOW, &mut f.entropy);
    drop(outbox);
    let outbox = f.open().outbox();
    let pending = outbox.pending(10).unwrap();
    assert_eq!(bodies(&pending), ["1", "2", "3", "4"]);
    let ids: Vec<_> = pending.iter().map(|m| m.message_id).collect();
    assert_eq!(ids, [vec![one, two], more.unwrap()].concat());
    assert_eq!((pending[1].target.as_str(), pending[0].enqueued_ms), ("@bob", NOW + 5));
    assert_eq!(bodies(&outbox.pending(2).unwrap()), ["1", "2"]);
    assert_eq!(outbox.pending_count(), Ok(4));
}

#[test]
fn outbox__batch_is_all_or_nothing() {
    let mut f = Fixture::new();
    let outbox = f.open().outbox();
    let large = vec![b'x'; MAX_TEXT + 1];
    let refused = outbox.enqueue_many([("ops", &b"1"[..]), ("ops", &large)], NOW, &mut f.entropy);
    assert_eq!(refused, Err(StateError::TooLarge { got: 32769, max: 32768 }));
    assert_eq!(outbox.pending_count(), Ok(0));
    outbox.enqueue("ops", &large[1..], NOW, &mut f.entropy).unwrap();
    assert_eq!(outbox.pending(1).unwrap()[0].body.len(), MAX_TEXT);
}

#[test]
fn outbox__malformed_target_is_refused() {
    let mut f = Fixture::new();
    let outbox = f.open().outbox();
    for bad in ["#ops", "@", "", "Ops", "@@bob", "a b"] {
        let refused = outbox.enqueue(bad, b"", NOW, &mut f.entropy);
        assert_eq!(refused, Err(StateError::BadTarget { got: bad.into() }));
    }
}

#[test]
fn message_id__starts_with_time_and_is_unique() {
    let mut entropy = Counter(0);
    let early = message_id(NOW, &mut entropy);
    let late = message_id(NOW + 1, &mut entropy);
    assert_eq!(early.0[..6], NOW.to_be_bytes()[2..]);
    assert!(early < late);
    let ids: HashSet<_> = (0..1000).map(|_| message_id(NOW, &mut entropy)).collect();
    assert_eq!(ids.len(), 1000);
}

#[test]
fn outbox__recorded_message_leaves_receipt_and_no_text() {
    let mut f = Fixture::new();
    let state = f.open();
    let outbox = state.outbox();
    let id = f.enqueue(&outbox, "ops", "a text to be found");
    assert_eq!(outbox.outcome(&id), Ok(Some(MessageOutcome::Pending)));
    outbox.mark_recorded(&id, &ack(7)).unwrap();
    outbox.mark_recorded(&id, &Ack { salt: None, ..ack(7) }).expect("the same ack, erased since");
    assert_eq!(
        outbox.outcomes(&[id, MessageId([9; 16])]),
        Ok(vec![Some(MessageOutcome::Recorded(ack(7))), None])
    );
    assert_eq!(outbox.pending(1), Ok(Vec::new()));
    assert_eq!(state.receipts().all_for(1), Ok(vec![known(7)]));
    drop((outbox, state));
    let file = fs::read(f.home.state(&name("p")).join("state.db")).unwrap();
    assert!(!file.windows(18).any(|bytes| bytes == b"a text to be found"));
}

#[test]
fn outbox__conflicting_ack_is_refused_and_changes_nothing() {
    let mut f = Fixture::new();
    let state = f.open();
    let outbox = state.outbox();
    let (id, next) = (f.enqueue(&outbox, "ops", "1"), f.enqueue(&outbox, "ops", "2"));
    outbox.mark_recorded(&id, &ack(7)).unwrap();
    for other in [ack(8), Ack { time_ms: 1, ..ack(7) }] {
        let moved = outbox.mark_recorded_many(&[(next, ack(9)), (id, other)]);
        assert_eq!(moved, Err(StateError::AckChanged { message_id: id }));
    }
    let relinked = outbox.mark_recorded(&next, &Ack { link: forged(7).link, ..ack(7) });
    assert_eq!(relinked, Err(conflict(7)));
    assert_eq!(outbox.outcome(&next), Ok(Some(MessageOutcome::Pending)));
    assert_eq!(state.receipts().all_for(1), Ok(vec![known(7)]));
}

#[test]
fn outbox__refused_message_is_kept_and_ack_overrides_refusal() {
    let mut f = Fixture::new();
    let outbox = f.open().outbox();
    let (one, two) = (f.enqueue(&outbox, "ops", "1"), f.enqueue(&outbox, "ops", "2"));
    outbox.mark_refused(&one, RefusalReason::NotFound).unwrap();
    outbox.mark_refused(&two, RefusalReason::TooLarge).unwrap();
    assert_eq!(outbox.pending_count(), Ok(0));
    outbox.mark_recorded(&two, &ack(1)).unwrap();
    outbox.mark_refused(&two, RefusalReason::TooLarge).unwrap();
    assert_eq!(outbox.outcome(&two), Ok(Some(MessageOutcome::Recorded(ack(1)))));
    let refused = outbox.refused(10).unwrap();
    assert_eq!(refused.len(), 1);
    assert_eq!(
        (&refused[0].message.body[..], refused[0].why),
        (&b"1"[..], RefusalReason::NotFound)
    );
    assert_eq!(outbox.discard(&one), Ok(true));
    assert_eq!(outbox.discard(&one), Ok(false));
    assert_eq!(outbox.discard(&two), Ok(false), "recorded");
    assert_eq!(outbox.outcome(&one), Ok(None));
}

#[test]
fn outbox__forget_removes_only_old_recorded_messages() {
    let mut f = Fixture::new();
    let state = f.open();
    let outbox = state.outbox();
    let ids: Vec<_> = (0..4).map(|_| f.enqueue(&outbox, "ops", "x")).collect();
    outbox.mark_recorded_many(&[(ids[0], ack(1)), (ids[1], ack(2))]).unwrap();
    outbox.mark_refused(&ids[2], RefusalReason::NotFound).unwrap();
    assert_eq!(outbox.forget(NOW + 2), Ok(1));
    assert_eq!(outbox.outcome(&ids[0]), Ok(None));
    for kept in &ids[1..] {
        assert!(outbox.outcome(kept).unwrap().is_some());
    }
    assert_eq!(outbox.forget(u64::MAX), Ok(1));
    assert_eq!(outbox.pending_count(), Ok(1));
    assert_eq!(state.receipts().all_for(1), Ok(vec![known(1), known(2)]));
    outbox.mark_recorded(&ids[0], &ack(1)).expect("an ack of a forgotten message");
}

#[test]
fn claim__target_is_exclusive_until_marked_or_released() {
    let mut f = Fixture::new();
    let (one, two) = (f.open().outbox(), f.open().outbox());
    let first = f.enqueue(&one, "ops", "1");
    f.enqueue(&one, "ops", "2");
    f.enqueue(&two, "@bob", "3");
    assert_eq!(bodies(&one.claim(1).unwrap()), ["1"]);
    assert_eq!(bodies(&two.claim(10).unwrap()), ["3"], "2 would overtake 1");
    assert_eq!(bodies(&one.claim(10).unwrap()), ["2"]);
    assert_eq!(one.claim(10), Ok(Vec::new()));
    assert_eq!(one.pending_count(), Ok(3), "claimed is still pending");
    one.release().unwrap();
    assert_eq!(bodies(&two.claim(10).unwrap()), ["1", "2"]);
    two.mark_recorded(&first, &ack(1)).unwrap();
    two.release().unwrap();
    assert_eq!(bodies(&one.claim(10).unwrap()), ["2", "3"]);
}

#[test]
fn claim__ends_when_its_outbox_is_dropped() {
    let mut f = Fixture::new();
    let (one, two) = (f.open().outbox(), f.open().outbox());
    f.enqueue(&one, "ops", "1");
    assert_eq!(one.claim(10).unwrap().len(), 1);
    assert_eq!(two.claim(10).unwrap().len(), 0);
    drop(one);
    assert_eq!(two.claim(10).unwrap().len(), 1);
}

#[test]
fn outbox__messages_of_another_account_are_kept_unsent() {
    let mut f = Fixture::new();
    let ada = f.open_for(1, "ada");
    let id = f.enqueue(&ada.outbox(), "ops", "for server 1");
    for other in [f.open_for(2, "ada"), f.open_for(1, "bob")] {
        let outbox = other.outbox();
        assert_eq!(outbox.pending(10), Ok(Vec::new()));
        assert_eq!(outbox.claim(10), Ok(Vec::new()));
        assert_eq!(outbox.outcome(&id), Ok(None));
        assert_eq!(outbox.discard(&id), Ok(false));
        assert_eq!((outbox.pending_count(), outbox.stranded_count()), (Ok(0), Ok(1)));
    }
    assert_eq!(ada.outbox().pending_count(), Ok(1));
}

#[test]
fn state_db__change_number_reflects_other_handles_writes() {
    let mut f = Fixture::new();
    let (one, two) = (f.open(), f.open());
    let before = one.changes().unwrap();
    assert_eq!(one.changes(), Ok(before));
    f.enqueue(&two.outbox(), "ops", "x");
    assert_ne!(one.changes().unwrap(), before);
}

#[test]
fn receipts__newest_known_link_only_advances() {
    let f = Fixture::new();
    let receipts = f.open().receipts();
    assert_eq!(receipts.known(1), Ok(None));
    for n in [3, 5, 4, 5, 1] {
        receipts.remember(&seen(n)).unwrap();
    }
    assert_eq!(receipts.known(1), Ok(Some(known(5))));
    assert_eq!(receipts.all_for(1), Ok(vec![known(5)]), "one row a conversation");
    assert_eq!(receipts.known(2), Ok(None));
}

#[test]
fn receipts__known_link_stays_until_a_run_passes_it() {
    let f = Fixture::new();
    let receipts = f.open().receipts();
    receipts.remember(&seen(5)).unwrap();
    // Starts after a gap, on a link that the server supplied.
    receipts.remember(&Seen { last: known(30), after: 20 }).unwrap();
    assert_eq!(receipts.all_for(1), Ok(vec![known(5), known(30)]));
    receipts.remember(&Seen { last: known(40), after: 30 }).unwrap();
    assert_eq!(receipts.all_for(1), Ok(vec![known(5), known(40)]));
    receipts.remember(&Seen { last: known(25), after: 5 }).unwrap();
    assert_eq!(receipts.all_for(1), Ok(vec![known(5), known(40)]), "does not reach the newest");
    receipts.remember(&Seen { last: known(40), after: 5 }).unwrap();
    assert_eq!(receipts.all_for(1), Ok(vec![known(40)]));
}

#[test]
fn receipts__own_receipts_are_kept_when_reading_passes_them() {
    let mut f = Fixture::new();
    let state = f.open();
    let (outbox, receipts) = (state.outbox(), state.receipts());
    receipts.remember(&seen(3)).unwrap();
    for n in [5, 4, 9] {
        let id = f.enqueue(&outbox, "ops", "x");
        outbox.mark_recorded(&id, &ack(n)).unwrap();
    }
    assert_eq!(receipts.known(1), Ok(Some(known(9))));
    assert_eq!(receipts.within(1, 3..=5), Ok(vec![known(3), known(4), known(5)]));
    receipts.remember(&seen(5)).unwrap();
    assert_eq!(receipts.all_for(1), Ok(vec![known(4), known(5), known(9)]));
    receipts.remember(&seen(12)).unwrap();
    receipts.remember(&seen(13)).unwrap();
    assert_eq!(receipts.all_for(1), Ok(vec![known(4), known(5), known(9), known(13)]));
    assert_eq!(receipts.conversations(), Ok(vec![1]));
}

#[test]
fn receipts__conflicting_link_is_refused_with_its_batch() {
    let mut f = Fixture::new();
    let state = f.open();
    let receipts = state.receipts();
    let id = f.enqueue(&state.outbox(), "ops", "x");
    state.outbox().mark_recorded(&id, &ack(4)).unwrap();
    receipts.remember(&seen(8)).unwrap();
    let handled = Handled { conversation: 1, purpose: "listen", n: 9 };
    for n in [4, 8] {
        assert_eq!(
            receipts.keep(&[seen(9), Seen { last: forged(n), after: 0 }], &[handled]),
            Err(conflict(n))
        );
    }
    assert_eq!(receipts.all_for(1), Ok(vec![known(4), known(8)]));
    assert_eq!(receipts.position(1, "listen"), Ok(None));
    // At another server, the same number is another conversation.
    f.open_for(2, "ada").receipts().remember(&Seen { last: forged(4), after: 0 }).unwrap();
}

#[test]
fn position__only_advances_on_request_and_per_purpose() {
    let f = Fixture::new();
    let receipts = f.open().receipts();
    let at = |purpose, n| Handled { conversation: 1, purpose, n };
    receipts.remember(&seen(9)).unwrap();
    assert_eq!(receipts.position(1, "listen"), Ok(None));
    receipts.advance(&at("listen", 0)).unwrap();
    assert_eq!(receipts.position(1, "listen"), Ok(Some(0)));
    receipts.keep(&[seen(10)], &[at("listen", 7), at("listen", 6), at("other", 2)]).unwrap();
    assert_eq!(receipts.position(1, "listen"), Ok(Some(7)));
    assert_eq!(receipts.position(1, "other"), Ok(Some(2)));
    assert_eq!(receipts.position(2, "listen"), Ok(None));
    assert_eq!(f.open_for(1, "bob").receipts().position(1, "listen"), Ok(None));
}

#[test]
fn state_db__out_of_range_numbers_are_refused() {
    let mut f = Fixture::new();
    let state = f.open();
    let (outbox, receipts) = (state.outbox(), state.receipts());
    let id = f.enqueue(&outbox, "ops", "x");
    let max = Err(StateError::OutOfRange { got: u64::MAX });
    assert_eq!(outbox.mark_recorded(&id, &ack(0)), Err(StateError::OutOfRange { got: 0 }));
    assert_eq!(outbox.mark_recorded(&id, &Ack { n: u64::MAX, ..ack(1) }), max);
    assert_eq!(outbox.mark_recorded(&id, &Ack { time_ms: u64::MAX, ..ack(1) }), max);
    assert_eq!(outbox.mark_recorded(&id, &Ack { conversation: u64::MAX, ..ack(1) }), max);
    assert_eq!(receipts.remember(&Seen { last: Known { n: u64::MAX, ..known(1) }, after: 0 }), max);
    assert_eq!(outbox.outcome(&id), Ok(Some(MessageOutcome::Pending)));
    assert_eq!(receipts.all_for(1), Ok(Vec::new()));
}

#[test]
fn state_db__files_are_private_to_the_owner() {
    let mut f = Fixture::new();
    let state = f.open();
    f.enqueue(&state.outbox(), "ops", "x");
    state.outbox().claim(1).unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let dir = f.home.state(&name("p"));
    assert_eq!(mode(dir.clone()), 0o700);
    let files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    for file in &files {
        assert_eq!(mode(file.clone()), 0o600, "{}", file.display());
    }
    // The database, its WAL and shared-memory file, the opening lock, and the claimer's lock.
    assert_eq!(files.len(), 5, "{files:?}");
}

#[test]
fn state_db__newer_schema_is_refused_and_unchanged() {
    let f = Fixture::new();
    drop(f.open());
    let path = f.home.state(&name("p")).join("state.db");
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.pragma_update(None, "user_version", 99).unwrap();
    drop(conn);
    let before = fs::read(&path).unwrap();
    let refused = State::open_for(&f.home, &name("p"), &ServerKey([1; 32]), &name("ada"));
    let newer = StateError::NewerSchema { path: path.clone(), found: 99, known: 2 };
    assert_eq!(refused.expect_err("opened"), newer);
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn state_db__file_that_is_no_database_is_refused_and_kept() {
    let f = Fixture::new();
    let path = f.home.make_state(&name("p")).unwrap().join("state.db");
    fs::write(&path, "this is somebody's diary, not a database".repeat(100)).unwrap();
    let before = fs::read(&path).unwrap();
    let refused = State::open_for(&f.home, &name("p"), &ServerKey([1; 32]), &name("ada"));
    assert!(matches!(refused, Err(StateError::Database(_))), "{refused:?}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// Each command reads the whole WAL when it opens the state.
#[test]
fn state_db__wal_stays_small_over_many_short_commands() {
    let mut fixture = Fixture::new();
    let wal = fixture.home.state(&name("p")).join("state.db-wal");
    for n in 1..=60 {
        let outbox = fixture.open().outbox();
        let id = fixture.enqueue(&outbox, "ops", "one command");
        outbox.mark_recorded(&id, &ack(n)).unwrap();
        drop(outbox);
        let size = fs::metadata(&wal).unwrap().len();
        assert!(size < 768 << 10, "{size} bytes after {n} commands");
    }
    assert_eq!(fixture.open().outbox().pending_count().unwrap(), 0);
}
