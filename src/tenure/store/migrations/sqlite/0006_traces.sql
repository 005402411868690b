-- From which span a job was added, where somebody traces; beside the jobs, so that others pay nothing.
CREATE TABLE tenure_trace (
    job_id TEXT PRIMARY KEY NOT NULL,
    traceparent TEXT NOT NULL
) STRICT, WITHOUT ROWID;
