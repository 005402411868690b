-- Names in braces are filled in: the schema as configured, the rest from the lifecycle table.

-- The store's clock: every time in the database is read through this function.
-- The planner puts the body of a volatile function in SQL in place of its call.
CREATE FUNCTION {schema}.clock() RETURNS timestamptz
    LANGUAGE sql VOLATILE PARALLEL SAFE AS 'SELECT pg_catalog.clock_timestamp()';

CREATE TABLE {schema}.schema_version (
    version integer PRIMARY KEY,
    applied_at timestamptz NOT NULL
);

CREATE TABLE {schema}.job (
    id uuid PRIMARY KEY,
    run_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    priority bigint NOT NULL DEFAULT 0,
    max_retries bigint NOT NULL DEFAULT {default_max_retries},
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
    reason varchar({max_reason}) COLLATE "C" -- of the last transition that can have one
) WITH (
    -- Every row is rewritten twice in quick succession. With room for both new versions in its page,
    -- neither needs entries in indexes, however many snapshots are open.
    fillfactor = 33,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.05,
    vacuum_truncate = false
);

CREATE UNIQUE INDEX job_key ON {schema}.job (idempotency_key) WHERE idempotency_key IS NOT NULL;

-- No index of `job` mentions a status: each transition would write the job into all of them again. What
-- is looked up by status is in three narrow tables, which the triggers of `job` keep.

-- A token for each pending job, and for no other: what a claim reads, one lane per queue and priority.
CREATE TABLE {schema}.ready (
    priority bigint NOT NULL,
    run_at timestamptz NOT NULL,
    id uuid NOT NULL,
    queue text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    start_by timestamptz,
    partition text COLLATE "C", -- of a queue whose partitions take turns; '' for none
    PRIMARY KEY (queue, priority, run_at, id)
) WITH (
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0.02,
    vacuum_truncate = false
);

CREATE INDEX ready_turn ON {schema}.ready (queue, priority, partition, run_at, id)
    WHERE partition IS NOT NULL;

CREATE INDEX ready_start_by ON {schema}.ready (start_by) WHERE start_by IS NOT NULL;

-- The jobs of each tag.
CREATE TABLE {schema}.tag (
    tag text COLLATE "C" NOT NULL CHECK (length(tag) BETWEEN 1 AND {max_tag} AND tag !~ '[[:space:]]'),
    job_id uuid NOT NULL,
    PRIMARY KEY (tag, job_id)
);
CREATE INDEX job_again ON {schema}.job (again_of) WHERE again_of IS NOT NULL;

-- The failed and the cancelled jobs, which operators look for.
CREATE TABLE {schema}.ended (
    status text COLLATE "C" NOT NULL,
    id uuid NOT NULL,
    PRIMARY KEY (status, id)
);

-- The jobs that entered a status, one row for those of one statement: what the sweep and retention read.
-- Of waiting jobs it has only those with a `start_by`, at that time.
-- Both delete the rows that they have looked at. A trigger enters a job again that is still in its status.
CREATE TABLE {schema}.arrival (
    at timestamptz NOT NULL,
    status text COLLATE "C" NOT NULL,
    ids uuid[] NOT NULL
) WITH (
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0.02
);
ALTER TABLE {schema}.arrival ALTER ids SET STORAGE EXTERNAL; -- to try to compress ids is in vain
CREATE INDEX arrival_at ON {schema}.arrival (status, at);
-- In a publication, a row without a key could not be deleted. Elsewhere this costs nothing.
ALTER TABLE {schema}.arrival REPLICA IDENTITY FULL;

-- What retention has looked at where types or queues have rules: the settled jobs of a queue and type, of about
-- a minute before `at`. So what is kept longer is not in the way of the rest.
CREATE TABLE {schema}.kept (
    at timestamptz NOT NULL,
    status text COLLATE "C" NOT NULL,
    queue text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    ids uuid[] NOT NULL
) WITH (
    autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_scale_factor = 0.02
);
ALTER TABLE {schema}.kept ALTER ids SET STORAGE EXTERNAL;
CREATE INDEX kept_at ON {schema}.kept (status, queue, type, at);
ALTER TABLE {schema}.kept REPLICA IDENTITY FULL;

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
    reason text,
    PRIMARY KEY (xid, seq)
);
CREATE INDEX transition_job ON {schema}.transition (job_id, seq);

-- How far the statistics have read the ledger: this entry and all before it in the order of the stream.
CREATE TABLE {schema}.measured (
    one boolean PRIMARY KEY CHECK (one),
    xid xid8 NOT NULL,
    seq bigint NOT NULL,
    millis bigint NOT NULL
) WITH (fillfactor = 10);
INSERT INTO {schema}.measured VALUES (true, '0', 0, 0);

CREATE FUNCTION {schema}.refuse() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'TN001', MESSAGE = 'tenure: ' || TG_ARGV[0];
END $$;

-- The same unless a trigger of Tenure's makes the change: those run with the rights of the owner. As a WHEN
-- clause it would be read and prepared again for each statement. Names are written out, because it would
-- take as long again to set a search path.
CREATE FUNCTION {schema}.refuse_by_hand() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.=) 1
        OR NOT pg_catalog.has_table_privilege(TG_RELID, 'TRUNCATE')
    THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001', MESSAGE = 'tenure: ' OPERATOR(pg_catalog.||) TG_ARGV[0];
    END IF;
    RETURN NULL;
END $$;

-- Guards. They fire AFTER, because a trigger BEFORE an update would lock, and log, every row once more. Each
-- statement copies the WHEN clauses of all triggers of its table, so the long conditions are in functions.

-- What the values of a row may be, tested where a statement sets them.

CREATE FUNCTION {schema}.is_policy(value text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN {is_policy};
EXCEPTION WHEN data_exception THEN
    RETURN false;
END $$;

CREATE FUNCTION {schema}.check_values() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF {unfit_job} THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001',
            MESSAGE = 'tenure: a value of a job is refused: ' || {broken_value};
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER job_fits_on AFTER UPDATE OF {values_of_a_job} ON {schema}.job
    FOR EACH ROW EXECUTE FUNCTION {schema}.check_values();

-- The type of a JSON text, NULL if it is none.
CREATE FUNCTION {schema}.json_type(value text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN json_typeof(value::json);
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END $$;

-- What no claim and no completion sets.
CREATE FUNCTION {schema}.check_settings() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF {illegal_setting} THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001',
            MESSAGE = 'tenure: no transition may set this column of a job';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER job_sets AFTER UPDATE OF {set_columns} ON {schema}.job
    FOR EACH ROW EXECUTE FUNCTION {schema}.check_settings();

CREATE TRIGGER job_leaves AFTER DELETE ON {schema}.job
    FOR EACH ROW WHEN ({illegal_delete})
    EXECUTE FUNCTION {schema}.refuse('only a settled job may be deleted');

CREATE TRIGGER job_stays BEFORE TRUNCATE ON {schema}.job
    EXECUTE FUNCTION {schema}.refuse('jobs are deleted one by one, once they are settled');

-- What follows from a change of jobs is written once per statement: the ledger, and the three tables.
-- The join of old and new rows must never be a nested loop: a plan kept from a statement that changed
-- one row would take n * n steps for n rows. What the caller has switched off holds in here too,
-- unless it is set. Only the owner may write these tables, so the functions run with the owner's
-- rights, and only on the table of jobs, because any role can make a temporary table with triggers.

CREATE FUNCTION {schema}.refuse_row(what text) RETURNS boolean
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'TN001', MESSAGE = 'tenure: ' || what;
END $$;

CREATE FUNCTION {schema}.record_entry() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    n record;
    jobs bigint;
    tokens bigint;
    limited boolean := false;
    alone boolean;
    fits boolean := false;
BEGIN
    IF TG_RELID <> '{schema}.job'::regclass THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001',
            MESSAGE = 'tenure: only transitions of jobs write the ledger';
    END IF;
    n := (SELECT entered FROM entered LIMIT 1);
    IF n IS NULL THEN
        RETURN NULL;
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM {schema}.check_snapshot();
    END IF;
    IF pg_sequence_last_value('{schema}.limit_edition_seq'::regclass) IS NOT NULL THEN
        SELECT EXISTS (SELECT FROM (SELECT DISTINCT queue FROM entered) AS mine CROSS JOIN LATERAL (
            SELECT FROM {schema}.queue_limit WHERE queue = mine.queue LIMIT 1) AS l) INTO limited;
    END IF;
    PERFORM FROM entered OFFSET 1 LIMIT 1;
    alone := NOT FOUND AND NOT limited;
    -- One job; what is not in order is left to the queries below. Each transaction prepares the condition
    -- again, for a tenth of what the job costs, so most jobs have a short one.
    IF alone AND {is_plain} THEN
        fits := {is_plain_entry};
    ELSE
        PERFORM {schema}.bring(entered) FROM entered
        WHERE num_nonnulls(tags, unique_key, workflow) > 0;
        IF alone THEN
            fits := n.status = 'pending' AND {is_entry};
        END IF;
    END IF;
    IF fits THEN
        INSERT INTO {schema}.transition (job_id, at, target, event, attempt, token, actor)
        VALUES (n.id, n.created_at, 'pending', '{first_event}', 0, 0, n.actor);
        INSERT INTO {schema}.ready (queue, priority, run_at, id, type, start_by)
        VALUES (n.queue, n.priority, n.run_at, n.id, n.type, n.start_by);
        RETURN NULL;
    END IF;
    INSERT INTO {schema}.transition (job_id, at, source, target, event, attempt, token, actor)
    SELECT n.id, n.created_at, NULL, n.status, '{first_event}', 0, 0, n.actor FROM entered AS n
    WHERE CASE WHEN {illegal_entry} THEN
            {schema}.refuse_row('a new job must be pending or waiting, without attempts')
        WHEN {unfit_new_job} THEN
            {schema}.refuse_row('a value of a job is refused: ' || {broken_new_value})
        ELSE true END;
    GET DIAGNOSTICS jobs = ROW_COUNT;
    IF limited THEN
        INSERT INTO {schema}.ready (queue, priority, run_at, id, type, start_by, partition)
        SELECT queue, priority, run_at, id, type, start_by,
            CASE WHEN partitioned THEN coalesce(partition, '') END
        FROM entered LEFT JOIN {schema}.queue_limit USING (queue) WHERE status = 'pending';
        GET DIAGNOSTICS tokens = ROW_COUNT;
        INSERT INTO {schema}.line (queue, partition, id)
        SELECT queue, coalesce(partition, ''), id
        FROM entered JOIN {schema}.queue_limit USING (queue) WHERE ordered IS NOT NULL;
    ELSE
        INSERT INTO {schema}.ready (queue, priority, run_at, id, type, start_by)
        SELECT queue, priority, run_at, id, type, start_by FROM entered WHERE status = 'pending';
        GET DIAGNOSTICS tokens = ROW_COUNT;
    END IF;
    IF tokens < jobs THEN
        INSERT INTO {schema}.arrival (status, at, ids)
        SELECT status, start_by, array_agg(id) FROM entered
        WHERE status = 'waiting' AND start_by IS NOT NULL GROUP BY status, start_by;
        INSERT INTO {schema}.revisit (job_id)
        SELECT id FROM entered WHERE status = 'waiting' AND spare < 0;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER job_entered AFTER INSERT ON {schema}.job
    REFERENCING NEW TABLE AS entered
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.record_entry();

CREATE FUNCTION {schema}.record_move() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan {by_index}
    SET enable_hashjoin = on SET enable_nestloop = off SET enable_mergejoin = off AS $$
#variable_conflict use_column
DECLARE
    o record;
    n record;
    several boolean;
    ids uuid[];
    claimed boolean := false;
    completed boolean := false;
    followers bigint;
    counted boolean;
    moved_at timestamptz;
    seen record;
    limited boolean := false;
    freed bigint;
BEGIN
    IF TG_RELID <> '{schema}.job'::regclass THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001',
            MESSAGE = 'tenure: only transitions of jobs write the ledger';
    END IF;
    n := (SELECT after FROM after LIMIT 1);
    IF n IS NULL THEN
        RETURN NULL;
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM {schema}.check_snapshot();
    END IF;
    -- Jobs without unique keys or limits that are all claimed, or all complete: what workers do nearly
    -- always. To begin the queries below costs as much as seven such jobs. What is not in order is left to
    -- them. For one job, which most fleets claim at a time, expressions cost less than queries.
    IF pg_sequence_last_value('{schema}.limit_edition_seq'::regclass) IS NULL THEN
        o := (SELECT before FROM before LIMIT 1);
        PERFORM FROM after OFFSET 1 LIMIT 1;
        several := FOUND;
        IF o.status = 'pending' AND n.status = 'processing' THEN
            IF several THEN
                SELECT bool_and({is_claimed}) INTO claimed FROM before AS o JOIN after AS n ON n.id = o.id;
            ELSE
                claimed := {is_claimed};
            END IF;
        ELSIF o.status = 'processing' AND n.status = 'completed' THEN
            IF several THEN
                SELECT bool_and({is_completed}), sum(n.followed) INTO completed, followers
                FROM before AS o JOIN after AS n ON n.id = o.id;
            ELSE
                completed := {is_completed};
                followers := n.followed;
            END IF;
        ELSIF o.status = 'waiting' AND n.status = 'waiting' AND NOT several AND {is_counted} THEN
            RETURN NULL; -- an ending was counted (`count_one`), from which nothing follows
        END IF;
    END IF;
    IF claimed OR completed THEN
        moved_at := CASE WHEN claimed THEN n.started_at ELSE n.finished_at END;
        IF several THEN
            ids := ARRAY(SELECT id FROM after);
            INSERT INTO {schema}.transition (
                job_id, at, source, target, event, attempt, token, lease_id, actor)
            SELECT n.id, CASE WHEN claimed THEN n.started_at ELSE n.finished_at END, o.status, n.status,
                CASE WHEN claimed THEN 'claimed' ELSE 'completed' END, n.attempts, n.token,
                coalesce(n.lease_id, o.lease_id), n.actor
            FROM before AS o JOIN after AS n ON n.id = o.id;
        ELSE
            ids := ARRAY[n.id];
            INSERT INTO {schema}.transition (
                job_id, at, source, target, event, attempt, token, lease_id, actor)
            VALUES (n.id, moved_at, o.status, n.status,
                CASE WHEN claimed THEN 'claimed' ELSE 'completed' END, n.attempts, n.token,
                coalesce(n.lease_id, o.lease_id), n.actor);
        END IF;
        INSERT INTO {schema}.arrival (status, at, ids) VALUES (n.status, least(moved_at, {schema}.clock())
            + CASE WHEN claimed THEN interval '1 second' ELSE interval '0' END, ids);
        IF claimed AND NOT several THEN
            DELETE FROM {schema}.ready WHERE queue = o.queue AND priority = o.priority
                AND run_at = o.run_at AND id = o.id;
        ELSIF claimed THEN
            DELETE FROM {schema}.ready WHERE ctid = ANY (ARRAY(
                SELECT token.ctid FROM before CROSS JOIN LATERAL (
                    SELECT ctid FROM {schema}.ready WHERE queue = before.queue
                        AND priority = before.priority AND run_at = before.run_at AND id = before.id
                    LIMIT 1) AS token));
        ELSIF followers > 0 THEN
            counted := CASE followers WHEN 1 THEN {schema}.count_one(n.id, n.status) ELSE false END;
            IF NOT counted THEN
                PERFORM {schema}.follow_all(array_agg(id ORDER BY id), array_agg(status ORDER BY id),
                    array_agg(1), array_agg(followed ORDER BY id), NULL, NULL)
                FROM after WHERE followed > 0;
            END IF;
        END IF;
        RETURN NULL;
    END IF;
    SELECT * INTO seen FROM (
        SELECT bool_or(status = 'pending') AS was_pending,
            bool_or(status = 'processing') AS was_processing,
            bool_or(status IN ('failed', 'cancelled')) AS was_ended
        FROM before
    ) AS o, (
        SELECT bool_or(status = 'pending') AS is_pending,
            bool_or(status = 'processing') AS is_processing,
            bool_or(status = 'waiting') AS is_waiting,
            bool_or(status IN ('failed', 'cancelled')) AS is_ended,
            bool_or(status = 'cancelled') AS is_cancelled,
            bool_or(followed > 0 OR workflow IS NOT NULL) AS is_linked,
            bool_or(unique_key IS NOT NULL) AS is_unique,
            max(CASE WHEN {unfit_change} THEN {broken_change} END) AS broken
        FROM after AS n
    ) AS n;
    IF pg_sequence_last_value('{schema}.limit_edition_seq'::regclass) IS NOT NULL THEN
        SELECT EXISTS (SELECT FROM (SELECT DISTINCT queue FROM after) AS mine CROSS JOIN LATERAL (
            SELECT FROM {schema}.queue_limit WHERE queue = mine.queue LIMIT 1) AS l) INTO limited;
    END IF;
    IF limited AND seen.was_pending AND seen.is_processing THEN
        -- Before the ledger is written: its order is that of the locks.
        PERFORM {schema}.admit(mine.queue, ids, partitions, starts) FROM (
            SELECT n.queue, array_agg(n.id) AS ids, array_agg(coalesce(n.partition, '')) AS partitions,
                array_agg(n.started_at) AS starts
            FROM before AS o JOIN after AS n ON n.id = o.id
            WHERE o.status = 'pending' AND n.status = 'processing' GROUP BY n.queue ORDER BY n.queue
        ) AS mine CROSS JOIN LATERAL (
            SELECT FROM {schema}.queue_limit WHERE queue = mine.queue LIMIT 1) AS l;
    END IF;
    WITH entry AS (
        INSERT INTO {schema}.transition ({ledger_columns})
        SELECT {ledger_values}
        FROM before AS o JOIN after AS n ON n.id = o.id
        WHERE CASE WHEN {illegal_move} THEN {schema}.refuse_row('illegal transition of a job')
            ELSE n.status <> o.status OR {amended} END
        RETURNING job_id, target, at
    )
    INSERT INTO {schema}.arrival (status, at, ids)
    SELECT target, least(min(at), {schema}.clock())
        + CASE target WHEN 'processing' THEN interval '1 second' ELSE interval '0' END, array_agg(job_id)
    FROM entry WHERE target IN ('processing', {settled}) GROUP BY target;
    IF seen.broken IS NOT NULL THEN
        PERFORM {schema}.refuse_row('a value of a job is refused: ' || seen.broken);
    END IF;
    IF seen.was_pending THEN
        DELETE FROM {schema}.ready WHERE ctid = ANY (ARRAY(
            SELECT token.ctid FROM before CROSS JOIN LATERAL (
                SELECT ctid FROM {schema}.ready WHERE queue = before.queue
                    AND priority = before.priority AND run_at = before.run_at AND id = before.id
                LIMIT 1) AS token
            WHERE before.status = 'pending'));
    END IF;
    IF seen.is_pending THEN
        INSERT INTO {schema}.ready (queue, priority, run_at, id, type, start_by, partition)
        SELECT queue, priority, run_at, id, type, start_by,
            CASE WHEN limited THEN (SELECT coalesce(after.partition, '')
                FROM {schema}.queue_limit AS l WHERE l.queue = after.queue AND partitioned) END
        FROM after WHERE status = 'pending';
    END IF;
    IF seen.is_waiting THEN
        INSERT INTO {schema}.arrival (status, at, ids)
        SELECT status, start_by, array_agg(id) FROM after
        WHERE status = 'waiting' AND start_by IS NOT NULL GROUP BY status, start_by;
        INSERT INTO {schema}.revisit (job_id)
        SELECT id FROM after WHERE status = 'waiting' AND spare < 0 ON CONFLICT DO NOTHING;
    END IF;
    IF seen.was_ended THEN
        DELETE FROM {schema}.ended WHERE ctid = ANY (ARRAY(
            SELECT place.ctid FROM before CROSS JOIN LATERAL (
                SELECT ctid FROM {schema}.ended WHERE status = before.status AND id = before.id
                LIMIT 1) AS place
            WHERE before.status IN ('failed', 'cancelled')));
    END IF;
    IF seen.is_ended THEN
        INSERT INTO {schema}.ended (status, id)
        SELECT status, id FROM after WHERE status IN ('failed', 'cancelled');
    END IF;
    IF seen.is_unique THEN
        DELETE FROM {schema}.unique_key WHERE ctid = ANY (ARRAY(
            SELECT held.ctid FROM before AS o JOIN after AS n ON n.id = o.id CROSS JOIN LATERAL (
                SELECT ctid FROM {schema}.unique_key WHERE key = o.unique_key AND job_id = o.id
                LIMIT 1) AS held
            WHERE o.unique_key IS NOT NULL AND {held_key} AND NOT {holds_key}));
        INSERT INTO {schema}.unique_key (key, job_id)
        SELECT key, id FROM (
            SELECT n.unique_key AS key, n.id, pg_advisory_xact_lock( -- as `look_unique` does
                hashtextextended('{schema}.unique_key ' || n.unique_key, 0))
            FROM before AS o JOIN after AS n ON n.id = o.id
            WHERE n.unique_key IS NOT NULL AND {holds_key} AND NOT {held_key} ORDER BY 1) AS back;
    END IF;
    IF seen.was_processing AND seen.is_cancelled THEN -- so that workers stop the handlers
        PERFORM pg_notify(TG_TABLE_SCHEMA, o.worker)
        FROM before AS o JOIN after AS n ON n.id = o.id
        WHERE o.status = 'processing' AND n.status = 'cancelled' GROUP BY o.worker;
    END IF;
    IF seen.is_linked THEN
        PERFORM {schema}.follow_all(
            array_agg(n.id ORDER BY n.id),
            array_agg(CASE WHEN {at_rest} THEN n.status ELSE o.status END ORDER BY n.id),
            array_agg(CASE WHEN {at_rest} THEN 1 ELSE -1 END ORDER BY n.id),
            array_agg(n.followed ORDER BY n.id),
            array_agg(n.workflow) FILTER (WHERE n.workflow IS NOT NULL AND {was_at_rest}),
            array_agg(n.id) FILTER (WHERE o.event = 'skipped'))
        FROM before AS o JOIN after AS n ON n.id = o.id WHERE {at_rest} <> {was_at_rest};
    END IF;
    IF seen.was_processing AND seen.is_processing THEN -- a lease may end earlier now
        INSERT INTO {schema}.arrival (status, at, ids)
        SELECT n.status, n.lease_expires_at, array_agg(n.id)
        FROM before AS o JOIN after AS n ON n.id = o.id
        WHERE n.lease_expires_at < o.lease_expires_at GROUP BY n.status, n.lease_expires_at;
    END IF;
    IF limited AND seen.was_processing THEN
        DELETE FROM {schema}.slot WHERE ctid = ANY (ARRAY(
            SELECT place.ctid FROM before AS o JOIN after AS n ON n.id = o.id CROSS JOIN LATERAL (
                SELECT ctid FROM {schema}.slot WHERE queue = o.queue
                    AND partition = coalesce(o.partition, '') AND job_id = o.id LIMIT 1) AS place
            WHERE o.status = 'processing' AND n.status <> 'processing'));
        GET DIAGNOSTICS freed = ROW_COUNT;
    END IF;
    IF limited AND (seen.was_processing OR seen.is_ended OR seen.was_ended) THEN
        DELETE FROM {schema}.line WHERE ctid = ANY (ARRAY(
            SELECT place.ctid FROM after AS n CROSS JOIN LATERAL (
                SELECT ctid FROM {schema}.line WHERE queue = n.queue
                    AND partition = coalesce(n.partition, '') AND id = n.id AND (n.status <> 'failed'
                        OR (SELECT ordered FROM {schema}.queue_limit WHERE queue = n.queue) = 'pass')
                LIMIT 1) AS place
            WHERE {at_rest}));
        IF FOUND THEN
            freed := 1;
        END IF;
        INSERT INTO {schema}.line (queue, partition, id)
        SELECT queue, coalesce(partition, ''), id FROM after
        WHERE status IN ('waiting', 'pending') AND (
            SELECT ordered FROM {schema}.queue_limit AS l WHERE l.queue = after.queue) IS NOT NULL
        ON CONFLICT DO NOTHING;
    END IF;
    IF freed > 0 THEN -- so that what they were in the way of starts at once
        PERFORM pg_notify('{channel}', '') FROM (SELECT DISTINCT queue FROM before) AS mine
            CROSS JOIN LATERAL (SELECT FROM {schema}.ready WHERE queue = mine.queue LIMIT 1) AS token
        LIMIT 1;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER job_moved AFTER UPDATE ON {schema}.job
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.record_move();

CREATE FUNCTION {schema}.forget() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp {by_index} AS $$
BEGIN
    IF TG_RELID <> '{schema}.job'::regclass THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001', MESSAGE = 'tenure: only changes of jobs change this table';
    END IF;
    DELETE FROM {schema}.ended WHERE ctid = ANY (ARRAY(
        SELECT place.ctid FROM removed CROSS JOIN LATERAL (
            SELECT ctid FROM {schema}.ended WHERE status = removed.status AND id = removed.id
            LIMIT 1) AS place));
    DELETE FROM {schema}.line WHERE ctid = ANY (ARRAY(
        SELECT place.ctid FROM removed CROSS JOIN LATERAL (
            SELECT ctid FROM {schema}.line WHERE queue = removed.queue
                AND partition = coalesce(removed.partition, '') AND id = removed.id LIMIT 1) AS place
        WHERE removed.status = 'failed'));
    RETURN NULL;
END $$;

CREATE TRIGGER job_left AFTER DELETE ON {schema}.job
    REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.forget();

CREATE FUNCTION {schema}.forget_tags() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_RELID <> '{schema}.job'::regclass THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001', MESSAGE = 'tenure: only changes of jobs change this table';
    END IF;
    DELETE FROM {schema}.tag WHERE job_id = OLD.id
        AND tag IN (SELECT value FROM json_array_elements_text(OLD.tags::json));
    RETURN NULL;
END $$;

CREATE TRIGGER job_untagged AFTER DELETE ON {schema}.job
    FOR EACH ROW WHEN (OLD.tags IS NOT NULL) EXECUTE FUNCTION {schema}.forget_tags();

-- Whether others wait for a settled job: for its outcome, or in a line of which it is the first.
CREATE FUNCTION {schema}.is_needed(settled {schema}.job) RETURNS boolean
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp {by_index} AS $$
BEGIN
    RETURN settled.followed > 0 AND {schema}.is_awaited(settled.id)
        OR settled.status = 'failed' AND EXISTS (SELECT FROM {schema}.line WHERE line.queue = settled.queue
            AND line.partition = coalesce(settled.partition, '') AND line.id = settled.id);
END $$;

CREATE FUNCTION {schema}.keep_arrivals() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_nestloop = on {by_index} {by_loops} AS $$
DECLARE
    ruled boolean;
    refused uuid[] := nullif(current_setting('tenure.refused', true), '')::uuid[];
BEGIN
    IF TG_RELID NOT IN ('{schema}.arrival'::regclass, '{schema}.kept'::regclass) THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001', MESSAGE = 'tenure: only changes of jobs change this table';
    END IF;
    ruled := EXISTS (SELECT FROM {schema}.retention);
    -- Retention finds the jobs of a workflow by that. One that others wait for is left for as long again, and so
    -- is one that could not be deleted.
    INSERT INTO {schema}.arrival (status, at, ids)
    SELECT job.status, CASE WHEN job.finished_at IS NOT NULL AND (job.id = ANY (refused) OR {schema}.is_needed(job))
            THEN {schema}.clock() ELSE coalesce(job.lease_expires_at, job.finished_at, job.start_by) END,
        array_agg(DISTINCT job.id)
    FROM removed CROSS JOIN unnest(removed.ids) AS one (id) JOIN {schema}.job ON job.id = one.id
    WHERE job.status = removed.status
        AND (job.finished_at IS NULL OR job.workflow IS NULL AND NOT ruled)
    GROUP BY 1, 2;
    IF ruled THEN
        INSERT INTO {schema}.kept (status, queue, type, at, ids)
        SELECT job.status, job.queue, job.type,
            CASE WHEN job.id = ANY (refused) OR {schema}.is_needed(job)
                THEN {schema}.clock() ELSE date_trunc('minute', job.finished_at) + interval '1 minute' END,
            array_agg(DISTINCT job.id)
        FROM removed CROSS JOIN unnest(removed.ids) AS one (id)
            JOIN {schema}.job ON job.id = one.id
        WHERE job.status = removed.status AND job.finished_at IS NOT NULL AND job.workflow IS NULL
        GROUP BY 1, 2, 3, 4;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER arrival_comes_back AFTER DELETE ON {schema}.arrival
    REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.keep_arrivals();

CREATE TRIGGER kept_comes_back AFTER DELETE ON {schema}.kept
    REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.keep_arrivals();

CREATE FUNCTION {schema}.keep_ledger() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp SET jit = off
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

-- Only the triggers above write rows. Only the owner may truncate: deploy.md grants that to no other
-- role. Any role may delete arrivals, because a trigger enters again what is needed.

CREATE TRIGGER transition_appends BEFORE INSERT ON {schema}.transition
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_by_hand('only transitions of jobs write the ledger');

CREATE TRIGGER ready_follows BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {schema}.ready
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_by_hand('tokens come and go with pending jobs');

CREATE TRIGGER ended_follows BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {schema}.ended
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_by_hand('only changes of jobs change this table');

CREATE TRIGGER tag_follows BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {schema}.tag
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_by_hand('only changes of jobs change this table');

CREATE TRIGGER arrival_follows BEFORE INSERT OR UPDATE OR TRUNCATE ON {schema}.arrival
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_by_hand('arrivals are written by transitions of jobs');

CREATE TRIGGER kept_follows BEFORE INSERT OR UPDATE OR TRUNCATE ON {schema}.kept
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_by_hand('arrivals are written by transitions of jobs');
