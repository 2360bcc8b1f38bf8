//! Conformance tests of users and credentials.

use twinlock_core::id::CredentialId;

use super::*;
use crate::{
    Holder, KNOWN_DEVICE_SOURCES, KNOWN_SOURCE_MS, KNOWN_SOURCES, LOBBY, LoginMethod, PersonState,
    StoredCredential, StoredDevice, StoredPerson,
};

pub(super) async fn invite__registers_exactly_one_user(bench: &Bench) -> Lawful {
    let store = bench.open()?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    let invite = invite(&*store, terms(UserRole::Owner)).await?;
    let with_password =
        Registration { password: Some(vec![7; RECORD]), ..registration(invite, &ada) };
    let done = store.register(with_password.clone(), START + 3).await?;
    let person = StoredPerson {
        user: ada.clone(),
        role: UserRole::Owner,
        password: true,
        created_ms: START + 3,
        state: PersonState::Active,
    };
    equal!(done, Registered::Done(person.clone()));
    equal!(store.person(&ada).await?, Some(person));
    // A used invite is refused to others and to the same user, and after reopening.
    equal!(store.register(registration(invite, &bob), START).await?, Registered::InviteGone);
    equal!(store.register(with_password, START).await?, Registered::InviteGone);
    drop(store);
    let store = bench.open()?;
    equal!(store.register(registration(invite, &bob), START).await?, Registered::InviteGone);
    equal!(store.credential(&CredentialId::Invite(invite), START).await?, None);
    equal!(store.person(&bob).await?, None);
    equal!(store.members(LOBBY, None, 10).await?, vec![ada]);
    Ok(())
}

pub(super) async fn invite__is_limited_to_its_name_role_and_expiry(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let (ada, bob, carol) = (name("ada")?, name("bob")?, name("carol")?);
    let unknown = registration(InviteId([0xee; 8]), &bob);
    equal!(store.register(unknown, START).await?, Registered::InviteGone);
    let for_bob = InviteTerms { user: Some(bob.clone()), ..terms(UserRole::Admin) };
    let invite = invite(&*store, for_bob.clone()).await?;
    // None of these uses up the invite.
    for (user, at, expected) in [
        (&carol, START, Registered::NotThisName),
        (&bob, for_bob.expires_ms, Registered::InviteGone),
        (&bob, for_bob.expires_ms + 1, Registered::InviteGone),
    ] {
        equal!(store.register(registration(invite, user), at).await?, expected);
    }
    let open = super::invite(&*store, terms(UserRole::Member)).await?;
    equal!(store.register(registration(open, &ada), START).await?, Registered::NameTaken);
    // Refused registrations leave nothing behind.
    equal!(store.person(&carol).await?, None);
    equal!(store.devices(&ada).await?.len(), 1);
    let last = for_bob.expires_ms - 1;
    let done = store.register(registration(invite, &bob), last).await?;
    let person = StoredPerson {
        user: bob,
        role: UserRole::Admin,
        password: false,
        created_ms: last,
        state: PersonState::Active,
    };
    equal!(done, Registered::Done(person));
    let done = store.register(registration(open, &carol), START).await?;
    ensure!(matches!(done, Registered::Done(_)), "a refusal used up an invite: {done:?}");
    Ok(())
}

pub(super) async fn invite__one_of_concurrent_uses_succeeds(bench: &Bench) -> Lawful {
    let store = bench.open()?;
    for round in 0..4 {
        let invite = invite(&*store, terms(UserRole::Member)).await?;
        let tasks: Vec<_> = (0..32)
            .map(|i| {
                let store = store.clone();
                tokio::spawn(async move {
                    let user = name(&format!("user{round}.{i}"))?;
                    Ok::<_, Violation>(store.register(registration(invite, &user), START).await?)
                })
            })
            .collect();
        let mut winners = 0;
        for task in tasks {
            match task.await?? {
                Registered::Done(_) => winners += 1,
                other => equal!(other, Registered::InviteGone),
            }
        }
        equal!(winners, 1);
        equal!(store.people(None, 100).await?.len(), round + 1);
    }
    Ok(())
}

pub(super) async fn registration__concurrent_same_name_succeeds_once(bench: &Bench) -> Lawful {
    let store = bench.open()?;
    let ada = name("ada")?;
    let mut tasks = Vec::new();
    for _ in 0..16 {
        let invite = invite(&*store, terms(UserRole::Member)).await?;
        let (store, ada) = (store.clone(), ada.clone());
        tasks.push(tokio::spawn(async move {
            Ok::<_, Violation>((invite, store.register(registration(invite, &ada), START).await?))
        }));
    }
    let (mut winners, mut losers) = (0, Vec::new());
    for task in tasks {
        match task.await?? {
            (_, Registered::Done(_)) => winners += 1,
            (invite, other) => {
                equal!(other, Registered::NameTaken);
                losers.push(invite);
            }
        }
    }
    equal!((winners, losers.len()), (1, 15));
    equal!(store.devices(&ada).await?.len(), 1);
    // A user who lost can register another name.
    for (i, invite) in losers.into_iter().enumerate() {
        let user = name(&format!("user{i}"))?;
        let done = store.register(registration(invite, &user), START).await?;
        ensure!(matches!(done, Registered::Done(_)), "a lost race used up an invite: {done:?}");
    }
    Ok(())
}

pub(super) async fn credential__reads_back_as_registered(bench: &Bench) -> Lawful {
    let store = bench.with(&["bob"]).await?;
    let ada = name("ada")?;
    let terms = InviteTerms { user: Some(ada.clone()), ..terms(UserRole::Admin) };
    let invite = invite(&*store, terms.clone()).await?;
    let id = CredentialId::Invite(invite);
    let expected = StoredCredential {
        record: vec![invite.0[7]; RECORD],
        holder: Holder::Invite(terms.clone()),
    };
    equal!(store.credential(&id, START).await?, Some(expected.clone()));
    equal!(store.credential(&id, terms.expires_ms - 1).await?, Some(expected));
    equal!(store.credential(&id, terms.expires_ms).await?, None);
    let device = device("laptop");
    let new = Registration {
        invite,
        user: ada.clone(),
        password: Some(vec![7; RECORD]),
        device: Some(device.clone()),
    };
    let Registered::Done(person) = store.register(new, START).await? else {
        return Err(Violation::new("ada was not registered"));
    };
    for (id, record, holder) in [
        (CredentialId::User(ada), vec![7; RECORD], Holder::User(person.clone())),
        (CredentialId::Device(device.id), device.record, Holder::Device(person, device.id)),
    ] {
        equal!(store.credential(&id, u64::MAX).await?, Some(StoredCredential { record, holder }));
    }
    for miss in [
        CredentialId::Invite(invite),
        CredentialId::Invite(InviteId([0xee; 8])),
        CredentialId::Device(DeviceId([0xee; 16])),
        CredentialId::User(name("unknown")?),
        // A user without a password.
        CredentialId::User(name("bob")?),
    ] {
        equal!(store.credential(&miss, START).await?, None);
    }
    Ok(())
}

pub(super) async fn password__is_set_and_replaced(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    equal!(store.person(&ada).await?.map(|p| p.password), Some(false));
    for byte in [1, 2] {
        equal!(store.set_password(&ada, &[byte; RECORD], START + 1).await?, true);
        let found = store.credential(&CredentialId::User(ada.clone()), START).await?;
        equal!(found.map(|c| c.record), Some(vec![byte; RECORD]));
        let person = store.person(&ada).await?;
        equal!(person.map(|p| (p.password, p.created_ms)), Some((true, START)));
    }
    let unknown = name("unknown")?;
    equal!(store.set_password(&unknown, &[1; RECORD], START).await?, false);
    equal!(store.credential(&CredentialId::User(unknown), START).await?, None);
    Ok(())
}

pub(super) async fn device__is_usable_and_listed_until_revoked(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    let (phone, desk) = (device("phone"), device("desk"));
    // Listed oldest first.
    equal!(store.add_device(&ada, phone.clone(), START + 20).await?, true);
    equal!(store.add_device(&ada, desk.clone(), START + 10).await?, true);
    equal!(store.add_device(&name("unknown")?, device("x"), START).await?, false);
    let labels =
        |devices: &[StoredDevice]| devices.iter().map(|d| d.label.clone()).collect::<Vec<_>>();
    let devices = store.devices(&ada).await?;
    equal!(labels(&devices), ["first", "desk", "phone"].map(String::from).to_vec());
    equal!(devices.last().map(|d| (d.id, d.created_ms)), Some((phone.id, START + 20)));
    // An existing id is never overwritten.
    let stolen = NewDevice { id: phone.id, label: "mine".into(), record: vec![9; RECORD] };
    ensure!(store.add_device(&bob, stolen, START).await.is_err(), "a device changed hands");
    let id = CredentialId::Device(phone.id);
    equal!(store.credential(&id, START).await?.map(|c| c.record), Some(phone.record.clone()));
    // Logins are noted asynchronously; a later synchronous write completes after them.
    store.touch_device(&phone.id, START + 500).await?;
    store.touch_device(&phone.id, START + 400).await?;
    store.touch_device(&DeviceId([0xee; 16]), START).await?;
    store.mark_read(&ada, LOBBY, 0).await?;
    let seen = store.devices(&ada).await?;
    equal!(seen.last().map(|d| d.seen_ms), Some(START + 500));
    ensure!(store.credential(&id, START).await?.is_some(), "a login unmade a credential");
    // Only its own user can revoke a device, and only once.
    equal!(store.revoke_device(&bob, &phone.id).await?, false);
    equal!(store.revoke_device(&ada, &DeviceId([0xee; 16])).await?, false);
    equal!(store.revoke_device(&ada, &phone.id).await?, true);
    equal!(store.revoke_device(&ada, &phone.id).await?, false);
    drop(store);
    let store = bench.open()?;
    equal!(store.credential(&id, START).await?, None);
    equal!(labels(&store.devices(&ada).await?), ["first", "desk"].map(String::from).to_vec());
    let other = store.credential(&CredentialId::Device(desk.id), START).await?;
    equal!(other.map(|c| c.record), Some(desk.record));
    equal!(store.devices(&bob).await?.len(), 1);
    Ok(())
}

pub(super) async fn people__list_is_sorted_by_name(bench: &Bench) -> Lawful {
    let store = bench.with(&["eve", "ada", "dan", "bob", "carol"]).await?;
    for page in [1, 2, 5, 9] {
        let mut users: Vec<Name> = Vec::new();
        loop {
            let more = store.people(users.last(), page).await?;
            ensure!(more.len() <= page, "a list of {page} has {}", more.len());
            if more.is_empty() {
                break;
            }
            for person in &more {
                equal!(store.person(&person.user).await?.as_ref(), Some(person));
            }
            users.extend(more.into_iter().map(|p| p.user));
        }
        let users: Vec<_> = users.iter().map(Name::as_str).collect();
        equal!(users, vec!["ada", "bob", "carol", "dan", "eve"]);
    }
    equal!(store.person(&name("unknown")?).await?, None);
    Ok(())
}

pub(super) async fn source__is_known_for_30_days_to_its_user_only(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob, unknown) = (name("ada")?, name("bob")?, name("unknown")?);
    let home: &[u8] = &[192, 0, 2, 1];
    equal!(store.is_known_source(&ada, home, START).await?, false);
    store.note_source(&ada, home, LoginMethod::Password, START).await?;
    store.note_source(&unknown, home, LoginMethod::Password, START).await?;
    // The writes are asynchronous; this synchronous one is queued behind them.
    store.mark_read(&ada, LOBBY, 0).await?;
    for (user, source, at, known) in [
        (&ada, home, START, true),
        (&ada, home, START + KNOWN_SOURCE_MS, true),
        (&ada, home, START + KNOWN_SOURCE_MS + 1, false),
        (&ada, &[192, 0, 2, 2], START, false),
        (&ada, &[192, 0, 2], START, false),
        (&bob, home, START, false),
        (&unknown, home, START, false),
    ] {
        equal!(store.is_known_source(user, source, at).await?, known);
    }
    // A later login extends the time, and an earlier one does not shorten it.
    let later = START + KNOWN_SOURCE_MS / 2;
    store.note_source(&ada, home, LoginMethod::Password, later).await?;
    store.note_source(&ada, home, LoginMethod::Password, START).await?;
    store.mark_read(&ada, LOBBY, 0).await?;
    equal!(store.is_known_source(&ada, home, later + KNOWN_SOURCE_MS).await?, true);
    drop(store);
    let store = bench.open()?;
    equal!(store.is_known_source(&ada, home, later).await?, true);
    store.note_source(&bob, home, LoginMethod::Password, later).await?;
    equal!(store.forget_sources(&ada).await?, 1);
    equal!(store.forget_sources(&ada).await?, 0);
    equal!(store.is_known_source(&ada, home, later).await?, false);
    equal!(store.is_known_source(&bob, home, later).await?, true);
    Ok(())
}

pub(super) async fn source__list_keeps_the_newest_of_a_user(bench: &Bench) -> Lawful {
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    store.note_source(&bob, &[0], LoginMethod::Password, START).await?;
    let max = u64::from(KNOWN_SOURCES);
    for n in 0..max + 4 {
        store.note_source(&ada, &n.to_be_bytes(), LoginMethod::Password, START + n).await?;
    }
    store.mark_read(&ada, LOBBY, 0).await?;
    for n in 0..max + 4 {
        equal!(store.is_known_source(&ada, &n.to_be_bytes(), START).await?, n >= 4);
    }
    equal!(store.is_known_source(&bob, &[0], START).await?, true);
    // Expired sources are deleted.
    let late = START + KNOWN_SOURCE_MS + max;
    store.note_source(&ada, &[7], LoginMethod::Password, late).await?;
    store.mark_read(&ada, LOBBY, 0).await?;
    equal!(store.forget_sources(&ada).await?, 5);
    equal!(store.forget_sources(&bob).await?, 1);
    Ok(())
}

pub(super) async fn source__device_login_replaces_no_other_source(bench: &Bench) -> Lawful {
    use LoginMethod::{Device, Password};
    let store = bench.with(&["ada", "bob"]).await?;
    let (ada, bob) = (name("ada")?, name("bob")?);
    let (places, devices) = (u64::from(KNOWN_SOURCES), u64::from(KNOWN_DEVICE_SOURCES));
    let [home, work] = [100, 101];
    let note = async |user: &Name, source: u8, method: LoginMethod, at: u64| -> Lawful {
        store.note_source(user, &[source], method, START + at).await?;
        // Returns after the note is written.
        store.mark_read(user, LOBBY, 0).await?;
        Ok(())
    };
    let is_known = async |user: &Name, source: u8| -> Result<bool, Violation> {
        Ok(store.is_known_source(user, &[source], START).await?)
    };
    // Many device logins, after a password login (ada) and after a device login (bob).
    note(&ada, home, Password, 0).await?;
    note(&bob, home, Device, 0).await?;
    for source in 0..20 {
        note(&ada, source, Device, 1).await?;
        note(&bob, source, Device, 1).await?;
    }
    for (user, known) in [(&ada, devices), (&bob, devices - 1)] {
        equal!(is_known(user, home).await?, true);
        for source in 0..20 {
            equal!(is_known(user, source).await?, u64::from(source) < known);
        }
    }
    // A password login removes its source from the device sources. A device login never does the
    // reverse.
    note(&ada, 0, Password, 2).await?;
    note(&ada, work, Device, 3).await?;
    note(&ada, 50, Device, 3).await?;
    note(&ada, home, Device, KNOWN_SOURCE_MS).await?;
    equal!(is_known(&ada, work).await?, true);
    equal!(is_known(&ada, 50).await?, false);
    // Password logins replace sources of device logins, oldest first, and then their own.
    for (more, source) in (1..=places - 2).zip(60..) {
        note(&ada, source, Password, 4).await?;
        equal!(is_known(&ada, work).await?, more < places - 2);
        equal!([is_known(&ada, home).await?, is_known(&ada, 0).await?], [true; 2]);
    }
    note(&ada, 90, Device, 5).await?;
    equal!(is_known(&ada, 90).await?, false);
    note(&ada, 91, Password, 5).await?;
    equal!([is_known(&ada, home).await?, is_known(&ada, 0).await?], [true, false]);
    // A device login has renewed it.
    let late = START + KNOWN_SOURCE_MS + places;
    equal!(store.is_known_source(&ada, &[home], late).await?, true);
    equal!(store.is_known_source(&bob, &[home], late).await?, false);
    // A source without a login expires after 30 days, which makes room for another.
    note(&bob, 50, Device, KNOWN_SOURCE_MS + places).await?;
    equal!(is_known(&bob, 50).await?, true);
    equal!(store.forget_sources(&bob).await?, 1);
    Ok(())
}

pub(super) async fn store__closed_refuses_requests_and_keeps_acked_entries(
    bench: &Bench,
) -> Lawful {
    let store = bench.with(&["ada"]).await?;
    let ada = name("ada")?;
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let (store, new) = (store.clone(), entry(LOBBY, &ada, "x"));
            tokio::spawn(async move { store.append(vec![new]).await })
        })
        .collect();
    store.close().await?;
    let mut acked = 0;
    for task in waiting {
        match task.await? {
            Ok(answers) => acked += receipts(answers)?.len(),
            Err(error) => equal!(error, StoreError::Closed),
        }
    }
    equal!(store.append(vec![entry(LOBBY, &ada, "x")]).await, Err(StoreError::Closed));
    equal!(store.read(LOBBY, 0, ALL).await, Err(StoreError::Closed));
    equal!(store.mark_read(&ada, LOBBY, 1).await, Err(StoreError::Closed));
    equal!(store.close().await, Ok(()));
    // The files are released, and contain everything that was acknowledged.
    let again = bench.open()?;
    let read = bench.verified(&*again, LOBBY).await?.len();
    ensure!(read >= acked, "{acked} were acknowledged, {read} are there");
    Ok(())
}
