//! Laws of the whole app over generated sequences of inputs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use twinlock_client::Event;
use twinlock_client::error::RefusalReason;
use twinlock_client::record::Page;
use twinlock_client::transfer::{TransferError, TransferEvent};
use twinlock_core::id::{ConversationId, Link};
use twinlock_core::limits::MAX_TEXT;

use crate::fixtures::{ALICE, BOB, USERS, ack, direct, entry, id, name, room};
use crate::{
    App, AppOptions, Change, ClientEffect, Effect, EffectOutcome, Intent, IntentError,
    MessageState, Roster, TransferDirection, TransferView, Visibility,
};

const OPTIONS: AppOptions = AppOptions { is_interactive: true, backlog: 20, timeline_entries: 8 };

/// A direct conversation and three rooms: 1 is open, 2 is the lobby, 3 is only counted.
fn roster() -> Roster {
    Roster {
        open: room(1, 0, 0),
        shown: vec![room(2, 0, 0), direct(4, BOB, 0)],
        rooms: vec![room(3, 0, 0)],
        people: Vec::new(),
    }
}

fn app(now: Instant) -> App {
    let mut app = App::new(name(ALICE), "room1".to_owned(), OPTIONS, now);
    app.handle_roster(roster());
    app
}

fn changes(app: &mut App) -> Vec<Change> {
    std::iter::from_fn(|| app.poll_change()).collect()
}

fn effects(app: &mut App) -> Vec<ClientEffect> {
    std::iter::from_fn(|| app.poll_effect())
        .map(|effect| match effect {
            Effect::Client(effect) => effect,
            Effect::File(effect) => panic!("{effect:?}"),
        })
        .collect()
}

#[derive(Debug, Clone)]
enum AppStep {
    /// Entries of a conversation by these users; the flag: again from an earlier number.
    Entries(ConversationId, Vec<usize>, bool),
    Open(ConversationId),
    Send(u8),
    Recorded(u8),
    Refused(u8),
    Wait(u64),
}

fn step() -> impl Strategy<Value = AppStep> {
    let users = prop::collection::vec(0..3_usize, 1..5);
    prop_oneof![
        4 => (1..5_u64, users, any::<bool>()).prop_map(|(c, users, again)| {
            AppStep::Entries(c, users, again)
        }),
        1 => (1..5_u64).prop_map(AppStep::Open),
        2 => (1..9_u8).prop_map(AppStep::Send),
        2 => (1..9_u8).prop_map(AppStep::Recorded),
        1 => (1..9_u8).prop_map(AppStep::Refused),
        1 => (0..20_u64).prop_map(AppStep::Wait),
    ]
}

/// What the app should have shown, kept in the simplest way.
#[derive(Default)]
struct ExpectedState {
    heads: BTreeMap<ConversationId, u64>,
    unread: BTreeMap<ConversationId, u64>,
    open: ConversationId,
    shown: BTreeMap<ConversationId, u64>,
    settled: BTreeMap<u8, u32>,
    sent: Vec<u8>,
}

proptest! {
    #[test]
    fn app__shows_each_entry_and_each_final_state_once(
        steps in prop::collection::vec(step(), 0..60)
    ) {
        let mut now = Instant::now();
        let mut app = app(now);
        let mut expected = ExpectedState { open: 1, ..ExpectedState::default() };
        let followed: Vec<_> = effects(&mut app).into_iter().collect();
        prop_assert_eq!(followed.len(), 4);
        for step in steps {
            match step {
                AppStep::Entries(conversation, users, again) => {
                    let head = expected.heads.entry(conversation).or_default();
                    let first = if again { (*head).max(1) } else { *head + 1 };
                    let entries: Vec<_> = users
                        .iter()
                        .zip(first..)
                        .map(|(user, n)| entry(n, USERS[*user], "hi"))
                        .collect();
                    let new = users.iter().zip(first..).filter(|(_, n)| n > head);
                    let of_others = new.filter(|(user, _)| USERS[**user] != ALICE).count() as u64;
                    *head = (*head).max(first + users.len() as u64 - 1);
                    let is_shown = conversation != 3 || expected.open == 3;
                    let unread = expected.unread.entry(conversation).or_default();
                    *unread = if is_shown { 0 } else { *unread + of_others };
                    app.handle_event(Event::Entries { conversation, follow: 0, entries }, now);
                }
                AppStep::Open(conversation) => {
                    let head = expected.heads.get(&conversation).copied().unwrap_or_default();
                    let found = match conversation {
                        4 => direct(4, BOB, head),
                        _ => room(conversation, head, 0),
                    };
                    app.handle_outcome(EffectOutcome::Found(found)).unwrap();
                    expected.open = conversation;
                    expected.unread.insert(conversation, 0);
                    let effects = effects(&mut app);
                    if let Some(ClientEffect::ReadPage(position)) = effects.into_iter().next() {
                        let entries = (position.after + 1..=position.upto)
                            .map(|n| entry(n, BOB, "hi"))
                            .collect();
                        let page = Page {
                            link_after: Link([0; 32]),
                            head,
                            entries,
                            faults: Vec::new(),
                            upto: position.upto,
                        };
                        app.handle_outcome(EffectOutcome::Page(position, page)).unwrap();
                    }
                }
                AppStep::Send(i) => {
                    if !expected.sent.contains(&i) {
                        expected.sent.push(i);
                        let (target, text) = ("room1".to_owned(), "hi".to_owned());
                        let message_id = id(i);
                        let queued =
                            EffectOutcome::Queued { message_id, target, text, is_aside: false };
                        app.handle_outcome(queued).unwrap();
                    }
                }
                AppStep::Recorded(i) if expected.sent.contains(&i) => {
                    app.handle_event(Event::Recorded { message_id: id(i), ack: ack(1) }, now);
                    expected.settled.entry(i).or_default();
                }
                AppStep::Refused(i) => {
                    let (message_id, why) = (id(i), RefusalReason::Limit);
                    app.handle_event(Event::Refused { message_id, why }, now);
                    if expected.sent.contains(&i) {
                        expected.settled.entry(i).or_default();
                    }
                }
                AppStep::Recorded(_) => {}
                AppStep::Wait(seconds) => {
                    now += Duration::from_secs(seconds);
                    app.handle_timeout(now);
                }
            }
            for effect in effects(&mut app) {
                prop_assert!(matches!(effect, ClientEffect::MarkRead { .. }), "{:?}", effect);
            }
            for change in changes(&mut app) {
                match change {
                    Change::Entries { conversation, items, .. } => {
                        prop_assert!(conversation != 3 || expected.open == 3);
                        for item in items {
                            let shown = expected.shown.entry(conversation).or_default();
                            prop_assert!(item.entry.n > *shown, "shown twice");
                            *shown = item.entry.n;
                        }
                    }
                    Change::Settled(settlement) => {
                        let i = settlement.message_id.0[0];
                        prop_assert!(settlement.state != MessageState::Queued);
                        *expected.settled.get_mut(&i).unwrap() += 1;
                    }
                    Change::Activity { target, entries } => {
                        prop_assert_eq!(target, "room3");
                        prop_assert!(entries > 0);
                    }
                    _ => {}
                }
            }
            for (conversation, view) in app.conversations().iter() {
                let unread = expected.unread.get(&conversation).copied().unwrap_or_default();
                prop_assert_eq!(view.unread, unread, "conversation {}", conversation);
                let head = expected.heads.get(&conversation).copied().unwrap_or_default();
                prop_assert_eq!(view.head, head);
                prop_assert!(view.read <= head);
                let numbers = app.timeline(conversation).into_iter().flat_map(|t| t.iter());
                let numbers: Vec<_> = numbers.map(|item| item.entry.n).collect();
                prop_assert!(numbers.is_sorted_by(|a, b| a < b) && numbers.len() <= 8);
            }
            prop_assert!(expected.settled.values().all(|times| *times == 1));
            let queued = expected.sent.len() - expected.settled.len();
            prop_assert_eq!(app.composer().queued_count(), queued);
        }
    }
}

#[test]
fn app__follows_the_roster_and_new_conversations_once() {
    let now = Instant::now();
    let mut app = app(now);
    let follows = |effects: Vec<ClientEffect>| -> Vec<(ConversationId, u64)> {
        let follow = |effect| match effect {
            ClientEffect::Follow { conversation, after } => Some((conversation, after)),
            _ => None,
        };
        effects.into_iter().filter_map(follow).collect()
    };
    assert_eq!(follows(effects(&mut app)), [(2, 0), (4, 0), (3, 0), (1, 0)]);
    app.handle_event(Event::Conversation(room(3, 5, 0)), now);
    assert_eq!(effects(&mut app), []);
    app.handle_event(Event::Conversation(room(5, 7, 0)), now);
    app.handle_event(Event::Conversation(direct(6, "carol", 1)), now);
    assert_eq!(follows(effects(&mut app)), [(5, 7), (6, 0)]);
    assert_eq!(app.conversations().get(5).unwrap().visibility, Visibility::Counted);
    // All of it was written before the user became a member.
    let mut left = room(5, 7, 0);
    left.joined = false;
    app.handle_event(Event::Conversation(left), now);
    assert!(!app.conversations().get(5).unwrap().is_joined);
}

#[test]
fn app__opening_a_room_reads_its_last_entries() {
    let mut app = app(Instant::now());
    effects(&mut app);
    app.handle_outcome(EffectOutcome::Found(room(5, 30, 0))).unwrap();
    assert_eq!(app.conversations().open_target(), "room5");
    let Some(ClientEffect::ReadPage(position)) = effects(&mut app).pop() else { panic!("no page") };
    assert_eq!((position.after, position.upto), (10, 30));
    let entries = (11..=31).map(|n| entry(n, BOB, "hi")).collect();
    let link_after = Link([0; 32]);
    let page = Page { link_after, head: 31, entries, faults: Vec::new(), upto: 31 };
    app.handle_outcome(EffectOutcome::Page(position, page)).unwrap();
    let last = effects(&mut app);
    let follow = ClientEffect::Follow { conversation: 5, after: 30 };
    assert_eq!(last, [follow, ClientEffect::MarkRead { conversation: 5, n: 30 }]);
    let view = app.conversations().get(5).unwrap();
    assert_eq!((view.read, view.unread), (30, 0));
    let newest = app.timeline(5).unwrap().iter().next_back().unwrap().entry.n;
    assert_eq!(newest, 30, "a later entry arrives because the room is followed");
}

#[test]
fn app__before_the_roster_conversations_are_ignored() {
    let now = Instant::now();
    let mut app = App::new(name(ALICE), "room1".to_owned(), OPTIONS, now);
    app.handle_event(Event::Conversation(room(3, 5, 0)), now);
    assert_eq!(effects(&mut app), []);
    app.handle_roster(roster());
    assert_eq!(effects(&mut app).len(), 4);
}

#[test]
fn app__texts_go_to_the_open_conversation_or_aside() {
    let mut app = app(Instant::now());
    effects(&mut app);
    let send = |app: &mut App, intent| {
        app.handle_intent(intent).unwrap();
        let Some(ClientEffect::Enqueue { target, is_aside, .. }) = effects(app).pop() else {
            panic!("nothing is queued");
        };
        (target, is_aside)
    };
    let text = "hi".to_owned();
    let here = send(&mut app, Intent::Send { text: text.clone() });
    assert_eq!(here, ("room1".to_owned(), false));
    let aside = send(&mut app, Intent::SendDirect { user: name(BOB), text: text.clone() });
    assert_eq!(aside, ("@bob".to_owned(), true));
    app.handle_outcome(EffectOutcome::Found(direct(4, BOB, 0))).unwrap();
    effects(&mut app);
    assert_eq!(send(&mut app, Intent::Send { text }), ("@bob".to_owned(), false));
    let long = Intent::Send { text: "x".repeat(MAX_TEXT + 1) };
    assert_eq!(app.handle_intent(long), Err(IntentError::TextTooLong { most: MAX_TEXT }));
    assert_eq!(effects(&mut app), []);
}

#[test]
fn app__follows_a_room_again_after_leaving_and_joining() {
    let now = Instant::now();
    let mut app = app(now);
    effects(&mut app);
    let mut left = room(3, 4, 0);
    left.joined = false;
    app.handle_event(Event::Conversation(left), now);
    assert_eq!(effects(&mut app), []);
    app.handle_event(Event::Conversation(room(3, 9, 9)), now);
    assert_eq!(effects(&mut app), [ClientEffect::Follow { conversation: 3, after: 9 }]);
    let view = app.conversations().get(3).unwrap();
    assert_eq!((view.is_joined, view.head, view.unread), (true, 9, 0));
    app.handle_event(Event::Conversation(room(3, 9, 9)), now);
    assert_eq!(effects(&mut app), []);
}

#[test]
fn app__second_roster_follows_only_what_is_new() {
    let mut app = app(Instant::now());
    effects(&mut app);
    changes(&mut app);
    let mut later = roster();
    later.shown.push(direct(6, "carol", 2));
    later.rooms.push(room(7, 5, 5));
    app.handle_roster(later);
    let follow = |conversation, after| ClientEffect::Follow { conversation, after };
    assert_eq!(effects(&mut app), [follow(6, 0), follow(7, 5)]);
    assert!(changes(&mut app).iter().all(|change| !matches!(change, Change::Ready { .. })));
}

#[test]
fn app__failed_and_restarted_files_are_not_queued() {
    let mut app = app(Instant::now());
    let transfer = |i| TransferView {
        direction: TransferDirection::Sending,
        name: "a".to_owned(),
        target: "room1".to_owned(),
        size: 9,
        done: 0,
        message_id: Some(id(i)),
    };
    app.start_transfer(1, transfer(1));
    assert_eq!(app.composer().state(&id(1)), Some(MessageState::Queued));
    let changed = TransferEvent::Changed { job: 1, message_id: id(2), size: 5 };
    app.handle_transfer(changed);
    assert_eq!(app.composer().state(&id(1)), Some(MessageState::FileFailed));
    assert_eq!(app.composer().state(&id(2)), Some(MessageState::Queued));
    app.handle_transfer(TransferEvent::Failed { job: 1, error: TransferError::Hash });
    assert_eq!(app.composer().state(&id(2)), Some(MessageState::FileFailed));
}
