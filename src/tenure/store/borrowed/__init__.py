"""Connections of callers, in whose transactions jobs are added."""
