//! Conformance tests of conversations.

use super::*;
use crate::{ConversationForm, Joined, LOBBY, OWN_COUNTED, StoredConversation};

fn found(found: Option<StoredConversation>) -> Result<StoredConversation, Violation> {
    found.ok_or_else(|| Violation::new("a conversation is not there"))
}

async fn own_in_lobby(store: &dyn Store, user: &Name) -> Result<u64, Violation> {
    let list = store.conversations(user, false, 0, 1).await?;
    Ok(found(list.into_iter().next())?.own)
}

fn into(joined: Option<Joined>) -> Result<Joined, Violation> {
    joined.ok_or_else(|| Violation::new("a room is not there"))
}

pub(super) async fn lobby__every_user_is_a_permanent_member(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    let lobby = found(store.conversation(&ada, LOBBY).await?)?;
    equal!(lobby.form, ConversationForm::Room(name("lobby")?));
    equal!((lobby.joined, lobby.members, lobby.head, lobby.read), (true, 2, 0, 0));
    equal!(lobby.server_key, bench.ground.server_key());
    equal!(lobby.head_link, chain::link_0(&bench.ground.server_key(), LOBBY));
    equal!(store.leave_room(&ada, LOBBY).await?, false);
    equal!(store.members(LOBBY, None, 10).await?, vec![ada.clone(), bob]);
    equal!(store.create_room(&ada, &name("lobby")?, "").await?, None);
    equal!(store.conversation(&name("carol")?, LOBBY).await?, None);
    // Reopening the record does not create it again.
    drop(store);
    let store = bench.open()?;
    equal!(store.conversations(&ada, false, 0, 10).await?, vec![lobby]);
    Ok(())
}

pub(super) async fn room__name_is_unique_under_concurrency(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob, ops) = (name("ada")?, name("bob")?, name("ops")?);
    bench.set_clock(START + 9);
    let made = found(store.create_room(&ada, &ops, "what runs").await?)?;
    equal!(made.form, ConversationForm::Room(ops.clone()));
    equal!((made.topic.as_str(), made.members, made.joined), ("what runs", 1, true));
    equal!((made.created_ms, made.head, made.read), (START + 9, 0, 0));
    ensure!(made.id > LOBBY, "a room took the lobby's number");
    equal!(store.create_room(&bob, &ops, "").await?, None);
    equal!(store.create_room(&ada, &ops, "").await?, None);
    equal!(store.conversation(&ada, made.id).await?, Some(made.clone()));
    // It is not visible before joining.
    equal!(store.conversation(&bob, made.id).await?, None);
    equal!(store.conversation(&ada, made.id + 1).await?, None);
    equal!(store.conversation(&ada, u64::MAX).await?, None);
    // Of concurrent requests for one name, one succeeds.
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (store, ada) = (store.clone(), ada.clone());
            tokio::spawn(async move {
                store.create_room(&ada, &name("raced")?, "").await.map_err(Violation::from)
            })
        })
        .collect();
    let mut winners = 0;
    for task in tasks {
        winners += usize::from(task.await??.is_some());
    }
    equal!(winners, 1);
    Ok(())
}

pub(super) async fn room__can_be_joined_and_left(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob, ops) = (name("ada")?, name("bob")?, name("ops")?);
    let room = found(store.create_room(&ada, &ops, "").await?)?.id;
    equal!(store.join_room(&bob, &name("nowhere")?).await?, None);
    equal!(store.room(&bob, &ops).await?, None);
    equal!(store.room(&bob, &name("nowhere")?).await?, None);
    for new in [true, false] {
        let joined = into(store.join_room(&bob, &ops).await?)?;
        equal!(joined.new, new);
        let joined = joined.conversation;
        equal!((joined.id, joined.members, joined.joined), (room, 2, true));
        equal!(store.room(&bob, &ops).await?, Some(joined));
    }
    equal!(store.members(room, None, 10).await?, vec![ada.clone(), bob.clone()]);
    equal!(store.leave_room(&bob, room).await?, true);
    equal!(store.leave_room(&bob, room).await?, false);
    equal!(store.leave_room(&bob, 77).await?, false);
    equal!(store.members(room, None, 10).await?, vec![ada.clone()]);
    equal!(store.conversation(&bob, room).await?, None);
    // A room whose last member has left can be joined.
    equal!(store.leave_room(&ada, room).await?, true);
    equal!(store.room(&bob, &ops).await?, None);
    equal!(into(store.join_room(&bob, &ops).await?)?.conversation.members, 1);
    Ok(())
}

pub(super) async fn room__topic_is_set_only_by_members(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    let room = found(store.create_room(&ada, &name("ops")?, "old").await?)?;
    let set = found(store.set_topic(&ada, room.id, "new").await?)?;
    equal!(set, StoredConversation { topic: "new".into(), ..room.clone() });
    equal!(store.set_topic(&bob, room.id, "mine").await?, None);
    equal!(store.set_topic(&ada, 77, "x").await?, None);
    let direct = found(store.open_direct(&ada, &bob).await?)?.id;
    equal!(store.set_topic(&ada, direct, "x").await?, None);
    equal!(store.conversation(&ada, room.id).await?, Some(set));
    Ok(())
}

pub(super) async fn direct_conversation__is_unique_for_two_people(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob", "carol"]).await?;
    let (ada, bob, carol) = (name("ada")?, name("bob")?, name("carol")?);
    let opened = found(store.open_direct(&bob, &ada).await?)?;
    equal!(opened.form, ConversationForm::Direct(ada.clone()));
    equal!((opened.members, opened.joined), (2, true));
    let back = found(store.open_direct(&ada, &bob).await?)?;
    equal!((back.id, back.form), (opened.id, ConversationForm::Direct(bob.clone())));
    let notes = found(store.open_direct(&ada, &ada).await?)?;
    equal!((notes.form, notes.members), (ConversationForm::Direct(ada.clone()), 1));
    equal!(found(store.open_direct(&ada, &ada).await?)?.id, notes.id);
    let other = found(store.open_direct(&ada, &carol).await?)?.id;
    equal!(distinct([opened.id, notes.id, other, LOBBY]), 4);
    equal!(store.open_direct(&ada, &name("unknown")?).await?, None);
    equal!(store.open_direct(&name("unknown")?, &ada).await?, None);
    // It is closed to others and cannot be left.
    equal!(store.conversation(&carol, opened.id).await?, None);
    equal!(store.leave_room(&ada, opened.id).await?, false);
    let carols = entry(opened.id, &carol, "let me in");
    equal!(store.append(vec![carols]).await?, vec![Appended::NotAMember]);
    say(&*store, entry(opened.id, &ada, "hello")).await?;
    say(&*store, entry(opened.id, &bob, "hello")).await?;
    equal!(bench.verified(&*store, opened.id).await?.len(), 2);
    // Both users open it concurrently.
    let tasks: Vec<_> = (0..16)
        .map(|i| {
            let (store, bob, carol) = (store.clone(), bob.clone(), carol.clone());
            let (one, two) = if i % 2 == 0 { (bob, carol) } else { (carol, bob) };
            tokio::spawn(async move { store.open_direct(&one, &two).await })
        })
        .collect();
    let mut ids = Vec::new();
    for task in tasks {
        ids.push(found(task.await??)?.id);
    }
    equal!(distinct(ids), 1);
    Ok(())
}

pub(super) async fn conversation__list_pages_continue_without_gaps(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    let mut made = vec![LOBBY];
    for i in 0..7 {
        made.push(found(store.create_room(&ada, &name(&format!("room{i}"))?, "").await?)?.id);
    }
    for (user, joinable, expected) in
        [(&ada, false, made.clone()), (&ada, true, vec![]), (&bob, true, made.split_off(1))]
    {
        let mut ids = Vec::new();
        loop {
            let after = ids.last().copied().unwrap_or(0);
            let page = store.conversations(user, joinable, after, 3).await?;
            ensure!(page.len() <= 3, "a list of 3 has {}", page.len());
            ensure!(page.iter().all(|c| c.joined != joinable), "a list has what it should not");
            if page.is_empty() {
                break;
            }
            ids.extend(page.iter().map(|c| c.id));
        }
        equal!(ids, expected);
    }
    equal!(store.conversations(&ada, false, u64::MAX, 10).await?, vec![]);
    // Direct conversations cannot be joined.
    let direct = found(store.open_direct(&ada, &ada).await?)?.id;
    let joinable = store.conversations(&bob, true, 0, 100).await?;
    ensure!(joinable.iter().all(|c| c.id != direct), "a direct conversation is offered to others");
    for page in [1, 2, 5] {
        let mut members: Vec<Name> = Vec::new();
        loop {
            let more = store.members(LOBBY, members.last(), page).await?;
            if more.is_empty() {
                break;
            }
            members.extend(more);
        }
        equal!(members, vec![ada.clone(), bob.clone()]);
    }
    Ok(())
}

pub(super) async fn read_marker__only_advances(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    for _ in 0..5 {
        say(&*store, entry(LOBBY, &ada, "x")).await?;
    }
    for (n, read) in [(3, 3), (2, 3), (0, 3), (5, 5), (99, 5), (u64::MAX, 5), (4, 5)] {
        store.mark_read(&ada, LOBBY, n).await?;
        equal!(found(store.conversation(&ada, LOBBY).await?)?.read, read);
    }
    say(&*store, entry(LOBBY, &bob, "x")).await?;
    store.mark_read(&ada, LOBBY, 99).await?;
    equal!(found(store.conversation(&ada, LOBBY).await?)?.read, 6);
    // A list counts the user's own entries among the newest.
    for user in [&bob, &ada, &bob, &ada] {
        say(&*store, entry(LOBBY, user, "x")).await?;
    }
    for (user, read, own) in [(&ada, 6, 2), (&bob, 0, 3)] {
        let list = store.conversations(user, false, 0, 9).await?;
        equal!(list.first().map(|lobby| (lobby.read, lobby.own)), Some((read, own)));
    }
    store.mark_read(&ada, LOBBY, 9).await?;
    equal!(own_in_lobby(&*store, &ada).await?, 1);
    store.mark_read(&ada, LOBBY, 99).await?;
    for (user, entries) in [(&ada, OWN_COUNTED - 1), (&bob, 1)] {
        for _ in 0..entries {
            say(&*store, entry(LOBBY, user, "x")).await?;
        }
    }
    equal!(own_in_lobby(&*store, &ada).await?, OWN_COUNTED - 1);
    say(&*store, entry(LOBBY, &bob, "x")).await?;
    equal!(own_in_lobby(&*store, &ada).await?, OWN_COUNTED - 2);
    // Entries from before a join count as read.
    let ops = name("ops")?;
    let room = found(store.create_room(&ada, &ops, "").await?)?.id;
    for _ in 0..2 {
        say(&*store, entry(room, &ada, "x")).await?;
    }
    let joined = into(store.join_room(&bob, &ops).await?)?.conversation;
    equal!((joined.head, joined.read), (2, 2));
    // Each member has a separate marker; without a membership there is none.
    equal!(found(store.conversation(&bob, LOBBY).await?)?.read, 0);
    store.mark_read(&bob, 77, 1).await?;
    store.mark_read(&name("unknown")?, LOBBY, 1).await?;
    drop(store);
    let store = bench.open()?;
    equal!(found(store.conversation(&ada, LOBBY).await?)?.read, 10);
    Ok(())
}

pub(super) async fn conversation__head_is_its_newest_entry(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let room = found(store.create_room(&ada, &name("ops")?, "").await?)?;
    equal!(room.head_link, chain::link_0(&bench.ground.server_key(), room.id));
    for _ in 0..3 {
        let receipt = say(&*store, entry(room.id, &ada, "x")).await?;
        let now = found(store.conversation(&ada, room.id).await?)?;
        equal!((now.head, now.head_link), (receipt.n, receipt.link));
        let list = store.conversations(&ada, false, LOBBY, 10).await?;
        equal!(list, vec![StoredConversation { own: now.head, ..now }]);
    }
    Ok(())
}
