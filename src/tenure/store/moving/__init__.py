"""`tenure move`: all jobs to a PostgreSQL database, while work goes on."""
