-- What each request reads and counts is an index away.

-- Who made a room; NULL: the server, or made before this was kept.
ALTER TABLE conversations ADD COLUMN made_by TEXT;
CREATE INDEX conversations_made ON conversations (made_by) WHERE made_by IS NOT NULL;
-- Rooms without the direct conversations, of which there may be many more.
CREATE INDEX rooms ON conversations (id) WHERE name IS NOT NULL;

-- Usable devices of a user, without those that were revoked.
CREATE INDEX devices ON credentials (user, created_ms, cid)
    WHERE state = 0 AND substr(cid, 1, 1) = x'02';
-- Unused invites of whoever made them.
CREATE INDEX invites_open ON credentials (made_by, expires_ms)
    WHERE state = 0 AND made_by IS NOT NULL;

-- Usable keys: all, those of a user, those of a form.
CREATE INDEX classic_usable ON classic_keys (name) WHERE state = 0;
CREATE INDEX classic_user ON classic_keys (user, name) WHERE state = 0;
CREATE INDEX classic_form ON classic_keys (form) WHERE state = 0;

-- The index of words again, now with the first three letters of each word, so that a search for the
-- beginning of a word merges no lists. It is fed again from the first entry on.
DROP TABLE words;
CREATE VIRTUAL TABLE words USING fts5 (
    place, body, content = '', columnsize = 0, detail = column, tokenize = 'ascii', prefix = '3'
);
INSERT INTO words (words, rank) VALUES ('secure-delete', 1);
-- Its words in order, to look for those that begin alike.
CREATE VIRTUAL TABLE terms USING fts5vocab (words, instance);
UPDATE indexed SET seq = 0;
