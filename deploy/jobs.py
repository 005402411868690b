"""A small application for the files in this folder. Yours takes its place."""

from __future__ import annotations

from tenure import Tenure

app = Tenure()


@app.job(queue="mail", timeout="1m")
def send_email(to: str) -> str:
    """Send nothing; say what would be sent."""
    return f"sent to {to}"
