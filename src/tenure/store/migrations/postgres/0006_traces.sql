-- The span that added a job, where the application traces. A separate table: others pay nothing.
CREATE TABLE {schema}.trace (
    job_id uuid PRIMARY KEY,
    traceparent text COLLATE "C" NOT NULL
);
