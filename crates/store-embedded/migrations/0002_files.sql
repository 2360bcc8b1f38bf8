-- Files, one row for each entry of kind 3 that is not erased: where its bytes are (`hash`) and how
-- many, so that nobody has to read bodies to know. `user` is the sender's number, as in entries.
CREATE TABLE files (
    conversation INTEGER NOT NULL,
    n            INTEGER NOT NULL,
    user         INTEGER NOT NULL,
    hash         BLOB    NOT NULL,
    size         INTEGER NOT NULL,
    PRIMARY KEY (conversation, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX files_hash ON files (hash);

-- What each user's files are together. Kept by the table itself, so that it cannot go astray, and
-- asking costs the same for one file and for a million.
CREATE TABLE stored (
    user  INTEGER PRIMARY KEY,
    bytes INTEGER NOT NULL
) STRICT;
CREATE TRIGGER files_come AFTER INSERT ON files BEGIN
    INSERT INTO stored (user, bytes) VALUES (new.user, new.size)
        ON CONFLICT (user) DO UPDATE SET bytes = bytes + new.size;
END;
CREATE TRIGGER files_go AFTER DELETE ON files BEGIN
    UPDATE stored SET bytes = bytes - old.size WHERE user = old.user;
END;
