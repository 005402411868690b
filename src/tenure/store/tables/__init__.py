"""One module for each table beside `job` and `transition`."""
