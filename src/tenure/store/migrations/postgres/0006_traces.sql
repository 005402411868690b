-- From which span a job was added, where somebody traces; beside the jobs, so that others pay nothing.
CREATE TABLE {schema}.trace (
    job_id uuid PRIMARY KEY,
    traceparent text COLLATE "C" NOT NULL
);
