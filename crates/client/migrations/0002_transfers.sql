-- Files on their way to the server, so that a `put` after a kill goes on with the same message.
-- A row goes when its file is recorded, or when the server will not take it.

CREATE TABLE upload (
    account     INTEGER NOT NULL REFERENCES account (id),
    message_id  BLOB    NOT NULL UNIQUE CHECK (length(message_id) = 16),
    target      TEXT    NOT NULL,
    path        BLOB    NOT NULL,               -- absolute, as the system has it
    name        TEXT    NOT NULL,
    size        INTEGER NOT NULL CHECK (size >= 0),
    modified_ns INTEGER NOT NULL,               -- since 1970 UTC
    inode       INTEGER NOT NULL,               -- as are the 64 bits, whatever their sign
    device      INTEGER NOT NULL,
    hash        BLOB    CHECK (hash IS NULL OR length(hash) = 32), -- of what came by standard input
    claimed_by  TEXT,
    begun_ms    INTEGER NOT NULL
) STRICT;

CREATE INDEX upload_path ON upload (account, target, path);
