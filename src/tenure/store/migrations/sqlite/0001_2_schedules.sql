CREATE TRIGGER tenure_schedule_advances BEFORE UPDATE OF cursor_at ON tenure_schedule
WHEN NEW.cursor_at < OLD.cursor_at AND NEW.edition <= OLD.edition
BEGIN SELECT RAISE(ABORT, 'tenure: only a new edition of a schedule may set its time back'); END;

CREATE TRIGGER tenure_fire_is_final BEFORE UPDATE ON tenure_fire
WHEN (NEW.until > coalesce(OLD.until, OLD.at)) IS NOT TRUE
    OR (NEW.schedule, NEW.at, NEW.outcome) <> (OLD.schedule, OLD.at, OLD.outcome)
BEGIN SELECT RAISE(ABORT, 'tenure: a fire is on record: only its range can grow'); END;

CREATE TRIGGER tenure_fire_has_a_job BEFORE INSERT ON tenure_fire
WHEN NEW.job_id IS NOT NULL AND NOT EXISTS (SELECT 1 FROM tenure_job WHERE id = NEW.job_id)
BEGIN SELECT RAISE(ABORT, 'tenure: a fire must name a job that exists'); END;
