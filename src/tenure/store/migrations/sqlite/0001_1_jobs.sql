-- Times are milliseconds since 1970 UTC. Names in braces are filled in from the lifecycle table.

-- The store's clock: every time in the database is read through this view.
CREATE VIEW tenure_now AS
    SELECT CAST((julianday('now') - 2440587.5) * 86400000 + 0.5 AS INTEGER) AS at;

CREATE TABLE tenure_schema (version INTEGER PRIMARY KEY, applied_at INTEGER NOT NULL) STRICT;

CREATE TABLE tenure_job (
    id TEXT PRIMARY KEY NOT NULL,
    type TEXT NOT NULL,
    queue TEXT NOT NULL DEFAULT 'default',
    status TEXT NOT NULL DEFAULT 'pending',
    priority INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    max_retries INTEGER NOT NULL DEFAULT {default_max_retries},
    token INTEGER NOT NULL DEFAULT 0,
    run_at INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    worker TEXT,
    lease_id TEXT,
    lease_expires_at INTEGER,
    timeout REAL,
    backoff TEXT,
    event TEXT NOT NULL DEFAULT 'enqueued',
    actor TEXT,
    payload TEXT NOT NULL DEFAULT '{{}}',
    result TEXT,
    last_error TEXT,
    reason TEXT, -- of the last transition that can have one
    -- NULL where they are not used.
    partition TEXT,
    unique_key TEXT,
    unique_until TEXT,
    start_by INTEGER,
    snoozes INTEGER,
    workflow TEXT,
    need INTEGER,
    spare INTEGER,
    followed INTEGER,
    -- No trigger of an UPDATE of the status reads what is below. If one read the old value of a
    -- column from the 33rd on, SQLite would load all columns of each old row.
    idempotency_key TEXT,
    fingerprint TEXT,
    needs INTEGER,
    tags TEXT,
    again_of TEXT,
    {checks}
) STRICT;

-- What a claim reads: one lane per queue and priority, in the order of run_at.
CREATE INDEX tenure_job_ready ON tenure_job (queue, priority, run_at, id) WHERE status = 'pending';
-- What the sweep reads.
CREATE INDEX tenure_job_lease ON tenure_job (lease_expires_at) WHERE status = 'processing';
CREATE INDEX tenure_job_start_by ON tenure_job (start_by)
    WHERE start_by IS NOT NULL AND status IN ('waiting', 'pending');
-- What operators and retention look for.
CREATE INDEX tenure_job_ended ON tenure_job (status, id) WHERE status IN ('failed', 'cancelled');
CREATE INDEX tenure_job_finished ON tenure_job (status, finished_at)
    WHERE finished_at IS NOT NULL AND workflow IS NULL;
CREATE UNIQUE INDEX tenure_job_key ON tenure_job (idempotency_key)
    WHERE idempotency_key IS NOT NULL;

CREATE INDEX tenure_job_again ON tenure_job (again_of) WHERE again_of IS NOT NULL;

-- The jobs of each tag.
CREATE TABLE tenure_tag (
    tag TEXT NOT NULL CHECK (length(tag) BETWEEN 1 AND {max_tag} AND instr(tag, ' ') = 0),
    job_id TEXT NOT NULL,
    PRIMARY KEY (tag, job_id)
) STRICT, WITHOUT ROWID;

-- The ledger: one row per transition, written by triggers only.
CREATE TABLE tenure_transition (
    seq INTEGER PRIMARY KEY AUTOINCREMENT CHECK (seq > 0),
    job_id TEXT NOT NULL,
    at INTEGER NOT NULL,
    source TEXT,
    target TEXT NOT NULL,
    event TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    token INTEGER NOT NULL,
    lease_id TEXT,
    actor TEXT,
    detail TEXT,
    reason TEXT
) STRICT;
CREATE INDEX tenure_transition_job ON tenure_transition (job_id);  -- and seq, the rowid
-- What stops handlers: the watch looks for what was cancelled while it ran.
CREATE INDEX tenure_transition_cancelled ON tenure_transition (seq)
    WHERE source = 'processing' AND event = 'cancelled';

-- How far the statistics have read the ledger: this entry and all before it.
CREATE TABLE tenure_measured (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    seq INTEGER NOT NULL,
    millis INTEGER NOT NULL
) STRICT;
INSERT INTO tenure_measured VALUES (1, 0, 0);

-- Adding a job whose id, key or rowid is there already changes nothing, whatever the conflict clause
-- says (OR REPLACE would delete the old row without firing its triggers). Before an insert a rowid
-- that was not given reads as -1, so none may be that.
CREATE TRIGGER tenure_job_known BEFORE INSERT ON tenure_job
WHEN EXISTS (SELECT 1 FROM tenure_job WHERE id = NEW.id)
    OR (NEW.rowid <> -1 AND EXISTS (SELECT 1 FROM tenure_job WHERE rowid = NEW.rowid))
    OR (NEW.idempotency_key IS NOT NULL
        AND EXISTS (SELECT 1 FROM tenure_job WHERE idempotency_key = NEW.idempotency_key))
BEGIN SELECT RAISE(IGNORE); END;

-- What no claim and no completion sets.
CREATE TRIGGER tenure_job_sets BEFORE UPDATE OF {set_columns} ON tenure_job
WHEN ({illegal_setting}) IS NOT FALSE
BEGIN SELECT RAISE(ABORT, 'tenure: no transition may set this column of a job'); END;

CREATE TRIGGER tenure_job_leaves BEFORE DELETE ON tenure_job
WHEN {illegal_delete}
BEGIN SELECT RAISE(ABORT, 'tenure: only a settled job may be deleted'); END;

CREATE TRIGGER tenure_job_entered AFTER INSERT ON tenure_job
BEGIN
    INSERT INTO tenure_transition (job_id, at, source, target, event, attempt, token, actor)
    VALUES (NEW.id, NEW.created_at, NULL, NEW.status, '{first_event}', 0, 0, NEW.actor);
END;

CREATE TRIGGER tenure_job_untagged AFTER DELETE ON tenure_job
WHEN OLD.tags IS NOT NULL
BEGIN
    DELETE FROM tenure_tag WHERE job_id = OLD.id
        AND tag IN (SELECT value FROM json_each(OLD.tags));
END;

-- What a change of the status means for others: a unique key is free or taken again, a workflow is open again,
-- and what a job waits for has come to rest, or has left it again. SQLite runs the trigger that was made last
-- first: so the ledger has this ending before what follows from it. It does not run a trigger within itself: a
-- follower that becomes pending here means nothing for others.
CREATE TRIGGER tenure_job_affects AFTER UPDATE OF status ON tenure_job
WHEN (NEW.followed > 0 AND {at_rest} <> {was_at_rest}) OR OLD.unique_key IS NOT NULL
    OR (OLD.workflow IS NOT NULL AND {was_at_rest})
BEGIN
    INSERT INTO tenure_holding VALUES (NEW.unique_key, NEW.id, {held_key}, {holds_key});
    UPDATE tenure_workflow SET finished_at = NULL, statuses = NULL, settled_to = NULL
    WHERE id = NEW.workflow AND {was_at_rest} AND NOT {at_rest}
        AND (finished_at IS NOT NULL OR settled_to IS NOT NULL);
    INSERT INTO tenure_ending VALUES (NEW.id, iif({at_rest}, NEW.status, OLD.status),
        (NEW.followed > 0) * ({at_rest} - {was_at_rest}), '',
        coalesce((SELECT after FROM tenure_overdue WHERE parent = NEW.id), '~'));
    DELETE FROM tenure_overdue WHERE parent = NEW.id AND {was_at_rest} AND NOT {at_rest}
        AND NEW.followed > 0;
END;

CREATE TRIGGER tenure_job_moved AFTER UPDATE OF status ON tenure_job
WHEN OLD.status <> NEW.status
BEGIN
    INSERT INTO tenure_transition ({ledger_columns})
    VALUES ({moved_values});
END;

-- Beside the other one, because SQLite loads each old value that a trigger may read, also a payload.
CREATE TRIGGER tenure_job_amended AFTER UPDATE OF {amendable} ON tenure_job
WHEN {amended}
BEGIN
    INSERT INTO tenure_transition ({ledger_columns})
    VALUES ({amended_values});
END;

CREATE TRIGGER tenure_transition_appends BEFORE INSERT ON tenure_transition
WHEN NEW.seq <> -1
BEGIN SELECT RAISE(ABORT, 'tenure: the database numbers the entries of the ledger'); END;

CREATE TRIGGER tenure_transition_is_final BEFORE UPDATE ON tenure_transition
BEGIN SELECT RAISE(ABORT, 'tenure: the ledger cannot be edited'); END;

CREATE TRIGGER tenure_transition_stays BEFORE DELETE ON tenure_transition
WHEN EXISTS (SELECT 1 FROM tenure_job WHERE id = OLD.job_id)
BEGIN SELECT RAISE(ABORT, 'tenure: the ledger of a job stays as long as the job'); END;
