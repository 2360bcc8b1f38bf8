-- Keys of classic lines and of the origin bridge. A row has a salt and no key: the key comes from
-- it, the name and the server's setup, which is not in the database. `state`: 0 usable, 1 revoked;
-- the name of a revoked one can be taken again by the same user. `mac` covers all of the row.
CREATE TABLE classic_keys (
    name         TEXT    PRIMARY KEY,
    user         TEXT    NOT NULL REFERENCES users (name),
    conversation INTEGER NOT NULL REFERENCES conversations (id),
    form         INTEGER NOT NULL,
    salt         BLOB    NOT NULL,
    created_ms   INTEGER NOT NULL,
    state        INTEGER NOT NULL,
    mac          BLOB    NOT NULL
) STRICT, WITHOUT ROWID;
