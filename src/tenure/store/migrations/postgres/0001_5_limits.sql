-- Changes of limits that `slot`, `line` and the partitions of tokens were filled for. A transaction whose
-- snapshot is older than the last one would not follow it. The sequence has no value until there is the
-- first row of limits: to ask that takes a tenth of a look into a table.
CREATE SEQUENCE {schema}.limit_edition_seq;
GRANT SELECT ON SEQUENCE {schema}.limit_edition_seq TO PUBLIC;
CREATE TABLE {schema}.limit_edition (edition bigint NOT NULL);
ALTER TABLE {schema}.limit_edition REPLICA IDENTITY FULL; -- for publications
ALTER TABLE {schema}.limit_change REPLICA IDENTITY FULL;
INSERT INTO {schema}.limit_edition VALUES (0);

-- In a transaction with one snapshot: fail with a serialization error if that is too old. The sequence
-- shows every change. To lock the row fails if another transaction has committed a change of it since.
CREATE FUNCTION {schema}.check_snapshot() RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_sequence_last_value('{schema}.limit_edition_seq'::regclass)
        <> (SELECT edition FROM {schema}.limit_edition)
    THEN
        PERFORM FROM {schema}.limit_edition FOR SHARE;
    END IF;
END $$;

-- Microseconds since 1970.
CREATE FUNCTION {schema}.micros(at timestamptz) RETURNS bigint
    LANGUAGE sql STABLE PARALLEL SAFE AS 'SELECT (extract(epoch FROM at) * 1000000)::bigint';

-- How many jobs a rate lets start at a time.
CREATE FUNCTION {schema}.starts_left(burst integer, every bigint, tat bigint, at timestamptz)
    RETURNS integer
    LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT greatest(0, burst - (greatest(tat - {schema}.micros(at), 0) + every - 1) / every)::integer
$$;

-- The `tat` of a rate after these starts; NULL if it does not let all of them start.
CREATE FUNCTION {schema}.metered(
    burst integer, every bigint, INOUT tat bigint, starts timestamptz[]
) LANGUAGE plpgsql AS $$
DECLARE
    start record;
BEGIN
    FOR start IN SELECT at, count(*)::integer AS jobs FROM unnest(starts) AS one (at)
        GROUP BY at ORDER BY at
    LOOP
        IF start.jobs > {schema}.starts_left(burst, every, tat, start.at) THEN
            tat := NULL;
            EXIT;
        END IF;
        tat := greatest(tat, {schema}.micros(start.at)) + start.jobs * every;
    END LOOP;
END $$;

-- The advisory lock of a partition. Without arguments that of all limits: claims of limited queues share it,
-- a change of a limit has it alone. So each claim goes by the limits before a change or by those after.
-- ('', 'settings') is that of all who set limits. They take it first, then that of the table of jobs if they
-- need it, then that of all limits, then the row: who changes jobs takes the last three in this order, too.
CREATE FUNCTION {schema}.limit_lock(queue text DEFAULT '', partition text DEFAULT '') RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT hashtextextended('{schema}' || chr(1) || queue || chr(1) || partition, 0)
$$;

-- Whether a row sets limits, so that jobs have slots. Otherwise it is a pause, or nothing, and may come and
-- go at any time: to wait for all that change jobs is too much for a job that waits.
CREATE FUNCTION {schema}.sets_limits(l {schema}.queue_limit) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(l.partitioned, false) OR num_nonnulls(l.max_running, l.rate_starts) > 0
$$;

-- What slots, turns and lines of jobs depend on.
CREATE FUNCTION {schema}.shape_of(l {schema}.queue_limit) RETURNS record
    LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT {schema}.sets_limits(l), coalesce(l.partitioned, false), l.ordered
$$;

-- How many jobs of a queue may start at a time, all partitions together. Its row has to be locked.
-- What is counted here was committed before the lock was taken, because each statement of a function
-- has its own snapshot.
CREATE FUNCTION {schema}.queue_room(l {schema}.queue_limit, at timestamptz)
    RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    room integer := 2147483647;
BEGIN
    IF l.resume_at > at THEN
        RETURN 0;
    END IF;
    IF l.max_running IS NOT NULL THEN
        SELECT l.max_running - count(*) INTO room FROM (
            SELECT FROM {schema}.slot WHERE queue = l.queue LIMIT l.max_running) AS running;
    END IF;
    IF l.every IS NOT NULL THEN
        room := least(room, {schema}.starts_left(l.burst, l.every, l.tat, at));
    END IF;
    RETURN room;
END $$;

-- The same for a partition, which has to be locked if it is `bounded`; the weight of its turn; and the
-- one job that may start, if the queue is ordered.
CREATE FUNCTION {schema}.partition_room(
    l {schema}.queue_limit, mine text, at timestamptz,
    OUT room integer, OUT weight integer, OUT tat bigint, OUT bounded boolean, OUT next uuid
) LANGUAGE plpgsql AS $$
DECLARE
    k {schema}.partition_limit;
    most integer;
BEGIN
    SELECT * INTO k FROM {schema}.partition_limit WHERE queue = l.queue AND partition = mine;
    most := least(CASE WHEN l.ordered IS NOT NULL THEN 1 END,
        coalesce(k.max_running, l.per_max_running));
    bounded := most IS NOT NULL OR l.per_every IS NOT NULL;
    weight := coalesce(k.weight, 1);
    tat := coalesce(k.tat, 0);
    room := 2147483647;
    IF k.paused_at IS NOT NULL OR k.resume_at > at THEN
        room := 0;
        RETURN;
    END IF;
    IF most IS NOT NULL THEN
        SELECT most - count(*) INTO room FROM (
            SELECT FROM {schema}.slot WHERE queue = l.queue AND partition = mine LIMIT most) AS running;
    END IF;
    IF l.per_every IS NOT NULL AND room > 0 THEN
        room := least(room, {schema}.starts_left(l.per_burst, l.per_every, tat, at));
    END IF;
    IF l.ordered IS NOT NULL AND room > 0 THEN
        SELECT id INTO next FROM {schema}.line WHERE queue = l.queue AND partition = mine
        ORDER BY queue, partition, id LIMIT 1;
    END IF;
END $$;

CREATE FUNCTION {schema}.refuse_start(why text) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'TN006', MESSAGE = 'tenure: ' || why;
END $$;

-- The jobs of a limited queue that a statement has started: give them slots, or raise. Every start
-- passes here (record_move). The locks are held until the commit. Ends of jobs take none: to miss one
-- counts too many, never too few.
CREATE FUNCTION {schema}.admit(of text, ids uuid[], partitions text[], starts timestamptz[])
    RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan {by_index} AS $$
#variable_conflict use_column
DECLARE
    l {schema}.queue_limit;
    part record;
    free record;
    used bigint;
    last CONSTANT timestamptz := (SELECT max(at) FROM unnest(starts) AS one (at));
BEGIN
    -- A snapshot from before a lock would not see what was committed until then.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM {schema}.refuse_start('jobs of queues with limits start in READ COMMITTED');
    ELSIF last > {schema}.clock() + interval '1 second' THEN
        PERFORM {schema}.refuse_start('a job of a queue with limits starts now');
    END IF;
    PERFORM pg_advisory_xact_lock_shared({schema}.limit_lock());
    SELECT * INTO l FROM {schema}.queue_limit WHERE queue = of;
    IF l.max_running IS NOT NULL OR l.every IS NOT NULL THEN
        SELECT * INTO l FROM {schema}.queue_limit WHERE queue = of FOR NO KEY UPDATE;
    END IF;
    used := {schema}.metered(l.burst, l.every, l.tat, starts);
    IF {schema}.queue_room(l, last) < cardinality(ids) OR (l.every IS NOT NULL AND used IS NULL) THEN
        PERFORM {schema}.refuse_start(format('the limits of queue %L let fewer jobs start', of));
    ELSIF l.every IS NOT NULL THEN
        UPDATE {schema}.queue_limit SET tat = used WHERE queue = of;
    END IF;
    IF l.partitioned THEN
        PERFORM pg_advisory_xact_lock(place) FROM (
            SELECT DISTINCT {schema}.limit_lock(of, mine) AS place
            FROM unnest(partitions) AS one (mine) ORDER BY place) AS one
        WHERE l.ordered IS NOT NULL OR l.per_max_running IS NOT NULL OR l.per_every IS NOT NULL
            OR EXISTS (SELECT FROM {schema}.partition_limit WHERE queue = of
                AND partition = ANY (partitions) AND max_running IS NOT NULL);
        FOR part IN SELECT mine, array_agg(id) AS ids, array_agg(at) AS starts
            FROM unnest(ids, partitions, starts) AS one (id, mine, at) GROUP BY mine ORDER BY mine
        LOOP
            free := {schema}.partition_room(l, part.mine, last);
            used := {schema}.metered(l.per_burst, l.per_every, free.tat, part.starts);
            IF free.room < cardinality(part.ids) OR (l.per_every IS NOT NULL AND used IS NULL)
                OR (l.ordered IS NOT NULL AND free.next IS DISTINCT FROM part.ids[1])
            THEN
                PERFORM {schema}.refuse_start(format(
                    'the limits of queue %L let fewer jobs of partition %L start', of, part.mine));
            ELSIF l.per_every IS NOT NULL THEN
                INSERT INTO {schema}.partition_limit (queue, partition, tat)
                VALUES (of, part.mine, used)
                ON CONFLICT (queue, partition) DO UPDATE SET tat = excluded.tat;
            END IF;
        END LOOP;
    END IF;
    INSERT INTO {schema}.slot (queue, partition, job_id)
    SELECT of, mine, id FROM unnest(ids, partitions) AS one (id, mine) WHERE {schema}.sets_limits(l);
END $$;

-- Before a limit changes. Where jobs have to be given slots, turns or places in a line, or to lose them,
-- no job may enter, start or end meanwhile.
CREATE FUNCTION {schema}.hold_limits() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    now bigint;
    known {schema}.queue_limit;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM {schema}.refuse_row('limits are changed in READ COMMITTED');
    ELSIF TG_OP = 'UPDATE' AND NEW.queue <> OLD.queue THEN
        PERFORM {schema}.refuse_row('limits cannot go to another queue');
    END IF;
    IF TG_TABLE_NAME = 'queue_limit' THEN
        IF pg_sequence_last_value('{schema}.limit_edition_seq'::regclass) IS NULL THEN
            PERFORM nextval('{schema}.limit_edition_seq');
        END IF;
        IF NOT ({schema}.sets_limits(NEW) OR {schema}.sets_limits(OLD)) THEN
            RETURN coalesce(NEW, OLD);
        END IF;
        PERFORM pg_advisory_xact_lock({schema}.limit_lock('', 'settings'));
        known := OLD;
        IF TG_OP = 'INSERT' THEN -- which is an update if the row is there
            SELECT * INTO known FROM {schema}.queue_limit WHERE queue = NEW.queue;
        END IF;
        IF {schema}.shape_of(NEW) IS DISTINCT FROM {schema}.shape_of(known) THEN
            LOCK TABLE {schema}.job IN SHARE ROW EXCLUSIVE MODE;
        END IF;
    END IF;
    PERFORM pg_advisory_xact_lock({schema}.limit_lock());
    IF TG_TABLE_NAME = 'queue_limit' AND TG_OP = 'UPDATE' THEN -- no job waits longer than by the new rate
        now := {schema}.micros({schema}.clock());
        NEW.tat := least(NEW.tat, now + coalesce(NEW.burst * NEW.every, 0));
        UPDATE {schema}.partition_limit SET tat = now + coalesce(NEW.per_burst * NEW.per_every, 0)
        WHERE queue = NEW.queue AND tat > now + coalesce(NEW.per_burst * NEW.per_every, 0);
    END IF;
    RETURN coalesce(NEW, OLD);
END $$;

-- Give slots, turns and places in a line to the jobs of a queue, or take them away.
CREATE FUNCTION {schema}.fill_limits() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = on SET enable_bitmapscan = on
    SET enable_hashjoin = on SET enable_mergejoin = on SET enable_nestloop = on AS $$
DECLARE
    of CONSTANT text := coalesce(NEW.queue, OLD.queue);
    becomes CONSTANT boolean := {schema}.sets_limits(NEW);
BEGIN
    IF {schema}.shape_of(NEW) IS NOT DISTINCT FROM {schema}.shape_of(OLD) THEN
        RETURN NULL;
    ELSIF becomes <> {schema}.sets_limits(OLD) THEN
        DELETE FROM {schema}.slot WHERE queue = of;
        INSERT INTO {schema}.slot (queue, partition, job_id)
        SELECT job.queue, coalesce(job.partition, ''), job.id FROM (
            SELECT DISTINCT unnest(ids) AS id FROM {schema}.arrival WHERE status = 'processing'
        ) AS arrived JOIN {schema}.job USING (id)
        WHERE becomes AND job.queue = of AND job.status = 'processing';
    END IF;
    IF coalesce(NEW.partitioned, false) <> coalesce(OLD.partitioned, false) THEN
        UPDATE {schema}.ready
        SET partition = CASE WHEN NEW.partitioned THEN coalesce(job.partition, '') END
        FROM {schema}.job WHERE job.id = ready.id AND ready.queue = of;
    END IF;
    IF NEW.ordered IS DISTINCT FROM OLD.ordered THEN -- jobs that failed before stop no line
        DELETE FROM {schema}.line WHERE queue = of;
        INSERT INTO {schema}.line (queue, partition, id)
        SELECT queue, coalesce(partition, ''), id FROM {schema}.job
        WHERE queue = of AND status NOT IN ({settled}) AND NEW.ordered IS NOT NULL;
    END IF;
    UPDATE {schema}.limit_edition SET edition = nextval('{schema}.limit_edition_seq');
    RETURN NULL;
END $$;

-- What a row of limits sets; NULL if nothing.
CREATE FUNCTION {schema}.setting_of(limits jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE AS $$
    SELECT nullif(nullif(jsonb_strip_nulls(
        limits - '{{queue,partition,tat,resume_at,paused_for}}'::text[]), '{{}}'),
        '{{"partitioned": false}}')
$$;

-- Write the history of the limits of a queue or a partition.
CREATE FUNCTION {schema}.record_limits() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    was CONSTANT jsonb := {schema}.setting_of(to_jsonb(OLD));
    becomes CONSTANT jsonb := {schema}.setting_of(to_jsonb(NEW));
BEGIN
    IF becomes IS DISTINCT FROM was THEN
        INSERT INTO {schema}.limit_change (queue, partition, place, at, setting)
        VALUES (coalesce(NEW.queue, OLD.queue), to_jsonb(coalesce(NEW, OLD)) ->> 'partition',
            nextval('{schema}.transition_seq_seq'), {schema}.clock(), becomes);
    END IF;
    IF becomes IS DISTINCT FROM was OR OLD.resume_at > coalesce(NEW.resume_at, '-infinity') THEN
        PERFORM pg_notify('{channel}', '');
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER limit_changes BEFORE INSERT OR DELETE OR UPDATE OF
    queue, max_running, rate_starts, rate_seconds, burst, every, partitioned, per_max_running,
    per_rate_starts, per_rate_seconds, per_burst, per_every, ordered
    ON {schema}.queue_limit FOR EACH ROW EXECUTE FUNCTION {schema}.hold_limits();
CREATE TRIGGER limit_fills
    AFTER INSERT OR DELETE OR UPDATE OF max_running, rate_starts, partitioned, ordered
    ON {schema}.queue_limit FOR EACH ROW EXECUTE FUNCTION {schema}.fill_limits();
CREATE TRIGGER limit_recorded AFTER INSERT OR DELETE OR UPDATE OF
    max_running, rate_starts, rate_seconds, burst, every, partitioned, per_max_running,
    per_rate_starts, per_rate_seconds, per_burst, per_every, ordered, resume_at
    ON {schema}.queue_limit FOR EACH ROW EXECUTE FUNCTION {schema}.record_limits();

-- A start that is metered inserts a row, too.
CREATE TRIGGER partition_limit_comes BEFORE INSERT ON {schema}.partition_limit
    FOR EACH ROW WHEN (num_nonnulls(NEW.max_running, NEW.weight, NEW.paused_at) > 0)
    EXECUTE FUNCTION {schema}.hold_limits();
CREATE TRIGGER partition_limit_goes BEFORE DELETE ON {schema}.partition_limit
    FOR EACH ROW WHEN (num_nonnulls(OLD.max_running, OLD.weight, OLD.paused_at) > 0)
    EXECUTE FUNCTION {schema}.hold_limits();
CREATE TRIGGER partition_limit_changes
    BEFORE UPDATE OF queue, partition, max_running, weight, paused_at ON {schema}.partition_limit
    FOR EACH ROW EXECUTE FUNCTION {schema}.hold_limits();
CREATE TRIGGER partition_limit_recorded AFTER INSERT OR DELETE
    OR UPDATE OF max_running, weight, paused_at, paused_by, pause_reason, resume_at
    ON {schema}.partition_limit FOR EACH ROW EXECUTE FUNCTION {schema}.record_limits();
CREATE TRIGGER limit_stays BEFORE TRUNCATE ON {schema}.queue_limit
    EXECUTE FUNCTION {schema}.refuse('limits are deleted one by one');
CREATE TRIGGER partition_limit_stays BEFORE TRUNCATE ON {schema}.partition_limit
    EXECUTE FUNCTION {schema}.refuse('limits are deleted one by one');

-- As with `ready`, triggers alone write these rows. Except that a failed job may be taken out of its line by
-- hand, so that the later ones start.

CREATE TRIGGER slot_follows BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {schema}.slot
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_by_hand('slots come and go with processing jobs');

CREATE TRIGGER line_follows BEFORE INSERT OR UPDATE OR TRUNCATE ON {schema}.line
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_by_hand('only changes of jobs change a line');

CREATE FUNCTION {schema}.pass_over() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Locked, it is as the last change left it: one that retries it may not have committed before.
    IF (SELECT status FROM {schema}.job WHERE id = OLD.id FOR NO KEY UPDATE) <> 'failed' THEN
        PERFORM {schema}.refuse_row('only a failed job is taken out of its line');
    END IF;
    PERFORM pg_notify('{channel}', '');
    RETURN NULL;
END $$;

CREATE TRIGGER line_passes AFTER DELETE ON {schema}.line
    FOR EACH ROW WHEN (pg_trigger_depth() = 0
        OR NOT has_table_privilege('{schema}.line'::regclass, 'TRUNCATE'))
    EXECUTE FUNCTION {schema}.pass_over();

CREATE TRIGGER limit_change_is_final BEFORE UPDATE OR DELETE OR TRUNCATE ON {schema}.limit_change
    EXECUTE FUNCTION {schema}.refuse('the history of limits cannot be edited');
CREATE TRIGGER limit_change_follows BEFORE INSERT ON {schema}.limit_change
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_by_hand('the history of limits is written by their changes');

CREATE TRIGGER limit_edition_follows BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE
    ON {schema}.limit_edition FOR EACH STATEMENT
    EXECUTE FUNCTION {schema}.refuse_by_hand('editions of limits are counted by their changes');
