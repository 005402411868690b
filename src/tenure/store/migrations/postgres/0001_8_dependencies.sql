-- A number of jobs that belong together. `settled_to`: its jobs up to this id are known to be settled, so
-- that the sweep looks at each job about once. NULL again, and so `finished_at`, if that is no longer so.
CREATE TABLE {schema}.workflow (
    id uuid PRIMARY KEY,
    name text COLLATE "C" CHECK (char_length(name) BETWEEN 1 AND {max_name}),
    key text COLLATE "C" UNIQUE CHECK (char_length(key) BETWEEN 1 AND {max_key}),
    fingerprint text COLLATE "C",
    created_at timestamptz NOT NULL,
    created_by text NOT NULL CHECK (char_length(created_by) <= {max_label}),
    finished_at timestamptz,
    settled_to uuid
);
CREATE INDEX workflow_open ON {schema}.workflow (id) WHERE finished_at IS NULL;
CREATE INDEX workflow_finished ON {schema}.workflow (finished_at) WHERE finished_at IS NOT NULL;
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

-- Of a job with many parents each row counts some of them, and the job counts the rows: so that parents
-- which end side by side rarely wait for each other.
CREATE TABLE {schema}.gate (
    child uuid NOT NULL,
    gate smallint NOT NULL CHECK (gate >= 0),
    need integer NOT NULL,
    spare integer NOT NULL,
    PRIMARY KEY (child, gate)
) WITH (fillfactor = 50);

-- Jobs at rest whose followers behind `after` are not counted yet.
CREATE TABLE {schema}.overdue (
    parent uuid PRIMARY KEY,
    status text COLLATE "C" NOT NULL CHECK (status IN ({settled})),
    after uuid NOT NULL
);

-- Jobs for which somebody has to decide: one that waits is skipped if its `spare` is below 0; one that was
-- skipped is restored if it can run after all.
CREATE TABLE {schema}.revisit (job_id uuid PRIMARY KEY);

CREATE FUNCTION {schema}.unbind() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_RELID <> '{schema}.job'::regclass THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001', MESSAGE = 'tenure: this table follows the jobs';
    END IF;
    DELETE FROM {schema}.dependency WHERE child = OLD.id;
    DELETE FROM {schema}.gate WHERE child = OLD.id;
    DELETE FROM {schema}.overdue WHERE parent = OLD.id;
    DELETE FROM {schema}.revisit WHERE job_id = OLD.id;
    RETURN NULL;
END $$;

CREATE TRIGGER job_unbound AFTER DELETE ON {schema}.job
    FOR EACH ROW WHEN (OLD.need IS NOT NULL OR OLD.followed IS NOT NULL)
    EXECUTE FUNCTION {schema}.unbind();

ALTER TABLE {schema}.job ENABLE ALWAYS TRIGGER job_unbound;
