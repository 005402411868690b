"""Hides values of payloads, results and errors by the names of their keys.

Only what people see is redacted, over HTTP and on the command line. The store and workers keep the
values. A value is hidden with everything inside it, at any depth. Errors are text, so the hidden
values of their job are searched in them and replaced. The time for that is linear in the sizes of
the job and of the error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from msgspec.structs import replace

from tenure.jobs.text import CUT
from tenure.lifecycle import Job

MARK = "[redacted]"
MIN_HIDDEN = 4
"""Least length of a value to hide in errors: shorter values occur in any text."""
MAX_SPELLINGS = 100
"""Of a job with more hidden values, errors are hidden whole: each is searched in each error."""
MAX_CUTS = 10
"""More marks of a cut than an error gets from us: then it is hidden whole, too."""
_cut = re.compile(re.escape(CUT).replace(r"\{\}", r"\d+"))


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
        error = job.last_error and _hider(hidden + more)(job.last_error)
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
        return _hider([value for document in given for value in self._split(document)[1]])

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


def _hider(hidden: Iterable[object]) -> Callable[[str], str]:
    """Return a function that replaces `hidden` values, and all inside them, in texts."""
    spellings = _spellings(hidden)

    def shown(text: str) -> str:
        cuts = [cut.span() for cut in _cut.finditer(text)] if spellings else []
        if len(spellings) > MAX_SPELLINGS or len(cuts) > MAX_CUTS:
            return MARK
        spans = [span for spelling in spellings for span in _found(spelling, text)]
        edges = [0, *chain.from_iterable(cuts), len(text)]
        for part in zip(edges[::2], edges[1::2], strict=True):
            spans += [span for spelling in spellings for span in _found_cut(spelling, text, *part)]
        return _without(text, spans)

    return shown


def _spellings(hidden: Iterable[object]) -> set[str]:
    """Return texts and numbers, keys included, as errors may quote them: plain, by repr, as JSON.

    Each line of a text is one, too: some places show the first line of an error only. No more are
    made than it takes to know that there are too many.
    """
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(hidden)
    while waiting and len(found) <= MAX_SPELLINGS:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += (*value, *value.values())
        elif value is not None and not isinstance(value, bool) and str(value) not in seen:
            seen.add(str(value))
            for text in {str(value), *map(str.strip, str(value).split("\n", MAX_SPELLINGS))}:
                if len(text) >= MIN_HIDDEN and len(found) <= MAX_SPELLINGS:
                    found |= {text, repr(text)[1:-1]}
                    found |= {json.dumps(text, ensure_ascii=e)[1:-1] for e in (True, False)}
    return found


Span = tuple[int, int]


def _found(spelling: str, text: str) -> Iterator[Span]:
    at = text.find(spelling)
    while at >= 0:
        end = at + len(spelling)
        while text.startswith(spelling, end):
            end += len(spelling)
        yield at, end
        at = text.find(spelling, end)


def _found_cut(spelling: str, text: str, start: int, end: int) -> Iterator[Span]:
    """Yield what may be left of a spelling in a part of a text that was cut before or behind it.

    Only its first or last characters are looked for, so that the time does not depend on how often
    the text repeats them: too much may be hidden beside a cut, never too little.
    """
    most = len(spelling) - 1
    if end < len(text):
        at = text.find(spelling[:MIN_HIDDEN], max(start, end - most), end)
        if at >= 0:
            yield at, end
    if start:
        at = text.rfind(spelling[-MIN_HIDDEN:], start, min(end, start + most))
        if at >= 0:
            yield start, at + MIN_HIDDEN
    if start and end < len(text) and text[start:end] in spelling:
        yield start, end


def _without(text: str, spans: Iterable[Span]) -> str:
    """Return a text with a mark in place of each of the spans, which may overlap."""
    shown: list[str] = []
    reached = 0
    for start, end in sorted(spans):
        if start > reached or not shown:
            shown += (text[reached:start], MARK)
        reached = max(reached, end)
    return "".join((*shown, text[reached:]))
