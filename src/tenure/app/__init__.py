"""Tenure: the application object that users hold."""
