-- Actions on all jobs of a filter. Each batch changes some jobs and moves the cursor, in one commit.
CREATE TABLE {schema}.bulk (
    id uuid PRIMARY KEY,
    action text COLLATE "C" NOT NULL,
    filter text NOT NULL,
    more_retries bigint NOT NULL,
    actor text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL,
    finished_at timestamptz,
    stopped_by text COLLATE "C",
    total bigint NOT NULL,
    exact boolean NOT NULL,
    changed bigint NOT NULL DEFAULT 0,
    refused bigint NOT NULL DEFAULT 0,
    batches bigint NOT NULL DEFAULT 0,
    cursor uuid
);
CREATE INDEX bulk_unfinished ON {schema}.bulk (id) WHERE finished_at IS NULL;
