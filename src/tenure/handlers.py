"""Handlers: the functions that run jobs, and how their arguments become payloads and back.

A handler's payload is its keyword arguments as a JSON object. What a parameter's annotation says is
what the handler gets: dataclasses, msgspec structs, datetime, UUID, Decimal and enums are converted
on the way in and out; a payload that does not fit is refused with the place where it does not.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec

from tenure import payload as payloads
from tenure.errors import InvalidInput
from tenure.lifecycle import DEFAULT_MAX_RETRIES
from tenure.retry import DEFAULT_POLICY, RetryPolicy


@dataclass(slots=True)
class JobContext:
    """What a handler may know of the attempt it runs; ask for it by annotating a first parameter.

    `token` rises with every attempt of the job: hand it to outside systems as a fencing token.
    `deadline` is when the attempt's timeout strikes. `cancelled` turns true when the job was
    cancelled or its lease was lost: what the handler does from then on will not be recorded.
    """

    id: str
    type: str
    queue: str
    attempt: int
    max_retries: int
    token: int
    deadline: datetime | None
    cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What jobs of a handler are enqueued with unless the call says otherwise."""

    queue: str = "default"
    priority: int = 0
    max_retries: int = DEFAULT_MAX_RETRIES
    timeout: float | None = None
    backoff: RetryPolicy = DEFAULT_POLICY


class BadArguments(Exception):
    """The stored payload does not fit the handler's signature; trying again cannot help."""


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered function: how to call it with a stored payload."""

    name: str
    function: Callable[..., Any]
    defaults: Defaults = field(default_factory=Defaults)
    in_process: bool = False  # run in a child process
    is_async: bool = False
    wants_context: bool = False
    signature: inspect.Signature = field(default_factory=inspect.Signature)
    decoder: msgspec.json.Decoder[Any] | None = None  # None: the payload as it is
    fields: tuple[str, ...] = ()

    def payload_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that a call with these arguments stands for; TypeError if it is none."""
        if self.wants_context:
            args = (None, *args)
        bound = self.signature.bind(*args, **kwargs)
        arguments: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if self.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(value)
            else:
                arguments[name] = value
        if self.wants_context:
            del arguments[next(iter(self.signature.parameters))]
        try:
            return {
                name: value if type(value) in _PLAIN else msgspec.to_builtins(value)
                for name, value in arguments.items()
            }
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInput(
                f"an argument of {self.name} cannot be written as JSON ({error}); "
                "pass an id or a value of a JSON type instead",
                path="$.payload",
            ) from error

    def arguments(self, text: str) -> dict[str, Any]:
        """The keyword arguments for a stored payload; raises BadArguments naming the field."""
        if self.decoder is None:
            return payloads.load(text)
        try:
            values = self.decoder.decode(text)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise BadArguments(f"the payload does not fit {self.name}: {error}") from error
        return {
            name: value
            for name in self.fields
            if (value := getattr(values, name)) is not msgspec.UNSET
        }


_PLAIN = frozenset({str, int, float, bool, type(None)})


def describe(
    function: Callable[..., Any], name: str, defaults: Defaults, *, in_process: bool = False
) -> Handler:
    """Read a function's signature into a Handler; raises InvalidInput if no payload could fit."""
    signature = inspect.signature(function)
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise InvalidInput(f"an annotation of {name} cannot be resolved: {error}") from error
    parameters = list(signature.parameters.values())
    wants_context = bool(parameters) and hints.get(parameters[0].name) is JobContext
    is_async = inspect.iscoroutinefunction(function)
    if in_process and (is_async or wants_context):
        raise InvalidInput(f"{name} runs in a process: make it a plain def without a JobContext")
    if wants_context:
        parameters = parameters[1:]
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    open_ended = False
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            open_ended = True
            continue
        if parameter.kind in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.VAR_POSITIONAL,
        ):
            raise InvalidInput(f"{name}({parameter}): a payload has names, use named parameters")
        hint = hints.get(parameter.name, Any)
        if parameter.default is inspect.Parameter.empty:
            fields.append((parameter.name, hint))
        else:
            # Defaults may be mutable; the struct only notes that the argument may be absent.
            optional: Any = typing.Union.__getitem__((hint, msgspec.UnsetType))
            fields.append((parameter.name, optional, msgspec.UNSET))
    return Handler(
        name=name,
        function=function,
        defaults=defaults,
        in_process=in_process,
        is_async=is_async,
        wants_context=wants_context,
        signature=signature,
        decoder=None if open_ended else _decoder(name, fields),
        fields=tuple(entry[0] for entry in fields),
    )


def _decoder(name: str, fields: list[Any]) -> msgspec.json.Decoder[Any]:
    try:
        arguments = msgspec.defstruct(
            "Arguments", fields, kw_only=True, forbid_unknown_fields=True, gc=False
        )
        return msgspec.json.Decoder(arguments)
    except TypeError as error:
        raise InvalidInput(f"an annotation of {name} has no JSON form: {error}") from error


class Handlers:
    """The registry: only what is in it can run, whatever a row says."""

    def __init__(self) -> None:
        self._by_name: dict[str, Handler] = {}
        self._for_any: Callable[[str], Handler] | None = None

    def add(self, handler: Handler) -> None:
        """Register a handler under its name."""
        if handler.name in self._by_name:
            raise InvalidInput(f"there is a handler for {handler.name!r} already; name= another")
        self._by_name[handler.name] = handler

    def add_for_any(self, make: Callable[[str], Handler]) -> None:
        """Handle every type without a handler of its own by what `make(type)` returns."""
        self._for_any = make

    def find(self, type: str) -> Handler | None:
        """The handler of a job type."""
        handler = self._by_name.get(type)
        if handler is None and self._for_any is not None:
            handler = self._for_any(type)
        return handler

    def types(self) -> tuple[str, ...] | None:
        """The types that can be run; None for any."""
        return None if self._for_any is not None else tuple(sorted(self._by_name))
