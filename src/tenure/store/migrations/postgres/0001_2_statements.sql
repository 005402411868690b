-- The hot path, as functions: a session keeps their plans from call to call, whatever the client,
-- while a statement that is sent is parsed and planned again each time (prepared ones would be state
-- of a session, which a transaction pooler does not keep). The plans are generic and must not hang
-- on statistics, hence the settings (`PLANS` in store/postgres/schema.py): right after a bulk load the planner
-- would read the whole table. Rows come in as one array per column. Times go out in UTC and ids as text.

-- Jobs to add as rows of the table. What is in braces is made of `NEW` (store/postgres/statements.py).
CREATE FUNCTION {schema}.new_jobs({new_arrays}, now timestamptz)
    RETURNS TABLE ({entering_types})
    LANGUAGE sql STABLE AS $$
    SELECT {entering_values}
    FROM unnest({new_names}) AS new ({new_columns})
$$;

-- Add the jobs whose id and key are new; `sparing`: none at all if one of the queues has a limit;
-- `whole`: none at all if one is not new. Answers with one row: the time, the ids of the jobs added
-- unless all were, those not due at once.
CREATE FUNCTION {schema}.enqueue_many({new_arrays}, sparing boolean, whole boolean)
    RETURNS TABLE (at timestamp, made text[], later text[], later_at timestamp[])
    LANGUAGE plpgsql
    SET plan_cache_mode = force_generic_plan SET jit = off SET lock_timeout = '10s' AS $$
DECLARE
    now timestamptz := {schema}.clock();
    added bigint;
BEGIN
    at := now AT TIME ZONE 'UTC';
    IF sparing AND EXISTS (
        SELECT FROM {schema}.queue WHERE name = ANY (new_queue) AND max_pending IS NOT NULL)
    THEN
        made := ARRAY[]::text[];
        RETURN NEXT;
        RETURN;
    END IF;
    -- Nearly always all are new. To assume that, and to handle the error otherwise, costs
    -- a seventh less than ON CONFLICT, which writes each row in two steps.
    BEGIN
        WITH entered AS (
            INSERT INTO {schema}.job ({entering})
            SELECT * FROM {schema}.new_jobs({new_names}, now)
            RETURNING job.id, job.run_at
        )
        SELECT array_agg(id::text) FILTER (WHERE run_at <> now),
            array_agg(run_at AT TIME ZONE 'UTC') FILTER (WHERE run_at <> now), count(*)
        INTO later, later_at, added FROM entered;
        IF added < cardinality(new_id) THEN  -- a trigger that is not ours has dropped rows
            RAISE unique_violation;
        END IF;
    EXCEPTION WHEN unique_violation THEN
        IF whole THEN
            made := ARRAY[]::text[];
            RETURN NEXT;
            RETURN;
        END IF;
        WITH entered AS (
            INSERT INTO {schema}.job ({entering})
            SELECT * FROM {schema}.new_jobs({new_names}, now)
            ON CONFLICT DO NOTHING
            RETURNING job.id, job.run_at
        )
        SELECT coalesce(array_agg(id::text), '{{}}'),
            array_agg(id::text) FILTER (WHERE run_at <> now),
            array_agg(run_at AT TIME ZONE 'UTC') FILTER (WHERE run_at <> now)
        INTO made, later, later_at FROM entered;
    END;
    RETURN NEXT;
END $$;

-- `enqueue_many` sparing limited queues, for one job: at this size making rows of arrays would take
-- longer than all the rest. Answers with `created_at` and `run_at`, NULL if the job was left out. An id that is
-- not new is an error: only a call that is repeated has one, and ON CONFLICT costs a search and a second write.
CREATE FUNCTION {schema}.enqueue_one({new_values}) RETURNS timestamptz[]
    LANGUAGE plpgsql SET lock_timeout = '10s' AS $$
#variable_conflict use_variable
DECLARE
    now timestamptz := {schema}.clock();
    times timestamptz[];
BEGIN
    IF idempotency_key IS NULL THEN
        INSERT INTO {schema}.job ({entering})
        SELECT {entering_values}
        WHERE NOT EXISTS (
            SELECT FROM {schema}.queue AS q WHERE q.name = queue AND q.max_pending IS NOT NULL)
        RETURNING ARRAY[job.created_at, job.run_at] INTO times;
    ELSE
        INSERT INTO {schema}.job ({entering})
        SELECT {entering_values}
        WHERE NOT EXISTS (
            SELECT FROM {schema}.queue AS q WHERE q.name = queue AND q.max_pending IS NOT NULL)
        ON CONFLICT DO NOTHING
        RETURNING ARRAY[job.created_at, job.run_at] INTO times;
    END IF;
    RETURN times;
END $$;

-- Add jobs in a transaction of the caller's (store/borrowed): `request` is JSON, and so is the answer.
-- A subtransaction would be one of the caller's, and a lock on a queue would last until its commit:
-- there is none. If keys are known, nothing is added and the answer has the jobs with them. Unless it
-- `adds`, it only looks.
CREATE FUNCTION {schema}.add(request text) RETURNS text
    LANGUAGE plpgsql
    SET plan_cache_mode = force_generic_plan SET lock_timeout = '10s' {by_index} {by_loops} AS $$
#variable_conflict use_column
DECLARE
    now CONSTANT timestamptz := {schema}.clock();
    asked CONSTANT json := request::json;
    docs CONSTANT json := asked -> 'jobs';
    keys text[];
    known json;
    filled json;
    times json;
    entered integer;
BEGIN
    IF (asked ->> 'keyed')::boolean THEN
        keys := ARRAY(SELECT idempotency_key
            FROM json_to_recordset(docs) AS doc (idempotency_key text)
            WHERE idempotency_key IS NOT NULL);
        SELECT json_agg(job) INTO known FROM {schema}.job WHERE idempotency_key = ANY (keys);
    END IF;
    IF known IS NOT NULL THEN
        RETURN json_build_object('known', known);
    END IF;
    IF coalesce((asked ->> 'limited')::boolean, true)
        AND EXISTS (SELECT FROM {schema}.queue WHERE max_pending IS NOT NULL)
    THEN
        SELECT json_build_array(limited.name, limited.max_pending) INTO filled
        FROM (SELECT queue, count(*) AS jobs FROM json_to_recordset(docs) AS doc (queue text)
            GROUP BY queue) AS wanted JOIN {schema}.queue AS limited ON limited.name = wanted.queue
        WHERE limited.max_pending < wanted.jobs + (SELECT count(*) FROM (
            SELECT FROM {schema}.ready WHERE queue = limited.name
            LIMIT limited.max_pending) AS waiting)
        ORDER BY limited.name LIMIT 1;
    END IF;
    IF filled IS NOT NULL THEN
        RETURN json_build_object('full', filled);
    END IF;
    IF NOT coalesce((asked ->> 'adds')::boolean, true) THEN
        RETURN json_build_object();
    END IF;
    WITH doc AS MATERIALIZED (
        SELECT * FROM json_to_recordset(docs) AS doc (
            {new_values}, traceparent text, unique_key text, unique_until text)
    ), made AS (
        INSERT INTO {schema}.job ({entering}, unique_key, unique_until)
        SELECT {entering_values}, unique_key, unique_until FROM doc
        ON CONFLICT DO NOTHING
        RETURNING job.id, job.run_at
    ), traced AS (
        INSERT INTO {schema}.trace (job_id, traceparent)
        SELECT id, traceparent FROM doc WHERE traceparent IS NOT NULL
            AND (SELECT count(*) FROM doc) = (SELECT count(*) FROM made)
    )
    SELECT json_object_agg(id, run_at), count(*) INTO times, entered FROM made;
    -- Others have committed jobs with these keys since the look.
    IF entered = 0 THEN
        SELECT json_agg(job) INTO known FROM {schema}.job WHERE idempotency_key = ANY (keys);
    END IF;
    IF known IS NULL AND entered < json_array_length(docs) THEN
        IF NOT EXISTS (SELECT FROM json_to_recordset(docs) AS doc (idempotency_key text)
            WHERE idempotency_key IS NOT NULL)
        THEN
            RAISE EXCEPTION 'tenure: a trigger that is not from Tenure dropped a new row';
        END IF;
        RAISE EXCEPTION USING ERRCODE = 'serialization_failure', MESSAGE =
            'tenure: an idempotency key was used meanwhile, repeat the transaction. If that fails '
            'again, a trigger that is not from Tenure dropped a new row';
    END IF;
    IF (asked ->> 'notify')::boolean THEN
        PERFORM pg_notify('{channel}', '');
    END IF;
    RETURN json_build_object('created', now, 'runs', times, 'known', known);
END $$;

-- `add` for one job without trace or unique key, nearly always by the shorter way of `enqueue_one`.
CREATE FUNCTION {schema}.add_one(request json, notify boolean) RETURNS json
    LANGUAGE plpgsql AS $$
DECLARE
    doc record;
    times timestamptz[];
BEGIN
    SELECT * INTO doc FROM json_to_record(request) AS doc ({new_values});
    times := {schema}.enqueue_one({doc_values});
    IF times IS NULL THEN
        RETURN {schema}.add(json_build_object('jobs', json_build_array(request),
            'keyed', doc.idempotency_key IS NOT NULL, 'notify', notify)::text);
    END IF;
    IF notify THEN
        PERFORM pg_notify('{channel}', '');
    END IF;
    RETURN json_build_object('created', times[1], 'runs', json_build_object(doc.id, times[2]));
END $$;

-- Of the queues named, those with a limit. Locked, so that a count that is read after this still
-- holds when the jobs are in.
CREATE FUNCTION {schema}.limited(names text[]) RETURNS TABLE (name text, max_pending bigint)
    LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT q.name, q.max_pending FROM {schema}.queue AS q
    WHERE q.name = ANY (names) AND q.max_pending IS NOT NULL ORDER BY q.name FOR NO KEY UPDATE;
END $$;

-- Complete the attempts whose lease is held; answers with their leases. The lease alone would do (it
-- implies the status). With the status in the condition, the planner would walk the
-- index of leases and all its dead entries instead of the primary key.
CREATE FUNCTION {schema}.complete(ids uuid[], leases uuid[], results text[], actors text[])
    RETURNS TABLE (lease text)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan {by_index} {by_loops} AS $$
BEGIN
    RETURN QUERY
    UPDATE {schema}.job SET status = 'completed', result = report.result,
        finished_at = (SELECT {schema}.clock()), lease_id = NULL, lease_expires_at = NULL,
        event = 'completed', actor = coalesce(report.actor, job.worker)
    FROM unnest(ids, leases, results, actors) AS report (id, lease_id, result, actor)
    WHERE job.id = report.id AND job.lease_id = report.lease_id
    RETURNING report.lease_id::text;
END $$;

-- The lanes after one, each a queue at a priority, that have pending jobs, and the first job of each;
-- `most` of them. They are found by stepping through the index of tokens: one search per
-- lane, however many jobs wait in it. `walked` says how many dead entries of the index were met. One
-- row at least: without lanes its `queue` is NULL. Not `open` are paused queues, and those whose
-- names begin with `tenure.`: they have to be named.
CREATE FUNCTION {schema}.lanes(after_queue text, after_priority bigint, most integer)
    RETURNS TABLE (
        walked bigint, at timestamp, queue text, priority bigint, run_at timestamp, id text,
        open boolean)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan {by_index} {by_loops} AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH RECURSIVE start AS MATERIALIZED (
        SELECT pg_stat_get_xact_tuples_returned('{schema}.ready_pkey'::regclass) AS entries
    ), lane AS (
        SELECT head.* FROM start CROSS JOIN LATERAL (
            SELECT queue, priority, run_at, id FROM {schema}.ready
            WHERE (queue, priority) > (after_queue, after_priority)
            ORDER BY queue, priority, run_at, id LIMIT 1) AS head
        UNION ALL
        SELECT next.* FROM lane CROSS JOIN LATERAL (
            SELECT queue, priority, run_at, id FROM {schema}.ready
            WHERE (queue, priority) > (lane.queue, lane.priority)
            ORDER BY queue, priority, run_at, id LIMIT 1) AS next
    ), found AS MATERIALIZED (
        SELECT * FROM lane LIMIT most
    ), walk AS MATERIALIZED (
        SELECT count(*) AS lanes, pg_stat_get_xact_tuples_returned('{schema}.ready_pkey'::regclass)
            - (SELECT entries FROM start) AS entries
        FROM found
    )
    SELECT walk.entries - walk.lanes, (SELECT {schema}.clock()) AT TIME ZONE 'UTC',
        found.queue, found.priority, found.run_at AT TIME ZONE 'UTC', found.id::text,
        left(found.queue, 7) <> 'tenure.' AND NOT EXISTS (
            SELECT FROM {schema}.queue WHERE name = found.queue AND paused_at IS NOT NULL)
    FROM walk LEFT JOIN found ON true;
END $$;

-- The same for certain queues, one after the other, up to the end of the one with number `most`.
-- The last row alone says what was `walked`, and has no lane.
CREATE FUNCTION {schema}.lanes(wanted text[], most integer)
    RETURNS TABLE (
        walked bigint, at timestamp, queue text, priority bigint, run_at timestamp, id text,
        open boolean)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan {by_index} {by_loops} AS $$
#variable_conflict use_column
DECLARE
    named text;
    lanes bigint := 0;
    counted bigint;
    now timestamp := {schema}.clock() AT TIME ZONE 'UTC';
    entries bigint := pg_stat_get_xact_tuples_returned('{schema}.ready_pkey'::regclass);
BEGIN
    FOREACH named IN ARRAY wanted LOOP
        RETURN QUERY
        WITH RECURSIVE lane AS (
            (SELECT queue, priority, run_at, id FROM {schema}.ready
            WHERE queue = named
            ORDER BY queue, priority, run_at, id LIMIT 1)
            UNION ALL
            SELECT next.* FROM lane CROSS JOIN LATERAL (
                SELECT queue, priority, run_at, id FROM {schema}.ready
                WHERE queue = named AND priority > lane.priority
                ORDER BY queue, priority, run_at, id LIMIT 1) AS next
        )
        SELECT NULL::bigint, now, lane.queue, lane.priority,
            lane.run_at AT TIME ZONE 'UTC', lane.id::text, NOT EXISTS (
                SELECT FROM {schema}.queue WHERE name = lane.queue AND paused_at IS NOT NULL)
        FROM lane;
        GET DIAGNOSTICS counted = ROW_COUNT;
        lanes := lanes + counted;
        EXIT WHEN lanes >= most;
    END LOOP;
    RETURN QUERY
    SELECT pg_stat_get_xact_tuples_returned('{schema}.ready_pkey'::regclass) - entries - lanes,
        now, NULL, NULL::bigint, NULL::timestamp, NULL, NULL::boolean;
END $$;

-- Claim up to `most` jobs of one lane (a queue at a priority) that are due, in the order in which
-- they fell due. It looks at the first `seen` of them after a place (a time and an id), and takes jobs
-- of the types in `wanted` (NULL: of all types) whose type is not paused. Rows come in disk order.
CREATE FUNCTION {schema}.claim(
    lane_queue text, lane_priority bigint, since timestamptz, since_id uuid, due timestamptz,
    until timestamptz, holder text, wanted text[], most integer, seen integer
) RETURNS TABLE (
    id text, type text, queue text, payload text, attempts integer, max_retries bigint,
    token integer, timeout double precision, lease_id text, alone boolean, run_at timestamp
)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan {by_index} {by_loops} AS $$
#variable_conflict use_column
DECLARE
    places tid[];
    total bigint;
    started bigint;
    -- Leases are made of one random number and the ids: one for each job would cost a tenth of what it takes.
    random CONSTANT text := gen_random_uuid();
    half CONSTANT text := left(random, 19);
    seed CONSTANT bigint := hashtextextended(random, 0);
BEGIN
    -- A token that can be locked is still there, so its job is pending. To lock the job alone would
    -- also lock, until the commit, jobs that others have claimed since this statement began. The jobs of
    -- tokens that others have locked are not looked up. Rows come in the order of the inner search.
    SELECT array_agg(place), sum(size) INTO places, total FROM (
        SELECT job.ctid AS place, octet_length(job.payload) AS size FROM (
            SELECT first.id FROM (
                SELECT ctid, run_at, id, type, start_by FROM {schema}.ready
                WHERE queue = lane_queue AND priority = lane_priority
                    AND (run_at, id) > (since, since_id) AND run_at <= due
                ORDER BY run_at, id LIMIT seen
            ) AS first JOIN {schema}.ready AS token ON token.ctid = first.ctid
            WHERE (wanted IS NULL OR first.type = ANY (wanted))
                AND first.type <> ALL (ARRAY(SELECT name FROM {schema}.type WHERE paused_at IS NOT NULL))
                AND (first.start_by IS NULL OR first.start_by > due)
            FOR NO KEY UPDATE OF token SKIP LOCKED
        ) AS free JOIN {schema}.job ON job.id = free.id
        LIMIT most FOR NO KEY UPDATE OF job SKIP LOCKED
    ) AS picked;
    -- Most claims in vain come while another one takes the only job, of which all waiting workers were
    -- notified. They end here: an UPDATE of no row would cost as much again.
    IF places IS NULL THEN
        RETURN;
    END IF;
    IF total > 8388608 THEN -- as on SQLite, jobs until their payloads come to this
        places := ARRAY(SELECT place FROM (
            SELECT place, number, sum(octet_length(job.payload)) OVER (ORDER BY number)
                - octet_length(job.payload) AS before
            FROM unnest(places) WITH ORDINALITY AS picked (place, number)
                JOIN {schema}.job ON job.ctid = place
        ) AS picked WHERE before < 8388608 ORDER BY number);
    END IF;
    RETURN QUERY
    UPDATE {schema}.job SET status = 'processing', attempts = attempts + 1, token = token + 1,
        lease_id = (half || lpad(to_hex(hashtextextended(job.id::text, seed)), 16, '0'))::uuid,
        lease_expires_at = until, started_at = due,
        worker = holder, event = 'claimed', actor = holder
    WHERE ctid = ANY (places) AND status = 'pending'
    RETURNING job.id::text, type, queue, payload, attempts, max_retries, token, timeout,
        lease_id::text,
        coalesce(last_error ^@ 'lease expired' OR last_error ^@ 'the child process ', false),
        run_at AT TIME ZONE 'UTC';
    GET DIAGNOSTICS started = ROW_COUNT;
    IF started < cardinality(places) THEN
        RAISE EXCEPTION 'tenure: a trigger that is not from Tenure dropped a claim';
    END IF;
END $$;

-- The place of the last of `seen` due jobs in a lane after a place; no row if there are fewer.
CREATE FUNCTION {schema}.passed(
    lane_queue text, lane_priority bigint, since timestamptz, since_id uuid, due timestamptz,
    seen integer
) RETURNS TABLE (run_at timestamp, id text)
    LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan {by_index} AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY SELECT run_at AT TIME ZONE 'UTC', id::text FROM {schema}.ready
    WHERE queue = lane_queue AND priority = lane_priority
        AND (run_at, id) > (since, since_id) AND run_at <= due
    ORDER BY ready.run_at, ready.id LIMIT 1 OFFSET seen - 1;
END $$;

-- A worker's whole exchange in one round trip: complete attempts, then claim, where one lane at most has
-- jobs that are due, and no limits. Answers with a row for each lease that was `done`; then with no row if
-- there may be more, lanes or jobs that were not looked at, and with one without a job if there is none;
-- then `due_in` says when the first one falls due, in seconds, NULL if one is due that others may get.
CREATE FUNCTION {schema}.exchange(
    ids uuid[], leases uuid[], results text[], actors text[],
    queues text[], lease_seconds double precision, holder text, wanted text[], most integer,
    most_lanes integer, seen integer
) RETURNS TABLE (
    id text, type text, queue text, payload text, attempts integer, max_retries bigint,
    token integer, timeout double precision, lease_id text, alone boolean, run_at timestamp,
    at timestamp, walked bigint, due_in double precision, done text
)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET lock_timeout = '10s' {by_index} {by_loops} AS $$
DECLARE
    first CONSTANT timestamptz := '0001-01-01 00:00+00';
    first_id CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
    entries CONSTANT bigint := pg_stat_get_xact_tuples_returned('{schema}.ready_pkey'::regclass);
    last_queue CONSTANT text := CASE WHEN queues IS NULL THEN '~' ELSE queues[1] END;
    head record;
    lanes integer;
    due integer;
    due_queue text;
    due_priority bigint;
    place tid;
    next_at timestamp;
    now timestamptz;
    until timestamptz;
BEGIN
    -- Taken anyway, and here before the clock is read: leases count from the end of the wait.
    LOCK TABLE {schema}.job IN ROW EXCLUSIVE MODE;
    -- Two large exchanges at once keep a server busy. More of them would pass over the jobs of each
    -- other, and over those taken since their snapshots. No exchange waits long for a client that stands still.
    IF cardinality(ids) + most >= 500
        AND NOT pg_try_advisory_xact_lock(hashtextextended('{schema} exchange', (pg_backend_pid() + 1) % 2))
    THEN
        BEGIN
            SET LOCAL lock_timeout = '1s';
            PERFORM pg_advisory_xact_lock(hashtextextended('{schema} exchange', pg_backend_pid() % 2));
            SET LOCAL lock_timeout = '10s';
        EXCEPTION WHEN lock_not_available THEN
        END;
    END IF;
    -- One job is what most exchanges of a fleet complete and claim. Both are written out for it: the functions for
    -- many would add a fifth to what the exchange costs.
    IF cardinality(ids) = 1 THEN
        UPDATE {schema}.job AS j SET status = 'completed', result = results[1],
            finished_at = {schema}.clock(), lease_id = NULL, lease_expires_at = NULL,
            event = 'completed', actor = coalesce(actors[1], j.worker)
        WHERE j.id = ids[1] AND j.lease_id = leases[1];
        IF FOUND THEN
            done := leases[1];
            RETURN NEXT;
        END IF;
    ELSIF cardinality(ids) > 1 THEN
        FOR done IN SELECT lease FROM {schema}.complete(ids, leases, results, actors) LOOP
            RETURN NEXT;
        END LOOP;
    END IF;
    done := NULL;
    IF most < 1 THEN
        RETURN;
    END IF;
    -- Nearly always there is one lane, which two searches show for a third of what `lanes` costs.
    IF queues IS NULL OR cardinality(queues) = 1 THEN
        SELECT r.queue, r.priority, r.run_at INTO head FROM {schema}.ready AS r
        WHERE r.queue BETWEEN coalesce(queues[1], '') AND last_queue
        ORDER BY r.queue, r.priority, r.run_at, r.id LIMIT 1;
        lanes := CASE WHEN FOUND THEN 1 ELSE 0 END;
        PERFORM FROM {schema}.ready AS r
        WHERE (r.queue, r.priority) > (head.queue, head.priority) AND r.queue <= last_queue
        ORDER BY r.queue, r.priority LIMIT 1;
        IF NOT FOUND THEN
            at := {schema}.clock() AT TIME ZONE 'UTC';
            walked := pg_stat_get_xact_tuples_returned('{schema}.ready_pkey'::regclass) - entries - lanes;
            due := 0;
            IF lanes = 1 AND (queues IS NOT NULL OR NOT head.queue ^@ 'tenure.') THEN
                PERFORM FROM {schema}.queue AS q WHERE q.name = head.queue AND q.paused_at IS NOT NULL;
                IF NOT FOUND THEN
                    next_at := head.run_at AT TIME ZONE 'UTC';
                    due := CASE WHEN next_at <= at THEN 1 ELSE 0 END;
                    due_queue := head.queue;
                    due_priority := head.priority;
                END IF;
            END IF;
        END IF;
    END IF;
    IF due IS NULL AND queues IS NULL THEN
        SELECT count(*), count(*) FILTER (WHERE is_due), max(lane.queue) FILTER (WHERE is_due),
            max(lane.priority) FILTER (WHERE is_due), max(lane.at), max(lane.walked),
            min(lane.run_at) FILTER (WHERE lane.open)
        INTO lanes, due, due_queue, due_priority, at, walked, next_at
        FROM {schema}.lanes('', 0, most_lanes) AS lane, LATERAL (
            SELECT lane.open AND lane.run_at <= lane.at AS is_due) AS state;
    ELSIF due IS NULL THEN
        SELECT count(*), count(*) FILTER (WHERE is_due), max(lane.queue) FILTER (WHERE is_due),
            max(lane.priority) FILTER (WHERE is_due), max(lane.at), max(lane.walked),
            min(lane.run_at) FILTER (WHERE lane.open)
        INTO lanes, due, due_queue, due_priority, at, walked, next_at
        FROM {schema}.lanes(queues, most_lanes) AS lane, LATERAL (
            SELECT lane.open AND lane.run_at <= lane.at AS is_due) AS state;
    END IF;
    IF lanes >= most_lanes OR due > 1 THEN
        RETURN;
    END IF;
    IF pg_sequence_last_value('{schema}.limit_edition_seq'::regclass) IS NOT NULL THEN
        PERFORM FROM {schema}.queue_limit WHERE queue_limit.queue = due_queue;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    IF due = 1 THEN
        now := at AT TIME ZONE 'UTC';
        until := now + lease_seconds * interval '1 second';
        IF most = 1 THEN
            SELECT job.ctid INTO place FROM (
                SELECT first.id FROM (
                    SELECT r.ctid, r.run_at, r.id, r.type, r.start_by FROM {schema}.ready AS r
                    WHERE r.queue = due_queue AND r.priority = due_priority AND r.run_at <= now
                    ORDER BY r.run_at, r.id LIMIT seen
                ) AS first JOIN {schema}.ready AS token ON token.ctid = first.ctid
                WHERE (wanted IS NULL OR first.type = ANY (wanted))
                    AND first.type <> ALL (ARRAY(
                        SELECT t.name FROM {schema}.type AS t WHERE t.paused_at IS NOT NULL))
                    AND (first.start_by IS NULL OR first.start_by > now)
                FOR NO KEY UPDATE OF token SKIP LOCKED
            ) AS free JOIN {schema}.job ON job.id = free.id
            LIMIT 1 FOR NO KEY UPDATE OF job SKIP LOCKED;
            IF FOUND THEN
                RETURN QUERY
                UPDATE {schema}.job AS j SET status = 'processing', attempts = j.attempts + 1,
                    token = j.token + 1, lease_id = gen_random_uuid(), lease_expires_at = until,
                    started_at = now, worker = holder, event = 'claimed', actor = holder
                WHERE j.ctid = place AND j.status = 'pending'
                RETURNING j.id::text, j.type, j.queue, j.payload, j.attempts, j.max_retries, j.token,
                    j.timeout, j.lease_id::text, coalesce(
                        j.last_error ^@ 'lease expired' OR j.last_error ^@ 'the child process ', false),
                    j.run_at AT TIME ZONE 'UTC', at, walked, NULL::double precision, NULL;
                IF NOT FOUND THEN
                    RAISE EXCEPTION 'tenure: a trigger that is not from Tenure dropped a claim';
                END IF;
            END IF;
        ELSE
            RETURN QUERY SELECT claimed.*, at, walked, NULL::double precision, NULL
            FROM {schema}.claim(due_queue, due_priority, first, first_id, now, until, holder,
                wanted, most, seen) AS claimed;
        END IF;
        IF FOUND THEN
            RETURN;
        END IF;
        PERFORM FROM {schema}.passed(due_queue, due_priority, first, first_id, now, seen);
        IF FOUND THEN
            RETURN;
        END IF;
    ELSE
        due_in := coalesce(extract(epoch FROM next_at - at), 'infinity');
    END IF;
    RETURN NEXT;
END $$;

-- Which of the regular duties there is work for (store/duties.py).
CREATE FUNCTION {schema}.look() RETURNS TABLE ({duties})
    LANGUAGE plpgsql STABLE {by_index} AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY SELECT {look};
END $$;

-- Load jobs for changing, locked until the end of the transaction.
CREATE FUNCTION {schema}.locked(ids uuid[]) RETURNS SETOF {schema}.job
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan {by_index} AS $$
BEGIN
    RETURN QUERY SELECT * FROM {schema}.job WHERE id = ANY (ids) ORDER BY id FOR NO KEY UPDATE;
END $$;

-- Write jobs after a transition, each only if its row is unchanged since it was read: one array per
-- column, in the order below. Returns how many were written.
CREATE FUNCTION {schema}.save(
    uuid[], text[], integer[], bigint[], integer[], timestamptz[], timestamptz[], timestamptz[],
    text[], uuid[], timestamptz[], text[], text[], text[], text[],
    text[], text[], integer[], uuid[], timestamptz[], OUT written integer
)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan {by_index} {by_loops} AS $$
BEGIN
    UPDATE {schema}.job SET status = new.status, attempts = new.attempts,
        max_retries = new.max_retries, token = new.token, run_at = new.run_at,
        started_at = new.started_at, finished_at = new.finished_at, worker = new.worker,
        lease_id = new.lease_id, lease_expires_at = new.lease_expires_at, event = new.event,
        actor = new.actor, result = new.result, last_error = new.last_error, reason = new.reason
    FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
        $20)
        AS new (id, status, attempts, max_retries, token, run_at, started_at, finished_at, worker,
            lease_id, lease_expires_at, event, actor, result, last_error, reason,
            was_status, was_token, was_lease_id, was_lease_expires_at)
    WHERE job.id = new.id AND job.status = was_status AND job.token = was_token
        AND job.lease_id IS NOT DISTINCT FROM was_lease_id
        AND job.lease_expires_at IS NOT DISTINCT FROM was_lease_expires_at;
    GET DIAGNOSTICS written = ROW_COUNT;
END $$;
