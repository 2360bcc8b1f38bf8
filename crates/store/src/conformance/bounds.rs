//! Conformance tests of the bounds for each user.

use twinlock_core::classic::ClassicScheme;

use super::*;
use crate::{AddedClassicKey, Bound, LOBBY, StoredClassicKey, StoredConversation};

/// Number of these that succeeded; all others must have been refused by this bound.
fn allowed<T>(
    results: impl IntoIterator<Item = Result<T, StoreError>>,
    bound: Bound,
    max: usize,
) -> Result<usize, Violation> {
    let mut done = 0;
    for result in results {
        match result {
            Ok(_) => done += 1,
            Err(error) => equal!(error, StoreError::TooMany(bound, max)),
        }
    }
    Ok(done)
}

/// The results of all, started concurrently.
async fn at_once<T: Send + 'static>(
    works: impl IntoIterator<Item = impl Future<Output = Result<T, StoreError>> + Send + 'static>,
) -> Result<Vec<Result<T, StoreError>>, Violation> {
    let tasks: Vec<_> = works.into_iter().map(tokio::spawn).collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await?);
    }
    Ok(results)
}

pub(super) async fn bounds__rooms_of_a_user_are_limited_under_concurrency(bench: &Bench) -> Lawful {
    let store = bench.open_within(Bounds { rooms: 3, ..Bounds::default() })?;
    let (ada, bob) = (join(&*store, "ada").await?, join(&*store, "bob").await?);
    let many = (0..12).map(|i| {
        let (store, ada) = (store.clone(), ada.clone());
        async move {
            let room = Name::new(&format!("room{i}"))
                .map_err(|error| StoreError::Database(error.to_string()))?;
            store.create_room(&ada, &room, "").await
        }
    });
    let made = at_once(many).await?;
    equal!(allowed(made, Bound::Rooms, 3)?, 3);
    equal!(store.conversations(&ada, false, 0, 100).await?.len(), 1 + 3);
    // The bound does not apply to others, and a taken name is reported first.
    let ops = store.create_room(&bob, &name("ops")?, "").await?;
    ensure!(ops.is_some(), "another user's room was not made");
    equal!(store.create_room(&ada, &name("ops")?, "").await?, None);
    // A room counts for its creator, member or not, and after reopening.
    let own = store.conversations(&ada, false, LOBBY, 100).await?;
    for room in own {
        equal!(store.leave_room(&ada, room.id).await?, true);
    }
    drop(store);
    let store = bench.open_within(Bounds { rooms: 3, ..Bounds::default() })?;
    let more = store.create_room(&ada, &name("more")?, "").await;
    equal!(more, Err(StoreError::TooMany(Bound::Rooms, 3)));
    equal!(store.room(&ada, &name("more")?).await?, None);
    Ok(())
}

pub(super) async fn bounds__memberships_of_a_user_are_limited(bench: &Bench) -> Lawful {
    let bounds = Bounds { memberships: 4, ..Bounds::default() };
    let store = bench.open_within(bounds)?;
    let ada = join(&*store, "ada").await?;
    let bob = join(&*store, "bob").await?;
    for room in ["one", "two", "three"] {
        store.create_room(&bob, &name(room)?, "").await?;
    }
    let full = || StoreError::TooMany(Bound::Memberships, 4);
    equal!(store.create_room(&bob, &name("four")?, "").await, Err(full()));
    equal!(store.open_direct(&bob, &ada).await, Err(full()));
    // Ada reaches the bound with the lobby, two rooms and a direct conversation. Bob is at the bound
    // before that conversation, which is not refused.
    for room in ["one", "two"] {
        ensure!(store.join_room(&ada, &name(room)?).await?.is_some(), "{room} was not joined");
    }
    ensure!(store.open_direct(&ada, &bob).await?.is_some(), "no direct conversation");
    equal!(store.join_room(&ada, &name("three")?).await.err(), Some(full()));
    // Joining again adds no membership.
    ensure!(store.join_room(&ada, &name("one")?).await?.is_some(), "in it already");
    ensure!(store.open_direct(&bob, &ada).await?.is_some(), "in it already");
    let direct =
        |found: &StoredConversation| matches!(found.form, crate::ConversationForm::Direct(_));
    let own = store.conversations(&ada, false, 0, 100).await?;
    equal!((own.len(), own.iter().filter(|c| direct(c)).count()), (4, 1));
    let called = crate::ConversationForm::Room(name("one")?);
    let one = own.iter().find(|found| found.form == called);
    let one = one.ok_or_else(|| Violation::new("the room is not listed"))?.id;
    equal!(store.leave_room(&ada, one).await?, true);
    ensure!(store.join_room(&ada, &name("three")?).await?.is_some(), "there was room again");
    Ok(())
}

pub(super) async fn bounds__open_invites_of_a_user_are_limited(bench: &Bench) -> Lawful {
    let store = bench.open_within(Bounds { invites: 2, ..Bounds::default() })?;
    let ada = join_as(&*store, "ada", UserRole::Admin).await?;
    let new = |expires_ms| {
        let id = InviteId(unique().to_be_bytes());
        let terms = InviteTerms { expires_ms, ..terms(UserRole::Member) };
        let made_by = Some(ada.clone());
        PreparedInvite { id, record: vec![7; RECORD], terms, made_by, created_ms: START }
    };
    store.add_invite(new(START + 10)).await?;
    let results = at_once([(), (), ()].map(|()| {
        let (store, invite) = (store.clone(), new(START + 1000));
        async move { store.add_invite(invite).await }
    }));
    equal!(allowed(results.await?, Bound::Invites, 2)?, 1);
    // An expired invite does not count.
    bench.set_clock(START + 10);
    store.add_invite(new(START + 1000)).await?;
    let full = store.add_invite(new(START + 1000)).await;
    equal!(full, Err(StoreError::TooMany(Bound::Invites, 2)));
    // Invites of the server do not count.
    invite(&*store, terms(UserRole::Member)).await?;
    Ok(())
}

pub(super) async fn bounds__devices_of_a_user_are_limited_under_concurrency(
    bench: &Bench,
) -> Lawful {
    let store = bench.open_within(Bounds { devices: 4, ..Bounds::default() })?;
    let (ada, bob) = (join(&*store, "ada").await?, join(&*store, "bob").await?);
    let many = (0..10).map(|i| {
        let (store, ada) = (store.clone(), ada.clone());
        async move { store.add_device(&ada, device(&format!("device {i}")), START).await }
    });
    // The first device was registered with the user.
    equal!(allowed(at_once(many).await?, Bound::Devices, 4)?, 3);
    let devices = store.devices(&ada).await?;
    equal!(devices.len(), 4);
    let one = devices.first().map(|device| device.id);
    let one = one.ok_or_else(|| Violation::new("no device"))?;
    equal!(store.revoke_device(&ada, &one).await?, true);
    equal!(store.add_device(&ada, device("again"), START).await?, true);
    equal!(store.add_device(&bob, device("bobs"), START).await?, true);
    equal!(store.devices(&ada).await?.len(), 4);
    Ok(())
}

pub(super) async fn bounds__classic_keys_of_a_user_are_limited(bench: &Bench) -> Lawful {
    let store = bench.open_within(Bounds { classic_keys: 2, ..Bounds::default() })?;
    let (ada, bob) = (join(&*store, "ada").await?, join(&*store, "bob").await?);
    let key = |user: &Name, called: &str| {
        let (form, created_ms) = (ClassicScheme::Jwe, START);
        let key = |name| StoredClassicKey {
            sealed: None,
            name,
            user: user.clone(),
            conversation: LOBBY,
            form,
            salt: [3; 32],
            created_ms,
        };
        name(called).map(key)
    };
    let keys = [key(&ada, "a")?, key(&ada, "b")?, key(&ada, "c")?, key(&ada, "d")?];
    let results = at_once(keys.map(|key| {
        let store = store.clone();
        async move { store.add_classic_key(key).await }
    }));
    equal!(allowed(results.await?, Bound::ClassicKeys, 2)?, 2);
    equal!(store.add_classic_key(key(&bob, "e")?).await?, AddedClassicKey::Added);
    let listed = store.classic_keys(Some(&ada), None, 9).await?;
    equal!(listed.len(), 2);
    let one = listed.first().ok_or_else(|| Violation::new("no key"))?;
    equal!(store.revoke_classic_key(&one.key.name).await?, true);
    equal!(store.add_classic_key(key(&ada, "f")?).await?, AddedClassicKey::Added);
    Ok(())
}
