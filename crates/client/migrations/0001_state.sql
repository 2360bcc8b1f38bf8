-- What one profile of a client keeps on disk: messages on their way out, the links it knows, and
-- how far it has handled each conversation. Files here are only ever added, never changed.

-- The servers this profile has spoken to, by OPAQUE key. Links belong to a server.
CREATE TABLE server (
    id  INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE CHECK (length(key) = 32)
) STRICT;

-- Who wrote a message and to which server. A profile that is replaced must not send what was
-- written as somebody else, or for another server.
CREATE TABLE account (
    id     INTEGER PRIMARY KEY,
    server INTEGER NOT NULL REFERENCES server (id),
    user   TEXT    NOT NULL,
    UNIQUE (server, user)
) STRICT;

-- AUTOINCREMENT: a number is never used twice, so seq is the order of enqueueing for good.
CREATE TABLE outbox (
    seq          INTEGER PRIMARY KEY AUTOINCREMENT,
    account      INTEGER NOT NULL REFERENCES account (id),
    message_id   BLOB    NOT NULL UNIQUE CHECK (length(message_id) = 16),
    target       TEXT    NOT NULL,
    body         BLOB    NOT NULL CHECK (length(body) <= 32768),
    enqueued_ms  INTEGER NOT NULL,
    state        INTEGER NOT NULL DEFAULT 0 CHECK (state IN (0, 1, 2)), -- pending, recorded, refused
    claimed_by   TEXT    CHECK (claimed_by IS NULL OR state = 0),
    why          INTEGER CHECK (why IS NULL OR state = 2),
    conversation INTEGER,
    n            INTEGER,
    time_ms      INTEGER,
    salt         BLOB    CHECK (salt IS NULL OR length(salt) = 16),
    link         BLOB    CHECK (link IS NULL OR length(link) = 32),
    CHECK (state != 1 OR (conversation IS NOT NULL AND n IS NOT NULL AND time_ms IS NOT NULL
                          AND link IS NOT NULL))
) STRICT;

CREATE INDEX outbox_pending ON outbox (account, seq) WHERE state = 0;
CREATE INDEX outbox_claimed ON outbox (claimed_by, account, target) WHERE claimed_by IS NOT NULL;
CREATE INDEX outbox_recorded ON outbox (time_ms) WHERE state = 1;

-- own = 1: the receipt of a message of this profile, kept. own = 0: the newest link of a
-- run of entries that was read and checked.
CREATE TABLE receipt (
    server       INTEGER NOT NULL REFERENCES server (id),
    conversation INTEGER NOT NULL,
    n            INTEGER NOT NULL CHECK (n >= 1),
    link         BLOB    NOT NULL CHECK (length(link) = 32),
    time_ms      INTEGER NOT NULL,
    own          INTEGER NOT NULL CHECK (own IN (0, 1)),
    PRIMARY KEY (server, conversation, n)
) STRICT, WITHOUT ROWID;

CREATE TABLE position (
    account      INTEGER NOT NULL REFERENCES account (id),
    conversation INTEGER NOT NULL,
    purpose      TEXT    NOT NULL,
    n            INTEGER NOT NULL CHECK (n >= 0),
    PRIMARY KEY (account, conversation, purpose)
) STRICT, WITHOUT ROWID;
