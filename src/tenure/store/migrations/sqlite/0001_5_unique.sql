-- Which job holds a unique key. Only the triggers of `tenure_job` write this table; any other change is
-- refused. A conflict is found before the write, because an OR REPLACE of the outer statement would
-- hold in here, too.
CREATE TABLE tenure_unique_key (
    key TEXT PRIMARY KEY NOT NULL,
    job_id TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- The job that was last accepted under a unique key that lasts for a time.
CREATE TABLE tenure_throttle (
    key TEXT PRIMARY KEY NOT NULL,
    job_id TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tenure_throttle_expires ON tenure_throttle (expires_at);

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
