"""What is shown of jobs without the secrets in them: values are hidden by the name of their key.

Pure. What is stored, and what a worker gets, stays whole; this is about what people are shown, over
HTTP and on the command line. A value is hidden with all that is in it, at any depth of a payload or
result. Errors are text, so the same values are looked for in them and replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator

from msgspec.structs import replace

from tenure.lifecycle import Job

MARK = "[redacted]"
SHORTEST = 4
"""Characters of a value that is looked for in errors: shorter ones stand in any text."""


def without_password(url: str) -> str:
    """An address of a server or database as it may be shown."""
    return _password_option.sub(r"\1…", _password_of_user.sub(r"\1:…@", url))


# Whatever is given as an address, be it none: what is shown here is mostly about a mistake in it.
_password_of_user = re.compile(r"^([^/?#]*//[^/?#:@]*):[^?]*@")
_password_option = re.compile(r"((?:^|[?&\s])(?:ssl)?password=)[^&\s]*")


class Redaction:
    """The keys whose values are hidden; upper and lower case are the same."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._keys = frozenset(key.casefold() for key in keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys, in lower case and in order."""
        return tuple(sorted(self._keys))

    def also(self, keys: Iterable[str]) -> Redaction:
        """The same with more keys."""
        return Redaction((*self._keys, *keys))

    def job(self, job: Job) -> Job:
        """The job as it may be shown."""
        if not self:
            return job
        return replace(
            job,
            payload=self._json(job.payload),
            result=None if job.result is None else self._json(job.result),
            last_error=None if job.last_error is None else self.text(job.last_error, job),
        )

    def text(self, text: str, job: Job) -> str:
        """A text about a job, such as its error, without the hidden values of the job."""
        return self.within(text, job.payload, job.result)

    def within(self, text: str, *documents: str | None) -> str:
        """A text without the hidden values that stand in these JSON documents."""
        return self.hider(*documents)(text)

    def hider(self, *documents: str | None) -> Callable[[str], str]:
        """What takes the hidden values of JSON documents out of texts: for many, found once."""
        sources = (json.loads(document) for document in documents if document and self)
        found = {value for source in sources for value in self._values(source, hidden=False)}
        # The longest first: one may hold another.
        hidden = sorted(found, key=len, reverse=True)

        def shown(text: str) -> str:
            for value in hidden:
                text = text.replace(value, MARK)
            return text

        return shown

    def _json(self, text: str) -> str:
        hidden = self._hide(json.loads(text))
        return json.dumps(hidden, ensure_ascii=False, separators=(",", ":"))

    def _hide(self, value: object) -> object:
        if isinstance(value, list):
            return [self._hide(item) for item in value]
        if isinstance(value, dict):
            return {
                key: MARK if key.casefold() in self._keys else self._hide(item)
                for key, item in value.items()
            }
        return value

    def _values(self, value: object, *, hidden: bool) -> Iterator[str]:
        """The hidden texts and numbers, as they may stand in an error."""
        if isinstance(value, list):
            for item in value:
                yield from self._values(item, hidden=hidden)
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from self._values(item, hidden=hidden or key.casefold() in self._keys)
        elif hidden and not isinstance(value, bool) and value is not None:
            spoken = {str(value), repr(value).strip("'\"")}  # as tracebacks quote it
            yield from (text for text in spoken if len(text) >= SHORTEST)


NOTHING_HIDDEN = Redaction()
