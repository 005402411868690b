-- Who may call the HTTP API. Of a token only its digest is kept, and the row stays after its
-- revocation: its name is in the ledger.
CREATE TABLE {schema}.access (
    name text COLLATE "C" PRIMARY KEY,
    prefix text NOT NULL,
    digest text COLLATE "C" NOT NULL UNIQUE,
    scopes text NOT NULL,
    queues text,  -- the only ones it is for; NULL: every queue
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    expires_at timestamptz,
    used_at timestamptz,
    revoked_at timestamptz,
    revoked_by text
);

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

-- How many jobs had each status at that place of the ledger.
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
    {buckets},
    PRIMARY KEY (minute, type, queue, event)
) WITH (fillfactor = 50);

-- The same since the beginning.
CREATE TABLE {schema}.total (
    type text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    event text COLLATE "C" NOT NULL,
    transitions bigint NOT NULL,
    seconds double precision NOT NULL,
    {buckets},
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

-- Actions on all jobs of a filter. Each batch changes some jobs and moves the cursor, in one commit.
CREATE TABLE {schema}.bulk (
    id uuid PRIMARY KEY,
    action text COLLATE "C" NOT NULL,
    filter text NOT NULL,
    more_retries bigint NOT NULL,
    actor text COLLATE "C" NOT NULL,
    reason text,
    created_at timestamptz NOT NULL,
    finished_at timestamptz,
    stopped_by text COLLATE "C",
    total bigint NOT NULL,
    exact boolean NOT NULL,
    changed bigint NOT NULL DEFAULT 0,
    refused bigint NOT NULL DEFAULT 0,
    batches bigint NOT NULL DEFAULT 0,
    cursor uuid
);
CREATE INDEX bulk_unfinished ON {schema}.bulk (id) WHERE finished_at IS NULL;

-- The span that added a job, if the application traces. A separate table, so that other jobs pay nothing.
CREATE TABLE {schema}.trace (
    job_id uuid PRIMARY KEY,
    traceparent text COLLATE "C" NOT NULL
);

-- The progress of each job, reported by its handler. `token` is the token of the attempt.
CREATE TABLE {schema}.progress (
    job_id uuid PRIMARY KEY,
    token integer NOT NULL,
    done double precision NOT NULL,
    total double precision,
    message text NOT NULL,
    at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Which transitions each webhook gets, and up to which position of the ledger its deliveries exist:
-- they are added as jobs in the commit that advances the position. The secret signs them.
CREATE TABLE {schema}.webhook (
    name text COLLATE "C" PRIMARY KEY,
    id text COLLATE "C" NOT NULL,
    url text NOT NULL,
    secret text NOT NULL,
    events text NOT NULL,
    types text,
    queues text,
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    position text COLLATE "C" NOT NULL
);

-- Who is signed in to the dashboard: the digest of the secret that the browser keeps, and the digest
-- of the token that it signed in with, hidden with that secret.
CREATE TABLE {schema}.session (
    digest text COLLATE "C" PRIMARY KEY,
    token text NOT NULL,
    expires_at timestamptz NOT NULL
);

-- The options of `@app.job`, for enqueues in programs that do not have the handler.
CREATE TABLE {schema}.type (
    name text COLLATE "C" PRIMARY KEY,
    queue text COLLATE "C" NOT NULL,
    priority integer NOT NULL,
    max_retries integer NOT NULL,
    timeout float8,
    backoff text,
    schema text,
    seen_at timestamptz NOT NULL,
    paused_at timestamptz,
    paused_by text,
    pause_reason text
);
CREATE INDEX type_paused ON {schema}.type (name) WHERE paused_at IS NOT NULL;

-- How many seconds settled jobs of a type or a queue are kept, up to ten years, 1e12 for ever; jobs/retention.py
-- says which rule holds.
CREATE TABLE {schema}.retention (
    subject text COLLATE "C" NOT NULL CHECK (subject IN ('type', 'handler', 'queue')),
    name text COLLATE "C" NOT NULL,
    completed double precision CHECK (completed BETWEEN 0 AND 315360000 OR completed = 1e12),
    cancelled double precision CHECK (cancelled BETWEEN 0 AND 315360000 OR cancelled = 1e12),
    failed double precision CHECK (failed BETWEEN 0 AND 315360000 OR failed = 1e12),
    PRIMARY KEY (subject, name)
);

-- Which jobs to add when. Every tick up to `cursor_at` is decided, and `next_at` is the next one.
CREATE TABLE {schema}.schedule (
    name text COLLATE "C" PRIMARY KEY,
    edition bigint NOT NULL,
    declared boolean NOT NULL,  -- in code
    declared_seen_at timestamptz,
    cron text,
    every double precision CHECK (every >= 1),
    "offset" double precision NOT NULL,
    once timestamptz,
    zone text NOT NULL,
    starts_at timestamptz,
    ends_at timestamptz,
    template text NOT NULL,  -- type, payload and options of the jobs, as JSON
    time_key text,
    jitter double precision NOT NULL,
    missed text NOT NULL CHECK (missed IN ('one', 'all', 'skip')),
    grace double precision NOT NULL,
    catch_up bigint NOT NULL,
    catch_up_window double precision,
    overlap text NOT NULL
        CHECK (overlap IN ('allow_all', 'skip', 'buffer_one', 'buffer_all', 'cancel_other')),
    note text,
    paused_at timestamptz,
    paused_by text,
    pause_reason text,
    cursor_at timestamptz NOT NULL,
    next_at timestamptz CHECK (next_at IS NULL OR (next_at > cursor_at AND paused_at IS NULL)),
    last_job_id uuid,
    fired bigint NOT NULL,
    overlapped bigint NOT NULL,
    missed_fires bigint NOT NULL,
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    changed_at timestamptz NOT NULL,
    changed_by text NOT NULL,
    CHECK (num_nonnulls(cron, every, once) = 1)
);
CREATE INDEX schedule_due ON {schema}.schedule (next_at) WHERE next_at IS NOT NULL;

-- What became of a tick, or of every tick from `at` to `until`. One job at most for each tick.
CREATE TABLE {schema}.fire (
    schedule text COLLATE "C" NOT NULL,
    at timestamptz NOT NULL,
    until timestamptz CHECK (until IS NULL OR (until > at AND job_id IS NULL)),
    outcome text COLLATE "C" NOT NULL CHECK (outcome IN ('fired', 'overlapped', 'missed', 'paused')),
    how text NOT NULL CHECK (how IN
        ('due', 'caught_up', 'backfill', 'trigger', 'skip', 'one', 'catch_up')),
    job_id uuid,
    decided_at timestamptz NOT NULL,
    actor text,
    PRIMARY KEY (schedule, at, outcome),
    CHECK ((outcome = 'fired') = (job_id IS NOT NULL))
);
CREATE INDEX fire_job ON {schema}.fire (job_id) WHERE job_id IS NOT NULL;

CREATE TRIGGER schedule_advances BEFORE UPDATE OF cursor_at ON {schema}.schedule
    FOR EACH ROW WHEN (NEW.cursor_at < OLD.cursor_at AND NEW.edition <= OLD.edition)
    EXECUTE FUNCTION {schema}.refuse('only a new edition of a schedule may set its time back');

CREATE TRIGGER fire_is_final BEFORE UPDATE ON {schema}.fire
    FOR EACH ROW WHEN ((NEW.until > coalesce(OLD.until, OLD.at)) IS NOT TRUE
        OR (NEW.schedule, NEW.at, NEW.outcome) <> (OLD.schedule, OLD.at, OLD.outcome))
    EXECUTE FUNCTION {schema}.refuse('a fire is on record: only its range can grow');

CREATE FUNCTION {schema}.check_fire() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.job WHERE id = NEW.job_id) THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001', MESSAGE = 'tenure: a fire must name a job that exists';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER fire_has_a_job AFTER INSERT ON {schema}.fire
    FOR EACH ROW WHEN (NEW.job_id IS NOT NULL) EXECUTE FUNCTION {schema}.check_fire();
