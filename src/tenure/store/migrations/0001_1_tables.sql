-- The tables that both engines have alike. `migrate.SPELLED` says what is in braces on each.

CREATE TABLE {of}queue (
    name {word} PRIMARY KEY NOT NULL,
    paused_at {time},
    paused_by text,
    pause_reason text,
    max_pending {whole} CHECK (max_pending >= 0)
) {rows};

CREATE TABLE {of}worker (
    id {word} PRIMARY KEY NOT NULL,
    label text NOT NULL,
    queues text,
    types text,
    slots integer,
    version text,
    stopping {truth} NOT NULL,
    since_at {time} NOT NULL,
    seen_at {time} NOT NULL
) {rows};

-- Who may call the HTTP API. Of a token only its digest is kept, and the row stays after its
-- revocation: its name is in the ledger.
CREATE TABLE {of}access (
    name {word} PRIMARY KEY NOT NULL,
    prefix text NOT NULL,
    digest {word} NOT NULL UNIQUE,
    scopes text NOT NULL,
    queues text,  -- the only ones it is for; NULL: every queue
    created_at {time} NOT NULL,
    created_by text NOT NULL,
    expires_at {time},
    used_at {time},
    revoked_at {time},
    revoked_by text
) {rows};

-- What the ledger adds up to, read from it in batches after the transitions (store/tables/stats.py). Minutes
-- and milliseconds since 1970 UTC, in both databases. `bucket_n` counts times by the bounds in
-- rules.stats.BUCKETS. Few rows that are rewritten every second: on PostgreSQL they have room for that in
-- their pages.

-- How many jobs had each status at the place of the ledger that `measured` names.
CREATE TABLE {of}tally (
    status {word} NOT NULL,
    queue {word} NOT NULL,
    type {word} NOT NULL,
    jobs {whole} NOT NULL,
    PRIMARY KEY (status, queue, type)
) {half_full};

-- Transitions by minute, of about the last day.
CREATE TABLE {of}activity (
    minute {whole} NOT NULL,
    type {word} NOT NULL,
    queue {word} NOT NULL,
    event {word} NOT NULL,
    transitions {whole} NOT NULL,
    seconds {real} NOT NULL,
    {buckets},
    PRIMARY KEY (minute, type, queue, event)
) {half_full};

-- The same since the beginning.
CREATE TABLE {of}total (
    type {word} NOT NULL,
    queue {word} NOT NULL,
    event {word} NOT NULL,
    transitions {whole} NOT NULL,
    seconds {real} NOT NULL,
    {buckets},
    PRIMARY KEY (type, queue, event)
) {half_full};

-- Failed attempts by type and error, those seen last.
CREATE TABLE {of}failure (
    type {word} NOT NULL,
    queue {word} NOT NULL,
    error {word} NOT NULL,
    attempts {whole} NOT NULL,
    first_seen {whole} NOT NULL,
    last_seen {whole} NOT NULL,
    last_job_id text NOT NULL,
    PRIMARY KEY (type, queue, error)
) {half_full};

-- Actions on all jobs of a filter. Each batch changes some jobs and moves the cursor, in one commit.
CREATE TABLE {of}bulk (
    id {id} PRIMARY KEY NOT NULL,
    action {word} NOT NULL,
    filter text NOT NULL,
    more_retries {whole} NOT NULL,
    actor {word} NOT NULL,
    reason text,
    created_at {time} NOT NULL,
    finished_at {time},
    stopped_by {word},
    total {whole} NOT NULL,
    exact {truth} NOT NULL,
    changed {whole} NOT NULL DEFAULT 0,
    refused {whole} NOT NULL DEFAULT 0,
    batches {whole} NOT NULL DEFAULT 0,
    cursor {id}
) {rows};
CREATE INDEX {ix}bulk_unfinished ON {of}bulk (id) WHERE finished_at IS NULL;

-- The span that added a job, if the application traces. A separate table, so that other jobs pay nothing.
CREATE TABLE {of}trace (
    job_id {id} PRIMARY KEY NOT NULL,
    traceparent {word} NOT NULL
) {by_key};

-- The progress of each job, reported by its handler. `token` is the token of the attempt.
CREATE TABLE {of}progress (
    job_id {id} PRIMARY KEY NOT NULL,
    token integer NOT NULL,
    done {real} NOT NULL,
    total {real},
    message text NOT NULL,
    at {time} NOT NULL
) {half_full};

-- Which transitions each webhook gets, and up to which position of the ledger its deliveries exist:
-- they are added as jobs in the commit that advances the position. The secret signs them.
CREATE TABLE {of}webhook (
    name {word} PRIMARY KEY NOT NULL,
    id {word} NOT NULL,
    url text NOT NULL,
    secret text NOT NULL,
    events text NOT NULL,
    types text,
    queues text,
    created_at {time} NOT NULL,
    created_by text NOT NULL,
    position {word} NOT NULL
) {rows};

-- Who is signed in to the dashboard: the digest of the secret that the browser keeps, and the digest
-- of the token that it signed in with, hidden with that secret.
CREATE TABLE {of}session (
    digest {word} PRIMARY KEY NOT NULL,
    token text NOT NULL,
    expires_at {time} NOT NULL
) {rows};

-- The options of `@app.job`, for enqueues in programs that do not have the handler.
CREATE TABLE {of}type (
    name {word} PRIMARY KEY NOT NULL,
    queue {word} NOT NULL,
    priority integer NOT NULL,
    max_retries integer NOT NULL,
    timeout {real},
    backoff text,
    queues text,  -- in which the options count; NULL: in every queue
    schema text,
    seen_at {time} NOT NULL,
    paused_at {time},
    paused_by text,
    pause_reason text
) {rows};
CREATE INDEX {ix}type_paused ON {of}type (name) WHERE paused_at IS NOT NULL;

-- How many seconds settled jobs of a type or a queue are kept, up to ten years, 1e12 for ever; rules/retention.py
-- says which rule holds.
CREATE TABLE {of}retention (
    subject {word} NOT NULL CHECK (subject IN ('type', 'handler', 'queue')),
    name {word} NOT NULL,
    completed {real} CHECK (completed BETWEEN 0 AND 315360000 OR completed = 1e12),
    cancelled {real} CHECK (cancelled BETWEEN 0 AND 315360000 OR cancelled = 1e12),
    failed {real} CHECK (failed BETWEEN 0 AND 315360000 OR failed = 1e12),
    PRIMARY KEY (subject, name)
) {by_key};

-- Which jobs to add when. Every tick up to `cursor_at` is decided, and `next_at` is the next one.
CREATE TABLE {of}schedule (
    name {word} PRIMARY KEY NOT NULL,
    edition {whole} NOT NULL,
    declared {truth} NOT NULL,  -- in code
    declared_seen_at {time},
    cron text,
    every {real} CHECK (every >= 1),
    "offset" {real} NOT NULL,
    once {time},
    zone text NOT NULL,
    starts_at {time},
    ends_at {time},
    template text NOT NULL,  -- type, payload and options of the jobs, as JSON
    time_key text,
    jitter {real} NOT NULL,
    missed text NOT NULL CHECK (missed IN ('one', 'all', 'skip')),
    grace {real} NOT NULL,
    catch_up {whole} NOT NULL,
    catch_up_window {real},
    overlap text NOT NULL
        CHECK (overlap IN ('allow_all', 'skip', 'buffer_one', 'buffer_all', 'cancel_other')),
    note text,
    paused_at {time},
    paused_by text,
    pause_reason text,
    cursor_at {time} NOT NULL,
    next_at {time} CHECK (next_at IS NULL OR (next_at > cursor_at AND paused_at IS NULL)),
    last_job_id {id},
    fired {whole} NOT NULL,
    overlapped {whole} NOT NULL,
    missed_fires {whole} NOT NULL,
    created_at {time} NOT NULL,
    created_by text NOT NULL,
    changed_at {time} NOT NULL,
    changed_by text NOT NULL,
    CHECK (CASE WHEN cron IS NULL THEN 0 ELSE 1 END + CASE WHEN every IS NULL THEN 0 ELSE 1 END
        + CASE WHEN once IS NULL THEN 0 ELSE 1 END = 1)
) {rows};
CREATE INDEX {ix}schedule_due ON {of}schedule (next_at, name) WHERE next_at IS NOT NULL;

-- What became of a tick, or of every tick from `at` to `until`. One job at most for each tick.
CREATE TABLE {of}fire (
    schedule {word} NOT NULL,
    at {time} NOT NULL,
    until {time} CHECK (until IS NULL OR (until > at AND job_id IS NULL)),
    outcome {word} NOT NULL CHECK (outcome IN ('fired', 'overlapped', 'missed', 'paused')),
    how text NOT NULL CHECK (how IN
        ('due', 'caught_up', 'backfill', 'trigger', 'skip', 'one', 'catch_up')),
    job_id {id},
    decided_at {time} NOT NULL,
    actor text,
    PRIMARY KEY (schedule, at, outcome),
    CHECK ((outcome = 'fired') = (job_id IS NOT NULL))
) {by_key};
CREATE INDEX {ix}fire_job ON {of}fire (job_id) WHERE job_id IS NOT NULL;

-- The limits of a queue. No row: no limits. `every` and `tat` are whole microseconds:
-- a rate lets n jobs start at t if max(tat, t) + n * every <= t + burst * every, and then tat is
-- max(tat, t) + n * every. With the least `every` that is allowed here no window of `rate_seconds`
-- has more than `rate_starts` starts.
CREATE TABLE {of}queue_limit (
    queue {word} PRIMARY KEY NOT NULL,
    max_running integer CHECK (max_running BETWEEN 0 AND 2147483647),
    rate_starts integer CHECK (rate_starts BETWEEN 1 AND 1000000),
    rate_seconds {real} CHECK (rate_seconds BETWEEN 0.001 AND 2678400),
    burst integer CHECK (burst BETWEEN 1 AND rate_starts),
    every {whole} CHECK (every * (rate_starts - burst + 1) >= round(rate_seconds * 1000000)),
    tat {whole} NOT NULL DEFAULT 0,
    partitioned {truth} NOT NULL DEFAULT false CHECK (partitioned IN (true, false)),
    per_max_running integer CHECK (per_max_running BETWEEN 0 AND 2147483647),
    per_rate_starts integer CHECK (per_rate_starts BETWEEN 1 AND 1000000),
    per_rate_seconds {real} CHECK (per_rate_seconds BETWEEN 0.001 AND 2678400),
    per_burst integer CHECK (per_burst BETWEEN 1 AND per_rate_starts),
    per_every {whole} CHECK (
        per_every * (per_rate_starts - per_burst + 1) >= round(per_rate_seconds * 1000000)),
    ordered {word} CHECK (ordered IN ('halt', 'pass')),
    resume_at {time},  -- a job met a rate limit outside: this one
    paused_for {id},
    -- A rate has all four.
    CHECK (coalesce(rate_starts, rate_seconds, burst, every) IS NULL
        OR rate_starts + rate_seconds + burst + every IS NOT NULL),
    CHECK (coalesce(per_rate_starts, per_rate_seconds, per_burst, per_every) IS NULL
        OR per_rate_starts + per_rate_seconds + per_burst + per_every IS NOT NULL),
    CHECK (partitioned
        OR (per_max_running IS NULL AND per_rate_starts IS NULL AND ordered IS NULL))
) {nearly_empty};

-- The settings of one partition of a queue, and how far its rate is used up.
CREATE TABLE {of}partition_limit (
    queue {word} NOT NULL,
    partition {word} NOT NULL CHECK (length(partition) <= 128 AND {partition_is_printable}),
    max_running integer CHECK (max_running BETWEEN 0 AND 2147483647),
    weight integer CHECK (weight BETWEEN 1 AND 1000),
    paused_at {time},
    paused_by text,
    pause_reason text,
    tat {whole} NOT NULL DEFAULT 0,
    resume_at {time},
    paused_for {id},
    PRIMARY KEY (queue, partition)
) {half_full};

-- A row for each processing job of a queue that has a row of limits.
CREATE TABLE {of}slot (
    queue {word} NOT NULL,
    partition {word} NOT NULL,
    job_id {id} NOT NULL,
    PRIMARY KEY (queue, partition, job_id)
) {by_key};

-- The jobs of ordered queues that later ones of their partition wait for, in their order.
CREATE TABLE {of}line (
    queue {word} NOT NULL,
    partition {word} NOT NULL,
    id {id} NOT NULL,
    PRIMARY KEY (queue, partition, id)
) {by_key};

-- Which limits held from which entry of the ledger on, as JSON; NULL: none. `partition` is NULL for the
-- queue itself.
CREATE TABLE {of}limit_change (
    queue {word} NOT NULL,
    partition {word},
    place {whole} NOT NULL,
    at {time} NOT NULL,
    setting text
) {rows};
CREATE INDEX {ix}limit_change_place ON {of}limit_change (queue, place);

-- Which job holds a unique key. The triggers of `job` keep this table, and its primary key refuses a
-- second holder, also by raw SQL. No index of `job` could do that: it would mention a status.
CREATE TABLE {of}unique_key (
    key {word} PRIMARY KEY NOT NULL,
    job_id {id} NOT NULL
) {by_key};

-- The job that was last accepted under a unique key that lasts for a time.
CREATE TABLE {of}throttle (
    key {word} PRIMARY KEY NOT NULL,
    job_id {id} NOT NULL,
    expires_at {time} NOT NULL
) {by_key};
CREATE INDEX {ix}throttle_expires ON {of}throttle (expires_at);

-- A number of jobs that belong together. `statuses` is what they have ended as, sorted, once it is finished.
-- Its jobs up to `settled_to` are known to be settled, so that the sweep looks at each about once. The three
-- are NULL again if a job of it enters or runs again.
CREATE TABLE {of}workflow (
    id {id} PRIMARY KEY NOT NULL,
    name {word} CHECK (length(name) BETWEEN 1 AND {max_name}),
    key {word} UNIQUE CHECK (length(key) BETWEEN 1 AND {max_key}),
    fingerprint {word},
    created_at {time} NOT NULL,
    created_by text NOT NULL CHECK (length(created_by) <= {max_label}),
    finished_at {time},
    statuses {word},
    settled_to {id}
) {by_key};
CREATE INDEX {ix}workflow_open ON {of}workflow (id) WHERE finished_at IS NULL;
CREATE INDEX {ix}workflow_finished ON {of}workflow (statuses, finished_at, id) WHERE finished_at IS NOT NULL;

-- Jobs at rest whose followers behind `after` are not counted yet.
CREATE TABLE {of}overdue (
    parent {id} PRIMARY KEY NOT NULL,
    status {word} NOT NULL CHECK (status IN ({settled})),
    after {id} NOT NULL
) {by_key};

-- Jobs that the sweep has to decide: a waiting job is skipped if its `spare` is below 0; a skipped job is
-- restored if it can run after all.
CREATE TABLE {of}revisit (job_id {id} PRIMARY KEY NOT NULL) {by_key};

-- The steps of a job that are done, with the result of each as JSON. `token` is that of the attempt.
CREATE TABLE {of}step (
    job_id {id} NOT NULL,
    name {word} NOT NULL CHECK (length(name) BETWEEN 1 AND {max_key}),
    number integer NOT NULL CHECK (number >= 0),
    token integer NOT NULL,
    at {time} NOT NULL,
    result text CHECK ({octets_of_result} <= {max_result}),
    PRIMARY KEY (job_id, name)
) {by_key};

-- The last state that a handler has stored: of an attempt the one with the largest number.
CREATE TABLE {of}checkpoint (
    job_id {id} PRIMARY KEY NOT NULL,
    token integer NOT NULL,
    number integer NOT NULL,
    at {time} NOT NULL,
    state text NOT NULL CHECK ({octets_of_state} <= {max_result})
) {half_full};

-- Signals to a job, numbered by name: its n-th wait for a name takes the n-th of them.
CREATE TABLE {of}signal (
    job_id {id} NOT NULL,
    name {word} NOT NULL CHECK (length(name) BETWEEN 1 AND {max_name}),
    number integer NOT NULL CHECK (number >= 0),
    at {time} NOT NULL,
    key {word} CHECK (length(key) BETWEEN 1 AND {max_key}),
    payload text CHECK ({octets_of_payload} <= {max_payload}),
    actor text CHECK (length(actor) <= {max_label}),
    PRIMARY KEY (job_id, name, number),
    UNIQUE (job_id, name, key)
) {by_key};

-- What a suspended job waits for, and until when.
CREATE TABLE {of}wait (
    job_id {id} PRIMARY KEY NOT NULL,
    name {word} NOT NULL CHECK (length(name) BETWEEN 1 AND {max_name}),
    number integer NOT NULL CHECK (number >= 0),
    expires_at {time}
) {by_key};
CREATE INDEX {ix}wait_expires ON {of}wait (expires_at) WHERE expires_at IS NOT NULL;

-- Secrets that allow one signal each, for addresses that people outside can use. `label` is what the page
-- of the address says of it.
CREATE TABLE {of}signal_token (
    digest {word} PRIMARY KEY NOT NULL,
    job_id {id} NOT NULL,
    name {word} NOT NULL CHECK (length(name) BETWEEN 1 AND {max_name}),
    payload text CHECK ({octets_of_payload} <= {max_payload}),
    label text CHECK (length(label) BETWEEN 1 AND {max_link_label}),
    at {time} NOT NULL
) {by_key};
CREATE INDEX {ix}signal_token_job ON {of}signal_token (job_id, name);
