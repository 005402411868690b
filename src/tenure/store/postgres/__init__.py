"""PostgreSQL: its connections, statements, reading and writing sides."""
