//! Conformance tests of appending and reading.

use std::collections::HashMap;
use std::future::ready;

use twinlock_core::chain::{self, EntryKind, Position};
use twinlock_core::id::{DeviceId, Sender};

use super::*;
use crate::{LOBBY, Published};

pub(super) async fn entry__reads_back_as_sent(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let device = DeviceId([0xab; 16]);
    let mut sent = Vec::new();
    let long = "x".repeat(40_000);
    for (i, text) in ["one", "", "\u{1f600}\0\n", &long].into_iter().enumerate() {
        sent.push(entry(LOBBY, &ada, text));
        let kind = EntryKind(u8::try_from(i).unwrap_or(0) * 80);
        let sender = Sender::new(&ada, Some(&device));
        sent.push(NewEntry { kind, sender, ..entry(LOBBY, &ada, text) });
        sent.push(NewEntry { sender: Sender::Server, ..entry(LOBBY, &ada, text) });
    }
    let raw = Bytes::from_static(&[0xff, 0, 0x80]);
    sent.push(NewEntry { body: raw, ..entry(LOBBY, &ada, "") });
    let receipts = receipts(store.append(sent.clone()).await?)?;
    let read = bench.verified(&*store, LOBBY).await?;
    equal!(read.len(), sent.len());
    for ((sent, read), receipt) in sent.iter().zip(&read).zip(&receipts) {
        equal!(read.message_id, sent.message_id);
        equal!(read.kind, sent.kind);
        equal!(read.sender, Bytes::from(sent.sender.to_string()));
        equal!(receipt.salt.is_some(), true);
        let salt = receipt.salt.unwrap_or(twinlock_core::id::Salt([0; 16]));
        equal!(read.content, StoredContent::Body(salt, sent.body.clone()));
        equal!((receipt.conversation, receipt.n, receipt.time_ms), (LOBBY, read.n, read.time_ms));
    }
    equal!(distinct(receipts.iter().map(|r| r.salt)), sent.len());
    Ok(())
}

pub(super) async fn append__numbers_have_no_gaps_and_answers_keep_order(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    let room = make_room(&*store, &ada, "ops").await?;
    let mut position = HashMap::new();
    for conversation in [LOBBY, room] {
        let link_0 = chain::link_0(&bench.ground.server_key(), conversation);
        position.insert(conversation, Position::new(conversation, 0, link_0));
    }
    for size in [1_u64, 2, 7, 40] {
        let mut batch = Vec::new();
        for i in 0..size {
            batch.push(entry(if i % 3 == 0 { room } else { LOBBY }, &ada, &format!("{i}")));
            // Refused within the batch: takes no number, and the other answers keep their order.
            batch.push(entry(room, &bob, "let me in"));
        }
        let answers = store.append(batch.clone()).await?;
        equal!(answers.len(), batch.len());
        for (new, answer) in batch.iter().zip(answers) {
            if new.sender == Sender::new(&bob, None) {
                equal!(answer, Appended::NotAMember);
                continue;
            }
            let receipt = receipts(vec![answer])?.remove(0);
            equal!(receipt.conversation, new.conversation);
            let Some(position) = position.get_mut(&new.conversation) else { continue };
            let content = receipt.salt.map(|salt| StoredContent::Body(salt, new.body.clone()));
            let Some(content) = content else {
                return Err(Violation::new("a receipt has no salt"));
            };
            let stood = StoredEntry {
                n: receipt.n,
                time_ms: receipt.time_ms,
                message_id: new.message_id,
                kind: new.kind,
                sender: Bytes::from(new.sender.to_string()),
                content,
                link: receipt.link,
            };
            // Receipts alone are enough to follow the chain.
            stood.advance(position, new.conversation).map_err(Violation::new)?;
            equal!(receipt.link, *position.link());
        }
    }
    for (conversation, position) in position {
        let read = bench.verified(&*store, conversation).await?;
        equal!(read.len() as u64, position.n());
    }
    equal!(store.append(Vec::new()).await?, Vec::new());
    Ok(())
}

pub(super) async fn append__repeated_message_id_is_recorded_once(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    let room = make_room(&*store, &ada, "ops").await?;
    let new = entry(LOBBY, &ada, "once");
    let first = say(&*store, new.clone()).await?;
    bench.set_clock(START + 5000);
    // In a later call, with another body, from another device, in another conversation.
    let device = Sender::new(&ada, Some(&DeviceId([1; 16])));
    for again in [
        new.clone(),
        NewEntry { body: Bytes::from_static(b"other"), ..new.clone() },
        NewEntry { sender: device, ..new.clone() },
        NewEntry { conversation: room, ..new.clone() },
    ] {
        equal!(say(&*store, again).await?, first);
    }
    // Within one call.
    let twice = entry(room, &ada, "twice");
    let lobby = NewEntry { conversation: LOBBY, ..twice.clone() };
    let batch = vec![twice.clone(), entry(room, &ada, "between"), twice.clone(), lobby];
    let answers = receipts(store.append(batch).await?)?;
    let places: Vec<_> = answers.iter().map(|r| (r.conversation, r.n)).collect();
    equal!(places, vec![(room, 1), (room, 2), (room, 1), (room, 1)]);
    equal!(distinct(answers.iter().map(|r| r.link)), 2);
    // In concurrent calls.
    let raced = entry(LOBBY, &ada, "raced");
    let tasks: Vec<_> = (0..32)
        .map(|_| {
            let (store, raced) = (store.clone(), raced.clone());
            tokio::spawn(async move { store.append(vec![raced]).await })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.extend(receipts(task.await??)?);
    }
    equal!(distinct(answers.iter().map(|r| (r.n, r.link))), 1);
    // Another user's message may have the same id, and so may the server's.
    let bobs = NewEntry { sender: Sender::new(&bob, None), ..new.clone() };
    equal!(say(&*store, bobs).await?.n, 3);
    let servers = NewEntry { sender: Sender::Server, ..new.clone() };
    let server_first = say(&*store, servers.clone()).await?;
    equal!(server_first.n, 4);
    equal!(say(&*store, servers).await?, server_first);
    // After the record is reopened.
    drop(store);
    let store = bench.open()?;
    equal!(say(&*store, new).await?, first);
    equal!(bench.verified(&*store, LOBBY).await?.len(), 4);
    equal!(bench.verified(&*store, room).await?.len(), 2);
    Ok(())
}

pub(super) async fn append__non_members_are_refused(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    let room = make_room(&*store, &ada, "ops").await?;
    let refused = vec![Appended::NotAMember];
    let nowhere = [0, room + 1, u64::MAX];
    for conversation in nowhere {
        equal!(store.append(vec![entry(conversation, &ada, "x")]).await?, refused);
        let server = NewEntry { sender: Sender::Server, ..entry(conversation, &ada, "x") };
        equal!(store.append(vec![server]).await?, refused);
    }
    equal!(store.append(vec![entry(room, &bob, "x")]).await?, refused);
    equal!(store.append(vec![entry(LOBBY, &name("unknown")?, "x")]).await?, refused);
    // The user joins and leaves twice; each change applies at once.
    let kept = entry(room, &bob, "in");
    for _ in 0..2 {
        store.join_room(&bob, &name("ops")?).await?;
        let first = say(&*store, kept.clone()).await?;
        say(&*store, entry(room, &bob, "in")).await?;
        equal!(store.leave_room(&bob, room).await?, true);
        equal!(store.append(vec![entry(room, &bob, "out")]).await?, refused);
        // An entry recorded before the user left still gets its receipt.
        equal!(say(&*store, kept.clone()).await?, first);
    }
    // The server needs no membership.
    let word = NewEntry { sender: Sender::Server, ..entry(room, &ada, "bob left") };
    equal!(say(&*store, word).await?.n, 4);
    equal!(bench.verified(&*store, room).await?.len(), 4);
    Ok(())
}

pub(super) async fn append__time_never_decreases_in_a_conversation(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let room = make_room(&*store, &ada, "ops").await?;
    let mut times = Vec::new();
    for now in [START, START + 50, START + 20, 0, START + 51] {
        bench.set_clock(now);
        times.push(say(&*store, entry(LOBBY, &ada, "tick")).await?.time_ms);
    }
    equal!(times, vec![START, START + 50, START + 50, START + 50, START + 51]);
    drop(store);
    bench.set_clock(START - 7);
    let store = bench.open()?;
    equal!(say(&*store, entry(LOBBY, &ada, "tock")).await?.time_ms, START + 51);
    // Times are monotonic for each conversation separately.
    equal!(say(&*store, entry(room, &ada, "tock")).await?.time_ms, START - 7);
    bench.verified(&*store, LOBBY).await.map(|_| ())
}

pub(super) async fn read__pages_respect_entry_and_byte_limits(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let ten = "0123456789";
    let batch = (0..20).map(|_| entry(LOBBY, &ada, ten)).collect();
    let receipts = receipts(store.append(batch).await?)?;
    let link = |n: usize| receipts.get(n.wrapping_sub(1)).map(|r| r.link);
    for (after, limit, expected) in [
        (0, ALL, 1..=20),
        (0, ReadLimit { entries: 5, ..ALL }, 1..=5),
        (17, ReadLimit { entries: 5, ..ALL }, 18..=20),
        (3, ReadLimit { bytes: 40, ..ALL }, 4..=7),
        (3, ReadLimit { bytes: 0, ..ALL }, 4..=4),
        (19, ALL, 20..=20),
    ] {
        let page = store.read(LOBBY, after, limit).await?;
        equal!(page.head, 20);
        let numbers: Vec<_> = page.entries.iter().map(|e| e.n).collect();
        // A store may apply the byte limit loosely, but returns at least one entry.
        if limit.bytes > 0 && limit.bytes < 1000 {
            ensure!(
                numbers.first() == Some(&4) && (1..=6).contains(&numbers.len()),
                "{} bytes were read as {numbers:?}",
                limit.bytes
            );
        } else {
            equal!(numbers, expected.collect::<Vec<u64>>());
        }
        let before = usize::try_from(after).unwrap_or(0);
        if before > 0 {
            equal!(Some(page.link_after), link(before));
        } else {
            equal!(page.link_after, chain::link_0(&bench.ground.server_key(), LOBBY));
        }
    }
    // At the head and past it: the head's link, so that the next entry can be verified.
    for after in [20, 21, u64::MAX] {
        let page = store.read(LOBBY, after, ALL).await?;
        equal!((Some(page.link_after), page.head, page.entries.len()), (link(20), 20, 0));
    }
    // A conversation that does not exist is empty.
    for nowhere in [0, 77, u64::MAX] {
        let page = store.read(nowhere, 0, ALL).await?;
        equal!((page.head, page.entries.len()), (0, 0));
    }
    Ok(())
}

pub(super) async fn watch__commit_is_published_before_its_ack_and_in_order(
    bench: &Bench,
) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let room = make_room(&*store, &ada, "ops").await?;
    say(&*store, entry(room, &ada, "before the first watcher")).await?;
    let (mut early, mut late) = (store.watch(), None);
    for round in 0_u64..10 {
        let batch = (0..=round).map(|_| entry(room, &ada, "x")).collect();
        let receipts = receipts(store.append(batch).await?)?;
        let published = early
            .try_recv()
            .map_err(|e| format!("an ack arrived before its commit was published: {e}"))?;
        let entries = of(&published, room);
        equal!(entries.iter().map(|e| e.n).collect::<Vec<_>>(), numbers(&receipts));
        equal!(published.last().map(|p| p.head), receipts.last().map(|r| r.n));
        let first = receipts.first().map_or(0, |r| r.n);
        let page = store.read(room, first - 1, ALL).await?;
        equal!(entries, page.entries);
        if round == 5 {
            late = Some(store.watch());
        }
    }
    // A refused entry is not published.
    store.append(vec![entry(99, &ada, "x")]).await?;
    ensure!(early.try_recv().is_err(), "a refused entry was published");
    let published = late.ok_or_else(|| Violation::new("ten rounds have a fifth"))?.try_recv();
    equal!(published.map(|t| of(&t, room).first().map(|e| e.n)).ok(), Some(Some(23)));
    Ok(())
}

fn of(published: &[Published], conversation: ConversationId) -> Vec<StoredEntry> {
    let mine = published.iter().filter(|p| p.conversation == conversation);
    mine.flat_map(|p| p.entries.iter().cloned()).collect()
}

fn numbers(receipts: &[Receipt]) -> Vec<u64> {
    receipts.iter().map(|r| r.n).collect()
}

pub(super) async fn append__concurrent_calls_lose_and_duplicate_nothing(bench: &Bench) -> Lawful {
    const TASKS: usize = 16;
    const CALLS: usize = 25;
    let names: Vec<String> = (0..TASKS).map(|i| format!("user{i}")).collect();
    let store = bench.with(&names.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let room = make_room(&*store, &name("user0")?, "ops").await?;
    let mut commits = store.watch();
    let watching = tokio::spawn(async move {
        let mut heads = HashMap::new();
        let mut count = 0;
        while count < TASKS * CALLS * 3 {
            let published = commits.recv().await.map_err(Violation::new)?;
            for published in published.iter() {
                let head = heads.entry(published.conversation).or_insert(0);
                for entry in &published.entries {
                    equal!(entry.n, *head + 1);
                    *head = entry.n;
                    count += 1;
                }
                equal!(published.head, *head);
            }
        }
        Ok::<_, Violation>(())
    });
    let mut tasks = Vec::new();
    for user in names {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            let user = name(&user)?;
            store.join_room(&user, &name("ops")?).await?;
            let mut places = Vec::new();
            for _ in 0..CALLS {
                let conversations = [LOBBY, room, LOBBY];
                let batch = conversations.map(|c| entry(c, &user, "x")).to_vec();
                // Between a read and another kind of write.
                store.read(room, 0, ReadLimit { entries: 1, bytes: 0 }).await?;
                let receipts = receipts(store.append(batch).await?)?;
                places.extend(receipts.iter().map(|r| (r.conversation, r.n)));
                store.mark_read(&user, LOBBY, places.last().map_or(0, |p| p.1)).await?;
            }
            // The entries of one caller are numbered in the order of its calls.
            for conversation in [LOBBY, room] {
                let numbers = places.iter().filter(|p| p.0 == conversation).map(|p| p.1);
                ensure!(numbers.is_sorted(), "{user}'s entries were shuffled");
            }
            Ok::<_, Violation>(places)
        }));
    }
    let mut places = Vec::new();
    for task in tasks {
        places.extend(task.await??);
    }
    watching.await??;
    equal!(distinct(places), TASKS * CALLS * 3);
    equal!(bench.verified(&*store, LOBBY).await?.len(), TASKS * CALLS * 2);
    let read = bench.verified(&*store, room).await?;
    equal!(distinct(read.iter().map(|e| e.message_id)), TASKS * CALLS);
    Ok(())
}

pub(super) async fn append__is_recorded_after_its_caller_is_dropped(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let mut begun = Vec::new();
    for i in 0..20 {
        let new = entry(LOBBY, &ada, &format!("{i}"));
        begun.push(new.message_id);
        // Polled once, then dropped.
        tokio::select! {
            biased;
            answer = store.append(vec![new]) => { receipts(answer?)?; }
            () = ready(()) => {}
        }
    }
    say(&*store, entry(LOBBY, &ada, "last")).await?;
    let read = bench.verified(&*store, LOBBY).await?;
    let ids: Vec<_> = read.iter().take(20).map(|e| e.message_id).collect();
    equal!(ids, begun);
    Ok(())
}

pub(super) async fn record__entries_survive_close_and_reopen(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let last = say(&*store, entry(LOBBY, &ada, "kept")).await?;
    let before = bench.verified(&*store, LOBBY).await?;
    store.close().await?;
    drop(store);
    let store = bench.open()?;
    equal!(bench.verified(&*store, LOBBY).await?, before);
    let lobby = store.conversation(&ada, LOBBY).await?;
    equal!(lobby.map(|c| (c.head, c.head_link)), Some((last.n, last.link)));
    equal!(say(&*store, entry(LOBBY, &ada, "next")).await?.n, last.n + 1);
    bench.verified(&*store, LOBBY).await.map(|_| ())
}

pub(super) async fn erased_entry__keeps_its_commitment(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let mut sent = Vec::new();
    for text in ["one", "two", "three"] {
        let new = entry(LOBBY, &ada, text);
        sent.push((new.clone(), say(&*store, new).await?));
    }
    let links = bench.verified(&*store, LOBBY).await?.len();
    for (n, erased) in [(2, true), (3, true), (2, false), (4, false), (u64::MAX, false)] {
        equal!(store.erase(LOBBY, n).await?.is_some(), erased);
    }
    equal!(store.erase(77, 1).await?, None);
    // Verify before and after another append, and after reopening.
    equal!(bench.verified(&*store, LOBBY).await?.len(), links);
    say(&*store, entry(LOBBY, &ada, "four")).await?;
    drop(store);
    let store = bench.open()?;
    let read = bench.verified(&*store, LOBBY).await?;
    equal!(
        read.iter().map(body).collect::<Vec<_>>(),
        ["one", "", "", "four"].map(String::from).to_vec()
    );
    for ((new, receipt), read) in sent.iter().zip(&read).skip(1) {
        let salt = receipt.salt.ok_or_else(|| Violation::new("a receipt has no salt"))?;
        equal!(read.content, StoredContent::Erased(chain::commit(&salt, &new.body)));
        // Resent, it gets the same receipt, without the erased salt.
        let again = say(&*store, new.clone()).await?;
        equal!(again, Receipt { salt: None, ..receipt.clone() });
    }
    Ok(())
}

async fn make_room(
    store: &dyn Store,
    user: &Name,
    room: &str,
) -> Result<ConversationId, Violation> {
    let made = store.create_room(user, &name(room)?, "").await?;
    Ok(made.ok_or_else(|| Violation::new(format!("room {room} was not made")))?.id)
}

pub(super) async fn newest_entries__are_one_per_conversation(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let room = make_room(&*store, &ada, "ops").await?;
    equal!(store.newest(10).await?, Vec::new());
    let mut last = HashMap::new();
    for conversation in [LOBBY, room, room, LOBBY, room] {
        last.insert(conversation, say(&*store, entry(conversation, &ada, "x")).await?);
    }
    let newest = store.newest(10).await?;
    equal!(newest.iter().map(|at| at.conversation).collect::<Vec<_>>(), vec![room, LOBBY]);
    for at in &newest {
        let receipt = last.get(&at.conversation).ok_or_else(|| Violation::new("none"))?;
        equal!((at.n, at.time_ms, at.link), (receipt.n, receipt.time_ms, receipt.link));
    }
    equal!(newest.first().zip(newest.last()).map(|(a, b)| a.seq - b.seq), Some(1));
    // An erased entry still counts.
    store.erase(room, 3).await?;
    equal!(store.newest(1).await?.first().map(|at| (at.conversation, at.n)), Some((room, 3)));
    Ok(())
}
