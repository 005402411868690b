-- The steps of a job that are done, with the result of each as JSON. `token` is that of the attempt.
CREATE TABLE tenure_step (
    job_id TEXT NOT NULL,
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND {max_key}),
    number INTEGER NOT NULL CHECK (number >= 0),
    token INTEGER NOT NULL,
    at INTEGER NOT NULL,
    result TEXT CHECK (length(CAST(result AS BLOB)) <= {max_result}),
    PRIMARY KEY (job_id, name)
) STRICT, WITHOUT ROWID;

-- The last state that a handler has stored: of an attempt the one with the largest number.
CREATE TABLE tenure_checkpoint (
    job_id TEXT PRIMARY KEY NOT NULL,
    token INTEGER NOT NULL,
    number INTEGER NOT NULL,
    at INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (length(CAST(state AS BLOB)) <= {max_result})
) STRICT, WITHOUT ROWID;

-- Signals to a job, numbered by name: its n-th wait for a name takes the n-th of them.
CREATE TABLE tenure_signal (
    job_id TEXT NOT NULL,
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND {max_name}),
    number INTEGER NOT NULL CHECK (number >= 0),
    at INTEGER NOT NULL,
    key TEXT CHECK (length(key) BETWEEN 1 AND {max_key}),
    payload TEXT CHECK (length(CAST(payload AS BLOB)) <= {max_payload}),
    actor TEXT CHECK (length(actor) <= {max_label}),
    PRIMARY KEY (job_id, name, number),
    UNIQUE (job_id, name, key)
) STRICT, WITHOUT ROWID;

-- What a suspended job waits for, and until when.
CREATE TABLE tenure_wait (
    job_id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND {max_name}),
    number INTEGER NOT NULL CHECK (number >= 0),
    expires_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX tenure_wait_expires ON tenure_wait (expires_at) WHERE expires_at IS NOT NULL;

-- Secrets that allow one signal each, for addresses that people outside can use.
CREATE TABLE tenure_signal_token (
    digest TEXT PRIMARY KEY NOT NULL,
    job_id TEXT NOT NULL,
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND {max_name}),
    payload TEXT CHECK (length(CAST(payload AS BLOB)) <= {max_payload}),
    at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX tenure_signal_token_job ON tenure_signal_token (job_id, name);

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
