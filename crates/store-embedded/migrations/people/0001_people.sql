-- `people.db`: what the changes in the log say of accounts, credentials, conversations, members and
-- classic keys. It can be rebuilt from the log, apart from `members.read`, `credentials.seen_ms` and
-- `sources`. Numbered files are only ever added; a released one never changes.

-- Users. `id` is the number that entries, files and message ids refer to. `mac` covers the rest of
-- the row, without `id`, under the row key.
CREATE TABLE users (
    id         INTEGER PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    role       INTEGER NOT NULL,
    password   INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    mac        BLOB    NOT NULL
) STRICT;

-- Passwords, devices and invites in one table, so that a look-up costs the same whatever it finds.
-- `cid` is kind || id. `user` is the holder; for an invite, the only name that it can register.
-- `state`: 0 usable, 1 revoked, 2 used. `mac` covers everything but `seen_ms`.
CREATE TABLE credentials (
    cid        BLOB    PRIMARY KEY,
    user       TEXT,
    record     BLOB    NOT NULL,
    label      TEXT    NOT NULL,
    created_ms INTEGER NOT NULL,
    seen_ms    INTEGER NOT NULL,
    role       INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    made_by    TEXT,
    state      INTEGER NOT NULL,
    used_by    TEXT,
    mac        BLOB    NOT NULL
) STRICT, WITHOUT ROWID;
-- Usable devices of a user.
CREATE INDEX devices ON credentials (user, created_ms, cid)
    WHERE state = 0 AND substr(cid, 1, 1) = x'02';
-- Unused invites by their creator.
CREATE INDEX invites_open ON credentials (made_by, expires_ms)
    WHERE state = 0 AND made_by IS NOT NULL;

-- Rooms (`name`) and direct conversations (`low`, `high`: the two names in order). `members` is a
-- count, because the lobby has every user. `made_by`: the creator of a room; NULL: the server, or
-- unknown.
CREATE TABLE conversations (
    id         INTEGER PRIMARY KEY,
    name       TEXT    UNIQUE,
    low        TEXT    REFERENCES users (name),
    high       TEXT    REFERENCES users (name),
    topic      TEXT    NOT NULL,
    server_key BLOB    NOT NULL,
    members    INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    made_by    TEXT,
    UNIQUE (low, high),
    CHECK ((name IS NULL) = (low IS NOT NULL) AND (low IS NULL) = (high IS NULL))
) STRICT;
CREATE INDEX conversations_made ON conversations (made_by) WHERE made_by IS NOT NULL;
-- Rooms without the direct conversations, of which there may be many more.
CREATE INDEX rooms ON conversations (id) WHERE name IS NOT NULL;

CREATE TABLE members (
    conversation INTEGER NOT NULL REFERENCES conversations (id),
    user         TEXT    NOT NULL REFERENCES users (name),
    read         INTEGER NOT NULL,
    PRIMARY KEY (conversation, user)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_user ON members (user, conversation);

-- Keys of classic connections and of the origin bridge. A row has a salt and no key: the key is
-- derived from it, the name and the server's setup, which is not in the database. `sealed`: an
-- imported key, XORed with a pad derived from the same. `state`: 0 usable, 1 revoked. `mac` covers
-- the whole row.
CREATE TABLE classic_keys (
    name         TEXT    PRIMARY KEY,
    user         TEXT    NOT NULL REFERENCES users (name),
    conversation INTEGER NOT NULL REFERENCES conversations (id),
    form         INTEGER NOT NULL,
    salt         BLOB    NOT NULL,
    sealed       BLOB,
    created_ms   INTEGER NOT NULL,
    state        INTEGER NOT NULL,
    mac          BLOB    NOT NULL
) STRICT, WITHOUT ROWID;
-- Usable keys: all, those of a user, those of a form.
CREATE INDEX classic_usable ON classic_keys (name) WHERE state = 0;
CREATE INDEX classic_user ON classic_keys (user, name) WHERE state = 0;
CREATE INDEX classic_form ON classic_keys (form) WHERE state = 0;

-- Recent login sources, at most 16 for each user. `tag` is HMAC(row key, name, address prefix), so
-- the database alone reveals no address. `by_device`: only device logins came from it; they use at
-- most 4 of a user's rows and replace none.
CREATE TABLE sources (
    tag       BLOB    PRIMARY KEY,
    user      TEXT    NOT NULL REFERENCES users (name),
    seen_ms   INTEGER NOT NULL,
    by_device INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX sources_user ON sources (user, seen_ms);

-- The place in the log up to which the tables above are complete: one row, or none in a new
-- database. `record` is the record's id. `next_seq` is the sequence of the first record that is not
-- applied, `segment` and `byte` the place of the batch that begins with it.
CREATE TABLE position (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    record   BLOB    NOT NULL,
    next_seq INTEGER NOT NULL,
    segment  INTEGER NOT NULL,
    byte     INTEGER NOT NULL
) STRICT;

-- Files, one row for each file entry that is not erased: where its content is (`hash`) and its size.
-- `user` is the sender's number. In this database and not in the index of entries, because a file is
-- visible with its entry, and the index lags behind.
CREATE TABLE files (
    conversation INTEGER NOT NULL,
    n            INTEGER NOT NULL,
    user         INTEGER NOT NULL,
    hash         BLOB    NOT NULL,
    size         INTEGER NOT NULL,
    PRIMARY KEY (conversation, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX files_hash ON files (hash);
-- The number of files of each user, and their bytes as they are charged: 4096 is LEAST_CHARGE. Kept by
-- the table itself, so that asking costs the same for one file and for a million.
CREATE TABLE stored (
    user  INTEGER PRIMARY KEY,
    bytes INTEGER NOT NULL,
    files INTEGER NOT NULL
) STRICT;
CREATE TRIGGER files_come AFTER INSERT ON files BEGIN
    INSERT INTO stored (user, bytes, files) VALUES (new.user, MAX(new.size, 4096), 1)
        ON CONFLICT (user) DO UPDATE SET bytes = bytes + MAX(new.size, 4096), files = files + 1;
END;
CREATE TRIGGER files_go AFTER DELETE ON files BEGIN
    UPDATE stored SET bytes = bytes - MAX(old.size, 4096), files = files - 1 WHERE user = old.user;
END;

-- Entries whose erasure is in the log and that are not overwritten yet.
CREATE TABLE erasing (
    conversation INTEGER NOT NULL,
    n            INTEGER NOT NULL,
    PRIMARY KEY (conversation, n)
) STRICT, WITHOUT ROWID;
