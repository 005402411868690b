-- What a new job brings: its tags, its unique key, its place in a workflow. One trigger for them: each
-- that runs costs a job 3 to 4 µs, also if its condition does not hold.
CREATE TRIGGER tenure_job_brings AFTER INSERT ON tenure_job
WHEN NEW.tags IS NOT NULL OR NEW.unique_key IS NOT NULL
    OR NEW.need IS NOT NULL OR NEW.workflow IS NOT NULL
BEGIN
    INSERT INTO tenure_tag (tag, job_id)
    SELECT value, NEW.id FROM json_each(NEW.tags) WHERE true ON CONFLICT DO NOTHING;
    SELECT RAISE(ABORT, 'tenure: a value of a job is refused: unique_key')
    WHERE NEW.unique_key IS NOT NULL AND (NEW.unique_until IN ({untils})
        AND length(NEW.unique_key) = 32 AND NEW.unique_key NOT GLOB '*[^0-9a-f]*') IS NOT TRUE;
    INSERT INTO tenure_holding VALUES (NEW.unique_key, NEW.id, false, true);
    SELECT RAISE(ABORT, 'tenure: its workflow does not exist') WHERE NEW.workflow IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM tenure_workflow WHERE id = NEW.workflow);
    UPDATE tenure_workflow SET finished_at = NULL, statuses = NULL, settled_to = NULL
    WHERE id = NEW.workflow AND (finished_at IS NOT NULL OR settled_to IS NOT NULL);
    INSERT INTO tenure_revisit (job_id) SELECT NEW.id WHERE NEW.spare < 0;
END;

-- What each new job and each change of a job must be. SQLite runs the trigger that was made last
-- first, so these come before all others. They come after the row is written: then they see the
-- default that OR REPLACE writes for NULL, and SQLite loads a row that it changes once, not twice.
CREATE TRIGGER tenure_job_enters AFTER INSERT ON tenure_job
WHEN NEW.rowid < 1 OR {illegal_insert}
BEGIN
    SELECT CASE WHEN NEW.rowid < 1 THEN RAISE(ABORT, 'tenure: a rowid is 1 or more')
        ELSE RAISE(ABORT, 'tenure: a new job must be pending or waiting, without attempts') END;
END;

CREATE TRIGGER tenure_job_moves AFTER UPDATE ON tenure_job
WHEN NEW.rowid <> OLD.rowid OR ({illegal_change}) IS NOT FALSE
BEGIN SELECT RAISE(ABORT, 'tenure: illegal transition of a job'); END;
