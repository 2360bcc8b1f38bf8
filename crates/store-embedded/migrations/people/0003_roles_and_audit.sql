-- Whether a user's credentials are accepted: 0 active, 1 suspended, 2 removed. `mac` covers it.
ALTER TABLE users ADD COLUMN state INTEGER NOT NULL DEFAULT 0;
-- Owners who are active, of whom one must stay.
CREATE INDEX owners ON users (name) WHERE role = 2 AND state = 0;
-- Who may read a room and write to it: 0 public, 3 the audit. 0 for direct conversations.
ALTER TABLE conversations ADD COLUMN kind INTEGER NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX audit ON conversations (kind) WHERE kind = 3;
