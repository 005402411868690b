CREATE INDEX job_workflow ON {schema}.job (workflow, id) WHERE workflow IS NOT NULL;

-- Which job (`child`) waits for which other one (`parent`), and which endings of that one meet it; an edge
-- that is `past` counts no longer. `followed` of the parent says how many there are. `name` is by which the
-- handler of the child finds the result.
CREATE TABLE {schema}.dependency (
    parent uuid NOT NULL,
    child uuid NOT NULL CHECK (child <> parent),
    meets text COLLATE "C" NOT NULL DEFAULT 'completed'
        CHECK (meets IN ('completed', 'settled', 'failed', 'past')),
    gate smallint CHECK (gate >= 0),
    name text COLLATE "C" CHECK (char_length(name) BETWEEN 1 AND {max_name}),
    PRIMARY KEY (parent, child)
);
CREATE INDEX dependency_child ON {schema}.dependency (child, parent);

-- Of a job with several parents each row counts some of them, and the job counts the rows: to write a narrow
-- row costs less, and where there are many, parents which end side by side rarely wait for each other.
CREATE TABLE {schema}.gate (
    child uuid NOT NULL,
    gate smallint NOT NULL CHECK (gate >= 0),
    need integer NOT NULL,
    spare integer NOT NULL,
    PRIMARY KEY (child, gate)
) WITH (fillfactor = 50);

-- Count that jobs have come to rest (sign 1), or have left it again (-1), for the jobs that wait for them: for
-- those behind `behind`, and up to what `overdue` says. What has nothing left to wait for is released. A
-- job in `apart` was counted with this change already, and one that was claimed waits for a signal.
CREATE FUNCTION {schema}.follow(
    ids uuid[], statuses text[], signs integer[], behind uuid, apart uuid[]
) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
    SET plan_cache_mode = force_generic_plan SET jit = off
    -- `record_move` has switched off nested loops; without them a batch takes 50 times as long.
    SET enable_nestloop = on SET enable_seqscan = off SET enable_bitmapscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_children uuid[];
    v_gates smallint[];
    v_met integer[];
    v_missed integer[];
    v_due boolean;
BEGIN
    SELECT array_agg(t.child), array_agg(t.gate), array_agg(t.met), array_agg(t.missed)
    INTO v_children, v_gates, v_met, v_missed FROM (
        SELECT edge.child, edge.gate, sum(n.sign * edge.met)::integer AS met,
            sum(n.sign * (1 - edge.met))::integer AS missed
        FROM unnest(ids, statuses, signs) AS n (id, status, sign) CROSS JOIN LATERAL (
            SELECT d.child, d.gate, {is_met}::integer AS met
            FROM {schema}.dependency AS d
            WHERE d.parent = n.id AND d.meets <> 'past' AND d.child > behind AND d.child <= coalesce(
                (SELECT o.after FROM {schema}.overdue AS o WHERE o.parent = n.id),
                'ffffffff-ffff-ffff-ffff-ffffffffffff')
        ) AS edge
        WHERE edge.child <> ALL (apart)
        GROUP BY edge.child, edge.gate ORDER BY edge.child, edge.gate
    ) AS t;
    IF EXISTS (SELECT FROM unnest(v_gates) AS one (gate) WHERE gate IS NOT NULL) THEN
        WITH changed AS (
            UPDATE {schema}.gate AS g SET need = g.need - t.met, spare = g.spare - t.missed
            FROM unnest(v_children, v_gates, v_met, v_missed) AS t (child, gate, met, missed)
            WHERE g.child = t.child AND g.gate = t.gate
            RETURNING g.child, (g.need <= 0)::integer - (g.need + t.met <= 0)::integer AS met,
                (g.spare < 0)::integer - (g.spare + t.missed < 0)::integer AS missed
        ), every AS (
            SELECT child, met, missed FROM changed
            UNION ALL SELECT child, met, missed
            FROM unnest(v_children, v_gates, v_met, v_missed) AS t (child, gate, met, missed)
            WHERE gate IS NULL
        ), counted AS (
            SELECT child, sum(met)::integer AS met, sum(missed)::integer AS missed FROM every
            GROUP BY child HAVING sum(met) <> 0 OR sum(missed) <> 0
        )
        SELECT array_agg(child), array_agg(met), array_agg(missed)
        INTO v_children, v_met, v_missed FROM counted;
    END IF;
    IF v_children IS NULL THEN
        RETURN;
    END IF;
    -- One that is being restored was counted as this job was before.
    PERFORM FROM {schema}.job WHERE id = ANY (v_children)
        AND ((status = 'waiting' AND token = 0) OR (status = 'cancelled' AND event = 'skipped'))
    ORDER BY id FOR NO KEY UPDATE;
    WITH counted AS (
        UPDATE {schema}.job AS j SET need = j.need - t.met, spare = coalesce(j.spare, 0) - t.missed,
            status = CASE WHEN j.need > t.met THEN 'waiting' ELSE 'pending' END,
            run_at = CASE WHEN j.need > t.met THEN j.run_at
                ELSE greatest(j.run_at, {schema}.clock()) END,
            event = CASE WHEN j.need > t.met THEN j.event ELSE 'unblocked' END,
            actor = CASE WHEN j.need > t.met THEN j.actor ELSE 'store' END
        FROM unnest(v_children, v_met, v_missed) AS t (child, met, missed)
        WHERE j.id = t.child AND j.status = 'waiting' AND j.token = 0 RETURNING j.status
    )
    SELECT bool_or(status = 'pending') INTO v_due FROM counted;
    IF v_due THEN
        PERFORM pg_notify('{channel}', '');
    END IF;
    IF -1 = ANY (signs) THEN
        INSERT INTO {schema}.revisit (job_id)
        SELECT id FROM {schema}.job
        WHERE id = ANY (v_children) AND status = 'cancelled' AND event = 'skipped'
        ON CONFLICT DO NOTHING;
    END IF;
END $$;

-- Count for its only follower, or in the gate of that, that a job has come to rest, unless that releases the
-- follower, or opens the gate or leaves it nothing to spare. Returns whether it was counted: else it is for
-- `follow_all`, which costs several times as much. The settings of `record_move` hold in here: to make them
-- again would take a fifth as long as the rest.
CREATE FUNCTION {schema}.count_one(parent_id uuid, ended text) RETURNS boolean
    LANGUAGE plpgsql AS $$
DECLARE
    edge record;
BEGIN
    SELECT d.child, d.gate, {is_met}::integer AS met INTO edge
    FROM {schema}.dependency AS d CROSS JOIN (SELECT ended) AS n (status)
    WHERE d.parent = parent_id AND d.meets <> 'past';
    IF edge.gate IS NULL THEN
        UPDATE {schema}.job SET need = need - edge.met, spare = coalesce(spare, 0) - (1 - edge.met)
        WHERE id = edge.child AND status = 'waiting' AND token = 0
            AND need > edge.met; -- `record_move` sees whether it has nothing to spare
    ELSE
        UPDATE {schema}.gate SET need = need - edge.met, spare = spare - (1 - edge.met)
        WHERE child = edge.child AND gate = edge.gate
            AND need > edge.met AND spare >= 1 - edge.met;
    END IF;
    RETURN FOUND;
END $$;

-- What follows from jobs that came to rest or left it in one statement: for their followers, and for their
-- workflows (`reopened`: those of the jobs that left it). Of a job with many followers it counts the first
-- ones, and what the statement has no room for is overdue.
CREATE FUNCTION {schema}.follow_all(
    ids uuid[], statuses text[], signs integer[], followers integer[], reopened uuid[], apart uuid[]
) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
    SET enable_nestloop = on {by_index} {by_loops} AS $$
BEGIN
    IF reopened IS NOT NULL THEN
        PERFORM {schema}.reopen(reopened);
    END IF;
    IF -1 = ANY (signs) THEN
        PERFORM FROM {schema}.overdue WHERE parent = ANY (ids) ORDER BY parent FOR NO KEY UPDATE;
    END IF;
    IF (SELECT sum(n) FROM unnest(followers) AS one (n)) > {many_followers} THEN
        INSERT INTO {schema}.overdue (parent, status, after)
        SELECT id, status, coalesce((
            SELECT d.child FROM {schema}.dependency AS d
            WHERE d.parent = e.id AND d.meets <> 'past' AND before < {most_followers}
            ORDER BY d.child LIMIT 1 OFFSET {many_followers} - 1
        ), '00000000-0000-0000-0000-000000000000')
        FROM (
            SELECT *, sum(n) OVER (ORDER BY id) - n AS before
            FROM unnest(ids, statuses, signs, followers) AS t (id, status, sign, n) WHERE sign = 1
        ) AS e WHERE n > {many_followers} OR before + n > {most_followers};
    END IF;
    PERFORM {schema}.follow(
        ids, statuses, signs, '00000000-0000-0000-0000-000000000000', coalesce(apart, '{{}}'));
    IF -1 = ANY (signs) THEN
        DELETE FROM {schema}.overdue USING unnest(ids, signs) AS t (id, sign)
        WHERE parent = t.id AND t.sign = -1;
    END IF;
END $$;

-- Count for the next followers of a job that has overdue ones: of `first`, or the next such job behind it.
-- Returns how many, and -1 if there is none. It has the owner's rights, because no other role may change
-- `overdue`.
CREATE FUNCTION {schema}.follow_on(
    most integer, first uuid DEFAULT '00000000-0000-0000-0000-000000000000'
) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_nestloop = on {by_index} {by_loops} AS $$
DECLARE
    late {schema}.overdue;
    v_next uuid[];
BEGIN
    SELECT * INTO late FROM {schema}.overdue WHERE parent >= first
    ORDER BY parent LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN -1;
    END IF;
    v_next := ARRAY(
        SELECT d.child FROM {schema}.dependency AS d
        WHERE d.parent = late.parent AND d.child > late.after AND d.meets <> 'past'
        ORDER BY d.child LIMIT most);
    IF cardinality(v_next) < most THEN
        DELETE FROM {schema}.overdue WHERE parent = late.parent;
    ELSE
        UPDATE {schema}.overdue SET after = v_next[most] WHERE parent = late.parent;
    END IF;
    PERFORM {schema}.follow(ARRAY[late.parent], ARRAY[late.status], ARRAY[1], late.after, '{{}}');
    RETURN cardinality(v_next);
END $$;

-- Of a workflow whose job enters or leaves rest. The sweep locks a workflow before it looks at the jobs, so
-- that it cannot miss this one.
CREATE FUNCTION {schema}.reopen(workflows uuid[]) RETURNS boolean
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM {schema}.workflow WHERE id = ANY (workflows) ORDER BY id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE {schema}.workflow SET finished_at = NULL, statuses = NULL, settled_to = NULL
    WHERE id = ANY (workflows) AND (finished_at IS NOT NULL OR settled_to IS NOT NULL);
    RETURN true;
END $$;

-- What few jobs bring with them as they enter: tags, a unique key, a workflow. A holder of the key that a
-- snapshot is too old to see ends in a serialization failure.
CREATE FUNCTION {schema}.bring(new {schema}.job) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF new.tags IS NOT NULL THEN
        INSERT INTO {schema}.tag (tag, job_id)
        SELECT DISTINCT value, new.id FROM json_array_elements_text(new.tags::json);
    END IF;
    IF new.unique_key IS NOT NULL THEN
        IF (new.unique_key ~ '^[0-9a-f]{{32}}$' AND new.unique_until IN ({untils})) IS NOT TRUE THEN
            PERFORM {schema}.refuse_row('a value of a job is refused: unique_key');
        END IF;
        INSERT INTO {schema}.unique_key (key, job_id) VALUES (new.unique_key, new.id)
        ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'unique_violation', TABLE = 'unique_key',
                MESSAGE = 'tenure: another job holds this unique key';
        END IF;
    END IF;
    IF new.workflow IS NOT NULL AND NOT {schema}.reopen(ARRAY[new.workflow]) THEN
        PERFORM {schema}.refuse_row('its workflow does not exist');
    END IF;
END $$;

CREATE FUNCTION {schema}.unbind() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_RELID <> '{schema}.job'::regclass THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001', MESSAGE = 'tenure: only changes of jobs change this table';
    ELSIF OLD.followed > 0 AND {schema}.is_awaited(OLD.id) THEN
        PERFORM {schema}.refuse_row('a job that depends on this one is not settled');
    END IF;
    DELETE FROM {schema}.dependency WHERE child = OLD.id;
    DELETE FROM {schema}.gate WHERE child = OLD.id;
    DELETE FROM {schema}.overdue WHERE parent = OLD.id;
    DELETE FROM {schema}.revisit WHERE job_id = OLD.id;
    RETURN NULL;
END $$;

-- Whether a job that depends on this one is not settled now, which may be after a wait for a lock.
CREATE FUNCTION {schema}.is_awaited(id uuid) RETURNS boolean
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
    SET enable_nestloop = on {by_index} {by_loops} AS $$
BEGIN
    RETURN EXISTS (
        SELECT FROM {schema}.dependency AS d JOIN {schema}.job AS child ON child.id = d.child
        WHERE d.parent = is_awaited.id AND child.finished_at IS NULL);
END $$;

CREATE TRIGGER job_unbound AFTER DELETE ON {schema}.job
    FOR EACH ROW WHEN (OLD.need IS NOT NULL OR OLD.followed IS NOT NULL)
    EXECUTE FUNCTION {schema}.unbind();

-- The sweep deletes jobs from `revisit` after a look at them. A job that still has to be skipped comes back.
CREATE FUNCTION {schema}.keep_revisits() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_nestloop = on {by_index} {by_loops} AS $$
BEGIN
    IF TG_RELID <> '{schema}.revisit'::regclass THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001', MESSAGE = 'tenure: only changes of jobs change this table';
    END IF;
    INSERT INTO {schema}.revisit (job_id)
    SELECT job.id FROM removed JOIN {schema}.job ON job.id = removed.job_id
    WHERE job.status = 'waiting' AND job.spare < 0 ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

CREATE TRIGGER revisit_comes_back AFTER DELETE ON {schema}.revisit
    REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.keep_revisits();

CREATE TRIGGER revisit_follows BEFORE INSERT OR UPDATE OR TRUNCATE ON {schema}.revisit
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_by_hand('only changes of jobs change this table');

CREATE TRIGGER overdue_follows BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {schema}.overdue
    FOR EACH STATEMENT WHEN (NOT has_table_privilege('{schema}.overdue'::regclass, 'TRUNCATE'))
    EXECUTE FUNCTION {schema}.refuse('only changes of jobs change this table');
