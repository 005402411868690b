"""The JSON texts of a job, decoded when a value is read. Most jobs' values are never read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import msgspec

from tenure.dependency import Parent

TEXT_FIELDS: Mapping[str, str] = {"payload": "payload_json", "result": "result_json"}
"""Column -> field, of the columns that are stored as JSON text."""


class Texts(Parent, msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Payload and result, as stored text and as values.

    It has a `__dict__` for the values. That makes a job larger by 32 bytes, and making one slower
    by a tenth of a microsecond.
    """

    payload_json: str = "{}"  # canonical JSON text of an object
    result_json: str | None = None

    @cached_property
    def payload(self) -> dict[str, Any]:
        """The arguments of the handler by name, decoded at the first use."""
        return msgspec.json.decode(self.payload_json.encode(), type=dict[str, Any])

    @cached_property
    def result(self) -> Any:
        """What the handler returned, decoded at the first use; None if there is no result."""
        return None if self.result_json is None else msgspec.json.decode(self.result_json.encode())
