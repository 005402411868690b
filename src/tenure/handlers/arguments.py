"""How arguments of handlers become JSON and values again, and which partition a job is in.

Annotations make the decoder of payloads. Pydantic checks its models. It is not imported here: a
program without it has no models. The partition is as `partition_by` of the job's type says.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import msgspec

from tenure.errors import InvalidInput
from tenure.handlers.context import JobContext
from tenure.rules.jobs import PartitionBy, TypeOptions
from tenure.rules.retention import DeclaredType
from tenure.values.names import check_partition

MASK = b"*" * 10
"""What Pydantic writes in place of a secret."""
MINUTE, NONE = timedelta(minutes=1), timedelta()
TIMES = (datetime, time)
"""What msgspec leaves to `encoded`: it would round an offset to minutes, or drop a zone."""
_OF_CLASSES = (
    "of other classes only models of Pydantic have a JSON form, and a union with one has to be in "
    "a model, such as a RootModel of Pydantic"
)
_place = re.compile(r"(.*?) - at (`key` in )?`\$(.*)`", re.DOTALL)
_NO_KEYS = (
    msgspec.inspect.BoolType,
    msgspec.inspect.NoneType,
    msgspec.inspect.TupleType,
    msgspec.inspect.VarTupleType,
    msgspec.inspect.StructType,
    msgspec.inspect.DataclassType,
)
MAX_SCHEMA_LENGTH = 32_768
"""Characters of the JSON schema of a type."""


def decoder_of(name: str, fields: list[Any], others: Any) -> msgspec.json.Decoder[Any]:
    """Return the decoder of payloads; raises InvalidInput if an annotation can be no JSON value."""
    try:
        arguments = msgspec.defstruct(
            "Arguments", fields, kw_only=True, forbid_unknown_fields=others is None, gc=False
        )
        parts = msgspec.inspect.multi_type_info((arguments, others))
        msgspec.json.Decoder(others)
        decoder = msgspec.json.Decoder(arguments, dec_hook=decoded)
    except Exception as error:  # it evaluates annotations, too
        raise InvalidInput(f"an annotation of {name} has no JSON form: {advised(error)}") from error
    for part in _within(parts, set()):
        if flaw := _flaw(part):
            raise InvalidInput(f"an annotation of {name} has no JSON form: {flaw}")
    return decoder


def said_and_place(error: Exception) -> tuple[str, str]:
    """Part what msgspec says is wrong from the way to it, which begins below `$`."""
    found = _place.fullmatch(str(error))
    if found is None:
        return str(error), ""
    return found[1] + (" as a key" if found[2] else ""), found[3]


def advised(error: Exception) -> str:
    """Return what an error says of an annotation, with what to write instead of a union."""
    said = str(error)
    if "Type unions" not in said:
        return said
    if "custom type" in said:
        return f"{said}; {_OF_CLASSES}"
    return f"{said}; unite structs of msgspec that have tag=True, or annotate it Any"


def known(
    options: TypeOptions, decoder: msgspec.json.Decoder[Any] | None, keep: Mapping[str, float]
) -> DeclaredType:
    """Return what is known of a type: its options, and its schema unless that is very long."""
    schema = None
    with suppress(TypeError):  # of a model
        if decoder is not None:
            schema = msgspec.json.encode(
                msgspec.json.schema(decoder.type, schema_hook=described)
            ).decode()
    known = {name: getattr(options, name) for name in TypeOptions.__struct_fields__}
    fits = schema is not None and len(schema) <= MAX_SCHEMA_LENGTH
    return DeclaredType(**known, schema=schema if fits else None, keep=keep)


def _within(part: Any, seen: set[int]) -> Iterator[msgspec.inspect.Type]:
    """Yield a type, and every type inside it."""
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, tuple):
        for each in part:
            yield from _within(each, seen)
    elif isinstance(part, msgspec.inspect.Type | msgspec.inspect.Field):
        if isinstance(part, msgspec.inspect.Type):
            yield part
        for field_name in part.__struct_fields__:
            if field_name != "default":
                yield from _within(getattr(part, field_name), seen)


def _flaw(part: msgspec.inspect.Type) -> str:
    """Return why no payload can hold a type; "" if one can, or if Pydantic reads it."""
    if isinstance(part, msgspec.inspect.DictType):
        key = part.key_type
        if isinstance(key, _NO_KEYS):
            return f"{type(key).__name__.removesuffix('Type')} as a key: use texts or numbers"
    cls = getattr(part, "cls", None)
    if cls is JobContext:
        return "only the first parameter can be the context, annotated JobContext, without | None"
    if isinstance(part, msgspec.inspect.CustomType) and not (cls is object or is_model(cls)):
        return (
            f"{cls}; pass what identifies it, such as a text or an id, and make it in the handler"
        )
    return ""


def has_numbers(annotation: Any) -> bool:
    """Return whether an annotation says that keys of a dictionary in it are numbers."""
    return any(
        isinstance(part, msgspec.inspect.DictType) and _is_number(part.key_type)
        for part in _within(msgspec.inspect.type_info(annotation), set())
    )


def _is_number(key: msgspec.inspect.Type) -> bool:
    if isinstance(key, msgspec.inspect.EnumType):
        return any(isinstance(member.value, int) for member in key.cls)
    if isinstance(key, msgspec.inspect.LiteralType):
        return any(isinstance(value, int) for value in key.values)
    return isinstance(key, msgspec.inspect.IntType | msgspec.inspect.FloatType)


def is_model(kind: Any) -> bool:
    """Return whether a class is a model of Pydantic."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)


def plain(value: Any, keys_to_text: bool = False) -> Any:
    """Return an argument as JSON would return it: tuples become lists.

    With `keys_to_text`, keys that are numbers become texts, which the annotation reads back.
    """
    return with_texts(
        msgspec.to_builtins(value, enc_hook=encoded, builtin_types=TIMES, str_keys=keys_to_text)
    )


def with_texts(value: Any) -> Any:
    """Return a value whose times are texts, and its tuples lists."""
    if isinstance(value, list | tuple):
        return [with_texts(item) for item in value]
    if isinstance(value, dict):
        return {
            encoded(key) if isinstance(key, TIMES) else key: with_texts(item)
            for key, item in value.items()
        }
    return encoded(value) if isinstance(value, TIMES) else value


def encoded(value: Any) -> Any:
    """Return a model as values of JSON types that Pydantic reads back, for msgspec's `enc_hook`.

    A value of a subclass of datetime, date or time, such as that of freezegun or pendulum, becomes
    the text of the plain value; pandas has one that is no time. A time with seconds in its offset,
    as all zones had before 1900, becomes that in UTC, if there it is in the years 1 to 9999. A time
    of day has no day to do that.
    """
    kind: Any = type(value)
    if isinstance(value, datetime) and (value.utcoffset() or NONE) % MINUTE:
        try:
            value = value.astimezone(UTC)
        except OverflowError:  # as of datetime.min, less than a day from the first or last time
            value = value.replace(tzinfo=UTC)
    if (
        isinstance(value, time)
        and value.tzinfo
        and ((offset := value.utcoffset()) is None or offset % MINUTE)
    ):
        raise TypeError(
            "a time of day in a zone, or with seconds in its offset, has no form in JSON: "
            "pass the time without tzinfo, and the zone by its name"
        )
    if isinstance(value, date | time) and (text := value.isoformat())[:1].isdigit():
        return f"{text[:-6]}Z" if text.endswith("+00:00") else text  # as msgspec writes it
    if not is_model(kind):
        base = next((base.__name__ for base in (str, int, float) if issubclass(kind, base)), None)
        advice = f": pass {base}(value)" if base else ""
        raise TypeError(f"Encoding objects of type {kind.__name__} is unsupported{advice}")
    dumped = value.model_dump(mode="json", by_alias=True, round_trip=True, warnings="none")
    if _has_secrets(kind) and MASK in msgspec.json.encode(dumped):
        raise TypeError(
            f"a secret of {kind.__name__} would be stored as asterisks; pass what names it, "
            "or let it be written by a field_serializer"
        )
    return dumped


@functools.lru_cache(1_000)
def _has_secrets(kind: Any) -> bool:
    """Return whether Pydantic writes something in a model as asterisks."""
    with suppress(Exception):  # a field without a schema
        return b'"password"' in msgspec.json.encode(kind.model_json_schema(mode="serialization"))
    return False


def decoded(kind: Any, value: Any) -> Any:
    """Return the model that a decoded value is, for msgspec's `dec_hook`. Raises ValueError.

    For `object` it is the value, for a subclass of datetime, date or time one of that: annotations
    of structs that are first read while freezegun has frozen the clock are such. The error does
    not repeat values, which may be secrets.
    """
    if kind is object:
        return value
    if isinstance(kind, type) and issubclass(kind, date | time):
        try:
            return kind.fromisoformat(value)
        except (TypeError, ValueError):
            raise ValueError(f"expected a text that is a {kind.__name__}") from None
    if not is_model(kind):
        raise TypeError(f"{kind.__name__} has no JSON form")
    try:
        return kind.model_validate_json(msgspec.json.encode(value))
    except sys.modules["pydantic"].ValidationError as flaws:
        found = flaws.errors(include_url=False, include_context=False, include_input=False)
        said = [f"{'.'.join(map(str, flaw['loc'])) or 'model'}: {flaw['msg']}" for flaw in found]
        raise ValueError("; ".join(said)) from None


def described(kind: Any) -> Any:
    """Return the JSON schema of a model, whole in itself, for msgspec's `schema_hook`."""
    if kind is object:
        return {"description": "any value"}  # msgspec takes an empty schema for none
    if not is_model(kind):
        raise NotImplementedError
    try:
        schema = kind.model_json_schema()
    except Exception as error:  # a field without one
        raise TypeError(f"{kind.__name__} has no JSON schema: {error}") from error
    return _without_references(schema, schema.pop("$defs", {}), ())


def _without_references(part: Any, known: Mapping[str, Any], inside: tuple[str, ...]) -> Any:
    if isinstance(part, list):
        return [_without_references(each, known, inside) for each in part]
    if not isinstance(part, dict):
        return part
    if isinstance(target := part.get("$ref"), str):
        name = target.removeprefix("#/$defs/")
        deeper = (*inside, name)
        return {} if name in inside else _without_references(known[name], known, deeper)
    return {name: _without_references(each, known, inside) for name, each in part.items()}


# --- partitions -----------------------------------------------------------------------------------

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
    known = {name: plain(usual[name]) for name in parts if name in usual}
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
