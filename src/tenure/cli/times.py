"""Times as the command line takes them: a date and a time, and for what is past, how long ago."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from tenure.cli.options import Decorator, option
from tenure.errors import InvalidInput

if TYPE_CHECKING:
    from tenure.app.app import Tenure

Past = datetime | timedelta
"""A time, or how long it is before the time of the store: only that one decides."""
ZONED = "write it with a zone, such as 2026-01-31T12:00:00Z"


def time_given(_: click.Context, given: click.Parameter, text: str | None) -> datetime | None:
    """Read a time; the callback of an option."""
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(f"not a time; {ZONED}", path=given.opts[0]) from None


def past_given(_: click.Context, given: click.Parameter, text: str | None) -> Past | None:
    """Read a time, `now`, or how long ago a time is; the callback of an option or an argument.

    A number needs its unit: without, it may be meant as a year.
    """
    from tenure.jobs.durations import seconds

    if text is None:
        return None
    if text == "now":
        return timedelta()
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        advice = f"not a time; {ZONED}, or how long ago, such as 2h or 3d, or now"
        if not text[-1:].isalpha():
            raise InvalidInput(advice, path=given.opts[0]) from None
    try:
        return timedelta(seconds=seconds(text))
    except InvalidInput:
        raise InvalidInput(advice, path=given.opts[0]) from None


def past_option(flags: str, help: str) -> Decorator:
    """Make an option that takes such a time."""
    said = f"{help}: 2h (ago), now, 2026-01-31T12:00:00Z."
    return option(flags, "WHEN", said, callback=past_given)


def at(app: Tenure, past: Past) -> datetime:
    """Return the time that is meant, by the store's clock if it is how long ago."""
    return app.core.clock() - past if isinstance(past, timedelta) else past


def all_at(app: Tenure, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with the times that are meant."""
    some = {key: at(app, past) for key, past in options.items() if isinstance(past, timedelta)}
    return {**options, **some}


def known_before(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options whose values are known before the store is asked for its time."""
    return {key: value for key, value in options.items() if not isinstance(value, timedelta)}
