//! Databases and heads for the tests of this module.

use std::cell::RefCell;
use std::collections::HashMap;

use rusqlite::Connection;
use rusqlite_migration::Migrations;
use twinlock_core::chain;
use twinlock_core::id::{ConversationId, Link, Name, ServerKey};

use crate::error::DbError;
use crate::people::{Heads, PEOPLE};

/// A database with the newest schema and no rows.
pub(crate) fn empty() -> Connection {
    let mut conn = Connection::open_in_memory().unwrap();
    conn.pragma_update(None, "foreign_keys", true).unwrap();
    Migrations::from_slice(PEOPLE.schema).to_latest(&mut conn).unwrap();
    conn
}

/// Heads with numbers, whose links are all the same. A missing one is 0.
#[derive(Default)]
pub(crate) struct NumberedHeads(pub(crate) RefCell<HashMap<ConversationId, u64>>);

impl Heads for NumberedHeads {
    fn head(&self, id: ConversationId, key: &ServerKey) -> Result<(u64, Link), DbError> {
        let n = self.0.borrow().get(&id).copied().unwrap_or_default();
        Ok((n, if n == 0 { chain::link_0(key, id) } else { Link([9; 32]) }))
    }

    fn own_after(
        &self,
        id: ConversationId,
        _: &Name,
        after: u64,
        last: u64,
    ) -> Result<u64, DbError> {
        let n = self.0.borrow().get(&id).copied().unwrap_or_default();
        Ok(n.min(last).saturating_sub(after))
    }
}
