"""The options that describe a job to add, for `enqueue` and for schedules."""

from __future__ import annotations

import sys
from typing import Any

import click

from tenure.cli import completing
from tenure.cli.options import option, repeated, together
from tenure.errors import InvalidInput

job_options = together(
    option(
        "--queue", "NAME", "Queue of the job.  [default: that of its type]", completing.queue_names
    ),
    click.option("--priority", type=int, help="Smaller runs first, -100 to 100."),
    click.option("--max-retries", type=int, help="Attempts in all, with the first."),
    click.option("--start-by", help="Cancel it if it has not started by then: 10m, or a time."),
    option("--timeout", "TIME", "Longest time that one attempt may run: 30s, 5m."),
    option(
        "--backoff",
        "TIME|JSON",
        "Wait before the first retry, then tripled; or each wait: 10s,1m,10m; or an object of "
        "base, factor and cap.",
    ),
    repeated("--tag tags", "TAG", "A word to find the job by, such as customer:17"),
    option("--partition", "TEXT", "What divides the queue, such as a tenant."),
)
"""What an enqueue may say of its job, but when it runs."""


unique_options = together(
    repeated("--unique-by", "NAME", "A payload value: one unsettled job of the type with it"),
    option("--unique-until", "settled|started", "How long the earlier job counts."),
    option("--on-conflict", "WORD", "If there is one: return, error, replace or reschedule."),
)
"""With which other jobs the job is the same."""
UNIQUE = {"unique_by": "by", "unique_until": "until", "on_conflict": "on_conflict"}


parent_options = together(
    repeated("--depends-on", "ID[:HOW]", "Job that must end before: completed, settled, failed"),
    option("--needs", "all|any|N", "How many of those jobs.  [default: all]"),
)
"""What the job depends on."""


def options_given(given: dict[str, Any], payload: str | None) -> Any:
    """Return what was given of the options, and the payload as a value."""
    from tenure.jobs.payload import MAX_PAYLOAD_BYTES

    options = {name: value for name, value in given.items() if value not in (None, ())}
    rule = {field: options.pop(name) for name, field in UNIQUE.items() if name in options}
    if rule:
        options["unique"] = rule
    if "depends_on" in options:
        parts = [one.partition(":") for one in options["depends_on"]]
        options["depends_on"] = [
            {"job_id": id, "meets": meets or "completed"} for id, _, meets in parts
        ]
    needs = str(options.get("needs", ""))
    if needs.isdecimal() and len(needs) < 16:
        options["needs"] = int(needs)
    backoff = options.get("backoff", "")
    if backoff.startswith("{"):
        options["backoff"] = _json(backoff.encode(), "$.backoff")
    elif "," in backoff:
        options["backoff"] = backoff.split(",")
    if payload == "-":
        options["payload"] = _json(sys.stdin.buffer.read(MAX_PAYLOAD_BYTES + 1), "$.payload")
    elif payload is not None:  # arguments that are not valid UTF-8 must be refused, not changed
        options["payload"] = _json(payload.encode("utf-8", "surrogatepass"), "$.payload")
    return options


def _json(data: bytes, at: str) -> object:
    """Decode a JSON text by the rules of the HTTP API; `at` is its path in error messages."""
    from tenure.jobs.payload import parse

    try:
        return parse(data)
    except InvalidInput as flaw:
        path = at + flaw.path.removeprefix("$")
        raise flaw.__class__(flaw.message, path=path, code=flaw.code) from None
