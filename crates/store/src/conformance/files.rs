//! Conformance tests of files.

use prost::Message as _;
use twinlock_core::proto::{FileBody, FileMeta};

use super::*;
use crate::{Erased, FileRef, FileUsage, LEAST_CHARGE, LOBBY};

/// A file entry of this name, and its reference. The same content byte means the same content.
fn file(user: &Name, file_name: &str, content: u8, size: u64) -> (NewEntry, FileRef) {
    let meta = FileMeta { name: file_name.to_owned(), size, ..FileMeta::default() };
    let hash = [content; 32];
    let body = FileBody { file: Some(meta), hash: Bytes::copy_from_slice(&hash) };
    let body = Bytes::from(body.encode_to_vec());
    (NewEntry { kind: EntryKind::FILE, body, ..entry(LOBBY, user, "") }, FileRef { hash, size })
}

pub(super) async fn file__is_found_by_members_once_its_entry_is_recorded(bench: &Bench) -> Lawful {
    let mut store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    let room = store.create_room(&ada, &name("ops")?, "").await?;
    let room = room.ok_or_else(|| Violation::new("no room"))?.id;
    let (new, known) = file(&ada, "a.txt", 1, 7);
    let there = NewEntry { conversation: room, message_id: message_id(), ..new.clone() };
    // Sent twice, recorded once. The body is unchanged.
    equal!(say(&*store, new.clone()).await?.n, 1);
    equal!(say(&*store, new.clone()).await?.n, 1);
    equal!(say(&*store, there).await?.n, 1);
    for _opened_anew in [false, true] {
        equal!(store.file(&ada, LOBBY, 1).await?, Some(known));
        equal!(store.file(&bob, LOBBY, 1).await?, Some(known));
        equal!(store.file(&ada, room, 1).await?, Some(known));
        equal!(store.file(&bob, room, 1).await?, None);
        equal!(store.file(&name("eve")?, LOBBY, 1).await?, None);
        for n in [0, 2, u64::MAX] {
            equal!(store.file(&ada, LOBBY, n).await?, None);
        }
        equal!(store.file(&ada, 77, 1).await?, None);
        let read = bench.verified(&*store, LOBBY).await?;
        let as_it_came = matches!(
            read.first().map(|entry| &entry.content), Some(StoredContent::Body(_, body)) if *body == new.body
        );
        ensure!(as_it_came, "the body is another");
        drop(store);
        store = bench.open()?;
    }
    Ok(())
}

pub(super) async fn file__usage_is_the_sum_of_files_sent_by_a_user(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    equal!(store.stored(&ada).await?, FileUsage::default());
    for (user, content, size) in [(&ada, 1, 1000), (&ada, 1, 1000), (&bob, 1, 1000), (&ada, 2, 1)] {
        let (new, _) = file(user, "x", content, size);
        say(&*store, new.clone()).await?;
        // A duplicate adds nothing.
        say(&*store, new).await?;
    }
    let (big, _) = file(&bob, "big", 3, 1 << 40);
    say(&*store, big).await?;
    say(&*store, entry(LOBBY, &ada, "a text without a file")).await?;
    // A small file is charged one block.
    let of_bob = FileUsage { bytes: LEAST_CHARGE + (1 << 40), files: 2 };
    equal!(store.stored(&ada).await?, FileUsage { bytes: 3 * LEAST_CHARGE, files: 3 });
    equal!(store.stored(&bob).await?, of_bob);
    equal!(store.stored(&name("eve")?).await?, FileUsage::default());
    store.erase(LOBBY, 1).await?;
    store.erase(LOBBY, 1).await?;
    store.erase(LOBBY, 6).await?;
    drop(store);
    let store = bench.open()?;
    equal!(store.stored(&ada).await?, FileUsage { bytes: 2 * LEAST_CHARGE, files: 2 });
    equal!(store.stored(&bob).await?, of_bob);
    Ok(())
}

pub(super) async fn file__content_is_referenced_until_last_entry_is_erased(
    bench: &Bench,
) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    let (first, known) = file(&ada, "one", 9, 5);
    let (second, _) = file(&bob, "two", 9, 5);
    equal!(store.is_referenced(&known.hash).await?, false);
    receipts(store.append(vec![first, second]).await?)?;
    say(&*store, entry(LOBBY, &ada, "text")).await?;
    equal!(store.is_referenced(&known.hash).await?, true);
    equal!(store.erase(LOBBY, 1).await?, Some(Erased { file: Some(known) }));
    equal!(store.erase(LOBBY, 1).await?, None);
    equal!(store.is_referenced(&known.hash).await?, true);
    equal!(store.file(&ada, LOBBY, 1).await?, None);
    equal!(store.erase(LOBBY, 2).await?, Some(Erased { file: Some(known) }));
    equal!(store.is_referenced(&known.hash).await?, false);
    equal!(store.erase(LOBBY, 3).await?, Some(Erased { file: None }));
    bench.verified(&*store, LOBBY).await.map(|_| ())
}

pub(super) async fn file__hashes_are_listed_once_in_order(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    equal!(store.file_hashes(None, 10).await?, Vec::<[u8; 32]>::new());
    for content in [7, 2, 7, 0, 0xff] {
        say(&*store, file(&ada, "x", content, 1).0).await?;
    }
    equal!(store.file_hashes(None, 10).await?, vec![[0; 32], [2; 32], [7; 32], [0xff; 32]]);
    equal!(store.file_hashes(Some([2; 32]), 1).await?, vec![[7; 32]]);
    equal!(store.file_hashes(Some([0xff; 32]), 10).await?, Vec::<[u8; 32]>::new());
    Ok(())
}

pub(super) async fn file__malformed_body_is_an_entry_without_a_file(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let (good, known) = file(&ada, "good", 4, 3);
    let meta = Some(FileMeta { name: "x".into(), size: 3, ..FileMeta::default() });
    let short = FileBody { file: meta, hash: Bytes::from_static(&[4; 31]) }.encode_to_vec();
    let bare = FileBody { file: None, hash: Bytes::from_static(&[4; 32]) }.encode_to_vec();
    for body in [short, bare, Vec::new(), vec![0xff; 9]] {
        let new = NewEntry { body: body.into(), message_id: message_id(), ..good.clone() };
        let n = say(&*store, new).await?.n;
        equal!(store.file(&ada, LOBBY, n).await?, None);
    }
    // The same bytes in a text entry are text.
    let n = say(&*store, NewEntry { kind: EntryKind::TEXT, ..good }).await?.n;
    equal!(store.file(&ada, LOBBY, n).await?, None);
    equal!(store.is_referenced(&known.hash).await?, false);
    equal!(store.stored(&ada).await?, FileUsage::default());
    for n in 1..=n {
        equal!(store.erase(LOBBY, n).await?, Some(Erased { file: None }));
    }
    Ok(())
}

pub(super) async fn receipt__is_found_by_its_message_id(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    let new = entry(LOBBY, &ada, "x");
    equal!(store.receipt(&ada, &new.message_id).await?, None);
    let receipt = say(&*store, new.clone()).await?;
    equal!(store.receipt(&ada, &new.message_id).await?, Some(receipt.clone()));
    equal!(store.receipt(&bob, &new.message_id).await?, None);
    equal!(store.receipt(&name("eve")?, &new.message_id).await?, None);
    store.erase(LOBBY, 1).await?;
    let erased = Receipt { salt: None, ..receipt };
    equal!(store.receipt(&ada, &new.message_id).await?, Some(erased));
    Ok(())
}

pub(super) async fn file__is_found_by_words_of_its_name(bench: &Bench) -> Lawful {
    let mut store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    // The hash bytes would read as words.
    let (report, _) = file(&ada, "Annual_report-2026.pdf", b'z', 1);
    say(&*store, report).await?;
    say(&*store, entry(LOBBY, &ada, "the annual picnic")).await?;
    let found = async |store: &dyn Store, text: &str| -> Result<Vec<u64>, Violation> {
        let found = store.search(LOBBY, text, u64::MAX, 10).await?;
        Ok(found.iter().map(|entry| entry.n).collect())
    };
    for round in 0..2 {
        for (text, expected) in [
            ("annual", vec![2, 1]),
            ("2026 REPORT", vec![1]),
            ("annual report pdf", vec![1]),
            ("zzzz", vec![]),
        ] {
            let got = found(&*store, text).await?;
            ensure!(got == expected, "{round}: {text:?} is in {got:?}, expected {expected:?}");
        }
        drop(store);
        store = bench.open()?;
    }
    store.erase(LOBBY, 1).await?;
    equal!(found(&*store, "report").await?, vec![]);
    equal!(found(&*store, "annual").await?, vec![2]);
    Ok(())
}
