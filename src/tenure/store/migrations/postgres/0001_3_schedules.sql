CREATE TRIGGER schedule_advances BEFORE UPDATE OF cursor_at ON {schema}.schedule
    FOR EACH ROW WHEN (NEW.cursor_at < OLD.cursor_at AND NEW.edition <= OLD.edition)
    EXECUTE FUNCTION {schema}.refuse('only a new edition of a schedule may set its time back');

CREATE TRIGGER fire_is_final BEFORE UPDATE ON {schema}.fire
    FOR EACH ROW WHEN ((NEW.until > coalesce(OLD.until, OLD.at)) IS NOT TRUE
        OR (NEW.schedule, NEW.at, NEW.outcome) <> (OLD.schedule, OLD.at, OLD.outcome))
    EXECUTE FUNCTION {schema}.refuse('a fire is on record: only its range can grow');

CREATE FUNCTION {schema}.check_fire() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM {schema}.job WHERE id = NEW.job_id) THEN
        RAISE EXCEPTION USING ERRCODE = 'TN001', MESSAGE = 'tenure: a fire must name a job that exists';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER fire_has_a_job AFTER INSERT ON {schema}.fire
    FOR EACH ROW WHEN (NEW.job_id IS NOT NULL) EXECUTE FUNCTION {schema}.check_fire();
