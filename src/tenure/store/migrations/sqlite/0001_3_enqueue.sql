-- The entry point for SQL: an INSERT into this view adds a job, also from triggers. Times are
-- milliseconds since 1970, durations seconds. For NULL, it takes the option of the type, if that is known, or
-- the default. It makes the checks of an enqueue in Python; messages begin with the code of the error.

CREATE VIEW tenure_enqueue AS
    SELECT type, payload, queue, priority, max_retries, timeout, backoff, NULL AS delay, run_at,
        start_by, tags, partition, idempotency_key
    FROM tenure_job WHERE false;

CREATE TRIGGER tenure_enqueue_adds INSTEAD OF INSERT ON tenure_enqueue
BEGIN
    INSERT INTO tenure_job (id, type, payload, queue, priority, max_retries, timeout, backoff,
        created_at, run_at, start_by, tags, partition, idempotency_key, actor)
    SELECT substr(stamp, 1, 8) || '-' || substr(stamp, 9) || '-7' || substr(chance, 1, 3) || '-'
            || substr('89ab', 1 + (random() & 3), 1) || substr(chance, 4, 3) || '-'
            || substr(chance, 7, 12),
        type, json(payload), queue, priority, max_retries, timeout, backoff, at,
        coalesce(run_at, at + CAST(delay * 1000 AS INTEGER), at), start_by,
        nullif(tags, '[]'), partition, idempotency_key, 'sql'
    FROM (
        SELECT at, printf('%012x', at) AS stamp, lower(hex(randomblob(9))) AS chance,
            NEW.type AS type, coalesce(NEW.payload, '{{}}') AS payload,
            coalesce(NEW.queue, usual.queue, 'default') AS queue,
            coalesce(NEW.priority, usual.priority, 0) AS priority,
            coalesce(NEW.max_retries, usual.max_retries, {default_max_retries}) AS max_retries,
            coalesce(NEW.timeout, usual.timeout) AS timeout,
            coalesce(CASE WHEN typeof(NEW.backoff) IN ('integer', 'real')
                THEN json_object('base', NEW.backoff)
                WHEN iif(json_valid(NEW.backoff), json_array_length(NEW.backoff), 0) > 0
                THEN json_object('delays', json(NEW.backoff)) ELSE NEW.backoff END, usual.backoff) AS backoff,
            NEW.delay AS delay, NEW.run_at AS run_at, NEW.start_by AS start_by,
            CASE WHEN json_valid(NEW.tags) THEN (SELECT json_group_array(value) FROM (
                SELECT DISTINCT value FROM json_each(NEW.tags) ORDER BY value))
            ELSE NEW.tags END AS tags,
            NEW.partition AS partition, NEW.idempotency_key AS idempotency_key
        FROM tenure_now LEFT JOIN tenure_type AS usual ON usual.name = NEW.type
            AND (usual.queues IS NULL OR NEW.queue IS NULL OR EXISTS (
                SELECT 1 FROM json_each('[' || replace(json_quote(usual.queues), ',', '","') || ']') AS own
                WHERE own.value IN (NEW.queue, substr(NEW.queue, 1, length(own.value) - 1) || '*')))
    ) AS asked
    WHERE CASE
        WHEN typeof(type) <> 'text' OR NOT ({type_is_a_name})
            THEN RAISE(ABORT, 'tenure: invalid_input: $.type: not a name for a job type')
        WHEN typeof(queue) <> 'text' OR NOT ({queue_is_a_name})
            THEN RAISE(ABORT, 'tenure: invalid_input: $.queue: not a name for a queue')
        WHEN substr(type, 1, 7) = '{reserved}' OR substr(queue, 1, 7) = '{reserved}'
            THEN RAISE(ABORT, 'tenure: invalid_input: $: a name that is reserved for Tenure itself')
        WHEN NOT json_valid(payload)
            THEN RAISE(ABORT, 'tenure: invalid_input: $.payload: not JSON')
        WHEN json_type(payload) <> 'object'
            THEN RAISE(ABORT, 'tenure: invalid_input: $.payload: a payload is a JSON object')
        WHEN length(CAST(json(payload) AS BLOB)) > {max_payload}
            THEN RAISE(ABORT, 'tenure: payload_too_large: $.payload: the limit is {max_payload} bytes')
        WHEN EXISTS (SELECT 1 FROM json_tree(asked.payload) AS part
            WHERE (part.type = 'integer' AND typeof(part.atom) <> 'integer')
                OR (part.type = 'real' AND abs(part.atom) > 1.7976931348623157e308))
            THEN RAISE(ABORT, 'tenure: invalid_input: $.payload: a number beyond 64 bits')
        WHEN instr(payload, '\u') AND EXISTS (
            SELECT 1 FROM json_tree(asked.payload) AS part, (VALUES (x'00'), {surrogates}) AS bad
            WHERE instr(CAST(coalesce(part.key, '') || coalesce(part.atom, '') AS BLOB), bad.column1))
            THEN RAISE(ABORT, 'tenure: invalid_input: $.payload: a NUL, or half of a surrogate pair')
        WHEN EXISTS (SELECT 1 FROM json_tree(asked.payload) AS part WHERE typeof(part.key) = 'text'
            GROUP BY part.parent, part.key HAVING count(*) > 1)
            THEN RAISE(ABORT, 'tenure: invalid_input: $.payload: a key is given twice in an object')
        WHEN length(payload) > 2 * {max_depth} AND {max_depth} < (
            WITH RECURSIVE part AS MATERIALIZED (
                SELECT id, parent FROM json_tree(NEW.payload) WHERE type IN ('object', 'array')
            ), inside (id, depth) AS (
                SELECT id, 1 FROM part WHERE parent IS NULL
                UNION ALL SELECT part.id, depth + 1 FROM inside JOIN part ON part.parent = inside.id
            ) SELECT max(depth) FROM inside)
            THEN RAISE(ABORT, 'tenure: invalid_input: $.payload: nested more than {max_depth} levels deep')
        WHEN typeof(priority) <> 'integer' OR priority NOT BETWEEN -{max_priority} AND {max_priority}
            THEN RAISE(ABORT, 'tenure: invalid_input: $.priority: give a whole number from -{max_priority} to {max_priority}')
        WHEN typeof(max_retries) <> 'integer' OR max_retries NOT BETWEEN 0 AND {max_retries}
            THEN RAISE(ABORT, 'tenure: invalid_input: $.max_retries: give a whole number from 0 to {max_retries}')
        WHEN typeof(timeout) NOT IN ('null', 'integer', 'real') OR timeout <= 0 OR timeout > {max_seconds}
            THEN RAISE(ABORT, 'tenure: invalid_input: $.timeout: give seconds above 0, up to {max_seconds}')
        WHEN typeof(backoff) = 'blob' OR NOT ({backoff_is_a_policy})
            OR EXISTS (SELECT 1 FROM json_each(asked.backoff) AS field
            WHERE field.key NOT IN ('base', 'factor', 'cap', 'delays'))
            THEN RAISE(ABORT, 'tenure: invalid_input: $.backoff: give an object of base, factor and cap, or delays')
        WHEN delay IS NOT NULL AND run_at IS NOT NULL
            THEN RAISE(ABORT, 'tenure: invalid_input: $.run_at: give delay or run_at, not both')
        WHEN typeof(delay) NOT IN ('null', 'integer', 'real') OR delay NOT BETWEEN 0 AND {max_seconds}
            THEN RAISE(ABORT, 'tenure: invalid_input: $.delay: give seconds from 0 to {max_seconds}')
        WHEN typeof(run_at) NOT IN ('null', 'integer') OR run_at NOT BETWEEN {first_time} AND {last_time}
            THEN RAISE(ABORT, 'tenure: invalid_input: $.run_at: give milliseconds since 1970')
        WHEN typeof(start_by) NOT IN ('null', 'integer')
            OR start_by NOT BETWEEN {first_time} AND {last_time} OR start_by <= run_at
            THEN RAISE(ABORT, 'tenure: invalid_input: $.start_by: give milliseconds since 1970, after run_at')
        WHEN NOT ({tags_are_a_list}) OR json_type(NEW.tags) <> 'array'
            OR json_array_length(tags) > {max_tags} OR EXISTS (
            SELECT 1 FROM json_each(asked.tags) AS tag WHERE tag.type <> 'text'
                OR length(tag.value) NOT BETWEEN 1 AND {max_tag}
                OR tag.value GLOB '*[^!-~]*' OR instr(tag.value, char(0)))
            THEN RAISE(ABORT, 'tenure: invalid_input: $.tags: give a JSON array of at most {max_tags} texts of visible ASCII')
        WHEN typeof(partition) = 'blob' OR NOT ({partition_is_short_text})
            THEN RAISE(ABORT, 'tenure: invalid_input: $.partition: use 1 to {max_partition} characters, no control characters')
        WHEN typeof(idempotency_key) = 'blob' OR NOT ({key_is_visible_ascii})
            OR instr(idempotency_key, ' ')
            THEN RAISE(ABORT, 'tenure: invalid_input: $.idempotency_key: use 1 to {max_key} visible ASCII characters')
        WHEN EXISTS (SELECT 1 FROM tenure_job AS known WHERE known.idempotency_key = asked.idempotency_key)
            THEN CASE WHEN NOT EXISTS (
                SELECT 1 FROM tenure_job AS known WHERE known.idempotency_key = asked.idempotency_key
                    AND known.type = asked.type AND known.queue = asked.queue
                    AND (SELECT count(*) FROM json_tree(known.payload))
                        = (SELECT count(*) FROM json_tree(asked.payload))
                    AND NOT EXISTS (
                        SELECT fullkey, replace(type, 'real', 'integer'), atom FROM json_tree(known.payload)
                        EXCEPT SELECT fullkey, replace(type, 'real', 'integer'), atom
                        FROM json_tree(asked.payload)))
                THEN RAISE(ABORT, 'tenure: idempotency_key_reused: $.idempotency_key: it was used for a different request')
            ELSE false END
        WHEN (SELECT max_pending FROM tenure_queue WHERE name = asked.queue) <= (
            SELECT count(*) FROM tenure_job AS waiting
            WHERE waiting.status = 'pending' AND waiting.queue = asked.queue)
            THEN RAISE(ABORT, 'tenure: queue_full: $.queue: it holds as many pending jobs as its limit allows')
        ELSE true END;
END;

-- The fence for a transaction of the caller's: an INSERT raises unless the attempt with this token has
-- its lease. It takes the write lock, so no other one changes the job before the transaction ends.
CREATE VIEW tenure_hold AS SELECT id AS job, token FROM tenure_job WHERE false;

CREATE TRIGGER tenure_hold_holds INSTEAD OF INSERT ON tenure_hold
BEGIN
    SELECT RAISE(ABORT, 'tenure: lease_lost: the attempt with this token has been ended elsewhere')
    WHERE NOT EXISTS (SELECT 1 FROM tenure_job
        WHERE id = NEW.job AND token = NEW.token AND status = 'processing');
END;
