//! `people.db`: accounts, credentials, conversations, members and classic keys.
//!
//! A write reads the tables and makes [`changes`] through a [`WriteTransaction`], which become a
//! record of the log. Only [`apply`] writes what the log covers, for a write as well as for the
//! replay at a start. Read markers, the times of device logins and the login sources are written
//! directly and are not in the log.

pub(crate) mod accounts;
pub(crate) mod administration;
pub(crate) mod apply;
mod bounded;
pub(crate) mod changes;
pub(crate) mod classic;
pub(crate) mod conversations;
pub(crate) mod credentials;
pub(crate) mod files;
pub(crate) mod members;
pub(crate) mod sources;
#[cfg(test)]
mod test_database;
#[cfg(test)]
mod tests;
mod transaction;
pub(crate) mod writer;

pub(crate) use transaction::{Heads, WriteTransaction};

use rusqlite_migration::M;

use crate::database::DatabaseKind;

/// The database of this module.
pub(crate) const PEOPLE: DatabaseKind = DatabaseKind {
    file: "people.db",
    schema: &[
        M::up(include_str!("../../migrations/people/0001_people.sql")),
        M::up(include_str!("../../migrations/people/0002_erasing_files.sql")),
        M::up(include_str!("../../migrations/people/0003_roles_and_audit.sql")),
    ],
    tables: &["users", "conversations", "members", "position"],
    cache: 4 * 1024,
    is_checked: true,
    auto_checkpoint: 0,
};
