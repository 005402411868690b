"""Tenure: a job queue that keeps every job it accepts."""

__version__ = "0.1.0"
