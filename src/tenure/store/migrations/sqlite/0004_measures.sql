-- What the ledger adds up to, read from it in batches after the transitions (store/tables/stats.py). Minutes and
-- milliseconds since 1970 UTC, in both databases. `bucket_n` counts times by the bounds in
-- jobs.stats.BUCKETS.

-- How far the ledger has been read: this entry and all before it.
CREATE TABLE tenure_measured (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    seq INTEGER NOT NULL,
    millis INTEGER NOT NULL
) STRICT;
INSERT INTO tenure_measured VALUES (1, 0, 0);

-- How many jobs stood where, when the ledger had been written so far.
CREATE TABLE tenure_tally (
    status TEXT NOT NULL,
    queue TEXT NOT NULL,
    type TEXT NOT NULL,
    jobs INTEGER NOT NULL,
    PRIMARY KEY (status, queue, type)
) STRICT, WITHOUT ROWID;

-- Transitions by minute, of about the last day.
CREATE TABLE tenure_activity (
    minute INTEGER NOT NULL,
    type TEXT NOT NULL,
    queue TEXT NOT NULL,
    event TEXT NOT NULL,
    transitions INTEGER NOT NULL,
    seconds REAL NOT NULL,
    bucket_0 INTEGER NOT NULL,
    bucket_1 INTEGER NOT NULL,
    bucket_2 INTEGER NOT NULL,
    bucket_3 INTEGER NOT NULL,
    bucket_4 INTEGER NOT NULL,
    bucket_5 INTEGER NOT NULL,
    bucket_6 INTEGER NOT NULL,
    bucket_7 INTEGER NOT NULL,
    bucket_8 INTEGER NOT NULL,
    bucket_9 INTEGER NOT NULL,
    bucket_10 INTEGER NOT NULL,
    bucket_11 INTEGER NOT NULL,
    bucket_12 INTEGER NOT NULL,
    PRIMARY KEY (minute, type, queue, event)
) STRICT, WITHOUT ROWID;

-- The same since the beginning.
CREATE TABLE tenure_total (
    type TEXT NOT NULL,
    queue TEXT NOT NULL,
    event TEXT NOT NULL,
    transitions INTEGER NOT NULL,
    seconds REAL NOT NULL,
    bucket_0 INTEGER NOT NULL,
    bucket_1 INTEGER NOT NULL,
    bucket_2 INTEGER NOT NULL,
    bucket_3 INTEGER NOT NULL,
    bucket_4 INTEGER NOT NULL,
    bucket_5 INTEGER NOT NULL,
    bucket_6 INTEGER NOT NULL,
    bucket_7 INTEGER NOT NULL,
    bucket_8 INTEGER NOT NULL,
    bucket_9 INTEGER NOT NULL,
    bucket_10 INTEGER NOT NULL,
    bucket_11 INTEGER NOT NULL,
    bucket_12 INTEGER NOT NULL,
    PRIMARY KEY (type, queue, event)
) STRICT, WITHOUT ROWID;

-- Failed attempts by type and error, those seen last.
CREATE TABLE tenure_failure (
    type TEXT NOT NULL,
    queue TEXT NOT NULL,
    error TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    last_job_id TEXT NOT NULL,
    PRIMARY KEY (type, queue, error)
) STRICT, WITHOUT ROWID;
