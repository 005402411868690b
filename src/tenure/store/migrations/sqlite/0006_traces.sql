-- The span that added a job, where the application traces. A separate table: others pay nothing.
CREATE TABLE tenure_trace (
    job_id TEXT PRIMARY KEY NOT NULL,
    traceparent TEXT NOT NULL
) STRICT, WITHOUT ROWID;
