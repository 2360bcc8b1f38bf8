//! Conformance tests of acts of power and their audit.

use twinlock_core::classic::ClassicScheme;
use twinlock_core::id::CredentialId;

use super::*;
use crate::{
    AUDIT, Act, Actor, AddedClassicKey, Administered, InviteState, LOBBY, ListedInvite,
    RevokedInvite, RoomKind, StoredClassicKey, StoredConversation,
};

fn by(user: &Name) -> Actor {
    Actor::Person { user: user.clone(), device: DeviceId([0xab; 16]) }
}

/// Performs an act that must succeed.
async fn done(store: &dyn Store, actor: Actor, act: Act) -> Result<crate::ActEffects, Violation> {
    match store.administer(actor, act.clone()).await? {
        Administered::Done(effects) => Ok(effects),
        other => Err(Violation::new(format!("{act:?}: {other:?}"))),
    }
}

async fn audit_of(store: &dyn Store, user: &Name) -> Result<Option<StoredConversation>, Violation> {
    let own = store.conversations(user, false, 0, 100).await?;
    Ok(own.into_iter().find(|one| one.kind == RoomKind::Audit))
}

async fn lines(
    bench: &Bench,
    store: &dyn Store,
    audit: ConversationId,
) -> Result<Vec<String>, Violation> {
    let entries = bench.verified(store, audit).await?;
    for entry in &entries {
        equal!((entry.kind, &*entry.sender), (EntryKind::SYSTEM, &b""[..]));
    }
    Ok(entries.iter().map(body).collect())
}

pub(super) async fn act__role_changes_with_an_entry_in_the_audit(bench: &Bench) -> Lawful {
    let store = bench.open()?;
    let ada = join_as(&*store, "ada", UserRole::Owner).await?;
    let bob = join_as(&*store, "bob", UserRole::Member).await?;
    equal!(audit_of(&*store, &ada).await?, None);
    let promote = Act::SetRole { user: bob.clone(), role: UserRole::Admin };
    // Refused acts leave nothing.
    equal!(
        store.administer(by(&bob), promote.clone()).await?,
        Administered::NotAllowed(Some(UserRole::Owner))
    );
    let eve = name("eve")?;
    equal!(store.administer(by(&eve), promote.clone()).await?, Administered::NotAllowed(None));
    let nobody = Act::Remove { user: eve.clone() };
    equal!(store.administer(by(&ada), nobody).await?, Administered::NotFound);
    equal!(audit_of(&*store, &ada).await?, None);
    let effects = done(&*store, by(&ada), promote.clone()).await?;
    let audit = audit_of(&*store, &ada).await?.ok_or_else(|| Violation::new("no audit"))?;
    equal!(effects.audit, Some((audit.id, vec![ada.clone()])));
    equal!(audit.form, crate::ConversationForm::Room(name(AUDIT)?));
    equal!(store.person(&bob).await?.map(|bob| bob.role), Some(UserRole::Admin));
    equal!(store.administer(by(&ada), promote).await?, Administered::Unchanged);
    let operator = Actor::Operator { uid: 7 };
    done(&*store, operator, Act::SetRole { user: bob.clone(), role: UserRole::Owner }).await?;
    store.close().await?;
    drop(store);
    let store = bench.open()?;
    let expected = [
        "ada/abababab changed the role of bob from member to admin",
        "operator (uid 7) changed the role of bob from admin to owner",
    ];
    equal!(lines(bench, &*store, audit.id).await?, expected);
    equal!(store.person(&bob).await?.map(|bob| bob.role), Some(UserRole::Owner));
    equal!(store.members(audit.id, None, 10).await?, vec![ada.clone(), bob.clone()]);
    let step_down = Act::SetRole { user: ada.clone(), role: UserRole::Member };
    let effects = done(&*store, by(&ada), step_down).await?;
    equal!(effects.audit, Some((audit.id, vec![ada.clone()])));
    equal!(store.members(audit.id, None, 10).await?, vec![bob]);
    equal!(audit_of(&*store, &ada).await?, None);
    Ok(())
}

pub(super) async fn act__one_owner_stays_under_concurrency(bench: &Bench) -> Lawful {
    let store = bench.open()?;
    let mut before: Option<Name> = None;
    for round in 0..12 {
        let ada = join_as(&*store, &format!("ada{round}"), UserRole::Owner).await?;
        let bob = join_as(&*store, &format!("bob{round}"), UserRole::Owner).await?;
        if let Some(before) = before.take() {
            done(&*store, by(&ada), Act::Remove { user: before }).await?;
        }
        // Each of the two owners acts on the other.
        let act = |actor: &Name, user: &Name| {
            let (store, actor, user) = (store.clone(), by(actor), user.clone());
            let act = match round % 3 {
                0 => Act::SetRole { user, role: UserRole::Member },
                1 => Act::Suspend { user },
                _ => Act::Remove { user },
            };
            tokio::spawn(async move { store.administer(actor, act).await })
        };
        let (one, other) = (act(&ada, &bob), act(&bob, &ada));
        let outcomes = [one.await??, other.await??];
        let succeeded = outcomes.iter().filter(|it| matches!(it, Administered::Done(_))).count();
        ensure!(succeeded == 1, "round {round}: {outcomes:?}");
        let last = if matches!(outcomes, [Administered::Done(_), _]) { ada } else { bob };
        for (actor, act) in [
            (by(&last), Act::SetRole { user: last.clone(), role: UserRole::Admin }),
            (by(&last), Act::Remove { user: last.clone() }),
            (Actor::Operator { uid: 0 }, Act::Suspend { user: last.clone() }),
        ] {
            equal!(store.administer(actor, act).await?, Administered::LastOwner);
        }
        before = Some(last);
    }
    Ok(())
}

pub(super) async fn act__demotion_revokes_invites_that_it_no_longer_allows(
    bench: &Bench,
) -> Lawful {
    let store = bench.open()?;
    let ada = join_as(&*store, "ada", UserRole::Owner).await?;
    let bob = join_as(&*store, "bob", UserRole::Owner).await?;
    let by_bob = async |role| -> Result<InviteId, Violation> {
        let invite = invite_by(&bob, role);
        let id = invite.id;
        equal!(store.add_invite(invite).await?, true);
        Ok(id)
    };
    let open = async |id| -> Result<bool, Violation> {
        Ok(store.credential(&CredentialId::Invite(id), START).await?.is_some())
    };
    let invites = [by_bob(UserRole::Member).await?, by_bob(UserRole::Owner).await?];
    done(&*store, by(&ada), Act::SetRole { user: bob.clone(), role: UserRole::Admin }).await?;
    equal!([open(invites[0]).await?, open(invites[1]).await?], [true, false]);
    done(&*store, by(&ada), Act::SetRole { user: bob.clone(), role: UserRole::Member }).await?;
    equal!(open(invites[0]).await?, false);
    // Nor can the invite be made any more.
    equal!(store.add_invite(invite_by(&bob, UserRole::Member)).await?, false);
    Ok(())
}

fn invite_by(user: &Name, role: UserRole) -> PreparedInvite {
    let id = InviteId(unique().to_be_bytes());
    let (record, made_by) = (vec![1; RECORD], Some(user.clone()));
    PreparedInvite { id, record, terms: terms(role), made_by, created_ms: START }
}

pub(super) async fn invite__is_listed_and_revoked_by_those_who_could_make_it(
    bench: &Bench,
) -> Lawful {
    let store = bench.open()?;
    let ada = join_as(&*store, "ada", UserRole::Owner).await?;
    let bob = join_as(&*store, "bob", UserRole::Admin).await?;
    let carol = join_as(&*store, "carol", UserRole::Member).await?;
    let (of_ada, of_bob) = (invite_by(&ada, UserRole::Owner), invite_by(&bob, UserRole::Member));
    let used = invite_by(&ada, UserRole::Member);
    for invite in [&of_ada, &of_bob, &used] {
        equal!(store.add_invite(invite.clone()).await?, true);
    }
    let dave = name("dave")?;
    store.register(registration(used.id, &dave), START).await?;
    let list = async |user: &Name| -> Result<Vec<(InviteId, InviteState)>, Violation> {
        let all = store.invites(user, None, 100).await?;
        let ours = [of_ada.id, of_bob.id, used.id];
        let listed = all.into_iter().filter(|one| ours.contains(&one.id));
        Ok(listed.map(|one| (one.id, one.state)).collect())
    };
    let (unused, by_dave) = (InviteState::Unused, InviteState::Used(dave));
    let (first, second) = ((of_ada.id, unused.clone()), (of_bob.id, unused.clone()));
    equal!(list(&ada).await?, vec![first, second.clone(), (used.id, by_dave.clone())]);
    // An admin sees no invite of an owner; a member sees none.
    equal!(list(&bob).await?, vec![second, (used.id, by_dave.clone())]);
    equal!(list(&carol).await?, vec![]);
    // Pages have no gaps.
    let all = store.invites(&ada, None, 100).await?;
    let mut paged: Vec<ListedInvite> = Vec::new();
    loop {
        let page = store.invites(&ada, paged.last().map(|last| last.id), 2).await?;
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    equal!(paged, all);
    let made = all.iter().find(|one| one.id == of_bob.id);
    equal!(made.map(|one| one.made_by.clone()), Some(Some(bob.clone())));
    let revoke = async |user: &Name, id: InviteId| store.revoke_invite(by(user), id).await;
    equal!(revoke(&bob, of_ada.id).await?, RevokedInvite::NotFound);
    equal!(revoke(&carol, of_bob.id).await?, RevokedInvite::NotFound);
    equal!(revoke(&ada, InviteId([0xee; 8])).await?, RevokedInvite::NotFound);
    equal!(revoke(&ada, used.id).await?, RevokedInvite::Gone);
    equal!(audit_of(&*store, &ada).await?, None);
    let done = revoke(&ada, of_bob.id).await?;
    ensure!(matches!(done, RevokedInvite::Done(_)), "{done:?}");
    equal!(revoke(&bob, of_bob.id).await?, RevokedInvite::Unchanged);
    let again = store.register(registration(of_bob.id, &name("eve")?), START).await?;
    equal!(again, Registered::InviteGone);
    equal!(list(&bob).await?, vec![(of_bob.id, InviteState::Revoked), (used.id, by_dave)]);
    let audit = audit_of(&*store, &ada).await?.ok_or_else(|| Violation::new("no audit"))?;
    let line = format!("ada/abababab revoked invite {} as member made by bob", of_bob.id);
    equal!(lines(bench, &*store, audit.id).await?, [line]);
    // An expired one cannot be revoked.
    bench.set_clock(START + 1000);
    equal!(revoke(&ada, of_ada.id).await?, RevokedInvite::Gone);
    Ok(())
}

/// A user with every kind of credential.
struct Holder {
    user: Name,
    device: CredentialId,
    invite: CredentialId,
    key: Name,
}

async fn holder(store: &dyn Store, user: &str) -> Result<Holder, Violation> {
    let user = join_as(store, user, UserRole::Admin).await?;
    store.set_password(&user, &[5; RECORD], START).await?;
    let device = device("second");
    let id = device.id;
    store.add_device(&user, device, START).await?;
    let invite = invite_by(&user, UserRole::Member);
    let invite_id = invite.id;
    equal!(store.add_invite(invite).await?, true);
    let key = name("lamp")?;
    let new = StoredClassicKey {
        name: key.clone(),
        user: user.clone(),
        conversation: LOBBY,
        form: ClassicScheme::Jwe,
        salt: [3; 32],
        sealed: None,
        created_ms: START,
    };
    equal!(store.add_classic_key(new).await?, AddedClassicKey::Added);
    let (device, invite) = (CredentialId::Device(id), CredentialId::Invite(invite_id));
    Ok(Holder { user, device, invite, key })
}

impl Holder {
    /// Which of password, device, invite and classic key are accepted, and whether entries are.
    async fn accepted(&self, store: &dyn Store) -> Result<[bool; 5], Violation> {
        let id = CredentialId::User(self.user.clone());
        let mut accepted = [false; 5];
        for (accepted, id) in accepted.iter_mut().zip([&id, &self.device, &self.invite]) {
            *accepted = store.credential(id, START).await?.is_some();
        }
        accepted[3] = store.classic_key(&self.key).await?.is_some();
        let appended = store.append(vec![entry(LOBBY, &self.user, "x")]).await?;
        accepted[4] = matches!(*appended, [Appended::Recorded(_)]);
        Ok(accepted)
    }
}

pub(super) async fn act__suspension_holds_until_restored(bench: &Bench) -> Lawful {
    let store = bench.open()?;
    let ada = join_as(&*store, "ada", UserRole::Owner).await?;
    let bob = holder(&*store, "bob").await?;
    equal!(bob.accepted(&*store).await?, [true; 5]);
    let suspend = || Act::Suspend { user: bob.user.clone() };
    done(&*store, by(&ada), suspend()).await?;
    equal!(bob.accepted(&*store).await?, [false; 5]);
    equal!(store.administer(by(&ada), suspend()).await?, Administered::Unchanged);
    // A suspended admin acts on nobody, and is still listed.
    let carol = join_as(&*store, "carol", UserRole::Member).await?;
    let act = Act::Remove { user: carol };
    equal!(store.administer(by(&bob.user), act).await?, Administered::NotAllowed(None));
    let people = store.people(None, 10).await?;
    let found = people.iter().find(|person| person.user == bob.user);
    equal!(found.map(|person| person.state), Some(crate::PersonState::Suspended));
    drop(store);
    let store = bench.open()?;
    equal!(bob.accepted(&*store).await?, [false; 5]);
    done(&*store, by(&ada), Act::Restore { user: bob.user.clone() }).await?;
    // The invite was revoked, and stays so.
    equal!(bob.accepted(&*store).await?, [true, true, false, true, true]);
    let audit = audit_of(&*store, &ada).await?.ok_or_else(|| Violation::new("no audit"))?;
    let expected = ["ada/abababab suspended bob", "ada/abababab restored bob"];
    equal!(lines(bench, &*store, audit.id).await?, expected);
    Ok(())
}

pub(super) async fn act__removal_is_final_and_keeps_name_and_entries(bench: &Bench) -> Lawful {
    let store = bench.open()?;
    let ada = join_as(&*store, "ada", UserRole::Owner).await?;
    let bob = holder(&*store, "bob").await?;
    let (ops, gone) = (name("ops")?, || Act::Remove { user: bob.user.clone() });
    let room = store.create_room(&bob.user, &ops, "").await?;
    let room = room.ok_or_else(|| Violation::new("no room"))?.id;
    store.join_room(&ada, &ops).await?;
    let direct = store.open_direct(&ada, &bob.user).await?;
    let direct = direct.ok_or_else(|| Violation::new("no conversation"))?.id;
    let said = entry(direct, &bob.user, "said before");
    let receipt = say(&*store, said.clone()).await?;
    let effects = done(&*store, by(&ada), gone()).await?;
    equal!(effects.left, vec![LOBBY, room]);
    equal!(bob.accepted(&*store).await?, [false; 5]);
    for id in [LOBBY, room] {
        equal!(store.members(id, None, 10).await?, vec![ada.clone()]);
        let entries = bench.verified(&*store, id).await?;
        equal!(entries.last().map(body).as_deref(), Some("bob was removed"));
    }
    equal!(
        bench.verified(&*store, direct).await?.iter().map(body).collect::<Vec<_>>(),
        ["said before"]
    );
    // Sent again, it is not recorded again, and its answer is not lost.
    equal!(store.append(vec![said]).await?, vec![Appended::Recorded(receipt)]);
    equal!(store.people(None, 10).await?.len(), 1);
    // The conversation is still found, and no other one begins.
    equal!(store.open_direct(&ada, &bob.user).await?.map(|found| found.id), Some(direct));
    let carol = join(&*store, "carol").await?;
    equal!(store.open_direct(&carol, &bob.user).await?, None);
    equal!(store.open_direct(&bob.user, &ada).await?, None);
    equal!(store.add_device(&bob.user, device("third"), START).await?, false);
    equal!(store.set_password(&bob.user, &[6; RECORD], START).await?, false);
    equal!(store.create_room(&bob.user, &name("mine")?, "").await?, None);
    equal!(store.join_room(&bob.user, &ops).await?, None);
    for act in [gone(), Act::Restore { user: bob.user.clone() }] {
        equal!(store.administer(by(&ada), act).await?, Administered::NotFound);
    }
    let invite = invite(&*store, terms(UserRole::Member)).await?;
    let again = store.register(registration(invite, &bob.user), START).await?;
    equal!(again, Registered::NameTaken);
    drop(store);
    let store = bench.open()?;
    equal!(bob.accepted(&*store).await?, [false; 5]);
    Ok(())
}

pub(super) async fn act__device_of_another_person_is_revoked(bench: &Bench) -> Lawful {
    let store = bench.open()?;
    let ada = join_as(&*store, "ada", UserRole::Owner).await?;
    let bob = holder(&*store, "bob").await?;
    let CredentialId::Device(device) = bob.device.clone() else {
        return Err(Violation::new("not a device"));
    };
    let revoke = |user: &Name| Act::RevokeDevice { user: user.clone(), device };
    // Not under another name, and not one's own: that takes the password.
    equal!(
        store.administer(by(&bob.user), revoke(&ada)).await?,
        Administered::NotAllowed(Some(UserRole::Owner))
    );
    equal!(
        store.administer(by(&bob.user), revoke(&bob.user)).await?,
        Administered::NotAllowed(None)
    );
    equal!(
        store.administer(Actor::Operator { uid: 0 }, revoke(&ada)).await?,
        Administered::NotFound
    );
    equal!(audit_of(&*store, &ada).await?, None);
    equal!(bob.accepted(&*store).await?, [true; 5]);
    done(&*store, by(&ada), revoke(&bob.user)).await?;
    equal!(bob.accepted(&*store).await?, [true, false, true, true, true]);
    equal!(store.administer(by(&ada), revoke(&bob.user)).await?, Administered::NotFound);
    let audit = audit_of(&*store, &ada).await?.ok_or_else(|| Violation::new("no audit"))?;
    let line = format!("ada/abababab revoked device {device} of bob");
    equal!(lines(bench, &*store, audit.id).await?, [line]);
    Ok(())
}

pub(super) async fn act__nothing_is_recorded_after_the_answer_to_a_removal(
    bench: &Bench,
) -> Lawful {
    let store = bench.open()?;
    let ada = join_as(&*store, "ada", UserRole::Owner).await?;
    let bob = join_as(&*store, "bob", UserRole::Member).await?;
    let notes = store.open_direct(&bob, &bob).await?;
    let notes = notes.ok_or_else(|| Violation::new("no conversation"))?.id;
    let flood: Vec<_> = (0..8)
        .map(|_| {
            let (store, bob) = (store.clone(), bob.clone());
            tokio::spawn(async move {
                let mut recorded = 0;
                loop {
                    let batch = (0..20).map(|_| entry(notes, &bob, "flood")).collect();
                    let appended = store.append(batch).await?;
                    let kept = appended.iter().filter(|it| matches!(it, Appended::Recorded(_)));
                    let kept = kept.count();
                    recorded += kept as u64;
                    if kept < appended.len() {
                        return Ok::<_, StoreError>(recorded);
                    }
                }
            })
        })
        .collect();
    while store.read(notes, 0, ALL).await?.head < 200 {
        tokio::task::yield_now().await;
    }
    done(&*store, by(&ada), Act::Remove { user: bob.clone() }).await?;
    let head = store.read(notes, 0, ALL).await?.head;
    let mut recorded = 0;
    for task in flood {
        recorded += task.await??;
    }
    equal!(store.read(notes, 0, ALL).await?.head, head);
    equal!(recorded, head);
    Ok(())
}

pub(super) async fn audit__is_read_by_owners_and_written_by_the_server(bench: &Bench) -> Lawful {
    let store = bench.open()?;
    let ada = join_as(&*store, "ada", UserRole::Owner).await?;
    let bob = join_as(&*store, "bob", UserRole::Admin).await?;
    let reserved = name(AUDIT)?;
    equal!(store.create_room(&ada, &reserved, "").await?, None);
    equal!(store.join_room(&ada, &reserved).await?, None);
    done(&*store, by(&ada), Act::SetRole { user: bob.clone(), role: UserRole::Member }).await?;
    let audit = audit_of(&*store, &ada).await?.ok_or_else(|| Violation::new("no audit"))?;
    equal!(store.room(&ada, &reserved).await?.map(|room| room.id), Some(audit.id));
    // Others neither see nor enter it.
    equal!(store.room(&bob, &reserved).await?, None);
    equal!(store.conversation(&bob, audit.id).await?, None);
    equal!(store.join_room(&bob, &reserved).await?, None);
    equal!(store.conversations(&bob, true, 0, 10).await?, vec![]);
    equal!(store.append(vec![entry(audit.id, &bob, "x")]).await?, vec![Appended::NotAMember]);
    // Owners do not write to it, change it or leave it.
    equal!(store.append(vec![entry(audit.id, &ada, "x")]).await?, vec![Appended::ReadOnly]);
    equal!(store.set_topic(&ada, audit.id, "x").await?, None);
    equal!(store.leave_room(&ada, audit.id).await?, false);
    let key = StoredClassicKey {
        name: name("lamp")?,
        user: ada.clone(),
        conversation: audit.id,
        form: ClassicScheme::Jwe,
        salt: [3; 32],
        sealed: None,
        created_ms: START,
    };
    equal!(store.add_classic_key(key).await?, AddedClassicKey::NotAMember);
    // New owners enter it, however they became one.
    let carol = join_as(&*store, "carol", UserRole::Owner).await?;
    done(&*store, by(&ada), Act::SetRole { user: bob.clone(), role: UserRole::Owner }).await?;
    equal!(store.members(audit.id, None, 10).await?, vec![ada, bob, carol]);
    equal!(lines(bench, &*store, audit.id).await?.len(), 2);
    Ok(())
}
