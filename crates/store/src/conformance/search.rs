//! Conformance tests of searching.

use std::time::{Duration, Instant};

use super::*;
use crate::{LOBBY, SearchFrom};

async fn found(
    store: &dyn Store,
    conversation: ConversationId,
    text: &str,
    before: u64,
    entries: usize,
) -> Result<Vec<u64>, Violation> {
    let found = store.search(conversation, text, before, entries).await?;
    // A found entry equals the entry that a read returns.
    for entry in &found {
        let page =
            store.read(conversation, entry.n - 1, ReadLimit { entries: 1, bytes: 0 }).await?;
        equal!(page.entries.first(), Some(entry));
    }
    Ok(found.iter().map(|e| e.n).collect())
}

async fn everywhere(store: &dyn Store, text: &str) -> Result<Vec<u64>, Violation> {
    found(store, LOBBY, text, u64::MAX, 100).await
}

async fn tell(store: &dyn Store, user: &Name, texts: &[&str]) -> Lawful {
    let batch = texts.iter().map(|text| entry(LOBBY, user, text)).collect();
    receipts(store.append(batch).await?).map(|_| ())
}

pub(super) async fn search__all_words_match_newest_first(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    tell(
        &*store,
        &name("ada")?,
        &["The quick brown fox", "quick, quick!", "A fox is QUICKER", "Crème brûlée", "会議は三時"],
    )
    .await?;
    let check = async |store: &dyn Store| {
        for (text, expected) in [
            ("quick", vec![3, 2, 1]),
            ("qui", vec![3, 2, 1]),
            ("Quick Fox", vec![1]),
            ("fox quick", vec![3, 1]),
            ("fox brown quick the", vec![1]),
            ("brown cow", vec![]),
            ("ick", vec![]),
            ("creme", vec![4]),
            ("BRÛLÉE", vec![4]),
            ("三時", vec![5]),
            ("会議", vec![5]),
        ] {
            let got = everywhere(store, text).await?;
            ensure!(got == expected, "{text:?} was found in {got:?}, expected {expected:?}");
        }
        Ok::<_, Violation>(())
    };
    check(&*store).await?;
    drop(store);
    check(&*bench.open()?).await
}

pub(super) async fn search__continues_below_a_number(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    for i in 0..30 {
        tell(&*store, &ada, &[if i % 2 == 0 { "even" } else { "odd" }]).await?;
    }
    for size in [1, 4, 15, 100] {
        let mut all = Vec::new();
        loop {
            let before = all.last().copied().unwrap_or(u64::MAX);
            let page = found(&*store, LOBBY, "even", before, size).await?;
            ensure!(page.len() <= size, "a page of {size} has {}", page.len());
            if page.is_empty() {
                break;
            }
            all.extend(page);
        }
        equal!(all, (0..15).rev().map(|i| 2 * i + 1).collect::<Vec<u64>>());
    }
    equal!(found(&*store, LOBBY, "even", 1, 10).await?, vec![]);
    equal!(found(&*store, LOBBY, "even", 0, 10).await?, vec![]);
    Ok(())
}

pub(super) async fn search__stays_in_its_conversation(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let mut rooms = vec![LOBBY];
    for room in ["one", "two"] {
        let made = store.create_room(&ada, &name(room)?, "").await?;
        rooms.extend(made.map(|c| c.id));
    }
    for round in 0..3 {
        for room in &rooms {
            // The conversation's number is also a word, which must not match other conversations.
            say(&*store, entry(*room, &ada, &format!("word {round} 1 2 3 place {room}"))).await?;
        }
    }
    for room in &rooms {
        equal!(found(&*store, *room, "word", u64::MAX, 10).await?, vec![3, 2, 1]);
        equal!(found(&*store, *room, &format!("place {room}"), u64::MAX, 10).await?, vec![3, 2, 1]);
    }
    equal!(found(&*store, 77, "word", u64::MAX, 10).await?, vec![]);
    equal!(found(&*store, u64::MAX, "word", u64::MAX, 10).await?, vec![]);
    Ok(())
}

pub(super) async fn search__just_recorded_entries_are_found(bench: &Bench) -> Lawful {
    let mut store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let mut expected = Vec::new();
    // Searches while the index lags at every stage: empty, in progress, after a pause.
    for round in 0..6_u64 {
        for _ in 0..100 {
            tell(&*store, &ada, &["hay"]).await?;
        }
        tell(&*store, &ada, &["needle in it"]).await?;
        expected.insert(0, (round + 1) * 101);
        equal!(everywhere(&*store, "needle").await?, expected);
        equal!(everywhere(&*store, "it nee").await?, expected);
        if round == 3 {
            drop(store);
            store = bench.open()?;
            equal!(everywhere(&*store, "needle").await?, expected);
        }
    }
    Ok(())
}

pub(super) async fn search__erased_entries_are_not_found(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    tell(&*store, &name("ada")?, &["secret one", "secret two", "secret three"]).await?;
    equal!(everywhere(&*store, "secret").await?, vec![3, 2, 1]);
    store.erase(LOBBY, 2).await?;
    equal!(everywhere(&*store, "secret").await?, vec![3, 1]);
    equal!(everywhere(&*store, "two").await?, vec![]);
    drop(store);
    let store = bench.open()?;
    equal!(everywhere(&*store, "secret").await?, vec![3, 1]);
    Ok(())
}

pub(super) async fn index__catches_up_and_skips_erased_entries(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    for round in 0..2 {
        let texts: Vec<_> = (0..200).map(|n| format!("needle {n} {}", "hay ".repeat(n))).collect();
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        tell(&*store, &name("ada")?, &texts).await?;
        // Erased before or after they are indexed.
        for n in [1, 100, 200] {
            store.erase(LOBBY, round * 200 + n).await?;
        }
        let until = Instant::now() + Duration::from_secs(10);
        while store.unindexed() > 0 {
            ensure!(Instant::now() < until, "{} bytes are not indexed", store.unindexed());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let all = found(&*store, LOBBY, "needle", u64::MAX, 1000).await?;
        equal!(all.len() as u64, (round + 1) * 197);
    }
    Ok(())
}

pub(super) async fn search__text_is_never_query_syntax(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    tell(&*store, &name("ada")?, &["near the body or not", "x"]).await?;
    for (text, expected) in [
        ("", vec![]),
        (" \"'*^:()-+{}", vec![]),
        ("\"near", vec![1]),
        ("body:near", vec![1]),
        ("NEAR(the body)", vec![1]),
        ("nothing OR x", vec![]),
        ("not", vec![1]),
        ("x*", vec![2]),
        ("x\0", vec![2]),
        ("-x", vec![2]),
        ("%", vec![]),
    ] {
        let got = everywhere(&*store, text).await?;
        ensure!(got == expected, "{text:?} was found in {got:?}, expected {expected:?}");
    }
    everywhere(&*store, &"long ".repeat(2000)).await?;
    everywhere(&*store, &"\u{fb01}\u{fdfa}".repeat(2000)).await?;
    Ok(())
}

pub(super) async fn search__slices_find_the_same_as_one_search(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let made = store.create_room(&ada, &name("ops")?, "").await?;
    let ops = made.ok_or_else(|| Violation::new("no room"))?.id;
    // More words with one prefix than a search looks up individually.
    let mut batch = Vec::new();
    for i in 0..400 {
        batch.push(entry(LOBBY, &ada, &format!("common{i:03} often {}", i % 7)));
        batch.push(entry(ops, &ada, &format!("common{i:03} elsewhere")));
    }
    receipts(store.append(batch).await?)?;
    let mut again = Vec::new();
    // While the index lags, and again.
    for round in 0..2 {
        let mut all = Vec::new();
        for text in
            ["common", "common3", "com", "often", "3 ofte", "often common12", "absent", "commonx"]
        {
            let whole = everywhere(&*store, text).await?;
            let (mut slices, mut from) = (Vec::new(), Some(SearchFrom::below(u64::MAX)));
            let mut calls = 0;
            while let Some(at) = from
                && slices.len() < 100
            {
                calls += 1;
                ensure!(calls < 1000, "{text:?} makes no progress at {at:?}");
                let limit = ReadLimit { entries: 7, bytes: usize::MAX };
                let found = store.search_some(LOBBY, text, at, limit, Duration::ZERO).await?;
                slices.extend(found.entries.iter().map(|entry| entry.n));
                from = found.next;
            }
            slices.truncate(100);
            ensure!(slices == whole, "{text:?} in round {round}: {slices:?}, expected {whole:?}");
            all.push(whole);
        }
        let lengths: Vec<_> = all.iter().map(Vec::len).collect();
        equal!(lengths, vec![100, 100, 100, 100, 57, 10, 0, 0]);
        again.push(all);
    }
    equal!(again.first(), again.last());
    Ok(())
}

pub(super) async fn search__stops_at_its_byte_limit(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let long = format!("needle {}", "x".repeat(1000));
    for _ in 0..10 {
        tell(&*store, &ada, &[&long]).await?;
    }
    let limit = ReadLimit { entries: 100, bytes: 2500 };
    let from = SearchFrom::below(u64::MAX);
    let found = store.search_some(LOBBY, "needle", from, limit, Duration::from_secs(60)).await?;
    equal!(found.entries.iter().map(|entry| entry.n).collect::<Vec<_>>(), vec![10, 9, 8]);
    ensure!(found.next.is_some(), "there is more, and the search says that it has ended");
    Ok(())
}
