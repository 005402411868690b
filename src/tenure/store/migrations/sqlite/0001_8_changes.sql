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
