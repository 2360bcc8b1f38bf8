//! Conformance tests of classic keys.

use twinlock_core::classic::ClassicScheme;

use super::*;
use crate::{AddedClassicKey, LOBBY, StoredClassicKey};

fn key(user: &Name, called: &str, form: ClassicScheme) -> Result<StoredClassicKey, Violation> {
    Ok(StoredClassicKey {
        name: name(called)?,
        user: user.clone(),
        conversation: LOBBY,
        form,
        salt: [called.len() as u8; 32],
        sealed: None,
        created_ms: START + 7,
    })
}

pub(super) async fn classic_key__is_found_until_revoked(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    let lamp = key(&ada, "lamp", ClassicScheme::Jwe)?;
    equal!(store.classic_key(&lamp.name).await?, None);
    equal!(store.add_classic_key(lamp.clone()).await?, AddedClassicKey::Added);
    equal!(store.classic_key(&lamp.name).await?, Some(lamp.clone()));
    let imported =
        StoredClassicKey { sealed: Some([8; 32]), ..key(&ada, "import", ClassicScheme::Origin)? };
    equal!(store.add_classic_key(imported.clone()).await?, AddedClassicKey::Added);
    equal!(store.classic_key(&imported.name).await?, Some(imported.clone()));
    equal!(store.classic_key_of(ClassicScheme::Origin).await?, Some(imported.clone()));
    equal!(store.revoke_classic_key(&imported.name).await?, true);
    // A name belongs to one key, for every user.
    for user in [&ada, &bob] {
        let again = StoredClassicKey { salt: [9; 32], ..key(user, "lamp", ClassicScheme::Jwe)? };
        equal!(store.add_classic_key(again).await?, AddedClassicKey::NameTaken);
    }
    drop(store);
    let store = bench.open()?;
    equal!(store.classic_key(&lamp.name).await?, Some(lamp.clone()));
    equal!(store.revoke_classic_key(&lamp.name).await?, true);
    equal!(store.revoke_classic_key(&lamp.name).await?, false);
    equal!(store.revoke_classic_key(&name("unknown")?).await?, false);
    equal!(store.classic_key(&lamp.name).await?, None);
    // Only the same user can reuse the name.
    let bobs = key(&bob, "lamp", ClassicScheme::Jwe)?;
    equal!(store.add_classic_key(bobs).await?, AddedClassicKey::NameTaken);
    let newer = StoredClassicKey { salt: [9; 32], ..lamp };
    equal!(store.add_classic_key(newer.clone()).await?, AddedClassicKey::Added);
    equal!(store.classic_key(&newer.name).await?, Some(newer));
    Ok(())
}

pub(super) async fn classic_key__origin_bridge_has_one_key_per_form(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    for (form, called) in [(ClassicScheme::Origin, "plain"), (ClassicScheme::OriginHmac, "mac")] {
        equal!(store.classic_key_of(form).await?, None);
        let first = key(&ada, called, form)?;
        equal!(store.add_classic_key(first.clone()).await?, AddedClassicKey::Added);
        let second = key(&ada, "second", form)?;
        equal!(store.add_classic_key(second.clone()).await?, AddedClassicKey::FormTaken);
        equal!(store.classic_key_of(form).await?, Some(first.clone()));
        equal!(store.revoke_classic_key(&first.name).await?, true);
        equal!(store.classic_key_of(form).await?, None);
        equal!(store.add_classic_key(second.clone()).await?, AddedClassicKey::Added);
        equal!(store.classic_key_of(form).await?, Some(second.clone()));
        equal!(store.revoke_classic_key(&second.name).await?, true);
    }
    // The number of JWE keys is not limited to one.
    for called in ["a", "b"] {
        let new = key(&ada, called, ClassicScheme::Jwe)?;
        equal!(store.add_classic_key(new).await?, AddedClassicKey::Added);
    }
    Ok(())
}

pub(super) async fn classic_key__requires_membership_in_its_conversation(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    let room = store.create_room(&ada, &name("ops")?, "").await?;
    let room = room.ok_or_else(|| Violation::new("no room"))?.id;
    for (user, conversation, expected) in [
        (&bob, room, AddedClassicKey::NotAMember),
        (&ada, 4711, AddedClassicKey::NotAMember),
        (&name("unknown")?, LOBBY, AddedClassicKey::NotAMember),
        (&ada, room, AddedClassicKey::Added),
    ] {
        let new = StoredClassicKey { conversation, ..key(user, "lamp", ClassicScheme::Jwe)? };
        equal!(store.add_classic_key(new).await?, expected);
    }
    Ok(())
}

pub(super) async fn classic_key__list_is_sorted_by_name(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    let direct =
        store.open_direct(&ada, &bob).await?.ok_or_else(|| Violation::new("no direct"))?.id;
    for (user, called, conversation) in [
        (&bob, "pump", LOBBY),
        (&ada, "lamp", LOBBY),
        (&ada, "gone", LOBBY),
        (&ada, "note", direct),
    ] {
        let new = StoredClassicKey { conversation, ..key(user, called, ClassicScheme::Jwe)? };
        equal!(store.add_classic_key(new).await?, AddedClassicKey::Added);
    }
    equal!(store.revoke_classic_key(&name("gone")?).await?, true);
    let first = store.classic_keys(None, None, 2).await?;
    let rest = store.classic_keys(None, first.last().map(|listed| &listed.key.name), 9).await?;
    let shown = |listed: &crate::ListedClassicKey| {
        let room = listed.room.as_ref().map_or("-", Name::as_str);
        format!("{} {} {room}", listed.key.name, listed.key.user)
    };
    let all: Vec<_> = first.iter().chain(&rest).map(shown).collect();
    equal!(all, ["lamp ada lobby", "note ada -", "pump bob lobby"].map(String::from).to_vec());
    for (user, names) in [(&ada, vec!["lamp", "note"]), (&bob, vec!["pump"])] {
        let own = store.classic_keys(Some(user), None, 9).await?;
        equal!(own.iter().map(|listed| listed.key.name.as_str()).collect::<Vec<_>>(), names);
        let rest = store.classic_keys(Some(user), Some(&name("lamp")?), 9).await?;
        equal!(rest.len(), 1);
    }
    Ok(())
}

pub(super) async fn classic_key__entry_sender_names_user_and_key(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let (ada, lamp) = (name("ada")?, name("lamp")?);
    let made = store.add_classic_key(key(&ada, "lamp", ClassicScheme::Jwe)?).await?;
    equal!(made, AddedClassicKey::Added);
    let new = NewEntry {
        sender: Sender::Classic(ada.clone(), lamp.clone()),
        kind: EntryKind::CLASSIC,
        // A classic message may be empty.
        ..entry(LOBBY, &ada, "")
    };
    say(&*store, new.clone()).await?;
    let stranger =
        NewEntry { sender: Sender::Classic(name("bob")?, lamp), ..entry(LOBBY, &ada, "x") };
    equal!(store.append(vec![stranger]).await?, vec![Appended::NotAMember]);
    let read = bench.verified(&*store, LOBBY).await?;
    let shown: Vec<_> = read.iter().map(|e| (e.sender.clone(), e.kind, body(e))).collect();
    equal!(shown, vec![(Bytes::from_static(b"ada:lamp"), EntryKind::CLASSIC, String::new())]);
    Ok(())
}

pub(super) async fn classic_key__revoked_or_for_other_conversation_is_refused(
    bench: &Bench,
) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let room = store.create_room(&ada, &name("ops")?, "").await?;
    let room = room.ok_or_else(|| Violation::new("no room"))?.id;
    let lamp = key(&ada, "lamp", ClassicScheme::Jwe)?;
    let from_lamp = |conversation, text: &str| NewEntry {
        sender: Sender::Classic(ada.clone(), lamp.name.clone()),
        kind: EntryKind::CLASSIC,
        ..entry(conversation, &ada, text)
    };
    let refused = vec![Appended::NotAMember];
    equal!(store.append(vec![from_lamp(LOBBY, "no key yet")]).await?, refused.clone());
    equal!(store.add_classic_key(lamp.clone()).await?, AddedClassicKey::Added);
    let first = from_lamp(LOBBY, "a key");
    let receipt = say(&*store, first.clone()).await?;
    equal!(store.append(vec![from_lamp(room, "of another room")]).await?, refused.clone());
    equal!(store.revoke_classic_key(&lamp.name).await?, true);
    equal!(store.append(vec![from_lamp(LOBBY, "on its way")]).await?, refused);
    // An entry recorded before the revocation still gets its receipt.
    equal!(store.append(vec![first]).await?, vec![Appended::Recorded(receipt)]);
    equal!(bench.verified(&*store, LOBBY).await?.len(), 1);
    Ok(())
}
