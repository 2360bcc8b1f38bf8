//! How the commands spell roles.

use twinlock_client::directory::Role;

/// A role as the command line and JSON spell it.
pub(crate) fn role_word(role: Role) -> &'static str {
    match role {
        Role::None => "none",
        Role::Member => "member",
        Role::Admin => "admin",
        Role::Owner => "owner",
    }
}
