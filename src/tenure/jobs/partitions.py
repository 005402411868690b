"""Which partition a job is in, as `partition_by` of its type says. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec

from tenure.errors import InvalidInput
from tenure.jobs import json_types
from tenure.jobs.enqueue import PartitionBy
from tenure.jobs.names import check_partition

By = str | tuple[str, ...] | Callable[[dict[str, Any]], Any]
"""The name of a parameter, the names of some, or a function of the payload."""


def partitioner(
    type: str, by: By, names: Collection[str] | None, usual: Mapping[str, Any]
) -> PartitionBy:
    """Return what finds the partition of a payload; raises InvalidInput for a wrong `by`.

    `names` are the parameters that a payload of the type can have, None for any; `usual` is what
    those with a default are if the payload leaves them out.
    """
    if callable(by):
        return lambda payload: _of_function(type, by, payload)
    parts: Any = (by,) if isinstance(by, str) else by
    if not isinstance(parts, tuple) or not parts or not all(isinstance(one, str) for one in parts):
        what = "name a parameter, give a tuple of names, or a function"
        raise InvalidInput(what, path="$.partition_by")
    if names is not None and (unknown := set(parts) - set(names)):
        what = f"{type} has no parameter {', '.join(sorted(unknown))}"
        raise InvalidInput(what, path="$.partition_by")
    known = {name: json_types.plain(usual[name]) for name in parts if name in usual}
    return lambda payload: _of_values(type, parts, {**known, **payload})


def _of_values(type: str, names: tuple[str, ...], values: Mapping[str, Any]) -> str | None:
    """Join the values of some fields. If one of them is None, the job has no partition."""
    if missing := [name for name in names if name not in values]:
        what = f"{type} is partitioned by {', '.join(missing)}, which the payload lacks"
        raise InvalidInput(what, path="$.payload")
    parts = [text for name in names if (text := _text_of(values[name])) is not None]
    if len(parts) < len(names):
        return None
    if len(parts) > 1:
        parts = [part.replace("\\", r"\\").replace(":", r"\:") for part in parts]
    return check_partition(":".join(parts))


def _of_function(type: str, function: Callable[[dict[str, Any]], Any], payload: Any) -> str | None:
    try:
        value = function(payload)
    except Exception as error:  # it is the user's
        why = f"partition_by of {type} failed: {error.__class__.__name__}"
        raise InvalidInput(why, path="$.partition") from error
    text = _text_of(value)
    return None if text is None else check_partition(text)


def _text_of(value: Any) -> str | None:
    """Return a text unchanged and a number as JSON; raises InvalidInput for anything else."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, bool | int | float):
        raise InvalidInput("a partition is a text or a number", path="$.partition")
    return msgspec.json.encode(value).decode()
