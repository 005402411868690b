"""Signals: messages to jobs that wait for them. Pure: values and their checks."""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import datetime
from functools import cached_property
from typing import Any

import msgspec

from tenure.errors import IllegalTransition, InvalidInput
from tenure.lifecycle import SETTLED, Job, legal_events
from tenure.values.names import check_name, check_text
from tenure.values.payload import MAX_DEPTH, JsonText, too_large, walk

MAX_SIGNAL_BYTES = 64 * 1024
"""Largest payload of a signal as compact JSON in UTF-8."""
MAX_SIGNAL_NAME = 100
"""Characters of the name of a signal: those of a step that keeps a deadline have the name, too."""
MAX_LINK_LABEL = 100
"""Characters of what the page of a one-use token and its button say."""
MAX_SIGNALS = 1_000
"""Signals that one job gets, of all names."""
MAX_SIGNALS_BYTES = 8 * 1024 * 1024
"""Payloads of the signals of one job together, in characters."""
MAX_SIGNAL_TOKENS = 1_000
"""Unused tokens of one job, of all names."""
TOKEN_BYTES = 16
_is_token = re.compile("[A-Za-z0-9_-]{22}").fullmatch


class Signal(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A stored signal.

    - `job_id`, `name`: the job it was sent to, and the name that the job waits for.
    - `number`: the first of this name to this job is 1.
    - `at`: when the store recorded it.
    - `key`: the idempotency key that it was sent with, or None.
    - `payload_json`: what it says, as JSON text; `payload` is the value.
    - `actor`: who sent it.
    """

    job_id: str
    name: str
    number: int
    at: datetime
    key: str | None
    payload_json: str
    actor: str

    @cached_property
    def payload(self) -> Any:
        """What the signal says, decoded at the first use."""
        return msgspec.json.decode(self.payload_json.encode())


class NewSignal(msgspec.Struct, frozen=True):
    """A signal to store, checked."""

    name: str
    payload: str
    key: str | None
    actor: str
    token: str | None = None  # the digest of the one-use token that it is sent with


class TokenSignal(msgspec.Struct, frozen=True):
    """What a one-use token sends: the payload is None if its sender gives one."""

    job_id: str
    name: str
    payload: str | None
    label: str | None


def check_signal_name(name: object, path: str = "$.name") -> str:
    """Return the name of a signal; raises InvalidInput if it cannot be one."""
    checked = check_name(name, "signal", path)
    if len(checked) > MAX_SIGNAL_NAME:
        raise InvalidInput(f"give at most {MAX_SIGNAL_NAME} characters", path=path)
    return checked


def signal_text(payload: object, path: str = "$.payload") -> str:
    """Return the payload of a signal as JSON text; raises InvalidInput or PayloadTooLarge."""
    if type(payload) is JsonText:
        return payload
    walk(payload, path, MAX_SIGNAL_BYTES, MAX_DEPTH)
    text = msgspec.json.encode(payload)
    if len(text) > MAX_SIGNAL_BYTES:
        raise too_large(f"{len(text)} bytes as JSON", MAX_SIGNAL_BYTES, path)
    return text.decode()


def check_link_label(value: object, path: str = "$.label") -> str | None:
    """Return the label of a one-use token, None for none; raises InvalidInput."""
    return None if value is None else check_text(value, "a label", MAX_LINK_LABEL, path)


def check_takes(job: Job) -> None:
    """Raise IllegalTransition if a job is settled, and so takes no signal."""
    if job.status in SETTLED:
        legal = legal_events(job.status, job.event)
        raise IllegalTransition(job.id, job.status, "signalled", legal, "it is settled")


def new_token() -> str:
    """Return a random token of 128 bits, as a part of an address."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def token_digest(token: str) -> str | None:
    """Return what is stored of a token; None for a text that cannot be one."""
    return hashlib.sha256(token.encode()).hexdigest() if _is_token(token) else None
