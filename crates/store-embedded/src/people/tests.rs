//! The law of this module: the changes in the log give the tables that the writes left.

use rusqlite::Connection;
use rusqlite::types::Value;
use twinlock_core::classic::ClassicScheme;
use twinlock_core::id::{ConversationId, DeviceId, InviteId, Name, ServerKey};
use twinlock_core::keys::RowKey;
use twinlock_store::{
    Act, Actor, Appended, Bounds, InviteTerms, LOBBY, LoginMethod, NewDevice, PreparedInvite,
    Registration, StoreError, StoredClassicKey, UserRole,
};

use crate::error::DbError;
use crate::people::apply::apply;
use crate::people::changes::{Change, MemberJoined, PersonImage, decode, encode};
use crate::people::test_database::{self, NumberedHeads};
use crate::people::{
    WriteTransaction, accounts, administration, classic, conversations, members, sources,
};
use crate::row::run_sql;

const SERVER_KEY: ServerKey = ServerKey([1; 32]);
const BOUNDS: Bounds = Bounds { rooms: 3, memberships: 5, invites: 4, devices: 2, classic_keys: 2 };
const OPERATIONS: usize = 300;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// A sequence that a seed determines (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % end
    }

    fn chance(&mut self) -> bool {
        self.below(2) == 0
    }

    fn byte(&mut self, end: u64) -> u8 {
        u8::try_from(self.below(end)).unwrap()
    }

    fn name(&mut self, prefix: &str, count: u64) -> Name {
        name(&format!("{prefix}{}", self.below(count)))
    }

    fn user(&mut self) -> Name {
        self.name("user", 5)
    }

    fn device(&mut self) -> NewDevice {
        let id = DeviceId([self.byte(16); 16]);
        NewDevice { id, label: format!("label {}", self.below(3)), record: vec![2; 192] }
    }
}

/// A database, and the log that its writes went to.
struct Logged {
    conn: Connection,
    heads: NumberedHeads,
    key: RowKey,
    records: Vec<Vec<u8>>,
    now_ms: u64,
}

impl Logged {
    fn new() -> Self {
        let (conn, heads) = (test_database::empty(), NumberedHeads::default());
        let mut logged = Self { conn, heads, key: key(), records: Vec::new(), now_ms: 1_000 };
        let lobby = conversations::lobby_change(&SERVER_KEY, logged.now_ms);
        logged.write(|transaction, _| transaction.apply(lobby)).unwrap();
        logged
    }

    /// As the recorder does it: a write that fails leaves nothing.
    fn write<T>(
        &mut self,
        work: impl FnOnce(&mut WriteTransaction<'_>, &RowKey) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        run_sql(&self.conn, "SAVEPOINT job").unwrap();
        let mut transaction = WriteTransaction::new(&self.conn, &self.heads, self.now_ms);
        let done = work(&mut transaction, &self.key);
        let changes = transaction.changes;
        match &done {
            Ok(_) if changes.is_empty() => {}
            Ok(_) => self.records.push(encode(changes)),
            Err(_) => run_sql(&self.conn, "ROLLBACK TO job").unwrap(),
        }
        run_sql(&self.conn, "RELEASE job").unwrap();
        done
    }

    fn append(&self, id: ConversationId) {
        *self.heads.0.borrow_mut().entry(id).or_default() += 1;
    }

    /// Registers a user with an invite and a device, both with this number in their ids.
    fn register(&mut self, user: &Name, number: u8) {
        let invite = invite(number, None, None, u64::MAX >> 1);
        self.write(|t, key| accounts::add_invite(t, key, &invite, &BOUNDS)).unwrap();
        let device = NewDevice { id: DeviceId([number; 16]), label: "d".into(), record: vec![2] };
        let registration = Registration {
            invite: invite.id,
            user: user.clone(),
            password: None,
            device: Some(device),
        };
        let now_ms = self.now_ms;
        self.write(|t, key| accounts::register(t, key, &registration, now_ms)).unwrap();
    }

    /// One random operation. Many of them are refused, by their answer or with an error.
    fn operate(&mut self, random: &mut Random, unlogged: bool) {
        self.now_ms += random.below(1000);
        let now_ms = self.now_ms;
        let user = random.user();
        let id = 1 + random.below(6);
        let _refused: Result<(), DbError> = match random.below(if unlogged { 18 } else { 14 }) {
            0 => {
                let only = random.chance().then(|| random.user());
                let made_by = random.chance().then_some(user);
                let expires_ms = now_ms + random.below(20_000);
                let invite = invite(random.byte(20), only, made_by, expires_ms);
                self.write(|t, key| accounts::add_invite(t, key, &invite, &BOUNDS)).map(drop)
            }
            1 | 2 => {
                let registration = Registration {
                    invite: InviteId([random.byte(20); 8]),
                    user,
                    password: random.chance().then(|| vec![3; 192]),
                    device: random.chance().then(|| random.device()),
                };
                self.write(|t, key| accounts::register(t, key, &registration, now_ms)).map(drop)
            }
            3 => {
                let device = random.device();
                self.write(|t, key| accounts::add_device(t, key, &user, &device, now_ms, &BOUNDS))
                    .map(drop)
            }
            4 => {
                let record = [random.byte(9); 192];
                self.write(|t, key| accounts::set_password(t, key, &user, &record, now_ms))
                    .map(drop)
            }
            5 => {
                let device = random.device().id;
                self.write(|t, key| accounts::revoke_device(t, key, &user, &device)).map(drop)
            }
            6 => {
                let room = random.name("room", 6);
                self.write(|t, _| {
                    conversations::create_room(t, &user, &room, "", &SERVER_KEY, &BOUNDS)
                })
                .map(drop)
            }
            7 => {
                let room = random.name("room", 6);
                self.write(|t, _| conversations::join_room(t, &user, &room, &BOUNDS)).map(drop)
            }
            8 => self.write(|t, _| conversations::leave_room(t, &user, id)).map(drop),
            9 => {
                let topic = format!("topic {}", random.below(5));
                self.write(|t, _| conversations::set_topic(t, &user, id, &topic)).map(drop)
            }
            10 => {
                let other = random.user();
                self.write(|t, _| {
                    conversations::open_direct(t, &user, &other, &SERVER_KEY, &BOUNDS)
                })
                .map(drop)
            }
            11 => {
                let new = StoredClassicKey {
                    name: random.name("key", 5),
                    user,
                    conversation: id,
                    form: ClassicScheme::from_number(1 + random.byte(3)).unwrap(),
                    salt: [random.byte(9); 32],
                    sealed: random.chance().then_some([5; 32]),
                    created_ms: now_ms,
                };
                self.write(|t, key| classic::add(t, key, &new, &BOUNDS)).map(drop)
            }
            12 if random.chance() => {
                let name = random.name("key", 5);
                self.write(|t, key| classic::revoke(t, key, &name)).map(drop)
            }
            12 => {
                self.append(id);
                Ok(())
            }
            13 => {
                let by = match random.below(3) {
                    0 => Actor::Person { user: random.user(), device: random.device().id },
                    _ => Actor::Operator { uid: 0 },
                };
                let act = match random.below(8) {
                    // Rarely: it is final.
                    0 if random.chance() => Act::Remove { user },
                    0 | 1 => Act::Suspend { user },
                    2 => Act::Restore { user },
                    3 => Act::RevokeDevice { user, device: random.device().id },
                    _ => {
                        let role = UserRole::ALL[usize::from(random.byte(3))];
                        Act::SetRole { user, role }
                    }
                };
                self.write(|t, key| administration::administer(t, key, &SERVER_KEY, &by, &act))
                    .map(drop)
            }
            14 => members::mark_read(&self.conn, &self.heads, &user, id, random.below(20)),
            15 => accounts::touch_device(&self.conn, &random.device().id, now_ms),
            16 => {
                let source = [random.byte(30)];
                let method =
                    if random.chance() { LoginMethod::Password } else { LoginMethod::Device };
                sources::note(&self.conn, &self.key, &user, &source, method, now_ms)
            }
            _ => sources::forget(&self.conn, &user).map(drop),
        };
    }
}

fn key() -> RowKey {
    RowKey::new(&[7; 32])
}

fn invite(
    number: u8,
    user: Option<Name>,
    made_by: Option<Name>,
    expires_ms: u64,
) -> PreparedInvite {
    let terms = InviteTerms { role: UserRole::Member, user, expires_ms };
    PreparedInvite {
        id: InviteId([number; 8]),
        record: vec![1; 192],
        terms,
        made_by,
        created_ms: 1,
    }
}

/// All rows of all tables, without the unlogged columns if `unlogged` was written.
fn tables(conn: &Connection, unlogged: bool) -> Vec<(String, Vec<Value>)> {
    let mut columns = conn
        .prepare(
            "SELECT m.name, group_concat(c.name) FROM sqlite_schema m, pragma_table_info(m.name) c
             WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'
             AND NOT (?1 AND (m.name = 'sources'
                 OR m.name = 'members' AND c.name = 'read'
                 OR m.name = 'credentials' AND c.name = 'seen_ms'))
             GROUP BY m.name ORDER BY m.name",
        )
        .unwrap();
    let columns = columns
        .query_map([unlogged], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .collect::<Result<Vec<(String, String)>, _>>()
        .unwrap();
    assert!(columns.len() > 5, "{columns:?}");
    let mut rows = Vec::new();
    for (table, columns) in columns {
        let mut select =
            conn.prepare(&format!("SELECT {columns} FROM {table} ORDER BY 1, 2")).unwrap();
        let count = select.column_count();
        let values = select
            .query_map([], |row| (0..count).map(|i| row.get(i)).collect::<Result<Vec<Value>, _>>())
            .unwrap();
        rows.extend(values.map(|values| (table.clone(), values.unwrap())));
    }
    rows
}

fn replay(conn: &Connection, records: &[Vec<u8>], times: usize) {
    for change in records.iter().flat_map(|record| decode(record).unwrap()) {
        for _ in 0..times {
            apply(conn, &change).unwrap();
        }
    }
}

fn kind(change: &Change) -> usize {
    match change {
        Change::Person(_) => 0,
        Change::Credential(_) => 1,
        Change::Conversation(_) => 2,
        Change::Joined(_) => 3,
        Change::Left(_) => 4,
        Change::ClassicKey(_) => 5,
    }
}

#[test]
fn people__replay_of_the_log_gives_equal_tables() {
    let mut kinds = [0; 6];
    for seed in 0..60 {
        let mut random = Random(seed);
        let unlogged = seed % 2 == 0;
        let mut logged = Logged::new();
        for number in 0..3 {
            logged.register(&name(&format!("user{number}")), number);
        }
        for _ in 0..OPERATIONS {
            logged.operate(&mut random, unlogged);
        }
        let Logged { conn, records, .. } = logged;
        let expected = tables(&conn, unlogged);
        // Each change is applied once, twice, or again after all later ones.
        for times in [1, 2] {
            let replayed = test_database::empty();
            replay(&replayed, &records, times);
            assert_eq!(tables(&replayed, unlogged), expected, "seed {seed}, {times} times");
            replay(&replayed, &records, 1);
            assert_eq!(tables(&replayed, unlogged), expected, "seed {seed}, from the beginning");
        }
        // A crash loses the changes after some record, and the log has them.
        let replayed = test_database::empty();
        let (before, after) = records.split_at(records.len() / 2);
        replay(&replayed, before, 1);
        replay(&replayed, after, 1);
        assert_eq!(tables(&replayed, unlogged), expected, "seed {seed}, in two parts");
        let wrong: i64 = conn
            .query_row(
                "SELECT count(*) FROM conversations c WHERE members <>
                     (SELECT count(*) FROM members m WHERE m.conversation = c.id)",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!(wrong, 0, "seed {seed}");
        for change in records.iter().flat_map(|record| decode(record).unwrap()) {
            kinds[kind(&change)] += 1;
        }
    }
    assert!(kinds.iter().all(|count| *count > 50), "the operations do too little: {kinds:?}");
}

#[test]
fn people__failed_write_logs_nothing() {
    let mut logged = Logged::new();
    let [ada, bob] = ["ada", "bob"].map(name);
    logged.register(&ada, 1);
    let invite = invite(2, None, None, u64::MAX >> 1);
    logged.write(|t, key| accounts::add_invite(t, key, &invite, &BOUNDS)).unwrap();
    let before = (logged.records.len(), tables(&logged.conn, false));
    // The device's id is taken, which the write finds after it has applied changes.
    let device = NewDevice { id: DeviceId([1; 16]), label: "d".into(), record: vec![2] };
    let registration =
        Registration { invite: invite.id, user: bob, password: None, device: Some(device) };
    let refused = logged.write(|t, key| accounts::register(t, key, &registration, 5));
    assert!(matches!(refused, Err(DbError(StoreError::Database(_)))), "{refused:?}");
    assert_eq!((logged.records.len(), tables(&logged.conn, false)), before);
}

#[test]
fn people__change_of_another_log_is_damage() {
    let conn = test_database::empty();
    let image = |id, name: &str| {
        let name = name.to_owned();
        Change::Person(PersonImage { id, name, mac: vec![0; 32], ..PersonImage::default() })
    };
    apply(&conn, &image(1, "ada")).unwrap();
    let joined = Change::Joined(MemberJoined { conversation: 9, user: "ada".into(), read: 0 });
    for change in [image(1, "bob"), image(2, "ada"), joined] {
        let refused = apply(&conn, &change);
        assert!(matches!(refused, Err(DbError(StoreError::Damaged(_)))), "{change:?}: {refused:?}");
    }
}

#[test]
fn member__number_key_and_departure_are_what_the_recorder_needs() {
    let mut logged = Logged::new();
    let [ada, bob] = ["ada", "bob"].map(name);
    logged.register(&ada, 1);
    logged.register(&bob, 2);
    let conn = &logged.conn;
    assert_eq!(members::writer(conn, LOBBY, &bob).unwrap(), Ok(2));
    assert_eq!(members::writer(conn, 2, &bob).unwrap(), Err(Appended::NotAMember));
    let eve = members::writer(conn, LOBBY, &name("eve")).unwrap();
    assert_eq!(eve, Err(Appended::NotAMember));
    assert_eq!(conversations::server_key(conn, LOBBY).unwrap(), Some(SERVER_KEY));
    assert_eq!(conversations::server_key(conn, 2).unwrap(), None);
    assert_eq!(conversations::lobby_key(&test_database::empty()).unwrap(), None);
    let room = name("room");
    let made = logged
        .write(|t, _| conversations::create_room(t, &ada, &room, "", &SERVER_KEY, &BOUNDS))
        .unwrap()
        .unwrap();
    let left = |logged: &mut Logged, user: &Name, id| {
        logged
            .write(|t, _| {
                let left = conversations::leave_room(t, user, id)?;
                Ok((left, t.left.clone()))
            })
            .unwrap()
    };
    assert_eq!(left(&mut logged, &ada, LOBBY), (false, vec![]));
    assert_eq!(left(&mut logged, &bob, made.id), (false, vec![]));
    assert_eq!(left(&mut logged, &ada, made.id), (true, vec![(made.id, ada.clone())]));
    assert_eq!(left(&mut logged, &ada, made.id), (false, vec![]));
    assert!(!members::is_member(&logged.conn, made.id, &ada).unwrap());
}

#[test]
fn read_marker__begins_at_the_head_and_never_passes_it() {
    let mut logged = Logged::new();
    let ada = name("ada");
    for _ in 0..5 {
        logged.append(LOBBY);
    }
    logged.register(&ada, 1);
    let read = |logged: &Logged| {
        let one = conversations::one(&logged.conn, &logged.heads, &ada, LOBBY).unwrap().unwrap();
        (one.read, one.head)
    };
    assert_eq!(read(&logged), (5, 5));
    logged.append(LOBBY);
    for (n, expected) in [(3, 5), (6, 6), (u64::MAX, 6), (5, 6)] {
        members::mark_read(&logged.conn, &logged.heads, &ada, LOBBY, n).unwrap();
        assert_eq!(read(&logged), (expected, 6), "{n}");
    }
    // No such conversation.
    members::mark_read(&logged.conn, &logged.heads, &ada, 99, 1).unwrap();
}

#[test]
fn device__last_login_survives_a_change_and_is_not_logged() {
    let mut logged = Logged::new();
    let ada = name("ada");
    logged.register(&ada, 1);
    let seen = |conn: &Connection| -> u64 {
        conn.query_row(
            "SELECT seen_ms FROM credentials WHERE substr(cid, 1, 1) = x'02'",
            [],
            |row| crate::row::get_uint(row, 0),
        )
        .unwrap()
    };
    let enrolled = logged.now_ms;
    assert_eq!(seen(&logged.conn), enrolled);
    accounts::touch_device(&logged.conn, &DeviceId([1; 16]), enrolled + 9).unwrap();
    logged.write(|t, key| accounts::revoke_device(t, key, &ada, &DeviceId([1; 16]))).unwrap();
    assert_eq!(seen(&logged.conn), enrolled + 9);
    let replayed = test_database::empty();
    replay(&replayed, &logged.records, 1);
    assert_eq!(seen(&replayed), enrolled);
}
