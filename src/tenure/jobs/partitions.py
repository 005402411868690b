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
        return _Called(type, by)
    parts: Any = (by,) if isinstance(by, str) else by
    if not isinstance(parts, tuple) or not parts or not all(isinstance(one, str) for one in parts):
        raise InvalidInput("name a parameter, give a tuple of names, or a function", path=PATH)
    if names is not None and (unknown := set(parts) - set(names)):
        raise InvalidInput(f"{type} has no parameter {', '.join(sorted(unknown))}", path=PATH)
    return _Named(type, parts, {n: json_types.plain(usual[n]) for n in parts if n in usual})


PATH = "$.partition_by"


class _Named:
    """The values of some parameters. If one of them is None, the job has no partition."""

    def __init__(self, type: str, names: tuple[str, ...], usual: Mapping[str, Any]) -> None:
        self._type, self._names, self._usual = type, names, usual

    def __call__(self, payload: Mapping[str, Any]) -> str | None:
        values = {**self._usual, **payload}
        if missing := [name for name in self._names if name not in values]:
            raise InvalidInput(
                f"{self._type} is partitioned by {', '.join(missing)}, which the payload lacks",
                path="$.payload",
            )
        texts = [_text_of(values[name]) for name in self._names]
        if len(texts) == 1 and texts[0] is not None:
            return check_partition(texts[0])
        parts = [
            text.replace("\\", r"\\").replace(":", r"\:") for text in texts if text is not None
        ]
        return check_partition(":".join(parts)) if len(parts) == len(texts) else None


class _Called:
    """What a function of the user's returns."""

    def __init__(self, type: str, function: Callable[[dict[str, Any]], Any]) -> None:
        self._type, self._function = type, function

    def __call__(self, payload: Mapping[str, Any]) -> str | None:
        try:
            value = self._function(dict(payload))
        except Exception as error:  # it is the user's
            why = f"partition_by of {self._type} failed: {type(error).__name__}"
            raise InvalidInput(why, path="$.partition") from error
        text = _text_of(value)
        return None if text is None else check_partition(text)


def _text_of(value: Any) -> str | None:
    """Return a text as it is and a number as JSON; raises InvalidInput for anything else."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, bool | int | float):
        raise InvalidInput("a partition is a text or a number", path="$.partition")
    return msgspec.json.encode(value).decode()
