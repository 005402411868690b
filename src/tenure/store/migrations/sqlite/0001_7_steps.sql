-- An OR REPLACE would change a step that is there: it is refused, and what is there already is ignored
-- only by the statement that says so.
CREATE TRIGGER tenure_step_enters BEFORE INSERT ON tenure_step
BEGIN
    SELECT RAISE(ABORT, 'tenure: only a job that is processing has steps') WHERE NOT EXISTS (
        SELECT 1 FROM tenure_job WHERE id = NEW.job_id AND status = 'processing');
    SELECT RAISE(IGNORE) FROM tenure_step WHERE job_id = NEW.job_id AND name = NEW.name;
END;

CREATE TRIGGER tenure_step_is_final BEFORE UPDATE ON tenure_step
BEGIN SELECT RAISE(ABORT, 'tenure: a step on record never changes'); END;

CREATE TRIGGER tenure_job_left_steps AFTER DELETE ON tenure_job
BEGIN
    DELETE FROM tenure_step WHERE job_id = OLD.id;
    DELETE FROM tenure_checkpoint WHERE job_id = OLD.id;
    DELETE FROM tenure_signal WHERE job_id = OLD.id;
    DELETE FROM tenure_wait WHERE job_id = OLD.id;
    DELETE FROM tenure_signal_token WHERE job_id = OLD.id;
END;
