-- The file of an entry whose erasure is not complete: a repeated erasure has to name it again.
ALTER TABLE erasing ADD COLUMN hash BLOB;
ALTER TABLE erasing ADD COLUMN size INTEGER;
