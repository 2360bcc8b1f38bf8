//! `chain.json`: commitments, links, and a reader that stops at the right entry.

use serde_json::Value;

use super::{Case, Counts, Tally};
use crate::chain::{Broken, EntryKind, Linked, Position, commit, link_0};
use crate::id::{Commit, ConversationId, Link, MessageId, Salt, ServerKey};

pub(super) fn run(file: &Value) -> Counts {
    let mut tally = Tally::expect(&["entries", "verifies", "broken"]);
    let conversation = file.num("conversation");
    let first = link_0(&ServerKey(file.bytes("server_key")), conversation);
    assert_eq!(first, Link(file.bytes("link_0")));

    let mut before = first;
    for entry in file.list("entries") {
        assert_eq!(before, Link(entry.bytes("link_before")));
        let committed = commit(&Salt(entry.bytes("salt")), &entry.hex("body"));
        assert_eq!(committed, Commit(entry.bytes("commit")));
        before = with_linked(entry, conversation, |linked| linked.link(&before)).unwrap();
        assert_eq!(before, Link(entry.bytes("link")));
        tally.add("entries");
    }

    for case in file.list("cases") {
        let known = Link(case.bytes("known_link"));
        let mut position = Position::new(conversation, case.num("known_n"), known);
        let read: Result<(), Broken> = case.list("read").iter().try_for_each(|entry| {
            let claimed = Link(entry.bytes("link"));
            with_linked(entry, entry.num("conversation"), |linked| {
                position.advance(linked, Some(&claimed)).map(drop)
            })
        });
        let name = case.text("name");
        match (read, case["expected"].as_str()) {
            (Ok(()), Some("verifies")) => {
                assert_eq!(position.link(), &Link(case.bytes("last_link")), "{name}");
                tally.add("verifies");
            }
            (Err(broken), None) => {
                assert_eq!(broken.at(), case["expected"].num("broken_at"), "{name}");
                let position = matches!(broken, Broken::Position { .. });
                assert_eq!(position, case["expected"].text("why") == "place", "{name}");
                tally.add("broken");
            }
            (read, _) => panic!("{name}: {read:?}"),
        }
    }
    tally.done()
}

/// The entry as a reader sees it: the commitment comes from salt and body if they exist.
fn with_linked<T>(
    entry: &Value,
    conversation: ConversationId,
    f: impl FnOnce(&Linked<'_>) -> T,
) -> T {
    let commit = if entry.has("body") {
        commit(&Salt(entry.bytes("salt")), &entry.hex("body"))
    } else {
        assert!(!entry.has("salt"));
        Commit(entry.bytes("commit"))
    };
    f(&Linked {
        conversation,
        n: entry.num("n"),
        time_ms: entry.num("time_ms"),
        message_id: &MessageId(entry.bytes("message_id")),
        kind: EntryKind(u8::try_from(entry.num("kind")).unwrap()),
        sender: &entry.hex("sender"),
        commit: &commit,
    })
}
