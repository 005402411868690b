"""Hides values of payloads, results and errors by the names of their keys.

Only what people see is redacted, over HTTP and on the command line. The store and workers keep the
values. A value is hidden with everything inside it, at any depth. Errors are text, so the hidden
values of their job are searched in them and replaced: see `hiding`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from tenure.jobs.hiding import MARK, hider
from tenure.lifecycle import Job


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
        return Redaction((*self._keys, *keys))

    def job(self, job: Job) -> Job:
        """Return a job without its hidden values."""
        if not self:
            return job
        payload, hidden = self._split(job.payload_json)
        result, more = (None, []) if job.result_json is None else self._split(job.result_json)
        error = job.last_error and hider(hidden + more)(job.last_error)
        return replace(job, payload_json=payload, result_json=result, last_error=error)

    def document(self, text: str) -> str:
        """Return a JSON document without its hidden values."""
        return self._split(text)[0] if self else text

    def text(self, text: str, job: Job) -> str:
        """Return a text about a job, such as its error, without the job's hidden values."""
        return self.hider(job.payload_json, job.result_json)(text)

    def hider(self, *documents: str | None) -> Callable[[str], str]:
        """Return a function that replaces the hidden values of JSON documents in texts."""
        given = [document for document in documents if document and self]
        return hider([value for document in given for value in self._split(document)[1]])

    def _split(self, document: str) -> tuple[str, list[object]]:
        """Return a JSON document with its hidden values replaced, and these values."""
        hidden: list[object] = []

        def hide(found: dict[str, object]) -> dict[str, object]:
            for key in found:
                if key.casefold() in self._keys:
                    hidden.append(found[key])
                    found[key] = MARK
            return found

        try:
            shown = json.loads(document, object_hook=hide)
        except ValueError:  # raw SQL wrote it, and its keys are not known
            return json.dumps(MARK), [document]
        return json.dumps(shown, ensure_ascii=False, separators=(",", ":")), hidden


NOTHING_HIDDEN = Redaction()
