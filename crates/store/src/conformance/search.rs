//! Laws of searching.

use super::*;
use crate::LOBBY;

async fn found(
    store: &dyn Store,
    conversation: ConversationId,
    text: &str,
    before: u64,
    entries: usize,
) -> Result<Vec<u64>, Why> {
    let found = store.search(conversation, text, before, entries).await?;
    // What is found is what is read.
    for entry in &found {
        let page = store.read(conversation, entry.n - 1, Limit { entries: 1, bytes: 0 }).await?;
        equal!(page.entries.first(), Some(entry));
    }
    Ok(found.iter().map(|e| e.n).collect())
}

async fn everywhere(store: &dyn Store, text: &str) -> Result<Vec<u64>, Why> {
    found(store, LOBBY, text, u64::MAX, 100).await
}

async fn tell(store: &dyn Store, user: &Name, texts: &[&str]) -> Lawful {
    let batch = texts.iter().map(|text| entry(LOBBY, user, text)).collect();
    receipts(store.append(batch).await?).map(|_| ())
}

pub(super) async fn all_words_are_found_newest_first(bench: &Bench) -> Lawful {
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
        Ok::<_, Why>(())
    };
    check(&*store).await?;
    drop(store);
    check(&*bench.open()?).await
}

pub(super) async fn a_search_goes_on_below_a_number(bench: &Bench) -> Lawful {
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

pub(super) async fn a_search_stays_in_its_conversation(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let mut rooms = vec![LOBBY];
    for room in ["one", "two"] {
        let made = store.create_room(&ada, &name(room)?, "").await?;
        rooms.extend(made.map(|c| c.id));
    }
    for round in 0..3 {
        for room in &rooms {
            // Its number is a word too, and no way into another.
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

pub(super) async fn what_was_just_recorded_is_found(bench: &Bench) -> Lawful {
    let mut store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let mut expected = Vec::new();
    // An index that follows behind is caught at every stage: empty, on its way, after a pause.
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

pub(super) async fn what_is_erased_is_not_found(bench: &Bench) -> Lawful {
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

pub(super) async fn no_text_is_more_than_words(bench: &Bench) -> Lawful {
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
