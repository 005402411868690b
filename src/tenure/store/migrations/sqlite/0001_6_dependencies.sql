CREATE INDEX tenure_job_workflow ON tenure_job (workflow, id) WHERE workflow IS NOT NULL;

-- Which job (`child`) waits for which other one (`parent`), and which endings of that one meet it; an edge
-- that is `past` counts no longer. `followed` of the parent says how many there are. `name` is by which the
-- handler of the child finds the result.
CREATE TABLE tenure_dependency (
    parent TEXT NOT NULL,
    child TEXT NOT NULL CHECK (child <> parent),
    meets TEXT NOT NULL DEFAULT 'completed' CHECK (meets IN ('completed', 'settled', 'failed', 'past')),
    name TEXT CHECK (length(name) BETWEEN 1 AND {max_name}),
    PRIMARY KEY (parent, child)
) STRICT, WITHOUT ROWID;
CREATE INDEX tenure_dependency_child ON tenure_dependency (child, parent);

-- An insert here counts for the followers of a job that it has come to rest with a status (sign 1), or has
-- left it again (-1): for followers behind `after`, up to `upto`. A follower with nothing left to wait for
-- is released. Of many followers the first are counted, and the others are overdue. A waiting job that was
-- claimed before waits for a signal.
CREATE VIEW tenure_ending AS
    SELECT '' AS parent, '' AS status, 0 AS sign, '' AS after, '' AS upto WHERE false;

CREATE TRIGGER tenure_ending_counts INSTEAD OF INSERT ON tenure_ending
WHEN NEW.sign <> 0
BEGIN
    INSERT INTO tenure_meeting (child, met, missed)
    SELECT child, NEW.sign * met, NEW.sign * (1 - met) FROM (
        SELECT child, {is_met} AS met FROM tenure_dependency AS d
        WHERE parent = NEW.parent AND child > NEW.after AND child <= NEW.upto AND meets <> 'past'
        ORDER BY child LIMIT iif(NEW.sign = 1, {many_followers}, -1));
END;

-- An insert here counts what one follower waits for. An UPDATE FROM would make two temporary tables.
CREATE VIEW tenure_meeting AS SELECT '' AS child, 0 AS met, 0 AS missed WHERE false;

CREATE TRIGGER tenure_meeting_counts INSTEAD OF INSERT ON tenure_meeting
BEGIN
    UPDATE tenure_job SET need = need - NEW.met, spare = coalesce(spare, 0) - NEW.missed,
        status = iif(need > NEW.met, 'waiting', 'pending'),
        run_at = iif(need > NEW.met, run_at, max(run_at, (SELECT at FROM tenure_now))),
        event = iif(need > NEW.met, event, 'unblocked'),
        actor = iif(need > NEW.met, actor, 'store')
    WHERE id = NEW.child AND status = 'waiting' AND token = 0;
END;

CREATE TRIGGER tenure_ending_is_undone INSTEAD OF INSERT ON tenure_ending
WHEN NEW.sign < 0
BEGIN
    INSERT INTO tenure_revisit (job_id)
    SELECT job.id FROM tenure_dependency JOIN tenure_job AS job ON job.id = child
    WHERE parent = NEW.parent AND child <= NEW.upto
        AND job.status = 'cancelled' AND job.event = 'skipped'
        AND NOT EXISTS (SELECT 1 FROM tenure_revisit WHERE job_id = job.id);
END;

CREATE TRIGGER tenure_ending_has_many INSTEAD OF INSERT ON tenure_ending
WHEN NEW.sign > 0
    AND (SELECT followed FROM tenure_job WHERE id = NEW.parent) >= {many_followers}
BEGIN
    INSERT INTO tenure_overdue (parent, status, after)
    SELECT NEW.parent, NEW.status, child FROM tenure_dependency
    WHERE parent = NEW.parent AND child > NEW.after AND meets <> 'past'
    ORDER BY child LIMIT 1 OFFSET {many_followers} - 1;
END;

-- A delete of a job from `overdue` counts for the next followers of it.
CREATE TRIGGER tenure_overdue_counts AFTER DELETE ON tenure_overdue
WHEN EXISTS (SELECT 1 FROM tenure_job AS job WHERE id = OLD.parent AND {job_at_rest})
BEGIN
    INSERT INTO tenure_ending (parent, status, sign, after, upto)
    VALUES (OLD.parent, OLD.status, 1, OLD.after, '~');
END;

CREATE TRIGGER tenure_overdue_stays BEFORE UPDATE ON tenure_overdue
BEGIN SELECT RAISE(ABORT, 'tenure: only changes of jobs change this table'); END;

CREATE TRIGGER tenure_job_doomed AFTER UPDATE OF spare ON tenure_job
WHEN NEW.status = 'waiting' AND NEW.spare < 0
BEGIN
    INSERT INTO tenure_revisit (job_id)
    SELECT NEW.id WHERE NOT EXISTS (SELECT 1 FROM tenure_revisit WHERE job_id = NEW.id);
END;

-- The sweep deletes a job from `revisit` after a look at it. One that still has to be skipped comes back.
CREATE TRIGGER tenure_revisit_comes_back AFTER DELETE ON tenure_revisit
WHEN EXISTS (
    SELECT 1 FROM tenure_job WHERE id = OLD.job_id AND status = 'waiting' AND spare < 0)
BEGIN INSERT INTO tenure_revisit (job_id) VALUES (OLD.job_id); END;

CREATE TRIGGER tenure_job_awaited BEFORE DELETE ON tenure_job
WHEN OLD.followed > 0 AND EXISTS (
    SELECT 1 FROM tenure_dependency JOIN tenure_job AS job ON job.id = child
    WHERE parent = OLD.id AND job.finished_at IS NULL)
BEGIN SELECT RAISE(ABORT, 'tenure: a job that depends on this one is not settled'); END;

CREATE TRIGGER tenure_job_unbound AFTER DELETE ON tenure_job
WHEN OLD.need IS NOT NULL OR OLD.followed IS NOT NULL
BEGIN
    DELETE FROM tenure_dependency WHERE child = OLD.id;
    DELETE FROM tenure_overdue WHERE parent = OLD.id;
    DELETE FROM tenure_revisit WHERE job_id = OLD.id;
END;
