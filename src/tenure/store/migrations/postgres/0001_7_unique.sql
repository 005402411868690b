-- Of a job that has a unique key and is deleted. What follows from its entry is in `bring`, from its
-- transitions in `record_move`.
CREATE FUNCTION {schema}.let_go_of_key() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_RELID <> '{schema}.job'::regclass THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001', MESSAGE = 'tenure: only changes of jobs change this table';
    END IF;
    DELETE FROM {schema}.unique_key WHERE key = OLD.unique_key AND job_id = OLD.id;
    RETURN NULL;
END $$;

CREATE TRIGGER job_lets_go AFTER DELETE ON {schema}.job
    FOR EACH ROW WHEN (OLD.unique_key IS NOT NULL) EXECUTE FUNCTION {schema}.let_go_of_key();

CREATE TRIGGER unique_key_follows BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {schema}.unique_key
    FOR EACH STATEMENT EXECUTE FUNCTION {schema}.refuse_by_hand('only changes of jobs change this table');

-- What an enqueue has to know about unique keys: `request` is JSON, and so is the answer, for every
-- kind of connection. Until the transaction ends, no other one adds a job with one of these keys, and
-- no worker claims the holder of a `firm` one. That takes a lock for each key, and a server has room
-- for some thousands. So many keys at once are not locked, and the insert finds a conflict.
CREATE FUNCTION {schema}.look_unique(request text) RETURNS text
    LANGUAGE plpgsql
    SET plan_cache_mode = force_generic_plan SET lock_timeout = '10s' {by_index} {by_loops} AS $$
#variable_conflict use_column
DECLARE
    keys CONSTANT text[] := ARRAY(SELECT DISTINCT one.key COLLATE "C"
        FROM json_array_elements_text(request::json -> 'keys') AS one (key) ORDER BY 1);
    firm CONSTANT text[] := ARRAY(SELECT json_array_elements_text(request::json -> 'firm'));
    asked CONSTANT text[] := ARRAY(SELECT json_array_elements_text(request::json -> 'known'));
    one text;
BEGIN
    IF cardinality(keys) <= {max_locked_keys} THEN
        FOREACH one IN ARRAY keys LOOP
            PERFORM pg_advisory_xact_lock(hashtextextended('{schema}.unique_key ' || one, 0));
        END LOOP;
    END IF;
    PERFORM FROM (
        SELECT job_id FROM {schema}.unique_key WHERE key = ANY (firm)
        UNION SELECT job_id FROM {schema}.throttle WHERE key = ANY (firm)
    ) AS held JOIN {schema}.job ON job.id = held.job_id
    WHERE job.status = 'pending' AND job.token = 0
    ORDER BY job.id FOR NO KEY UPDATE OF job;
    RETURN (SELECT json_build_object('now', {schema}.clock(), 'held', (
            SELECT json_agg(json_build_object('key', held.key, 'job', row_to_json(job)))
            FROM {schema}.unique_key AS held JOIN {schema}.job ON job.id = held.job_id
            WHERE held.key = ANY (keys)
        ), 'throttled', (
            SELECT json_agg(json_build_object('key', last.key, 'job_id', last.job_id,
                'expires_at', last.expires_at, 'job', row_to_json(job)))
            FROM {schema}.throttle AS last LEFT JOIN {schema}.job ON job.id = last.job_id
            WHERE last.key = ANY (keys) AND last.expires_at > {schema}.clock()
        ), 'known', (
            SELECT json_agg(idempotency_key) FROM {schema}.job WHERE idempotency_key = ANY (asked)
        )));
END $$;
