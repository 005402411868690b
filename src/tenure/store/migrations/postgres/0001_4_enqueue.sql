-- The entry point for SQL: a role that may execute `enqueue`, and nothing else, can add jobs, also from
-- its own triggers. It acts with the rights of the owner, so the search path is fixed, and no role can
-- sign as another one. It makes the same checks as an enqueue in Python, and calls `add` as that does.

CREATE FUNCTION {schema}.refuse_input(path text, what text, code text DEFAULT 'invalid_input')
    RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'TN002', MESSAGE = format('tenure: %s: %s: %s', code, path, what);
END $$;

-- A UUID of version 7, as clients make them.
CREATE FUNCTION {schema}.new_id() RETURNS uuid
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING
        substring(int8send(floor(extract(epoch FROM {schema}.clock()) * 1000)::bigint) FROM 3)
        FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid
$$;

-- Raise the first flaw of a request. A condition that is NULL is none.
CREATE FUNCTION {schema}.check_request(
    type text, queue text, payload jsonb, priority integer, max_retries integer, timeout interval,
    delay interval, run_at timestamptz, start_by timestamptz, partition text, idempotency_key text
) RETURNS void
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    no_name CONSTANT text := 'not a name; use 1 to {max_name} of A-Z a-z 0-9 _ : - .';
    reserved CONSTANT text := 'reserved for Tenure itself; choose another name';
    too_long CONSTANT text := 'a duration is 0 to {max_seconds} seconds (ten years)';
    first CONSTANT timestamptz := '1000-01-01 00:00+00';
    after CONSTANT timestamptz := '9000-01-01 00:00+00';
    flaw record;
BEGIN
    SELECT * INTO flaw FROM (VALUES
        ('$.type', no_name, type IS NULL OR length(type) > {max_name} OR type !~ '{name_pattern}'),
        ('$.type', reserved, starts_with(type, '{reserved}')),
        ('$.queue', no_name, length(queue) > {max_name} OR queue !~ '{name_pattern}'),
        ('$.queue', reserved, starts_with(queue, '{reserved}')),
        ('$.payload', 'a payload is a JSON object',
            payload IS NULL OR jsonb_typeof(payload) <> 'object'),
        ('$.payload', 'nested more than {max_depth} levels deep', jsonb_path_exists(payload,
            'strict $.**{{{max_depth}}} ? (@.type() == "object" || @.type() == "array")')),
        ('$.payload', 'a number beyond 64 bits; pass it as a string', jsonb_path_exists(payload,
            'strict $.** ? (@.type() == "number"'
            ' && (@ < -9223372036854775808 || @ > 9223372036854775807))')),
        ('$.priority', 'give a whole number from -{max_priority} to {max_priority}',
            priority NOT BETWEEN -{max_priority} AND {max_priority}),
        ('$.max_retries', 'give a whole number from 0 to {max_retries}',
            max_retries NOT BETWEEN 0 AND {max_retries}),
        ('$.timeout', 'give a time above 0', extract(epoch FROM timeout) <= 0),
        ('$.timeout', too_long, extract(epoch FROM timeout) > {max_seconds}),
        ('$.delay', too_long, extract(epoch FROM delay) NOT BETWEEN 0 AND {max_seconds}),
        ('$.run_at', 'give delay or run_at, not both', num_nonnulls(delay, run_at) = 2),
        ('$.run_at', 'use the years 1000 to 8999', run_at < first OR run_at >= after),
        ('$.start_by', 'use the years 1000 to 8999', start_by < first OR start_by >= after),
        ('$.start_by', 'the job would expire before it is due', start_by <= run_at),
        ('$.partition', 'use 1 to {max_partition} characters, no control characters',
            NOT ({partition_is_short_text})),
        ('$.idempotency_key', 'use 1 to {max_key} visible ASCII characters, no spaces',
            length(idempotency_key) > {max_key} OR idempotency_key !~ '{key_pattern}')
    ) AS found (path, what, holds) WHERE holds LIMIT 1;
    IF FOUND THEN
        PERFORM {schema}.refuse_input(flaw.path, flaw.what);
    ELSIF octet_length(payload::text) > {max_payload} THEN
        PERFORM {schema}.refuse_input(
            '$.payload', 'the limit is {max_payload} bytes', 'payload_too_large');
    END IF;
END $$;

-- The stored text of a backoff. A number is the `base`, an array the `delays`.
CREATE FUNCTION {schema}.policy_of(backoff jsonb) RETURNS text
    LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF jsonb_typeof(backoff) = 'number' THEN
        backoff := jsonb_build_object('base', backoff);
    ELSIF jsonb_typeof(backoff) = 'array' AND backoff <> '[]' THEN
        backoff := jsonb_build_object('delays', backoff);
    END IF;
    IF NOT {schema}.is_policy(backoff::text) OR (jsonb_typeof(backoff) = 'object'
        AND backoff - ARRAY['base', 'factor', 'cap', 'delays'] <> '{{}}')
    THEN
        PERFORM {schema}.refuse_input('$.backoff', 'give an object of base, factor and cap, or delays');
    END IF;
    RETURN backoff::text;
END $$;

-- The stored text of tags: in order, each once.
CREATE FUNCTION {schema}.tags_of(tags text[]) RETURNS text
    LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    tags := ARRAY(SELECT DISTINCT tag COLLATE "C" FROM unnest(tags) AS one (tag) ORDER BY 1);
    IF cardinality(tags) > {max_tags} OR EXISTS (SELECT FROM unnest(tags) AS one (tag)
        WHERE (tag ~ '{key_pattern}' AND length(tag) <= {max_tag}) IS NOT TRUE)
    THEN
        PERFORM {schema}.refuse_input('$.tags',
            'give at most {max_tags} of 1 to {max_tag} visible ASCII characters, no spaces');
    END IF;
    RETURN nullif(array_to_json(tags)::text, '[]');
END $$;

-- Add a job, and return its id: that of the earlier job, if a job with the same key, type, queue and
-- payload is there. What is NULL is as the type says, where its handler is known, or the default.
CREATE FUNCTION {schema}.enqueue(
    type text,
    payload jsonb DEFAULT '{{}}',
    queue text DEFAULT NULL,
    priority integer DEFAULT NULL,
    max_retries integer DEFAULT NULL,
    timeout interval DEFAULT NULL,
    backoff jsonb DEFAULT NULL,
    delay interval DEFAULT NULL,
    run_at timestamptz DEFAULT NULL,
    start_by timestamptz DEFAULT NULL,
    tags text[] DEFAULT NULL,
    partition text DEFAULT NULL,
    idempotency_key text DEFAULT NULL,
    notify boolean DEFAULT false
) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    usual {schema}.type%ROWTYPE;
    id CONSTANT uuid := {schema}.new_id();
    request json;
    answer json;
    known {schema}.job%ROWTYPE;
BEGIN
    PERFORM {schema}.check_request(type, queue, payload, priority, max_retries, timeout, delay,
        run_at, start_by, partition, idempotency_key);
    SELECT * INTO usual FROM {schema}.type AS t WHERE t.name = enqueue.type
        AND (t.queues IS NULL OR enqueue.queue IS NULL OR EXISTS (
            SELECT FROM unnest(string_to_array(t.queues, ',')) AS own
            WHERE own IN (enqueue.queue, left(enqueue.queue, length(own) - 1) || '*')));
    queue := coalesce(queue, usual.queue, 'default');
    request := json_build_object(
        'id', id, 'type', type, 'queue', queue, 'payload', payload::text,
        'priority', coalesce(priority, usual.priority, 0),
        'max_retries', coalesce(max_retries, usual.max_retries, {default_max_retries}),
        'timeout', coalesce(extract(epoch FROM timeout), usual.timeout),
        'backoff', coalesce({schema}.policy_of(backoff), usual.backoff),
        'delay', coalesce(extract(epoch FROM delay), 0),
        'run_at', run_at, 'start_by', start_by, 'tags', {schema}.tags_of(tags),
        'partition', partition, 'idempotency_key', idempotency_key,
        'actor', 'sql:' || session_user);
    answer := {schema}.add_one(request, notify);
    IF answer ->> 'full' IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'TN003', MESSAGE = format(
            'tenure: queue_full: queue %L is full: its limit of pending jobs is %s',
            queue, answer -> 'full' ->> 1);
    END IF;
    IF answer ->> 'runs' IS NOT NULL THEN
        RETURN id;
    END IF;
    known := json_populate_record(NULL::{schema}.job, answer -> 'known' -> 0);
    IF known.type = type AND known.queue = queue AND known.payload::jsonb = payload THEN
        RETURN known.id;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'TN004', MESSAGE = format(
        'tenure: idempotency_key_reused: %L was used for job %s with a different request',
        idempotency_key, known.id);
END $$;

REVOKE EXECUTE ON FUNCTION {schema}.enqueue FROM PUBLIC;

-- The fence for a transaction of the caller's: raises unless the attempt with this token has its lease,
-- and keeps it until the transaction ends, because its lock keeps all others from changing the job.
CREATE FUNCTION {schema}.hold(job uuid, token integer) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s' AS $$
BEGIN
    PERFORM FROM {schema}.job AS held
    WHERE held.id = hold.job AND held.token = hold.token AND held.status = 'processing' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'TN005', MESSAGE = format(
            'tenure: lease_lost: attempt %s of job %s has been ended elsewhere', hold.token, hold.job);
    END IF;
END $$;

REVOKE EXECUTE ON FUNCTION {schema}.hold FROM PUBLIC;
