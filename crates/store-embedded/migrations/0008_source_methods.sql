-- Whether only device logins came from a source. They use at most 4 of a user's 16 rows and replace none, so
-- that a stolen device cannot push out the sources of its owner. Of older rows it is not known: 1.
ALTER TABLE sources ADD COLUMN by_device INTEGER NOT NULL DEFAULT 1;
