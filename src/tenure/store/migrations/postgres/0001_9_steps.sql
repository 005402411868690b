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
