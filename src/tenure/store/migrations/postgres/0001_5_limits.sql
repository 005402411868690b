-- What holds for a queue, beside whether it is paused. No row: no limits. `every` and `tat` are whole microseconds:
-- a rate lets n jobs start at t if max(tat, t) + n * every <= t + burst * every, and then tat is
-- max(tat, t) + n * every. With the least `every` that is allowed here no window of `rate_seconds`
-- has more than `rate_starts` starts.
CREATE TABLE {schema}.queue_limit (
    queue text COLLATE "C" PRIMARY KEY,
    max_running integer CHECK (max_running >= 0),
    rate_starts integer CHECK (rate_starts BETWEEN 1 AND 1000000),
    rate_seconds double precision CHECK (rate_seconds BETWEEN 0.001 AND 2678400),
    burst integer CHECK (burst BETWEEN 1 AND rate_starts),
    every bigint CHECK (every * (rate_starts - burst + 1) >= round(rate_seconds * 1000000)),
    tat bigint NOT NULL DEFAULT 0,
    partitioned boolean NOT NULL DEFAULT false,
    per_max_running integer CHECK (per_max_running >= 0),
    per_rate_starts integer CHECK (per_rate_starts BETWEEN 1 AND 1000000),
    per_rate_seconds double precision CHECK (per_rate_seconds BETWEEN 0.001 AND 2678400),
    per_burst integer CHECK (per_burst BETWEEN 1 AND per_rate_starts),
    per_every bigint CHECK (
        per_every * (per_rate_starts - per_burst + 1) >= round(per_rate_seconds * 1000000)),
    ordered text COLLATE "C" CHECK (ordered IN ('halt', 'pass')),
    resume_at timestamptz,  -- a job met a rate limit outside: this one
    paused_for uuid,
    CHECK (num_nulls(rate_starts, rate_seconds, burst, every) IN (0, 4)),
    CHECK (num_nulls(per_rate_starts, per_rate_seconds, per_burst, per_every) IN (0, 4)),
    CHECK (partitioned
        OR num_nonnulls(per_max_running, per_rate_starts, ordered) = 0)
) WITH (fillfactor = 10);

-- What differs for a partition of a queue, and how far its rate is used up.
CREATE TABLE {schema}.partition_limit (
    queue text COLLATE "C" NOT NULL,
    partition text COLLATE "C" NOT NULL
        CHECK (char_length(partition) <= 128 AND partition !~ '[\x01-\x1f\x7f]'),
    max_running integer CHECK (max_running >= 0),
    weight integer CHECK (weight BETWEEN 1 AND 1000),
    paused_at timestamptz,
    paused_by text,
    pause_reason text,
    tat bigint NOT NULL DEFAULT 0,
    resume_at timestamptz,
    paused_for uuid,
    PRIMARY KEY (queue, partition)
) WITH (fillfactor = 50);

-- A row for each processing job of a queue that has a row of limits.
CREATE TABLE {schema}.slot (
    queue text COLLATE "C" NOT NULL,
    partition text COLLATE "C" NOT NULL,
    job_id uuid NOT NULL,
    PRIMARY KEY (queue, partition, job_id)
);

-- The jobs of ordered queues that later ones of their partition wait for, in their order.
CREATE TABLE {schema}.line (
    queue text COLLATE "C" NOT NULL,
    partition text COLLATE "C" NOT NULL,
    id uuid NOT NULL,
    PRIMARY KEY (queue, partition, id)
);

-- Which limits held from which entry of the ledger on, as JSON; NULL: none. `partition` is NULL for the
-- queue itself.
CREATE TABLE {schema}.limit_change (
    queue text COLLATE "C" NOT NULL,
    partition text COLLATE "C",
    place bigint NOT NULL,
    at timestamptz NOT NULL,
    setting text
);
CREATE INDEX limit_change_place ON {schema}.limit_change (queue, place);
