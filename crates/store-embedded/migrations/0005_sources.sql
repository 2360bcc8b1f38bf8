-- Where users have logged in from lately, so that guesses from elsewhere do not keep them out.
-- `tag` is HMAC(row key, name, address prefix): the database alone tells no address, and a tag of
-- an unknown name cannot be told from one of a known name. At most 16 rows a user, the newest.
CREATE TABLE sources (
    tag     BLOB    PRIMARY KEY,
    user    TEXT    NOT NULL REFERENCES users (name),
    seen_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX sources_user ON sources (user, seen_ms);
