-- Actions on all jobs of a filter. Each batch changes some jobs and moves the cursor, in one commit.
CREATE TABLE tenure_bulk (
    id TEXT PRIMARY KEY NOT NULL,
    action TEXT NOT NULL,
    filter TEXT NOT NULL,
    more_retries INTEGER NOT NULL,
    actor TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    finished_at INTEGER,
    stopped_by TEXT,
    total INTEGER NOT NULL,
    exact INTEGER NOT NULL,
    changed INTEGER NOT NULL DEFAULT 0,
    refused INTEGER NOT NULL DEFAULT 0,
    batches INTEGER NOT NULL DEFAULT 0,
    cursor TEXT
) STRICT;
CREATE INDEX tenure_bulk_unfinished ON tenure_bulk (id) WHERE finished_at IS NULL;
