-- The words of the record's texts, fed behind the recording. `rowid` is an entry's sequence. The text that
-- goes in is already taken apart into words; `place` is the conversation's number, so that a search in a
-- small one does not walk through the hits of a large one. With the first three letters of each word, so that a
-- search for the beginning of a word merges no lists. Erasing removes words for good.
CREATE VIRTUAL TABLE words USING fts5 (
    place, body, content = '', columnsize = 0, detail = column, tokenize = 'ascii', prefix = '3'
);
INSERT INTO words (words, rank) VALUES ('secure-delete', 1);
-- Its words in order, to look for those that begin alike.
CREATE VIRTUAL TABLE terms USING fts5vocab (words, instance);

-- Up to where the log is in this index: the sequence of the next record. Segment and offset are not used.
CREATE TABLE position (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    record   BLOB    NOT NULL,
    next_seq INTEGER NOT NULL,
    segment  INTEGER NOT NULL,
    byte     INTEGER NOT NULL
) STRICT;

-- Erased entries whose words were removed: doing it twice would damage the index.
CREATE TABLE removed (seq INTEGER PRIMARY KEY) STRICT;
