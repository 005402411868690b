"""The schema, step by step, one SQL file per step and engine."""
