//! Acts of power over real sockets, by clients that check nothing themselves.

use crate::common::classic::{add_key, list_keys, revoke_key};
use crate::common::*;
use twinlock_core::frame::CloseCode;
use twinlock_core::proto::answer::Result as Answered;
use twinlock_core::proto::{self, RefusalReason, Role, item::What, request::Op};

const FORM: proto::ClassicForm = proto::ClassicForm::JweLines;
const PASSWORD: &str = "correct horse battery";

fn set_role(user: &str, role: Role) -> Op {
    Op::SetRole(proto::SetRole { user: user.into(), role: role.into() })
}

fn suspend(user: &str) -> Op {
    Op::SuspendPerson(proto::SuspendPerson { user: user.into() })
}

fn restore(user: &str) -> Op {
    Op::RestorePerson(proto::RestorePerson { user: user.into() })
}

fn remove(user: &str) -> Op {
    Op::RemovePerson(proto::RemovePerson { user: user.into() })
}

/// Registers a user of this role, and connects it.
async fn with_role(
    host: &TestServer,
    owner: &mut RawClient,
    user: &str,
    role: Role,
) -> (TestDevice, RawClient) {
    let invite = owner.invite(role, user).await.unwrap();
    let device = host.join(&invite, user).await;
    let client = host.connect(device.credential()).await.unwrap();
    (device, client)
}

async fn people(client: &mut RawClient) -> Vec<(String, Role, bool)> {
    let list = Op::ListPeople(proto::ListPeople::default());
    let Answered::People(found) = client.ask(list).await.unwrap() else { panic!("no people") };
    found.people.iter().map(|one| (one.user.clone(), one.role(), one.suspended)).collect()
}

async fn audit(client: &mut RawClient) -> Option<proto::Conversation> {
    let own = client.conversations().await;
    own.into_iter().find(|one| one.room_kind() == proto::RoomKind::Audit)
}

const ROLES: [Role; 3] = [Role::Member, Role::Admin, Role::Owner];

/// What docs/operating.md says, spelled out once more.
fn may(actor: Role, op: &Op, on: Role) -> bool {
    let at_rank = |role: Role| match actor {
        Role::Owner => true,
        Role::Admin => role == Role::Member,
        _ => false,
    };
    match op {
        Op::SetRole(want) => at_rank(on) && at_rank(want.role()),
        Op::MakeInvite(want) => match want.role() {
            Role::Owner => actor == Role::Owner,
            _ => actor == Role::Owner || actor == Role::Admin,
        },
        _ => at_rank(on),
    }
}

#[tokio::test]
async fn rights__every_role_gets_what_the_table_says() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let mut number = 0;
    for actor in ROLES {
        let name = format!("{actor:?}").to_lowercase();
        let (_, mut client) = with_role(&host, &mut ada, &name, actor).await;
        for on in ROLES {
            let invites = ROLES.map(|role| {
                Op::MakeInvite(proto::MakeInvite { role: role.into(), ..Default::default() })
            });
            let acts: Vec<fn(&str) -> Op> = vec![
                |user| set_role(user, Role::Member),
                |user| set_role(user, Role::Admin),
                |user| set_role(user, Role::Owner),
                suspend,
                restore,
                remove,
            ];
            for act in acts {
                number += 1;
                let user = format!("user{number}");
                let invite = ada.invite(on, &user).await.unwrap();
                host.join(&invite, &user).await;
                let op = act(&user);
                let allowed = may(actor, &op, on);
                let answer = client.ask(op.clone()).await.map(done);
                let expected = if allowed { Ok(()) } else { Err(RefusalReason::NotAllowed) };
                assert_eq!(answer, expected, "{actor:?}: {op:?} on {on:?}");
                // A refused act has no effect.
                let listed = people(&mut ada).await.into_iter().find(|one| one.0 == user);
                if !allowed {
                    assert_eq!(listed, Some((user, on, false)), "{actor:?}: {op:?} on {on:?}");
                }
            }
            for op in invites {
                let answer = client.ask(op.clone()).await.map(drop);
                assert_eq!(answer.is_ok(), may(actor, &op, on), "{actor:?}: {op:?}");
            }
        }
        let made = add_key(&mut client, &format!("key-{name}"), LOBBY, FORM).await.is_ok();
        assert_eq!(made, actor != Role::Member);
        add_key(&mut ada, &format!("other-{name}"), LOBBY, FORM).await.unwrap();
        let sees = list_keys(&mut client).await.iter().any(|key| key.1 == "ada");
        let revokes = revoke_key(&mut client, &format!("other-{name}")).await.is_ok();
        assert_eq!((sees, revokes), (actor != Role::Member, actor != Role::Member));
        // Only owners read the audit.
        assert_eq!(audit(&mut client).await.is_some(), actor == Role::Owner);
    }
}

#[tokio::test]
async fn device_of_another__is_listed_and_revoked_by_those_who_may() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let mut others = Vec::new();
    for role in ROLES {
        let name = format!("{role:?}").to_lowercase();
        others.push(with_role(&host, &mut ada, &name, role).await);
    }
    for (at, actor) in ROLES.into_iter().enumerate() {
        for on in ROLES {
            let user = format!("{on:?}{actor:?}").to_lowercase();
            let (device, mut theirs) = with_role(&host, &mut ada, &user, on).await;
            let (_, client) = &mut others[at];
            let list = Op::ListDevicesOf(proto::ListDevicesOf { user: user.clone() });
            let revoke = |device: &TestDevice| {
                let (user, device) = (user.clone(), copy(&device.id.0));
                Op::RevokeDeviceOf(proto::RevokeDeviceOf { user, device })
            };
            let expected =
                if may(actor, &list, on) { Ok(()) } else { Err(RefusalReason::NotAllowed) };
            let listed = client.ask(list).await.map(|answer| match answer {
                Answered::Devices(found) => assert_eq!(found.devices[0].id, device.id.0.as_slice()),
                other => panic!("{other:?}"),
            });
            assert_eq!(listed, expected, "{actor:?} lists devices of {on:?}");
            assert_eq!(client.ask(revoke(&device)).await.map(done), expected, "{actor:?}, {on:?}");
            if expected.is_ok() {
                assert_eq!(theirs.end().await.unwrap(), CloseCode::Revoked);
                assert!(host.connect(device.credential()).await.err().unwrap().is_refused());
                let again = client.ask(revoke(&device)).await.map(done);
                assert_eq!(again, Err(RefusalReason::NotFound));
            } else {
                theirs.append(LOBBY, "still here").await.unwrap();
            }
        }
    }
    // One's own device takes the password instead.
    let (device, owner) = &mut others[2];
    let (user, device) = ("owner".to_owned(), copy(&device.id.0));
    let own = Op::RevokeDeviceOf(proto::RevokeDeviceOf { user, device });
    assert_eq!(owner.ask(own).await.map(done), Err(RefusalReason::NotAllowed));
}

#[tokio::test]
async fn refusal__names_the_role_that_may() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let (_, mut bob) = host.member(&mut ada, "bob").await;
    with_role(&host, &mut ada, "carol", Role::Admin).await;
    host.member(&mut ada, "dave").await;
    assert_eq!(refused(&mut bob, remove("dave")).await.role(), Role::Admin);
    assert_eq!(refused(&mut bob, remove("carol")).await.role(), Role::Owner);
    assert_eq!(refused(&mut ada, remove("nobody")).await.why(), RefusalReason::NotFound);
    assert_eq!(refused(&mut ada, remove("No Name")).await.why(), RefusalReason::NameBad);
    let no_role = refused(&mut ada, set_role("bob", Role::None)).await;
    assert_eq!(no_role.why(), RefusalReason::Malformed);
    for act in [set_role("ada", Role::Member), remove("ada")] {
        assert_eq!(refused(&mut ada, act).await.why(), RefusalReason::LastOwner);
    }
    assert_eq!(refused(&mut ada, suspend("ada")).await.why(), RefusalReason::NotAllowed);
}

#[tokio::test]
async fn act__is_an_entry_that_owners_read_and_nobody_writes() {
    let host = TestServer::start().await;
    let (laptop, mut ada) = host.owner().await;
    host.member(&mut ada, "bob").await;
    assert_eq!(audit(&mut ada).await, None);
    ada.ask(set_role("bob", Role::Admin)).await.map(done).unwrap();
    let found = ada
        .pick("the audit", |item| match item {
            What::Conversation(changed) => Some(changed.clone()),
            _ => None,
        })
        .await;
    assert_eq!((found.name.as_str(), found.room_kind()), ("audit", proto::RoomKind::Audit));
    let read = ada.read(found.id, 0).await.unwrap();
    let by = format!("ada/{}", &laptop.id.to_string()[..8]);
    let expected = format!("{by} changed the role of bob from member to admin");
    assert_eq!(texts(&read.entries), [expected]);
    assert_eq!(ada.append(found.id, "x").await.map(drop), Err(RefusalReason::ReadOnly));
    let offer = proto::PutFile { conversation: found.id, ..put(random(), "x", 3) };
    assert_eq!(ada.offer(offer).await.map(drop), Err(RefusalReason::ReadOnly));
    let leave = Op::LeaveRoom(proto::LeaveRoom { conversation: found.id });
    assert_eq!(ada.ask(leave).await.map(drop), Err(RefusalReason::NotAllowed));
    // The same act again changes nothing, and is no entry.
    ada.ask(set_role("bob", Role::Admin)).await.map(done).unwrap();
    assert_eq!(ada.read(found.id, 0).await.unwrap().head, 1);
}

#[tokio::test]
async fn suspension__ends_sessions_and_holds_until_restored() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let invite = ada.invite(Role::Admin, "bob").await.unwrap();
    let mut joining = host.connect(invite.credential()).await.unwrap();
    let phone = joining.register("bob", Some(PASSWORD)).await.unwrap();
    let mut bob = host.connect(phone.credential()).await.unwrap();
    let mut by_password = host.connect(password("bob", PASSWORD)).await.unwrap();
    let unused = bob.invite(Role::Member, "").await.unwrap();
    ada.ask(suspend("bob")).await.map(done).unwrap();
    for client in [&mut bob, &mut by_password] {
        assert_eq!(client.end().await.unwrap(), CloseCode::Revoked);
    }
    for credential in [phone.credential(), password("bob", PASSWORD), unused.credential()] {
        assert!(host.connect(credential).await.err().unwrap().is_refused());
    }
    assert!(people(&mut ada).await.contains(&("bob".into(), Role::Admin, true)));
    ada.ask(restore("bob")).await.map(done).unwrap();
    assert!(people(&mut ada).await.contains(&("bob".into(), Role::Admin, false)));
    let mut bob = host.connect(phone.credential()).await.unwrap();
    bob.append(LOBBY, "here again").await.unwrap();
    assert!(host.connect(unused.credential()).await.err().unwrap().is_refused());
}

#[tokio::test]
async fn removal__nothing_is_recorded_or_delivered_after_its_answer() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let (phone, mut bob) = host.member(&mut ada, "bob").await;
    let (_, mut carol) = host.member(&mut ada, "carol").await;
    bob.follow(LOBBY, 0).await.unwrap();
    let started = std::sync::Arc::new(tokio::sync::Notify::new());
    let flood = tokio::spawn({
        let started = started.clone();
        async move {
            let mut posted = 0;
            loop {
                if !bob.connection.session().is_open() {
                    return bob;
                }
                for _ in 0..50 {
                    bob.post(append(LOBBY, "flood"));
                }
                posted += 50;
                if posted == 500 {
                    started.notify_one();
                }
                if bob.pump().await.is_err() {
                    return bob;
                }
            }
        }
    });
    started.notified().await;
    ada.ask(remove("bob")).await.map(done).unwrap();
    let head = ada.conversations().await[0].head;
    let bob = soon("the end of the flood", flood).await.unwrap();
    let last = carol.append(LOBBY, "after").await.unwrap().n;
    assert_eq!(last, head + 1, "an entry was recorded after the removal");
    let delivered = bob.items().filter_map(|item| match item {
        What::Entries(entries) => entries.entries.last().map(|entry| entry.n),
        _ => None,
    });
    assert!(delivered.max() <= Some(head), "an entry was delivered after the removal");
    assert!(host.connect(phone.credential()).await.err().unwrap().is_refused());
    let names: Vec<_> = people(&mut ada).await.into_iter().map(|one| one.0).collect();
    assert_eq!(names, ["ada", "carol"]);
    let list = proto::ListMembers { conversation: LOBBY, after: String::new() };
    let Answered::Members(members) = carol.ask(Op::ListMembers(list)).await.unwrap() else {
        panic!("no members")
    };
    assert_eq!(members.users, ["ada", "carol"]);
    // The name stays taken.
    let again = ada.invite(Role::Member, "bob").await.map(drop);
    assert_eq!(again, Err(RefusalReason::NameTaken));
}

#[tokio::test]
async fn removal__of_oneself_needs_the_password_if_there_is_one() {
    let host = TestServer::start().await;
    let (_, mut ada) = host.owner().await;
    let invite = ada.invite(Role::Member, "bob").await.unwrap();
    let mut joining = host.connect(invite.credential()).await.unwrap();
    let phone = joining.register("bob", Some(PASSWORD)).await.unwrap();
    let mut bob = host.connect(phone.credential()).await.unwrap();
    assert_eq!(bob.ask(remove("bob")).await.map(drop), Err(RefusalReason::LogInAgain));
    let proven = prove_password(&mut bob, &host.key(), password("bob", PASSWORD)).await;
    assert_eq!(proven, Some(Ok(())));
    bob.ask(remove("bob")).await.map(done).unwrap();
    assert_eq!(bob.end().await.unwrap(), CloseCode::Revoked);
    assert!(host.connect(phone.credential()).await.err().unwrap().is_refused());
    // Without a password, the device is all that the user has.
    let (device, mut carol) = host.member(&mut ada, "carol").await;
    carol.ask(remove("carol")).await.map(done).unwrap();
    assert_eq!(carol.end().await.unwrap(), CloseCode::Revoked);
    assert!(host.connect(device.credential()).await.err().unwrap().is_refused());
    assert_eq!(people(&mut ada).await.len(), 1);
}
