-- A number of jobs that belong together. `settled_to`: its jobs up to this id are known to be settled, so
-- that the sweep looks at each job about once. NULL again, and so `finished_at`, if that is no longer so.
CREATE TABLE tenure_workflow (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT CHECK (length(name) BETWEEN 1 AND {max_name}),
    key TEXT UNIQUE CHECK (length(key) BETWEEN 1 AND {max_key}),
    fingerprint TEXT,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL CHECK (length(created_by) <= {max_label}),
    finished_at INTEGER,
    settled_to TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX tenure_workflow_open ON tenure_workflow (id) WHERE finished_at IS NULL;
CREATE INDEX tenure_workflow_finished ON tenure_workflow (finished_at) WHERE finished_at IS NOT NULL;
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

-- Jobs at rest whose followers behind `after` are not counted yet.
CREATE TABLE tenure_overdue (
    parent TEXT PRIMARY KEY NOT NULL,
    status TEXT NOT NULL CHECK (status IN ({settled})),
    after TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Jobs for which somebody has to decide: one that waits is skipped if its `spare` is below 0; one that was
-- skipped is restored if it can run after all.
CREATE TABLE tenure_revisit (job_id TEXT PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID;

CREATE TRIGGER tenure_job_unbound AFTER DELETE ON tenure_job
WHEN OLD.need IS NOT NULL OR OLD.followed IS NOT NULL
BEGIN
    DELETE FROM tenure_dependency WHERE child = OLD.id;
    DELETE FROM tenure_overdue WHERE parent = OLD.id;
    DELETE FROM tenure_revisit WHERE job_id = OLD.id;
END;
