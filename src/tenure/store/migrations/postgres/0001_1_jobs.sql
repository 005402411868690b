-- Names in braces are filled in: the schema as configured, the rest from the lifecycle table.

-- The store's clock: every time in the database is read through this function.
CREATE FUNCTION {schema}.clock() RETURNS timestamptz
    LANGUAGE sql STABLE PARALLEL SAFE AS 'SELECT pg_catalog.clock_timestamp()';

CREATE TABLE {schema}.schema_version (
    version integer PRIMARY KEY,
    applied_at timestamptz NOT NULL
);

CREATE TABLE {schema}.job (
    id uuid PRIMARY KEY,
    run_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    priority bigint NOT NULL DEFAULT 0,
    max_retries bigint NOT NULL DEFAULT 3,
    attempts integer NOT NULL DEFAULT 0,
    token integer NOT NULL DEFAULT 0,
    status text COLLATE "C" NOT NULL DEFAULT 'pending',
    queue text COLLATE "C" NOT NULL DEFAULT 'default',
    type text COLLATE "C" NOT NULL,
    event text COLLATE "C" NOT NULL DEFAULT 'enqueued',
    started_at timestamptz,
    finished_at timestamptz,
    lease_expires_at timestamptz,
    lease_id uuid,
    timeout double precision,
    worker text COLLATE "C",
    actor text COLLATE "C",
    backoff text,
    idempotency_key text COLLATE "C",
    fingerprint text COLLATE "C",
    payload text NOT NULL DEFAULT '{{}}',
    result text,
    last_error text,
    -- NULL where they are not used, at no cost.
    partition text COLLATE "C",
    unique_key text COLLATE "C",
    unique_until text COLLATE "C",
    start_by timestamptz,
    snoozes integer,
    workflow uuid,
    need integer,
    spare integer,
    needs integer,
    followed integer,
    tags text COLLATE "C",
    again_of uuid,
    {checks},
    -- 'infinity' and the like would be times that no client can read.
    CONSTRAINT times_in_reach CHECK (
        least(run_at, created_at, started_at, finished_at, lease_expires_at, start_by)
            >= '0001-01-01 00:00+00'
        AND greatest(run_at, created_at, started_at, finished_at, lease_expires_at, start_by)
            < '10000-01-01 00:00+00')
) WITH (
    -- Every row is rewritten twice in quick succession: leave it room, and clean up early.
    fillfactor = 70,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.05,
    vacuum_truncate = false
);

-- What a claim reads: one lane per queue and priority, in the order of run_at.
CREATE INDEX job_ready ON {schema}.job (queue, priority, run_at, id) WHERE status = 'pending';
-- What the sweep reads.
CREATE INDEX job_lease ON {schema}.job (lease_expires_at) WHERE status = 'processing';
-- What operators and retention look for.
CREATE INDEX job_ended ON {schema}.job (status, id) WHERE status IN ('failed', 'cancelled');
CREATE INDEX job_finished ON {schema}.job (status, finished_at) WHERE finished_at IS NOT NULL;
CREATE UNIQUE INDEX job_key ON {schema}.job (idempotency_key) WHERE idempotency_key IS NOT NULL;

-- The ledger: one row per transition, written by triggers only. Sequence numbers commit out of order, so
-- the stream is read by transaction first, up to the oldest one still running.
CREATE TABLE {schema}.transition (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    seq bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    job_id uuid NOT NULL,
    at timestamptz NOT NULL,
    attempt integer NOT NULL,
    token integer NOT NULL,
    target text COLLATE "C" NOT NULL,
    event text COLLATE "C" NOT NULL,
    source text COLLATE "C",
    lease_id uuid,
    actor text COLLATE "C",
    detail text,
    PRIMARY KEY (xid, seq)
);
CREATE INDEX transition_job ON {schema}.transition (job_id, seq);

CREATE TABLE {schema}.queue (
    name text COLLATE "C" PRIMARY KEY,
    paused_at timestamptz,
    paused_by text,
    max_pending bigint CHECK (max_pending >= 0)
);

CREATE TABLE {schema}.worker (
    id text COLLATE "C" PRIMARY KEY,
    label text NOT NULL,
    queues text,
    types text,
    seen_at timestamptz NOT NULL
);

CREATE FUNCTION {schema}.refuse() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'TN001', MESSAGE = 'tenure: ' || TG_ARGV[0];
END $$;

-- Guards. The illegal case is in the WHEN clause, so a legal transition calls nothing; they fire
-- AFTER, because a trigger BEFORE an update would lock, and log, every row once more.

CREATE TRIGGER job_enters AFTER INSERT ON {schema}.job
    FOR EACH ROW WHEN ({illegal_insert})
    EXECUTE FUNCTION {schema}.refuse('a job must enter as pending or waiting, and untried');

-- What the values of a row may be, tested where a statement sets them.

CREATE FUNCTION {schema}.is_policy(value text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN {is_policy};
EXCEPTION WHEN data_exception THEN
    RETURN false;
END $$;

CREATE FUNCTION {schema}.refuse_value() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'TN001',
        MESSAGE = 'tenure: a value of a job is refused: ' || {broken_value};
END $$;

-- New rows are tested by a query that each session keeps: to prepare the same condition for a trigger
-- would take each statement 100 µs.
CREATE FUNCTION {schema}.refuse_new_value() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM entered WHERE {unfit_new_job}) THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001', MESSAGE = 'tenure: a value of a job is refused: '
            || (SELECT {broken_new_value} FROM entered WHERE {unfit_new_job} LIMIT 1);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER job_fits AFTER INSERT ON {schema}.job
    REFERENCING NEW TABLE AS entered
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_new_value();

CREATE TRIGGER job_fits_on AFTER UPDATE OF {values_of_a_job} ON {schema}.job
    FOR EACH ROW WHEN ({unfit_job})
    EXECUTE FUNCTION {schema}.refuse_value();

CREATE TRIGGER job_result_fits AFTER UPDATE OF result ON {schema}.job
    FOR EACH ROW WHEN ({unfit_result})
    EXECUTE FUNCTION {schema}.refuse_value();

-- The type of a JSON text, NULL if it is none.
CREATE FUNCTION {schema}.json_type(value text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN json_typeof(value::json);
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END $$;

CREATE TRIGGER job_moves AFTER UPDATE ON {schema}.job
    FOR EACH ROW WHEN ({illegal_change})
    EXECUTE FUNCTION {schema}.refuse('illegal transition of a job');

-- What no claim and no completion sets.
CREATE TRIGGER job_sets AFTER UPDATE OF {set_columns} ON {schema}.job
    FOR EACH ROW WHEN ({illegal_setting})
    EXECUTE FUNCTION {schema}.refuse('no transition may set this column of a job');

CREATE TRIGGER job_leaves AFTER DELETE ON {schema}.job
    FOR EACH ROW WHEN ({illegal_delete})
    EXECUTE FUNCTION {schema}.refuse('only a settled job may be deleted');

CREATE TRIGGER job_stays BEFORE TRUNCATE ON {schema}.job
    EXECUTE FUNCTION {schema}.refuse('jobs are deleted one by one, once they are settled');

-- The ledger is written once per statement. These joins must never be nested loops over the changed
-- rows: a plan kept from a statement that changed one row would take n * n steps for n rows. What
-- the caller has switched off holds in here too, unless it is set. Only the owner of the ledger may
-- write it, so these functions run with the owner's rights, and on no table but that of the jobs:
-- anybody can make a temporary table with triggers.

CREATE FUNCTION {schema}.record_entry() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_RELID <> '{schema}.job'::regclass THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001',
            MESSAGE = 'tenure: the ledger is written by transitions of jobs';
    END IF;
    INSERT INTO {schema}.transition (job_id, at, source, target, event, attempt, token, actor)
    SELECT id, created_at, NULL, status, '{first_event}', 0, 0, actor FROM entered;
    RETURN NULL;
END $$;

CREATE TRIGGER job_entered AFTER INSERT ON {schema}.job
    REFERENCING NEW TABLE AS entered
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.record_entry();

CREATE FUNCTION {schema}.record_move() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET enable_hashjoin = on SET enable_nestloop = off SET enable_mergejoin = off AS $$
BEGIN
    IF TG_RELID <> '{schema}.job'::regclass THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001',
            MESSAGE = 'tenure: the ledger is written by transitions of jobs';
    END IF;
    INSERT INTO {schema}.transition ({ledger_columns})
    SELECT {ledger_values}
    FROM before AS o JOIN after AS n ON n.id = o.id WHERE n.status <> o.status OR {amended};
    RETURN NULL;
END $$;

CREATE TRIGGER job_moved AFTER UPDATE ON {schema}.job
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.record_move();

CREATE FUNCTION {schema}.keep_ledger() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET enable_nestloop = on
    SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    IF EXISTS (SELECT FROM removed JOIN {schema}.job ON job.id = removed.job_id) THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001',
            MESSAGE = 'tenure: the ledger of a job stays as long as the job';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER transition_stays AFTER DELETE ON {schema}.transition
    REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.keep_ledger();

CREATE TRIGGER transition_is_final BEFORE UPDATE OR TRUNCATE ON {schema}.transition
    EXECUTE FUNCTION {schema}.refuse('the ledger cannot be edited');

-- The owner alone has the right to truncate: deploy.md grants it to no other role.
CREATE TRIGGER transition_appends BEFORE INSERT ON {schema}.transition
    FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0
        OR NOT has_table_privilege('{schema}.transition'::regclass, 'TRUNCATE'))
    EXECUTE FUNCTION {schema}.refuse('the ledger is written by transitions of jobs');

ALTER TABLE {schema}.job
    ENABLE ALWAYS TRIGGER job_enters, ENABLE ALWAYS TRIGGER job_moves,
    ENABLE ALWAYS TRIGGER job_sets,
    ENABLE ALWAYS TRIGGER job_fits, ENABLE ALWAYS TRIGGER job_fits_on,
    ENABLE ALWAYS TRIGGER job_result_fits,
    ENABLE ALWAYS TRIGGER job_leaves, ENABLE ALWAYS TRIGGER job_stays,
    ENABLE ALWAYS TRIGGER job_entered, ENABLE ALWAYS TRIGGER job_moved;
ALTER TABLE {schema}.transition
    ENABLE ALWAYS TRIGGER transition_stays, ENABLE ALWAYS TRIGGER transition_is_final,
    ENABLE ALWAYS TRIGGER transition_appends;
