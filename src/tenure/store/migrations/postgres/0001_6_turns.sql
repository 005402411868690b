-- Claims from lanes of queues with limits. What they may take is decided under the locks that `admit`
-- needs, so that it does not refuse it. No lock is waited for: who holds it decides at this moment.

-- How many jobs of a queue may start at a time, all partitions together. NULL: another transaction decides.
CREATE FUNCTION {schema}.room(of text, due timestamptz) RETURNS integer
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan {by_index} AS $$
DECLARE
    l {schema}.queue_limit;
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared({schema}.limit_lock()) THEN
        RETURN NULL;
    END IF;
    SELECT * INTO l FROM {schema}.queue_limit WHERE queue = of;
    IF l.max_running IS NOT NULL OR l.every IS NOT NULL THEN
        SELECT * INTO l FROM {schema}.queue_limit WHERE queue = of FOR NO KEY UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    RETURN {schema}.queue_room(l, due);
END $$;

-- The partitions of a lane that may start jobs, locked, from the one on whose turn it is, and around; those
-- whose turns fill `space`. `looks` at most are looked at. `since` and `next` are the place of the
-- one job that may start, if the queue is ordered. The last row is the last one looked at, without room;
-- its partition is NULL if none is left, and its weight is the number of looks.
CREATE FUNCTION {schema}.open_partitions(
    lane_queue text, lane_priority bigint, due timestamptz, turn text, turn_left integer,
    space integer, looks integer
) RETURNS TABLE (partition text, room integer, weight integer, since timestamp, next text)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan {by_index} AS $$
#variable_conflict use_column
DECLARE
    l {schema}.queue_limit;
    head record;
    free record;
    place text := turn;
    before text := NULL; -- the end of the second lap
    looked integer := 0;
BEGIN
    SELECT * INTO l FROM {schema}.queue_limit WHERE queue = lane_queue;
    FOR look IN 1..looks LOOP
        looked := look;
        SELECT token.partition, token.run_at INTO head FROM {schema}.ready AS token
        WHERE token.queue = lane_queue AND token.priority = lane_priority
            AND token.partition >= place AND (before IS NULL OR token.partition < before)
        ORDER BY token.queue, token.priority, token.partition, token.run_at, token.id LIMIT 1;
        IF NOT FOUND THEN
            partition := NULL;
            EXIT WHEN before IS NOT NULL OR turn = '';
            before := turn;
            place := '';
            CONTINUE;
        END IF;
        partition := head.partition;
        place := partition || chr(1); -- nothing is between a partition and that
        CONTINUE WHEN head.run_at > due;
        free := {schema}.partition_room(l, partition, due);
        IF free.room > 0 AND free.bounded THEN
            CONTINUE WHEN NOT pg_try_advisory_xact_lock({schema}.limit_lock(lane_queue, partition));
            free := {schema}.partition_room(l, partition, due); -- again, under the lock
        END IF;
        CONTINUE WHEN free.room <= 0;
        next := free.next::text;
        IF l.ordered IS NOT NULL THEN
            SELECT run_at AT TIME ZONE 'UTC' INTO since FROM {schema}.job WHERE id = free.next
                AND status = 'pending' AND priority = lane_priority AND run_at <= due;
            CONTINUE WHEN NOT FOUND;
        END IF;
        room := free.room;
        weight := free.weight;
        RETURN NEXT;
        space := space - least(room,
            CASE WHEN partition = turn AND turn_left > 0 THEN least(turn_left, weight) ELSE weight END);
        EXIT WHEN space <= 0;
    END LOOP;
    room := NULL;
    weight := looked;
    RETURN NEXT;
END $$;

-- `claim` for partitions of a lane, each up to its share, `most` in all: of the first `seen` due jobs of each from
-- a place on, or, `in_order`, the one job that was found there. Answers with their partitions, too.
CREATE FUNCTION {schema}.claim_in_turn(
    lane_queue text, lane_priority bigint, due timestamptz, until timestamptz, holder text,
    wanted text[], in_turn text[], shares integer[], since timestamptz[], since_ids uuid[],
    in_order boolean, most integer, seen integer
) RETURNS TABLE (
    id text, type text, queue text, payload text, attempts integer, max_retries bigint,
    token integer, timeout double precision, lease_id text, alone boolean, partition text
)
    LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan {by_index} {by_loops} AS $$
#variable_conflict use_column
DECLARE
    random CONSTANT text := gen_random_uuid(); -- for leases, as in `claim`
    half CONSTANT text := left(random, 19);
    seed CONSTANT bigint := hashtextextended(random, 0);
    places tid[];
    started bigint;
BEGIN
    WITH picked AS MATERIALIZED (
        SELECT mine.place, mine.size
        FROM unnest(in_turn, shares, since, since_ids) AS part (partition, share, since, since_id)
        CROSS JOIN LATERAL (
            SELECT job.ctid AS place, octet_length(job.payload) AS size FROM (
                SELECT ctid, run_at, id, type FROM {schema}.ready
                WHERE queue = lane_queue AND priority = lane_priority
                    AND ready.partition = part.partition
                    AND (run_at, id) >= (part.since, part.since_id) AND run_at <= due
                ORDER BY run_at, id LIMIT CASE WHEN in_order THEN 1 ELSE seen END
            ) AS first JOIN {schema}.ready AS token ON token.ctid = first.ctid
                JOIN {schema}.job ON job.id = first.id
            WHERE (wanted IS NULL OR first.type = ANY (wanted))
                AND first.type <> ALL (ARRAY(
                    SELECT name FROM {schema}.type WHERE paused_at IS NOT NULL))
                AND (job.start_by IS NULL OR job.start_by > due)
            ORDER BY first.run_at, first.id LIMIT part.share FOR NO KEY UPDATE OF token, job SKIP LOCKED
        ) AS mine LIMIT most
    ) -- up to 8 MiB of payloads
    SELECT array_agg(place) INTO places FROM (
        SELECT *, sum(size) OVER (ROWS UNBOUNDED PRECEDING) - size AS before FROM picked
    ) AS picked WHERE before < 8388608;
    IF places IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY
    UPDATE {schema}.job SET status = 'processing', attempts = attempts + 1, token = token + 1,
        lease_id = (half || lpad(to_hex(hashtextextended(job.id::text, seed)), 16, '0'))::uuid,
        lease_expires_at = until, started_at = due, worker = holder, event = 'claimed', actor = holder
    FROM unnest(places) AS picked (place) WHERE job.ctid = place AND status = 'pending'
    RETURNING job.id::text, type, queue, payload, attempts, max_retries, token, timeout,
        lease_id::text,
        coalesce(last_error ^@ 'lease expired' OR last_error ^@ 'the child process ', false),
        coalesce(job.partition, '');
    GET DIAGNOSTICS started = ROW_COUNT;
    IF started < cardinality(places) THEN
        RAISE EXCEPTION 'tenure: a trigger that is not from Tenure dropped a claim';
    END IF;
END $$;

-- The place of the last of the next `seen` due jobs after a place, for each partition that has so many.
CREATE FUNCTION {schema}.passed_in_turn(
    lane_queue text, lane_priority bigint, due timestamptz,
    in_turn text[], since timestamptz[], since_ids uuid[], seen integer
) RETURNS TABLE (partition text, run_at timestamp, id text)
    LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan {by_index} AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY SELECT part.partition, last.run_at AT TIME ZONE 'UTC', last.id::text
    FROM unnest(in_turn, since, since_ids) AS part (partition, since, since_id) CROSS JOIN LATERAL (
        SELECT run_at, id FROM {schema}.ready
        WHERE queue = lane_queue AND priority = lane_priority AND ready.partition = part.partition
            AND (run_at, id) >= (part.since, part.since_id) AND run_at <= due
        ORDER BY run_at, id LIMIT 1 OFFSET seen - 1) AS last;
END $$;
