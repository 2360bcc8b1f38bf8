-- Where the record's entries are. All of it is read from the log again if this file is lost.

-- Up to where the log is in this index: the sequence of the next record, and where its batch begins.
CREATE TABLE position (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    record   BLOB    NOT NULL,
    next_seq INTEGER NOT NULL,
    segment  INTEGER NOT NULL,
    byte     INTEGER NOT NULL
) STRICT;

-- Entries of one conversation that stand together in a segment. `seq` and `first` are the sequence and
-- the number of the first one.
CREATE TABLE runs (
    seq          INTEGER PRIMARY KEY,
    conversation INTEGER NOT NULL,
    first        INTEGER NOT NULL,
    count        INTEGER NOT NULL,
    segment      INTEGER NOT NULL,
    offset       INTEGER NOT NULL,
    length       INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX runs_place ON runs (conversation, first);

-- The newest entry of each conversation.
CREATE TABLE heads (
    conversation INTEGER PRIMARY KEY,
    n            INTEGER NOT NULL,
    time_ms      INTEGER NOT NULL,
    link         BLOB    NOT NULL
) STRICT;

-- Message ids by user, because ids of one user ascend. A row has up to 28 of them in order, 32 bytes each:
-- the id, and the conversation and number of its entry as big-endian numbers. `first` is its first id.
CREATE TABLE ids (
    user  INTEGER NOT NULL,
    first BLOB    NOT NULL,
    ids   BLOB    NOT NULL,
    PRIMARY KEY (user, first)
) STRICT, WITHOUT ROWID;
