-- Only the triggers of `tenure_job` write `tenure_unique_key`; any other change is refused. A conflict is found
-- before the write, because an OR REPLACE of the outer statement would hold in here, too.

-- An insert here says whether a job held its unique key before a change, and holds it after it. It is a view
-- because SQLite makes a temporary table for each INSERT with SELECT into a table that has triggers, also if
-- there is nothing to insert.
CREATE VIEW tenure_holding AS
    SELECT key, job_id, true AS held, true AS holds FROM tenure_unique_key WHERE false;

CREATE TRIGGER tenure_holding_begins INSTEAD OF INSERT ON tenure_holding
WHEN NEW.key IS NOT NULL AND NEW.holds AND NOT NEW.held
BEGIN INSERT INTO tenure_unique_key (key, job_id) VALUES (NEW.key, NEW.job_id); END;

CREATE TRIGGER tenure_holding_ends INSTEAD OF INSERT ON tenure_holding
WHEN NEW.key IS NOT NULL AND NEW.held AND NOT NEW.holds
BEGIN DELETE FROM tenure_unique_key WHERE key = NEW.key AND job_id = NEW.job_id; END;

CREATE TRIGGER tenure_job_lets_go AFTER DELETE ON tenure_job
WHEN OLD.unique_key IS NOT NULL
BEGIN DELETE FROM tenure_unique_key WHERE key = OLD.unique_key AND job_id = OLD.id; END;

CREATE TRIGGER tenure_unique_key_enters BEFORE INSERT ON tenure_unique_key
BEGIN
    SELECT RAISE(ABORT, 'tenure: another job holds this unique key')
    WHERE EXISTS (SELECT 1 FROM tenure_unique_key WHERE key = NEW.key);
    SELECT RAISE(ABORT, 'tenure: only changes of jobs change this table') WHERE NOT EXISTS (
        SELECT 1 FROM tenure_job AS job WHERE id = NEW.job_id AND unique_key = NEW.key
            AND {job_holds_key});
END;

CREATE TRIGGER tenure_unique_key_stays BEFORE UPDATE ON tenure_unique_key
BEGIN SELECT RAISE(ABORT, 'tenure: only changes of jobs change this table'); END;

CREATE TRIGGER tenure_unique_key_leaves BEFORE DELETE ON tenure_unique_key
WHEN EXISTS (SELECT 1 FROM tenure_job AS job WHERE id = OLD.job_id AND unique_key = OLD.key
    AND {job_holds_key})
BEGIN SELECT RAISE(ABORT, 'tenure: only changes of jobs change this table'); END;
