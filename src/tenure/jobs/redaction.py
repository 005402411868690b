"""Hides values of payloads, results and errors by the names of their keys.

Only what people see is redacted, over HTTP and on the command line. The store and workers keep the
values. A value is hidden with everything inside it, at any depth. Errors are text, so the hidden
values of their job are searched in them and replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator

from msgspec.structs import replace

from tenure.lifecycle import Job

MARK = "[redacted]"
MIN_HIDDEN = 4
"""Least length of a value to hide in errors: shorter values occur in any text."""


def without_password(url: str) -> str:
    """Return the address of a server or database without its password."""
    return _password_option.sub(r"\1…", _password_of_user.sub(r"\1:…@", url))


# They accept texts that are no URLs: most of the messages are about a mistake in the address.
_password_of_user = re.compile(r"^([^/?#]*//[^/?#:@]*):[^?]*@")
_password_option = re.compile(r"((?:^|[?&\s])(?:ssl)?password=)[^&\s]*")


class Redaction:
    """Hides the values of some keys, which are compared without regard to case."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._keys = frozenset(key.casefold() for key in keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys, in lower case, sorted."""
        return tuple(sorted(self._keys))

    def also(self, keys: Iterable[str]) -> Redaction:
        """Return a redaction with more keys."""
        return Redaction((*self._keys, *keys))

    def job(self, job: Job) -> Job:
        """Return a job without its hidden values."""
        if not self:
            return job
        return replace(
            job,
            payload=self._json(job.payload),
            result=None if job.result is None else self._json(job.result),
            last_error=None if job.last_error is None else self.text(job.last_error, job),
        )

    def text(self, text: str, job: Job) -> str:
        """Return a text about a job, such as its error, without the job's hidden values."""
        return self.hider(job.payload, job.result)(text)

    def hider(self, *documents: str | None) -> Callable[[str], str]:
        """Return a function that replaces the hidden values of JSON documents in texts."""
        sources = (json.loads(document) for document in documents if document and self)
        found = {value for source in sources for value in self._values(source, hidden=False)}
        # Longest first, because one may contain another.
        hidden = sorted(found, key=len, reverse=True)

        def shown(text: str) -> str:
            for value in hidden:
                text = text.replace(value, MARK)
            return text

        return shown

    def _json(self, text: str) -> str:
        hidden = json.loads(text, object_hook=self._hide)
        return json.dumps(hidden, ensure_ascii=False, separators=(",", ":"))

    def _hide(self, found: dict[str, object]) -> dict[str, object]:
        return {
            key: MARK if key.casefold() in self._keys else value for key, value in found.items()
        }

    def _values(self, value: object, *, hidden: bool) -> Iterator[str]:
        """Yield the hidden texts and numbers as errors quote them."""
        if isinstance(value, list):
            for item in value:
                yield from self._values(item, hidden=hidden)
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from self._values(item, hidden=hidden or key.casefold() in self._keys)
        elif hidden and not isinstance(value, bool) and value is not None:
            spoken = {str(value), repr(value).strip("'\"")}
            yield from (text for text in spoken if len(text) >= MIN_HIDDEN)


NOTHING_HIDDEN = Redaction()
