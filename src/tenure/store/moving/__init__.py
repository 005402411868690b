"""`tenure move`: all jobs to a PostgreSQL database, while workers continue."""
