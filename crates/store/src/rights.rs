//! The rights of the roles: what a user of a role may do, and to whom.
//!
//! This is the only place that knows it. The server asks before it starts, a store asks again in the
//! transaction of the act, and the table in docs/operating.md is compared with [`ON_PEOPLE`] by a
//! test. No user acts on users of the same role, except an owner.

use twinlock_core::id::{InviteId, Name};

use crate::accounts::{PersonState, StoredPerson, UserRole};
use crate::administration::{Act, Actor};

use UserRole::{Admin, Member, Owner};

/// What one user may do to another, or with the credentials of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Right {
    /// Invite a person as this role.
    Invite,
    /// Change a person's role, from this one and to this one.
    SetRole,
    /// Suspend and restore a person.
    Suspend,
    /// Remove a person.
    Remove,
    /// See and revoke a person's devices.
    ManageDevices,
}

/// Which roles a right is about, for each role that may have it.
#[derive(Debug, Clone, Copy)]
pub struct RightRow {
    /// The right.
    pub right: Right,
    /// On whom an admin has it.
    pub admin: &'static [UserRole],
    /// On whom an owner has it.
    pub owner: &'static [UserRole],
}

/// The rights on people. Members have none of them.
pub const ON_PEOPLE: [RightRow; 5] = [
    RightRow { right: Right::Invite, admin: &[Member, Admin], owner: &[Member, Admin, Owner] },
    RightRow { right: Right::SetRole, admin: &[Member], owner: &[Member, Admin, Owner] },
    RightRow { right: Right::Suspend, admin: &[Member], owner: &[Member, Admin, Owner] },
    RightRow { right: Right::Remove, admin: &[Member], owner: &[Member, Admin, Owner] },
    RightRow { right: Right::ManageDevices, admin: &[Member], owner: &[Member, Admin, Owner] },
];

/// Whether a user of role `role` has the right on somebody of role `on`.
///
/// ```
/// use twinlock_store::UserRole::{Admin, Member};
/// use twinlock_store::rights::{Right, may};
///
/// assert!(may(Admin, Right::Remove, Member));
/// assert!(!may(Admin, Right::Remove, Admin));
/// ```
#[must_use]
pub fn may(role: UserRole, right: Right, on: UserRole) -> bool {
    let allowed = |row: &RightRow| match role {
        Owner => row.owner.contains(&on),
        Admin => row.admin.contains(&on),
        Member => false,
    };
    ON_PEOPLE.iter().any(|row| row.right == right && allowed(row))
}

/// The least powerful role that has the right on somebody of role `on`, for a refusal.
#[must_use]
pub fn required(right: Right, on: UserRole) -> UserRole {
    if may(Admin, right, on) { Admin } else { Owner }
}

/// Whether an invite by `made_by` as `role` is shown to a user, who may then revoke it: the user made
/// it, or could have made it.
#[must_use]
pub fn sees_invite(user: &StoredPerson, made_by: Option<&Name>, role: UserRole) -> bool {
    user.is_active() && (made_by == Some(&user.user) || may(user.role, Right::Invite, role))
}

/// Whether a role may make classic keys, and see and revoke those of others.
#[must_use]
pub fn manages_classic_keys(role: UserRole) -> bool {
    match role {
        Admin | Owner => true,
        Member => false,
    }
}

/// What the rights say of an act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may be done.
    Do,
    /// It is so already.
    Unchanged,
    /// The actor may not do it. The role that may, if there is one.
    NotAllowed(Option<UserRole>),
    /// The server would have no owner.
    LastOwner,
}

/// Judges an act on `person`, who is not removed. `actor`: the actor's row; `None` for the operator,
/// who may do everything. `is_last_owner`: no other owner is active.
#[must_use]
pub fn judge(
    act: &Act,
    actor: Option<&StoredPerson>,
    person: &StoredPerson,
    is_last_owner: bool,
) -> Verdict {
    let is_self = actor.is_some_and(|actor| actor.user == person.user);
    let refused = match actor {
        None => None,
        Some(actor) if !actor.is_active() => Some(None),
        Some(actor) => {
            let lacks = |right, on: &[UserRole]| {
                let may = |role| on.iter().all(|on| may(role, right, *on));
                (!may(actor.role)).then(|| Some(if may(Admin) { Admin } else { Owner }))
            };
            match act {
                Act::SetRole { role, .. } => lacks(Right::SetRole, &[person.role, *role]),
                // It would shut out the only one who can undo it.
                Act::Suspend { .. } if is_self => Some(None),
                Act::Suspend { .. } | Act::Restore { .. } => lacks(Right::Suspend, &[person.role]),
                Act::Remove { .. } if is_self => None,
                // A stolen device must not lock out the others: this needs the password.
                Act::RevokeDevice { .. } if is_self => Some(None),
                Act::RevokeDevice { .. } => lacks(Right::ManageDevices, &[person.role]),
                Act::Remove { .. } => lacks(Right::Remove, &[person.role]),
            }
        }
    };
    if let Some(role) = refused {
        return Verdict::NotAllowed(role);
    }
    let (unchanged, ends_owner) = match act {
        Act::SetRole { role, .. } => (*role == person.role, *role != Owner),
        Act::Suspend { .. } => (person.state == PersonState::Suspended, true),
        Act::Restore { .. } => (person.is_active(), false),
        Act::Remove { .. } => (false, true),
        Act::RevokeDevice { .. } => (false, false),
    };
    match unchanged {
        true => Verdict::Unchanged,
        false if ends_owner && person.role == Owner && is_last_owner => Verdict::LastOwner,
        false => Verdict::Do,
    }
}

/// The line of the audit for a revoked invite.
#[must_use]
pub fn invite_line(by: &Actor, id: &InviteId, role: UserRole, made_by: Option<&Name>) -> String {
    let made_by = made_by.map_or_else(String::new, |maker| format!(" made by {maker}"));
    format!("{by} revoked invite {id} as {}{made_by}", role.word())
}

/// The line of the audit for an act on `person`, as the person was before.
#[must_use]
pub fn audit_line(by: &Actor, act: &Act, person: &StoredPerson) -> String {
    let user = &person.user;
    match act {
        Act::SetRole { role, .. } => {
            format!(
                "{by} changed the role of {user} from {} to {}",
                person.role.word(),
                role.word()
            )
        }
        Act::Suspend { .. } => format!("{by} suspended {user}"),
        Act::Restore { .. } => format!("{by} restored {user}"),
        Act::Remove { .. } => format!("{by} removed {user}"),
        Act::RevokeDevice { device, .. } => format!("{by} revoked device {device} of {user}"),
    }
}

#[cfg(test)]
mod tests {
    use twinlock_core::id::DeviceId;

    use super::*;

    fn person(user: &str, role: UserRole, state: PersonState) -> StoredPerson {
        let user = Name::new(user).unwrap();
        StoredPerson { user, role, password: false, created_ms: 1, state }
    }

    fn acts(user: &Name) -> Vec<Act> {
        let user = || user.clone();
        let roles = UserRole::ALL.map(|role| Act::SetRole { user: user(), role });
        let others = [
            Act::Suspend { user: user() },
            Act::Restore { user: user() },
            Act::Remove { user: user() },
            Act::RevokeDevice { user: user(), device: DeviceId([0xcd; 16]) },
        ];
        roles.into_iter().chain(others).collect()
    }

    #[test]
    fn rights__nobody_acts_on_own_rank_or_above_but_an_owner() {
        for actor in UserRole::ALL {
            for on in UserRole::ALL {
                let allowed = matches!((actor, on), (Owner, _) | (Admin, Member));
                let rights = [Right::SetRole, Right::Suspend, Right::Remove, Right::ManageDevices];
                for right in rights {
                    assert_eq!(may(actor, right, on), allowed, "{actor:?} {right:?} {on:?}");
                }
                let invites = allowed || (actor, on) == (Admin, Admin);
                assert_eq!(may(actor, Right::Invite, on), invites, "{actor:?} invites {on:?}");
            }
        }
    }

    #[test]
    fn rights__every_act_of_every_role_is_judged() {
        let bob = person("bob", Member, PersonState::Active);
        for actor_role in UserRole::ALL {
            let actor = person("ada", actor_role, PersonState::Active);
            for on in UserRole::ALL {
                for state in [PersonState::Active, PersonState::Suspended] {
                    let person = StoredPerson { role: on, state, ..bob.clone() };
                    for act in acts(&bob.user) {
                        let verdict = judge(&act, Some(&actor), &person, false);
                        let right = matches!((actor_role, on), (Owner, _) | (Admin, Member));
                        let raises = matches!(&act, Act::SetRole { role, .. }
                            if actor_role != Owner && *role != Member);
                        let is_so = match &act {
                            Act::SetRole { role, .. } => *role == on,
                            Act::Suspend { .. } => state == PersonState::Suspended,
                            Act::Restore { .. } => state == PersonState::Active,
                            Act::Remove { .. } | Act::RevokeDevice { .. } => false,
                        };
                        let case = format!("{actor_role:?}: {act:?} on {on:?}, {state:?}");
                        match (right && !raises, is_so) {
                            (false, _) => {
                                assert!(matches!(verdict, Verdict::NotAllowed(Some(_))), "{case}")
                            }
                            (true, true) => assert_eq!(verdict, Verdict::Unchanged, "{case}"),
                            (true, false) => assert_eq!(verdict, Verdict::Do, "{case}"),
                        }
                        // The operator may do everything, and a suspended actor nothing.
                        let by_operator = judge(&act, None, &person, false);
                        assert!(!matches!(by_operator, Verdict::NotAllowed(_)), "{case}");
                        let out = StoredPerson { state: PersonState::Suspended, ..actor.clone() };
                        let by_suspended = judge(&act, Some(&out), &person, false);
                        assert_eq!(by_suspended, Verdict::NotAllowed(None), "{case}");
                    }
                }
            }
        }
    }

    #[test]
    fn rights__manual_has_the_same_table() {
        let manual = include_str!("../../../docs/operating.md");
        let words = |roles: &[UserRole]| roles.iter().map(|role| role.word()).collect::<Vec<_>>();
        for RightRow { right, admin, owner } in ON_PEOPLE {
            let act = match right {
                Right::Invite => "invite a person as",
                Right::SetRole => "change the role, from and to",
                Right::Suspend => "suspend and restore",
                Right::Remove => "remove",
                Right::ManageDevices => "see and revoke devices of",
            };
            let row =
                format!("| {act} | {} | {} |", words(admin).join(", "), words(owner).join(", "));
            assert!(manual.contains(&row), "docs/operating.md lacks {row}");
        }
    }

    #[test]
    fn rights__last_owner_stays() {
        let ada = person("ada", Owner, PersonState::Active);
        for act in acts(&ada.user) {
            for actor in [None, Some(&ada)] {
                let verdict = judge(&act, actor, &ada, true);
                let expected = match (&act, actor) {
                    (Act::SetRole { role: Owner, .. } | Act::Restore { .. }, _) => {
                        Verdict::Unchanged
                    }
                    (Act::Suspend { .. } | Act::RevokeDevice { .. }, Some(_)) => {
                        Verdict::NotAllowed(None)
                    }
                    (Act::RevokeDevice { .. }, None) => Verdict::Do,
                    _ => Verdict::LastOwner,
                };
                assert_eq!(verdict, expected, "{act:?}");
            }
        }
    }

    #[test]
    fn rights__everybody_may_remove_the_own_account() {
        for role in UserRole::ALL {
            let me = person("ada", role, PersonState::Active);
            let act = Act::Remove { user: me.user.clone() };
            assert_eq!(judge(&act, Some(&me), &me, false), Verdict::Do);
        }
    }

    #[test]
    fn audit__line_names_actor_act_and_person() {
        let bob = person("bob", Member, PersonState::Active);
        let ada = Actor::Person { user: Name::new("ada").unwrap(), device: DeviceId([0xab; 16]) };
        let lines = acts(&bob.user).into_iter().map(|act| audit_line(&ada, &act, &bob));
        let lines: Vec<_> = lines.collect();
        assert_eq!(lines[1], "ada/abababab changed the role of bob from member to admin");
        assert_eq!(lines[3], "ada/abababab suspended bob");
        let device = "cd".repeat(16);
        assert_eq!(lines[6], format!("ada/abababab revoked device {device} of bob"));
        let by = Actor::Operator { uid: 1000 };
        let line = audit_line(&by, &Act::Remove { user: bob.user.clone() }, &bob);
        assert_eq!(line, "operator (uid 1000) removed bob");
    }
}
