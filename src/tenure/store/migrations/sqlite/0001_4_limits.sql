-- What holds for a queue, beside whether it is paused. No row: no limits. `every` and `tat` are whole microseconds:
-- a rate lets n jobs start at t if max(tat, t) + n * every <= t + burst * every, and then tat is
-- max(tat, t) + n * every. With the least `every` that is allowed here no window of `rate_seconds`
-- has more than `rate_starts` starts.
CREATE TABLE tenure_queue_limit (
    queue TEXT PRIMARY KEY NOT NULL,
    max_running INTEGER CHECK (max_running BETWEEN 0 AND 2147483647),
    rate_starts INTEGER CHECK (rate_starts BETWEEN 1 AND 1000000),
    rate_seconds REAL CHECK (rate_seconds BETWEEN 0.001 AND 2678400),
    burst INTEGER CHECK (burst BETWEEN 1 AND rate_starts),
    every INTEGER CHECK (every * (rate_starts - burst + 1) >= round(rate_seconds * 1000000)),
    tat INTEGER NOT NULL DEFAULT 0,
    partitioned INTEGER NOT NULL DEFAULT 0 CHECK (partitioned IN (0, 1)),
    per_max_running INTEGER CHECK (per_max_running BETWEEN 0 AND 2147483647),
    per_rate_starts INTEGER CHECK (per_rate_starts BETWEEN 1 AND 1000000),
    per_rate_seconds REAL CHECK (per_rate_seconds BETWEEN 0.001 AND 2678400),
    per_burst INTEGER CHECK (per_burst BETWEEN 1 AND per_rate_starts),
    per_every INTEGER CHECK (
        per_every * (per_rate_starts - per_burst + 1) >= round(per_rate_seconds * 1000000)),
    ordered TEXT CHECK (ordered IN ('halt', 'pass')),
    resume_at INTEGER,  -- a job met a rate limit outside: this one
    paused_for TEXT,
    CHECK ((rate_starts IS NULL) + (rate_seconds IS NULL) + (burst IS NULL) + (every IS NULL)
        IN (0, 4)),
    CHECK ((per_rate_starts IS NULL) + (per_rate_seconds IS NULL) + (per_burst IS NULL)
        + (per_every IS NULL) IN (0, 4)),
    CHECK (partitioned
        OR (per_max_running IS NULL AND per_rate_starts IS NULL AND ordered IS NULL))
) STRICT, WITHOUT ROWID;

-- What differs for a partition of a queue, and how far its rate is used up.
CREATE TABLE tenure_partition_limit (
    queue TEXT NOT NULL,
    partition TEXT NOT NULL CHECK (length(partition) <= 128
        AND partition NOT GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*'),
    max_running INTEGER CHECK (max_running BETWEEN 0 AND 2147483647),
    weight INTEGER CHECK (weight BETWEEN 1 AND 1000),
    paused_at INTEGER,
    paused_by TEXT,
    pause_reason TEXT,
    tat INTEGER NOT NULL DEFAULT 0,
    resume_at INTEGER,
    paused_for TEXT,
    PRIMARY KEY (queue, partition)
) STRICT, WITHOUT ROWID;

-- A row for each processing job of a queue that has a row of limits.
CREATE TABLE tenure_slot (
    queue TEXT NOT NULL,
    partition TEXT NOT NULL,
    job_id TEXT NOT NULL,
    PRIMARY KEY (queue, partition, job_id)
) STRICT, WITHOUT ROWID;

-- The jobs of ordered queues that later ones of their partition wait for, in their order.
CREATE TABLE tenure_line (
    queue TEXT NOT NULL,
    partition TEXT NOT NULL,
    id TEXT NOT NULL,
    PRIMARY KEY (queue, partition, id)
) STRICT, WITHOUT ROWID;

-- Which limits held from which entry of the ledger on, as JSON; NULL: none. `partition` is NULL for the
-- queue itself.
CREATE TABLE tenure_limit_change (
    queue TEXT NOT NULL,
    partition TEXT,
    place INTEGER NOT NULL,
    at INTEGER NOT NULL,
    setting TEXT
) STRICT;
CREATE INDEX tenure_limit_change_place ON tenure_limit_change (queue, place);
