-- The steps of a job that are done, with the result of each as JSON. `token` is that of the attempt.
CREATE TABLE {schema}.step (
    job_id uuid NOT NULL,
    name text COLLATE "C" NOT NULL CHECK (char_length(name) BETWEEN 1 AND {max_key}),
    number integer NOT NULL CHECK (number >= 0),
    token integer NOT NULL,
    at timestamptz NOT NULL,
    result text CHECK (octet_length(result) <= {max_result}),
    PRIMARY KEY (job_id, name)
);

-- The last state that a handler has stored: of an attempt the one with the largest number.
CREATE TABLE {schema}.checkpoint (
    job_id uuid PRIMARY KEY,
    token integer NOT NULL,
    number integer NOT NULL,
    at timestamptz NOT NULL,
    state text NOT NULL CHECK (octet_length(state) <= {max_result})
) WITH (fillfactor = 50);

-- Signals to a job, numbered by name: its n-th wait for a name takes the n-th of them.
CREATE TABLE {schema}.signal (
    job_id uuid NOT NULL,
    name text COLLATE "C" NOT NULL CHECK (char_length(name) BETWEEN 1 AND {max_name}),
    number integer NOT NULL CHECK (number >= 0),
    at timestamptz NOT NULL,
    key text COLLATE "C" CHECK (char_length(key) BETWEEN 1 AND {max_key}),
    payload text CHECK (octet_length(payload) <= {max_payload}),
    actor text CHECK (char_length(actor) <= {max_label}),
    PRIMARY KEY (job_id, name, number),
    UNIQUE (job_id, name, key)
);

-- What a suspended job waits for, and until when.
CREATE TABLE {schema}.wait (
    job_id uuid PRIMARY KEY,
    name text COLLATE "C" NOT NULL CHECK (char_length(name) BETWEEN 1 AND {max_name}),
    number integer NOT NULL CHECK (number >= 0),
    expires_at timestamptz
);
CREATE INDEX wait_expires ON {schema}.wait (expires_at) WHERE expires_at IS NOT NULL;

-- Secrets that allow one signal each, for addresses that people outside can use.
CREATE TABLE {schema}.signal_token (
    digest text COLLATE "C" PRIMARY KEY,
    job_id uuid NOT NULL,
    name text COLLATE "C" NOT NULL CHECK (char_length(name) BETWEEN 1 AND {max_name}),
    payload text CHECK (octet_length(payload) <= {max_payload}),
    at timestamptz NOT NULL
);
CREATE INDEX signal_token_job ON {schema}.signal_token (job_id, name);

CREATE FUNCTION {schema}.keep_step() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM {schema}.job WHERE id = NEW.job_id AND status = 'processing';
    IF NOT FOUND THEN
        PERFORM {schema}.refuse_row('only a job that is processing has steps');
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER step_enters AFTER INSERT ON {schema}.step
    FOR EACH ROW EXECUTE FUNCTION {schema}.keep_step();

CREATE TRIGGER step_is_final BEFORE UPDATE OR TRUNCATE ON {schema}.step
    EXECUTE FUNCTION {schema}.refuse('a step on record never changes');

CREATE FUNCTION {schema}.forget_steps() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET jit = off
    SET enable_nestloop = on SET enable_seqscan = off
    SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    IF TG_RELID <> '{schema}.job'::regclass THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001', MESSAGE = 'tenure: only changes of jobs change this table';
    END IF;
    IF EXISTS (SELECT FROM {schema}.step) OR EXISTS (SELECT FROM {schema}.checkpoint)
        OR EXISTS (SELECT FROM {schema}.signal) OR EXISTS (SELECT FROM {schema}.signal_token)
    THEN
        DELETE FROM {schema}.step USING removed WHERE job_id = removed.id;
        DELETE FROM {schema}.checkpoint USING removed WHERE job_id = removed.id;
        DELETE FROM {schema}.signal USING removed WHERE job_id = removed.id;
        DELETE FROM {schema}.wait USING removed WHERE job_id = removed.id;
        DELETE FROM {schema}.signal_token USING removed WHERE job_id = removed.id;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER job_left_steps AFTER DELETE ON {schema}.job
    REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.forget_steps();

-- Replication, and the import of a dump, switch other triggers off.
DO $$
DECLARE
    guard record;
BEGIN
    FOR guard IN SELECT tgname AS name, tgrelid::regclass AS of
        FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
        WHERE relnamespace = '{schema}'::regnamespace AND NOT tgisinternal
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', guard.of, guard.name);
    END LOOP;
END $$;

-- A role that may call one could have a temporary table write what only the triggers above may.
DO $$
DECLARE
    own text;
BEGIN
    FOR own IN SELECT oid::regprocedure FROM pg_proc
        WHERE pronamespace = '{schema}'::regnamespace AND prorettype = 'trigger'::regtype
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', own);
    END LOOP;
END $$;
