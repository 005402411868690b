-- For queues whose partitions take turns: a row for each pending job, `partition` '' if it has none.
CREATE TABLE tenure_turn (
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,
    partition TEXT NOT NULL,
    run_at INTEGER NOT NULL,
    id TEXT NOT NULL,
    PRIMARY KEY (queue, priority, partition, run_at, id)
) STRICT, WITHOUT ROWID;

-- Slots, turns and lines follow the jobs. For jobs of other queues the trigger is small and makes one search in an
-- empty table. A conflict clause of the outer statement, such as OR REPLACE, also holds in a trigger, unless the
-- INSERT there has an ON CONFLICT. So each INSERT here has one, or its table has only key columns.

CREATE TRIGGER tenure_job_joins AFTER INSERT ON tenure_job
WHEN NEW.queue IN (SELECT queue FROM tenure_queue_limit)
BEGIN
    INSERT INTO tenure_limited VALUES (NEW.queue, coalesce(NEW.partition, ''), NEW.id,
        NULL, NULL, NULL, NEW.status, NEW.priority, NEW.run_at, NULL, true, false);
END;

-- An insert here reports that a job of a queue with limits is new, or that it has changed: what it was and is now,
-- whether it comes into the line of its partition, and whether it is at rest. Each part has a trigger, because
-- SQLite makes a temporary table for each INSERT with SELECT into a table that has triggers, also if there is
-- nothing to insert.
CREATE VIEW tenure_limited AS
    SELECT queue, coalesce(partition, '') AS partition, id, status AS was, priority AS was_priority,
        run_at AS was_run_at, status, priority, run_at, started_at, true AS enters, true AS rests
    FROM tenure_job WHERE false;

CREATE TRIGGER tenure_job_changes AFTER UPDATE OF status, priority, run_at ON tenure_job
WHEN NEW.queue IN (SELECT queue FROM tenure_queue_limit)
BEGIN
    INSERT INTO tenure_limited VALUES (NEW.queue, coalesce(NEW.partition, ''), NEW.id,
        OLD.status, OLD.priority, OLD.run_at, NEW.status, NEW.priority, NEW.run_at, NEW.started_at,
        OLD.finished_at IS NOT NULL AND NEW.finished_at IS NULL, {at_rest});
END;

CREATE TRIGGER tenure_limited_waits INSTEAD OF INSERT ON tenure_limited
WHEN NEW.was = 'pending' OR NEW.status = 'pending'
BEGIN
    DELETE FROM tenure_turn WHERE NEW.was = 'pending' AND queue = NEW.queue AND priority
        = NEW.was_priority AND partition = NEW.partition AND run_at = NEW.was_run_at AND id = NEW.id;
    INSERT INTO tenure_turn (queue, priority, partition, run_at, id)
    SELECT queue, NEW.priority, NEW.partition, NEW.run_at, NEW.id FROM tenure_queue_limit
    WHERE NEW.status = 'pending' AND queue = NEW.queue AND partitioned;
END;

CREATE TRIGGER tenure_limited_enters INSTEAD OF INSERT ON tenure_limited
WHEN NEW.enters AND (SELECT ordered FROM tenure_queue_limit WHERE queue = NEW.queue) IS NOT NULL
BEGIN
    INSERT INTO tenure_line (queue, partition, id) VALUES (NEW.queue, NEW.partition, NEW.id)
    ON CONFLICT DO NOTHING;
END;

CREATE TRIGGER tenure_limited_rests INSTEAD OF INSERT ON tenure_limited
WHEN NEW.rests AND (NEW.status <> 'failed'
    OR (SELECT ordered FROM tenure_queue_limit WHERE queue = NEW.queue) = 'pass')
BEGIN
    DELETE FROM tenure_line
    WHERE queue = NEW.queue AND partition = NEW.partition AND id = NEW.id;
END;

CREATE TRIGGER tenure_limited_stops INSTEAD OF INSERT ON tenure_limited
WHEN NEW.was = 'processing' AND NEW.status <> 'processing'
BEGIN
    DELETE FROM tenure_slot
    WHERE queue = NEW.queue AND partition = NEW.partition AND job_id = NEW.id;
END;

-- The file has one writer, so a count here is still right at the commit.
CREATE TRIGGER tenure_limited_starts INSTEAD OF INSERT ON tenure_limited
WHEN NEW.was = 'pending' AND NEW.status = 'processing'
BEGIN
    INSERT INTO tenure_slot (queue, partition, job_id) VALUES (NEW.queue, NEW.partition, NEW.id)
    ON CONFLICT DO NOTHING;
    SELECT CASE
        WHEN NEW.started_at > (SELECT at FROM tenure_now) + 1000
        THEN RAISE(ABORT, 'tenure: a job of a queue with limits starts now')
        WHEN l.resume_at > NEW.started_at OR p.resume_at > NEW.started_at OR p.paused_at IS NOT NULL
        THEN RAISE(ABORT, 'tenure: its queue or partition waits')
        WHEN (SELECT count(*) FROM tenure_slot WHERE queue = NEW.queue) > l.max_running
        THEN RAISE(ABORT, 'tenure: no more jobs of this queue may run at once')
        WHEN l.ordered IS NOT NULL AND EXISTS (SELECT 1 FROM tenure_line
            WHERE queue = NEW.queue AND partition = NEW.partition AND id < NEW.id)
        THEN RAISE(ABORT, 'tenure: an earlier job of this partition comes first')
        WHEN (SELECT count(*) FROM tenure_slot WHERE queue = NEW.queue AND partition = NEW.partition)
            > iif(l.ordered IS NULL, coalesce(p.max_running, l.per_max_running),
                min(1, coalesce(p.max_running, l.per_max_running, 1)))
        THEN RAISE(ABORT, 'tenure: no more jobs of this partition may run at once')
        WHEN max(l.tat, NEW.started_at * 1000) + l.every
            > NEW.started_at * 1000 + l.burst * l.every
        THEN RAISE(ABORT, 'tenure: no more jobs of this queue may start at this time')
        WHEN max(coalesce(p.tat, 0), NEW.started_at * 1000) + l.per_every
            > NEW.started_at * 1000 + l.per_burst * l.per_every
        THEN RAISE(ABORT, 'tenure: no more jobs of this partition may start at this time')
    END
    FROM tenure_queue_limit AS l LEFT JOIN tenure_partition_limit AS p
        ON l.partitioned AND p.queue = l.queue AND p.partition = NEW.partition
    WHERE l.queue = NEW.queue;
    UPDATE tenure_queue_limit SET tat = max(tat, NEW.started_at * 1000) + every
    WHERE queue = NEW.queue AND every IS NOT NULL;
    INSERT INTO tenure_metered VALUES (NEW.queue, NEW.partition, NEW.started_at * 1000,
        (SELECT per_every FROM tenure_queue_limit WHERE queue = NEW.queue));
END;

-- An insert here counts a start by the rate of its partition, in microseconds.
CREATE VIEW tenure_metered AS
    SELECT queue, partition, tat AS at, tat AS every FROM tenure_partition_limit WHERE false;

CREATE TRIGGER tenure_metered_counts INSTEAD OF INSERT ON tenure_metered
WHEN NEW.every IS NOT NULL
BEGIN
    INSERT INTO tenure_partition_limit (queue, partition, tat)
    VALUES (NEW.queue, NEW.partition, NEW.at + NEW.every)
    ON CONFLICT DO UPDATE SET tat = max(tat, NEW.at) + NEW.every;
END;

CREATE TRIGGER tenure_job_passes AFTER DELETE ON tenure_job
WHEN OLD.status = 'failed'
BEGIN
    DELETE FROM tenure_line
    WHERE queue = OLD.queue AND partition = coalesce(OLD.partition, '') AND id = OLD.id;
END;

-- Slots, turns and lines follow the limits, too: an insert here gives them to the jobs of a queue, or takes them away.
CREATE VIEW tenure_refill AS SELECT queue FROM tenure_queue_limit;

CREATE TRIGGER tenure_refill_fills INSTEAD OF INSERT ON tenure_refill
BEGIN
    DELETE FROM tenure_slot WHERE queue = NEW.queue
        AND NOT EXISTS (SELECT 1 FROM tenure_queue_limit WHERE queue = NEW.queue);
    INSERT INTO tenure_slot (queue, partition, job_id)
    SELECT job.queue, coalesce(partition, ''), id FROM tenure_queue_limit AS l
    JOIN tenure_job AS job ON job.queue = l.queue WHERE l.queue = NEW.queue AND status = 'processing'
    ON CONFLICT DO NOTHING;
    DELETE FROM tenure_turn WHERE queue = NEW.queue;
    INSERT INTO tenure_turn (queue, priority, partition, run_at, id)
    SELECT job.queue, priority, coalesce(partition, ''), run_at, id FROM tenure_queue_limit AS l
    JOIN tenure_job AS job ON job.queue = l.queue
    WHERE l.queue = NEW.queue AND partitioned AND status = 'pending';
    -- Jobs that failed before are in no line.
    DELETE FROM tenure_line WHERE queue = NEW.queue AND NOT EXISTS (
        SELECT 1 FROM tenure_queue_limit AS l JOIN tenure_job AS job ON job.id = tenure_line.id
        WHERE l.queue = NEW.queue AND ordered IS NOT NULL AND status NOT IN ({settled}));
    INSERT INTO tenure_line (queue, partition, id)
    SELECT job.queue, coalesce(partition, ''), id FROM tenure_queue_limit AS l
    JOIN tenure_job AS job ON job.queue = l.queue
    WHERE l.queue = NEW.queue AND ordered IS NOT NULL AND status NOT IN ({settled})
    ON CONFLICT DO NOTHING;
END;

-- What is set for a queue or a partition: an insert here writes it into the history, if it is new.
CREATE VIEW tenure_setting AS
    SELECT queue, NULL AS partition, json_patch('{{}}', json_object('max_running', max_running,
        'rate_starts', rate_starts, 'rate_seconds', rate_seconds, 'burst', burst, 'every', every,
        'partitioned', json(iif(partitioned, 'true', 'false')), 'per_max_running', per_max_running,
        'per_rate_starts', per_rate_starts, 'per_rate_seconds', per_rate_seconds,
        'per_burst', per_burst, 'per_every', per_every, 'ordered', ordered)) AS setting
    FROM tenure_queue_limit
    UNION ALL
    SELECT queue, partition, nullif(json_patch('{{}}', json_object('max_running', max_running,
        'weight', weight, 'paused_at', paused_at, 'paused_by', paused_by,
        'pause_reason', pause_reason)), '{{}}')
    FROM tenure_partition_limit;

CREATE TRIGGER tenure_setting_recorded INSTEAD OF INSERT ON tenure_setting
BEGIN
    -- No job waits longer than by the rate that holds now.
    UPDATE tenure_queue_limit
    SET tat = min(tat, (SELECT at FROM tenure_now) * 1000 + coalesce(burst * every, 0))
    WHERE queue = NEW.queue AND NEW.partition IS NULL;
    UPDATE tenure_partition_limit SET tat = (SELECT at FROM tenure_now) * 1000 + l.most
    FROM (SELECT coalesce(per_burst * per_every, 0) AS most
        FROM tenure_queue_limit WHERE queue = NEW.queue) AS l
    WHERE queue = NEW.queue AND NEW.partition IS NULL
        AND tat > (SELECT at FROM tenure_now) * 1000 + l.most;
    INSERT INTO tenure_limit_change (queue, partition, place, at, setting)
    SELECT NEW.queue, NEW.partition,
        coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'tenure_transition'), 0), at, s.setting
    FROM tenure_now LEFT JOIN tenure_setting AS s
        ON s.queue = NEW.queue AND s.partition IS NEW.partition
    WHERE s.setting IS NOT (SELECT setting FROM tenure_limit_change
        WHERE queue = NEW.queue AND partition IS NEW.partition ORDER BY place DESC, rowid DESC LIMIT 1);
END;

CREATE TRIGGER tenure_limit_comes AFTER INSERT ON tenure_queue_limit
BEGIN
    INSERT INTO tenure_refill VALUES (NEW.queue);
    INSERT INTO tenure_setting VALUES (NEW.queue, NULL, NULL);
END;

CREATE TRIGGER tenure_limit_goes AFTER DELETE ON tenure_queue_limit
BEGIN
    INSERT INTO tenure_refill VALUES (OLD.queue);
    INSERT INTO tenure_setting VALUES (OLD.queue, NULL, NULL);
END;

CREATE TRIGGER tenure_limit_fills AFTER UPDATE OF partitioned, ordered ON tenure_queue_limit
WHEN NEW.partitioned <> OLD.partitioned OR NEW.ordered IS NOT OLD.ordered
BEGIN INSERT INTO tenure_refill VALUES (NEW.queue); END;

CREATE TRIGGER tenure_limit_changes AFTER UPDATE OF max_running, rate_starts, rate_seconds, burst,
    every, partitioned, per_max_running, per_rate_starts, per_rate_seconds, per_burst, per_every,
    ordered ON tenure_queue_limit
BEGIN INSERT INTO tenure_setting VALUES (NEW.queue, NULL, NULL); END;

CREATE TRIGGER tenure_limit_stays BEFORE UPDATE OF queue ON tenure_queue_limit
WHEN NEW.queue <> OLD.queue
BEGIN SELECT RAISE(ABORT, 'tenure: limits cannot go to another queue'); END;

-- A start that is metered inserts a row, too. OR REPLACE takes one away.
CREATE TRIGGER tenure_partition_comes AFTER INSERT ON tenure_partition_limit
WHEN coalesce(NEW.max_running, NEW.weight, NEW.paused_at) IS NOT NULL OR EXISTS (
    SELECT 1 FROM tenure_limit_change WHERE queue = NEW.queue AND partition = NEW.partition)
BEGIN INSERT INTO tenure_setting VALUES (NEW.queue, NEW.partition, NULL); END;

CREATE TRIGGER tenure_partition_goes AFTER DELETE ON tenure_partition_limit
WHEN coalesce(OLD.max_running, OLD.weight, OLD.paused_at) IS NOT NULL
BEGIN INSERT INTO tenure_setting VALUES (OLD.queue, OLD.partition, NULL); END;

CREATE TRIGGER tenure_partition_changes
AFTER UPDATE OF max_running, weight, paused_at, paused_by, pause_reason ON tenure_partition_limit
BEGIN INSERT INTO tenure_setting VALUES (NEW.queue, NEW.partition, NULL); END;

CREATE TRIGGER tenure_partition_stays BEFORE UPDATE OF queue, partition ON tenure_partition_limit
WHEN (NEW.queue, NEW.partition) <> (OLD.queue, OLD.partition)
BEGIN SELECT RAISE(ABORT, 'tenure: limits cannot go to another partition'); END;

-- By hand, only a failed job may leave its line, so that the later ones can run.

CREATE TRIGGER tenure_slot_comes BEFORE INSERT ON tenure_slot
WHEN NOT EXISTS (SELECT 1 FROM tenure_job WHERE id = NEW.job_id AND status = 'processing'
    AND queue = NEW.queue AND coalesce(partition, '') = NEW.partition)
BEGIN SELECT RAISE(ABORT, 'tenure: only changes of jobs change the slots'); END;

CREATE TRIGGER tenure_slot_goes BEFORE DELETE ON tenure_slot
WHEN EXISTS (SELECT 1 FROM tenure_job WHERE id = OLD.job_id AND status = 'processing')
    AND EXISTS (SELECT 1 FROM tenure_queue_limit WHERE queue = OLD.queue)
BEGIN SELECT RAISE(ABORT, 'tenure: only changes of jobs change the slots'); END;

CREATE TRIGGER tenure_slot_stays BEFORE UPDATE ON tenure_slot
BEGIN SELECT RAISE(ABORT, 'tenure: only changes of jobs change the slots'); END;

CREATE TRIGGER tenure_line_comes BEFORE INSERT ON tenure_line
WHEN NOT EXISTS (SELECT 1 FROM tenure_job WHERE id = NEW.id AND finished_at IS NULL
    AND queue = NEW.queue AND coalesce(partition, '') = NEW.partition)
BEGIN SELECT RAISE(ABORT, 'tenure: only changes of jobs change a line'); END;

CREATE TRIGGER tenure_line_goes BEFORE DELETE ON tenure_line
WHEN EXISTS (SELECT 1 FROM tenure_job WHERE id = OLD.id AND finished_at IS NULL)
    AND EXISTS (SELECT 1 FROM tenure_queue_limit WHERE queue = OLD.queue AND ordered IS NOT NULL)
BEGIN SELECT RAISE(ABORT, 'tenure: only changes of jobs change a line'); END;

CREATE TRIGGER tenure_line_stays BEFORE UPDATE ON tenure_line
BEGIN SELECT RAISE(ABORT, 'tenure: only changes of jobs change a line'); END;

CREATE TRIGGER tenure_limit_change_appends BEFORE INSERT ON tenure_limit_change
WHEN NEW.rowid <> -1
BEGIN SELECT RAISE(ABORT, 'tenure: the database numbers the history of limits'); END;

CREATE TRIGGER tenure_limit_change_is_final BEFORE UPDATE ON tenure_limit_change
BEGIN SELECT RAISE(ABORT, 'tenure: the history of limits cannot be edited'); END;

CREATE TRIGGER tenure_limit_change_stays BEFORE DELETE ON tenure_limit_change
BEGIN SELECT RAISE(ABORT, 'tenure: the history of limits cannot be edited'); END;
