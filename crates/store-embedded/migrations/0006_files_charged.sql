-- How many files each user has, and bytes as they are charged: a small file takes a block of the disk
-- and an inode whatever its size. 4096 is LEAST_CHARGE.
ALTER TABLE stored ADD COLUMN files INTEGER NOT NULL DEFAULT 0;
DROP TRIGGER files_come;
DROP TRIGGER files_go;
UPDATE stored SET (bytes, files) = (
    SELECT COALESCE(SUM(MAX(size, 4096)), 0), COUNT(*) FROM files WHERE files.user = stored.user
);
CREATE TRIGGER files_come AFTER INSERT ON files BEGIN
    INSERT INTO stored (user, bytes, files) VALUES (new.user, MAX(new.size, 4096), 1)
        ON CONFLICT (user) DO UPDATE SET bytes = bytes + MAX(new.size, 4096), files = files + 1;
END;
CREATE TRIGGER files_go AFTER DELETE ON files BEGIN
    UPDATE stored SET bytes = bytes - MAX(old.size, 4096), files = files - 1 WHERE user = old.user;
END;
