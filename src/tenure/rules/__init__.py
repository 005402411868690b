"""What Tenure decides without a database, one module a noun. Pure."""
