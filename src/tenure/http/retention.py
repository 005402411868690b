"""How long settled jobs of types and queues are kept, over HTTP."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, UnsetType
from starlette.responses import Response

from tenure.http.call import Call, answer
from tenure.wire.requests import Request, component, given

Age = Annotated[float | str, component("Age")]


class RetentionRequest(Request):
    """How long jobs are kept once they are settled, by status; what is left out stays.

    Seconds, a text such as `1h` or `30d`, or `forever`; null removes what the rule says.
    """

    completed: Age | UnsetType | None = UNSET
    cancelled: Age | UnsetType | None = UNSET
    failed: Age | UnsetType | None = UNSET


def list_rules(call: Call) -> Response:
    """List the rules of types and queues whose jobs are kept for another time than others."""
    return answer(call.app.retention.list())


def keep_type(call: Call) -> Response:
    """Change how long settled jobs of a type are kept."""
    return answer(call.app.retention.set(type=call.path["name"], **given(call.body)))


def keep_queue(call: Call) -> Response:
    """Change how long settled jobs of a queue are kept."""
    return answer(call.app.retention.set(queue=call.path["name"], **given(call.body)))
