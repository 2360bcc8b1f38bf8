-- A key that was brought along, XORed with a pad that is derived from the server's setup, the name and the
-- salt; NULL: the key itself is derived from them. `mac` covers it where there is one.
ALTER TABLE classic_keys ADD COLUMN sealed BLOB;
