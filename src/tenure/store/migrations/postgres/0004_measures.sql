-- What the ledger adds up to, read from it in batches after the transitions (store/tables/stats.py). Minutes and
-- milliseconds since 1970 UTC, in both databases. `bucket_n` counts times by the bounds in
-- jobs.stats.BUCKETS. Few rows that are rewritten every second: they have room for that in their pages.

-- How far the ledger has been read: this entry and all before it in the order of the stream.
CREATE TABLE {schema}.measured (
    one boolean PRIMARY KEY CHECK (one),
    xid xid8 NOT NULL,
    seq bigint NOT NULL,
    millis bigint NOT NULL
) WITH (fillfactor = 10);
INSERT INTO {schema}.measured VALUES (true, '0', 0, 0);

-- How many jobs stood where, when the ledger had been written so far.
CREATE TABLE {schema}.tally (
    status text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    jobs bigint NOT NULL,
    PRIMARY KEY (status, queue, type)
) WITH (fillfactor = 50);

-- Transitions by minute, of about the last day.
CREATE TABLE {schema}.activity (
    minute bigint NOT NULL,
    type text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    event text COLLATE "C" NOT NULL,
    transitions bigint NOT NULL,
    seconds double precision NOT NULL,
    bucket_0 bigint NOT NULL,
    bucket_1 bigint NOT NULL,
    bucket_2 bigint NOT NULL,
    bucket_3 bigint NOT NULL,
    bucket_4 bigint NOT NULL,
    bucket_5 bigint NOT NULL,
    bucket_6 bigint NOT NULL,
    bucket_7 bigint NOT NULL,
    bucket_8 bigint NOT NULL,
    bucket_9 bigint NOT NULL,
    bucket_10 bigint NOT NULL,
    bucket_11 bigint NOT NULL,
    bucket_12 bigint NOT NULL,
    PRIMARY KEY (minute, type, queue, event)
) WITH (fillfactor = 50);

-- The same since the beginning.
CREATE TABLE {schema}.total (
    type text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    event text COLLATE "C" NOT NULL,
    transitions bigint NOT NULL,
    seconds double precision NOT NULL,
    bucket_0 bigint NOT NULL,
    bucket_1 bigint NOT NULL,
    bucket_2 bigint NOT NULL,
    bucket_3 bigint NOT NULL,
    bucket_4 bigint NOT NULL,
    bucket_5 bigint NOT NULL,
    bucket_6 bigint NOT NULL,
    bucket_7 bigint NOT NULL,
    bucket_8 bigint NOT NULL,
    bucket_9 bigint NOT NULL,
    bucket_10 bigint NOT NULL,
    bucket_11 bigint NOT NULL,
    bucket_12 bigint NOT NULL,
    PRIMARY KEY (type, queue, event)
) WITH (fillfactor = 50);

-- Failed attempts by type and error, those seen last.
CREATE TABLE {schema}.failure (
    type text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    error text COLLATE "C" NOT NULL,
    attempts bigint NOT NULL,
    first_seen bigint NOT NULL,
    last_seen bigint NOT NULL,
    last_job_id text NOT NULL,
    PRIMARY KEY (type, queue, error)
) WITH (fillfactor = 50);
