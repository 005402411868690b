"""Names of job types and queues, idempotency keys and labels: what they may be."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, get_args

from tenure.errors import InvalidInput

MAX_NAME_LENGTH = 128
MAX_KEY_LENGTH = 255
MAX_LABEL_LENGTH = 255
MAX_REASON_LENGTH = 500
MAX_TAG_LENGTH = 128
MAX_TAGS = 20
MAX_PARTITION_LENGTH = 128

OPTIONS_BY_NAME = "the options of a job by name"
RESERVED = "tenure."
"""Begins the types and queues that belong to Tenure: only Tenure itself adds such jobs, and a claim
that names no queues skips such queues."""

MAX_LISTED = 20
"""Queues, and types, that are kept of a worker, for people to read."""
MORE = "(and "
"""Begins the entry for the others, which no queue and no type can be called."""

NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_:-]*([.][A-Za-z0-9_:-]+)*$"
"""Names of job types and queues, as a pattern of JSON Schema. Names are parts of URLs, file names
and metric labels, so there is no slash and no space, and a dot only between other characters."""

KEY_PATTERN = "^[!-~]+$"
"""Idempotency keys and tags: visible ASCII, as a pattern of JSON Schema."""

TEXT_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]*$"
"""Partitions and labels of links: text without control characters, as a pattern of JSON Schema."""

_is_name = functools.lru_cache(1024)(re.compile(NAME_PATTERN.strip("^$")).fullmatch)
_is_key = re.compile(KEY_PATTERN.strip("^$")).fullmatch
_is_text = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+").fullmatch


def check_choice(value: object, choices: Any, path: str) -> None:
    """Raise InvalidInput unless a value is one of those of a `Literal`."""
    if value not in get_args(choices):
        raise InvalidInput(f"use one of {', '.join(get_args(choices))}", path=path)


def check_kind(value: object, kind: Any, what: str, path: str) -> None:
    """Raise InvalidInput unless a value is of a type; `what` says what to give."""
    if not isinstance(value, kind):
        raise InvalidInput(f"give {what}, not a value of type {type(value).__name__}", path=path)


def check_function(value: object, what: str, path: str) -> None:
    """Raise InvalidInput unless a value can be called; `what` says what to give."""
    check_kind(value, Callable, what, path)


def list_of_names(names: Iterable[str], path: str) -> tuple[str, ...]:
    """Return names as a tuple; raises InvalidInput for a str, whose letters could be names.

    Also for a dict, whose values would be lost.
    """
    if isinstance(names, (str, dict)):
        kind = "one string" if isinstance(names, str) else "a dict"
        raise InvalidInput(f"give a list of names, not {kind}", path=path)
    try:
        found: tuple[Any, ...] = tuple(names)
    except TypeError:
        check_kind(names, Iterable, "a list of names", path)  # not above: an enqueue has tags
        raise
    for name in found:
        if not isinstance(name, str):
            said = f"give a list of names, not of values of type {type(name).__name__}"
            raise InvalidInput(said, path=path)
    return found


def some_or_any(names: Iterable[str] | None, what: str, path: str) -> tuple[str, ...] | None:
    """Return names as a tuple, None for any; raises InvalidInput for an empty list.

    A list that is empty by mistake must not mean all there are.
    """
    if names is None:
        return None
    found = list_of_names(names, path)
    if not found:
        raise InvalidInput(f"name at least one {what}, or give None for every {what}", path=path)
    return found


def nearest(name: str, others: Collection[str]) -> str | None:
    """Return which of the others a misspelt name was probably meant to be."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, others, 1, 0.7)), None)


def misspelt(names: Iterable[object], known: Collection[str]) -> str:
    """Return names of options that are not known as text, each with the nearest that is."""
    near = [(str(name), nearest(str(name), known)) for name in names]
    return ", ".join(f"{name} (the nearest is {to})" if to else name for name, to in sorted(near))


def no_option(unknown: Iterable[object], known: Collection[str]) -> str:
    """Say that a job has no options of these names, and which it has."""
    are = f"arguments go into the payload, and the options are {', '.join(sorted(known))}"
    return f"no such option: {misspelt(unknown, known)}; {are}"


def is_name(text: str) -> bool:
    """Whether a text can be the name of a job type or of a queue."""
    return len(text) <= MAX_NAME_LENGTH and _is_name(text) is not None


def check_name(value: object, what: str, path: str) -> str:
    """Return `value` if it matches `NAME_PATTERN`; raises InvalidInput otherwise.

    `what` says what is named: "job type" or "queue".
    """
    if isinstance(value, str) and is_name(str.__str__(value)):
        return str.__str__(value)  # of a subclass, too: the cache compares names
    check_kind(value, str, f"the name of a {what}", path)
    raise InvalidInput(
        f"not a name for a {what}; use 1 to {MAX_NAME_LENGTH} of A-Z a-z 0-9 _ : - and single "
        "dots between them, beginning with a letter, a digit or _",
        path=path,
    )


def check_key(
    value: object, path: str, what: str = "an idempotency key", most: int = MAX_KEY_LENGTH
) -> str:
    """Return `value` if it can be an idempotency key; raises InvalidInput otherwise."""
    if isinstance(value, str) and len(value) <= most and _is_key(value):
        return str.__str__(value)
    raise InvalidInput(
        f"not {what}; use 1 to {most} visible ASCII characters, no spaces", path=path
    )


def check_label(value: object, what: str, path: str) -> str:
    """Return `value` if it is one line of printable text; raises InvalidInput otherwise."""
    text = value if isinstance(value, str) and len(value) <= MAX_LABEL_LENGTH else ""
    if text.isprintable() and text.strip():
        return str.__str__(text)
    raise InvalidInput(
        f"not a label for the {what}; use 1 to {MAX_LABEL_LENGTH} printable characters on one line",
        path=path,
    )


def check_tag(value: object, path: str = "$.tag") -> str:
    """Return `value` if it can be a tag; raises InvalidInput otherwise."""
    return check_key(value, path, "a tag", MAX_TAG_LENGTH)


def check_tags(values: Iterable[str], path: str = "$.tags") -> tuple[str, ...]:
    """Return tags in order, each once; raises InvalidInput for a bad tag, or for too many."""
    if hasattr(values, "__next__"):  # the next job with these options would have none
        raise InvalidInput("give a list of names, not an iterator", path=path)
    tags = sorted({check_tag(tag, path) for tag in list_of_names(values, path)})
    if len(tags) > MAX_TAGS:
        raise InvalidInput(f"{len(tags)} tags; give at most {MAX_TAGS}", path=path)
    return tuple(tags)


def check_partition(value: object, path: str = "$.partition") -> str:
    """Return `value` if it can be the partition of a job; raises InvalidInput otherwise."""
    return check_text(value, "a partition", MAX_PARTITION_LENGTH, path)


def check_text(value: object, what: str, most: int, path: str) -> str:
    """Return `value` if it is text without control characters; raises InvalidInput otherwise."""
    if isinstance(value, str) and len(value) <= most and _is_text(value):
        return str.__str__(value)
    raise InvalidInput(f"not {what}; use 1 to {most} characters, no control characters", path=path)


def check_reason(value: object, path: str = "$.reason") -> str | None:
    """Return a reason in the form that is stored, None if it is blank; raises InvalidInput."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str) or len(value) > MAX_REASON_LENGTH:
        raise InvalidInput(f"give a text of at most {MAX_REASON_LENGTH} characters", path=path)
    text = value.strip().replace("\0", "\N{SYMBOL FOR NULL}").encode("utf-8", "backslashreplace")
    return text.decode()[:MAX_REASON_LENGTH]


def check_pause_reason(
    value: object, *, pauses: bool, path: str = "$.reason", option: str = "`paused`: true"
) -> str | None:
    """Return what `check_reason` does; raises InvalidInput for a reason without a pause, too.

    `option` is what a caller gives to pause.
    """
    reason = check_reason(value, path)
    if reason is not None and not pauses:
        raise InvalidInput(f"only a pause keeps a reason: give {option}, too", path=path)
    return reason


def serves(queues: Collection[str] | None, queue: str) -> bool:
    """Whether a claim of `queues`, or of None for any, takes jobs of `queue`."""
    return not queue.startswith(RESERVED) if queues is None else queue in queues


def listed(names: Sequence[str]) -> Sequence[str]:
    """The first `MAX_LISTED` names of a worker, and then how many more there are."""
    more = len(names) - MAX_LISTED
    return names if more <= 0 else [*names[:MAX_LISTED], f"{MORE}{more} more)"]


def may_list(names: Sequence[str], name: str) -> bool:
    """Whether `name` is one of the names that were `listed`, or may be among those left out."""
    return name in names or (bool(names) and names[-1].startswith(MORE))


def check_open(value: object, what: str, path: str) -> str:
    """Return `value` if `check_name` accepts it and users may use it; raises InvalidInput."""
    name = check_name(value, what, path)
    if name.startswith(RESERVED):
        raise InvalidInput(
            f"names that begin with {RESERVED} are reserved: Tenure itself adds and runs the jobs "
            "of such types and queues; choose another name",
            path=path,
        )
    return name


def check_queues(queues: Iterable[str] | None, path: str) -> tuple[str, ...] | None:
    """Return the queues that a user's worker may take from, None for any; raises InvalidInput."""
    names = some_or_any(queues, "queue", path)
    return None if names is None else tuple(check_open(name, "queue", path) for name in names)
