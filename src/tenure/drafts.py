"""What an enqueue may ask for, and what the store is asked to add. Pure.

A draft is a job as a caller means it: its options may be text (`"5m"`), mistaken, or left to the
handler's defaults. An addition is checked and complete.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

import msgspec
from msgspec.structs import replace

from tenure import durations, payload
from tenure.errors import InvalidInput
from tenure.handlers import Defaults
from tenure.records import Addition
from tenure.retry import DEFAULT_POLICY, RetryPolicy

MOST_PRIORITY = 32_767
MOST_RETRIES = 1_000
YEARS = range(1000, 9000)
"""Of a `run_at`: what every database and client can read, in every zone."""

Duration = float | int | str | timedelta
"""Seconds, a timedelta, or text such as `30s`, `1h30m` or `PT5M`."""

Backoff = RetryPolicy | Duration | dict[str, Any]
"""A policy, its `base` alone, or its fields by name."""


class Options(TypedDict, total=False):
    """What one enqueue may say about its job beside the payload."""

    queue: str
    priority: int
    max_retries: int
    timeout: Duration | None
    backoff: Backoff
    delay: Duration
    run_at: datetime
    idempotency_key: str
    actor: str


class Draft(msgspec.Struct, frozen=True):
    """A job to be enqueued: type, payload and options, not yet checked."""

    type: str
    payload: Any
    options: Options


def addition_of(draft: Draft, id: str, *, defaults: Defaults, actor: str, at: str) -> Addition:
    """Check a draft; what it leaves open is as in `defaults`. Raises InvalidInput under `at`."""
    options = draft.options
    if unknown := set(options) - Options.__annotations__.keys():
        raise InvalidInput(f"no such option: {', '.join(sorted(unknown))}", path=at)
    delay = options.get("delay")
    run_at: Any = options.get("run_at")
    if delay is not None and run_at is not None:
        raise InvalidInput("give delay or run_at, not both", path=f"{at}.run_at")
    if run_at is not None and (not isinstance(run_at, datetime) or run_at.tzinfo is None):
        raise InvalidInput("run_at needs a time with its zone", path=f"{at}.run_at")
    if run_at is not None and run_at.year not in YEARS:
        raise InvalidInput(
            "run_at is out of range; use the years 1000 to 8999", path=f"{at}.run_at"
        )
    key = options.get("idempotency_key")
    if key is not None:
        key = payload.check_key(key, f"{at}.idempotency_key")
    chosen = defaults_of(options, defaults, at)
    addition = Addition(
        id=id,
        type=payload.check_name(draft.type, "job type", f"{at}.type"),
        queue=chosen.queue,
        payload=payload.canonical(draft.payload, path=f"{at}.payload"),
        priority=chosen.priority,
        max_retries=chosen.max_retries,
        timeout=chosen.timeout,
        backoff=chosen.backoff,
        idempotency_key=key,
        delay=0.0 if delay is None else durations.seconds(delay, path=f"{at}.delay"),
        run_at=None if run_at is None else run_at.astimezone(UTC),
        actor=options.get("actor", actor),
    )
    return addition if key is None else replace(addition, fingerprint=_fingerprint(addition))


def defaults_of(options: Mapping[str, Any], otherwise: Defaults, at: str) -> Defaults:
    """The options that a handler may set for its jobs, checked; `otherwise` fills the gaps."""
    if not options:
        return otherwise
    timeout = options.get("timeout", otherwise.timeout)
    return Defaults(
        queue=payload.check_name(options.get("queue", otherwise.queue), "queue", f"{at}.queue"),
        priority=whole(
            options.get("priority", otherwise.priority),
            -MOST_PRIORITY,
            MOST_PRIORITY,
            f"{at}.priority",
        ),
        max_retries=whole(
            options.get("max_retries", otherwise.max_retries),
            0,
            MOST_RETRIES,
            f"{at}.max_retries",
        ),
        timeout=None if timeout is None else positive(timeout, f"{at}.timeout"),
        backoff=policy_of(options.get("backoff", otherwise.backoff), f"{at}.backoff"),
    )


def policy_of(backoff: Any, path: str) -> RetryPolicy:
    """The retry policy that a caller means; raises InvalidInput at `path`."""
    if isinstance(backoff, RetryPolicy):
        return backoff
    if not isinstance(backoff, Mapping):
        return RetryPolicy(base=durations.seconds(backoff, path=path))
    if unknown := backoff.keys() - {"base", "factor", "cap"}:
        raise InvalidInput(f"no such field: {', '.join(map(str, unknown))}", path=path)
    values = {
        name: durations.seconds(backoff[name], path=f"{path}.{name}")
        for name in ("base", "cap")
        if name in backoff
    }
    factor = backoff.get("factor", DEFAULT_POLICY.factor)
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        raise InvalidInput("give a number", path=f"{path}.factor")
    return RetryPolicy(**values, factor=float(factor))


def whole(value: Any, low: int, high: int, path: str) -> int:
    """`value` if it is a whole number from `low` to `high`; raises InvalidInput at `path`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidInput(f"give a whole number from {low} to {high}", path=path)
    return value


def positive(value: Duration, path: str) -> float:
    """A duration above 0 in seconds; raises InvalidInput at `path`."""
    seconds = durations.seconds(value, path=path)
    if seconds <= 0:
        raise InvalidInput("give a time above 0", path=path)
    return seconds


def _fingerprint(addition: Addition) -> str:
    """What makes two requests with one idempotency key the same request."""
    asked = [
        addition.type,
        addition.queue,
        addition.payload,
        addition.priority,
        addition.max_retries,
        addition.timeout,
        [addition.backoff.base, addition.backoff.factor, addition.backoff.cap],
        addition.delay,
        None if addition.run_at is None else addition.run_at.timestamp(),
    ]
    return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()
