-- The record as version 1 keeps it. Numbered files are only ever added; none is edited.

-- People. `id` is what the entries' uniqueness goes by; `mac` covers the rest of the row under
-- the row key.
CREATE TABLE users (
    id         INTEGER PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    role       INTEGER NOT NULL,
    password   INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    mac        BLOB    NOT NULL
) STRICT;

-- Passwords, devices and invites in one table, so that looking one up costs the same whatever is
-- found. `cid` is kind || id. `user` is who holds it, of an invite the only name it is for.
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
CREATE INDEX credentials_user ON credentials (user) WHERE user IS NOT NULL;

-- Rooms (`name`) and direct conversations (`low`, `high`: the two names in order). `members` is
-- counted along, because the lobby has everybody in it.
CREATE TABLE conversations (
    id         INTEGER PRIMARY KEY,
    name       TEXT    UNIQUE,
    low        TEXT    REFERENCES users (name),
    high       TEXT    REFERENCES users (name),
    topic      TEXT    NOT NULL,
    server_key BLOB    NOT NULL,
    members    INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    UNIQUE (low, high),
    CHECK ((name IS NULL) = (low IS NOT NULL) AND (low IS NULL) = (high IS NULL))
) STRICT;

CREATE TABLE members (
    conversation INTEGER NOT NULL REFERENCES conversations (id),
    user         TEXT    NOT NULL REFERENCES users (name),
    read         INTEGER NOT NULL,
    PRIMARY KEY (conversation, user)
) STRICT, WITHOUT ROWID;
CREATE INDEX members_user ON members (user, conversation);

-- The entries of all conversations, in the order of their recording, so that a commit writes
-- whole new pages at the end. `user` is the sender's number, 0 for the server. An erased entry
-- has a commit in place of salt and body. No foreign keys: the recorder has just looked.
CREATE TABLE entries (
    seq          INTEGER PRIMARY KEY,
    conversation INTEGER NOT NULL,
    n            INTEGER NOT NULL,
    time_ms      INTEGER NOT NULL,
    user         INTEGER NOT NULL,
    message_id   BLOB    NOT NULL,
    kind         INTEGER NOT NULL,
    sender       BLOB    NOT NULL,
    link         BLOB    NOT NULL,
    "commit"     BLOB,
    salt         BLOB,
    body         BLOB
) STRICT;
CREATE UNIQUE INDEX entries_place ON entries (conversation, n);
-- Ids begin with a time, so the newest are neighbours whoever sent them.
CREATE UNIQUE INDEX entries_once ON entries (message_id, user);

-- Full text, fed behind the recording: everything up to `seq` is in it. The text that goes in is
-- already taken apart into words; `place` is the conversation's number, so that a search in a
-- small one does not walk through the hits of a large one. Erasing removes words for good.
CREATE VIRTUAL TABLE words USING fts5 (
    place, body, content = '', columnsize = 0, detail = column, tokenize = 'ascii'
);
INSERT INTO words (words, rank) VALUES ('secure-delete', 1);
CREATE TABLE indexed (seq INTEGER NOT NULL) STRICT;
INSERT INTO indexed (seq) VALUES (0);
