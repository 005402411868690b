-- Who may call the HTTP API. Of a token only its digest is kept, and the row stays after its
-- revocation: its name is in the ledger.
CREATE TABLE tenure_access (
    name TEXT PRIMARY KEY NOT NULL,
    prefix TEXT NOT NULL,
    digest TEXT NOT NULL UNIQUE,
    scopes TEXT NOT NULL,
    queues TEXT,  -- the only ones it is for; NULL: every queue
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER,
    used_at INTEGER,
    revoked_at INTEGER,
    revoked_by TEXT
) STRICT;

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

-- How many jobs had each status at that place of the ledger.
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
    {buckets},
    PRIMARY KEY (minute, type, queue, event)
) STRICT, WITHOUT ROWID;

-- The same since the beginning.
CREATE TABLE tenure_total (
    type TEXT NOT NULL,
    queue TEXT NOT NULL,
    event TEXT NOT NULL,
    transitions INTEGER NOT NULL,
    seconds REAL NOT NULL,
    {buckets},
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

-- Actions on all jobs of a filter. Each batch changes some jobs and moves the cursor, in one commit.
CREATE TABLE tenure_bulk (
    id TEXT PRIMARY KEY NOT NULL,
    action TEXT NOT NULL,
    filter TEXT NOT NULL,
    more_retries INTEGER NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT,
    created_at INTEGER NOT NULL,
    finished_at INTEGER,
    stopped_by TEXT,
    total INTEGER NOT NULL,
    exact INTEGER NOT NULL,
    changed INTEGER NOT NULL DEFAULT 0,
    refused INTEGER NOT NULL DEFAULT 0,
    batches INTEGER NOT NULL DEFAULT 0,
    cursor TEXT
) STRICT;
CREATE INDEX tenure_bulk_unfinished ON tenure_bulk (id) WHERE finished_at IS NULL;

-- The span that added a job, if the application traces. A separate table, so that other jobs pay nothing.
CREATE TABLE tenure_trace (
    job_id TEXT PRIMARY KEY NOT NULL,
    traceparent TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The progress of each job, reported by its handler. `token` is the token of the attempt.
CREATE TABLE tenure_progress (
    job_id TEXT PRIMARY KEY NOT NULL,
    token INTEGER NOT NULL,
    done REAL NOT NULL,
    total REAL,
    message TEXT NOT NULL,
    at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Which transitions each webhook gets, and up to which position of the ledger its deliveries exist:
-- they are added as jobs in the commit that advances the position. The secret signs them.
CREATE TABLE tenure_webhook (
    name TEXT PRIMARY KEY NOT NULL,
    id TEXT NOT NULL,
    url TEXT NOT NULL,
    secret TEXT NOT NULL,
    events TEXT NOT NULL,
    types TEXT,
    queues TEXT,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    position TEXT NOT NULL
) STRICT;

-- Who is signed in to the dashboard: the digest of the secret that the browser keeps, and the digest
-- of the token that it signed in with, hidden with that secret.
CREATE TABLE tenure_session (
    digest TEXT PRIMARY KEY NOT NULL,
    token TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

-- The options of `@app.job`, for enqueues in programs that do not have the handler.
CREATE TABLE tenure_type (
    name TEXT PRIMARY KEY NOT NULL,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    max_retries INTEGER NOT NULL,
    timeout REAL,
    backoff TEXT,
    schema TEXT,
    seen_at INTEGER NOT NULL,
    paused_at INTEGER,
    paused_by TEXT,
    pause_reason TEXT
) STRICT;
CREATE INDEX tenure_type_paused ON tenure_type (name) WHERE paused_at IS NOT NULL;

-- How many seconds settled jobs of a type or a queue are kept, up to ten years, 1e12 for ever; jobs/retention.py
-- says which rule holds.
CREATE TABLE tenure_retention (
    subject TEXT NOT NULL CHECK (subject IN ('type', 'handler', 'queue')),
    name TEXT NOT NULL,
    completed REAL CHECK (completed BETWEEN 0 AND 315360000 OR completed = 1e12),
    cancelled REAL CHECK (cancelled BETWEEN 0 AND 315360000 OR cancelled = 1e12),
    failed REAL CHECK (failed BETWEEN 0 AND 315360000 OR failed = 1e12),
    PRIMARY KEY (subject, name)
) STRICT, WITHOUT ROWID;

-- Which jobs to add when. Every tick up to `cursor_at` is decided, and `next_at` is the next one.
CREATE TABLE tenure_schedule (
    name TEXT PRIMARY KEY NOT NULL,
    edition INTEGER NOT NULL,
    declared INTEGER NOT NULL,  -- in code
    declared_seen_at INTEGER,
    cron TEXT,
    every REAL CHECK (every >= 1),
    "offset" REAL NOT NULL,
    once INTEGER,
    zone TEXT NOT NULL,
    starts_at INTEGER,
    ends_at INTEGER,
    template TEXT NOT NULL,  -- type, payload and options of the jobs, as JSON
    time_key TEXT,
    jitter REAL NOT NULL,
    missed TEXT NOT NULL CHECK (missed IN ('one', 'all', 'skip')),
    grace REAL NOT NULL,
    catch_up INTEGER NOT NULL,
    catch_up_window REAL,
    overlap TEXT NOT NULL
        CHECK (overlap IN ('allow_all', 'skip', 'buffer_one', 'buffer_all', 'cancel_other')),
    note TEXT,
    paused_at INTEGER,
    paused_by TEXT,
    pause_reason TEXT,
    cursor_at INTEGER NOT NULL,
    next_at INTEGER CHECK (next_at IS NULL OR (next_at > cursor_at AND paused_at IS NULL)),
    last_job_id TEXT,
    fired INTEGER NOT NULL,
    overlapped INTEGER NOT NULL,
    missed_fires INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    changed_at INTEGER NOT NULL,
    changed_by TEXT NOT NULL,
    CHECK ((cron IS NOT NULL) + (every IS NOT NULL) + (once IS NOT NULL) = 1)
) STRICT;
CREATE INDEX tenure_schedule_due ON tenure_schedule (next_at) WHERE next_at IS NOT NULL;

-- What became of a tick, or of every tick from `at` to `until`. One job at most for each tick.
CREATE TABLE tenure_fire (
    schedule TEXT NOT NULL,
    at INTEGER NOT NULL,
    until INTEGER CHECK (until IS NULL OR (until > at AND job_id IS NULL)),
    outcome TEXT NOT NULL CHECK (outcome IN ('fired', 'overlapped', 'missed', 'paused')),
    how TEXT NOT NULL CHECK (how IN
        ('due', 'caught_up', 'backfill', 'trigger', 'skip', 'one', 'catch_up')),
    job_id TEXT,
    decided_at INTEGER NOT NULL,
    actor TEXT,
    PRIMARY KEY (schedule, at, outcome),
    CHECK ((outcome = 'fired') = (job_id IS NOT NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX tenure_fire_job ON tenure_fire (job_id) WHERE job_id IS NOT NULL;

CREATE TRIGGER tenure_schedule_advances BEFORE UPDATE OF cursor_at ON tenure_schedule
WHEN NEW.cursor_at < OLD.cursor_at AND NEW.edition <= OLD.edition
BEGIN SELECT RAISE(ABORT, 'tenure: only a new edition of a schedule may set its time back'); END;

CREATE TRIGGER tenure_fire_is_final BEFORE UPDATE ON tenure_fire
WHEN (NEW.until > coalesce(OLD.until, OLD.at)) IS NOT TRUE
    OR (NEW.schedule, NEW.at, NEW.outcome) <> (OLD.schedule, OLD.at, OLD.outcome)
BEGIN SELECT RAISE(ABORT, 'tenure: a fire is on record: only its range can grow'); END;

CREATE TRIGGER tenure_fire_has_a_job BEFORE INSERT ON tenure_fire
WHEN NEW.job_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM tenure_job WHERE id = NEW.job_id)
BEGIN SELECT RAISE(ABORT, 'tenure: a fire must name a job that exists'); END;
