"""Hides values of payloads, results and errors by the names of their keys.

Only what people see is redacted, over HTTP and on the command line. The store and workers keep the
values. A value is hidden with everything inside it, at any depth. Errors are text, so the hidden
values of their job are searched in them and replaced, also where they are spelled in another way.

For that, a text is read unchanged, then as what its escapes stand for (of JSON, Python, URLs and
HTML), then as what theirs do. Values are looked for in each, in lower case. Longer ones are found
by letters and digits alone, so that it does not matter where lines were broken, also in base64 and
in hexadecimal. The time is linear in the sizes of the values and the text. Pure.
"""

from __future__ import annotations

import html
import json
import re
import sys
from base64 import b64encode
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

from msgspec.structs import replace

from tenure.lifecycle import Job
from tenure.values.text import CUT

MARK = "[redacted]"
MIN_HIDDEN = 4
"""Least length of a value to hide: shorter values occur in any text."""
MIN_LOOSE = 8
"""Least letters and digits of a value to find by these alone, and encoded."""
MAX_READ = 4_000
"""Longest value that is read as a text is, and encoded: so the time stays short for any job."""
MAX_VALUES = 100
"""If there are more, texts are hidden whole: each value is searched in each text."""
MAX_CUTS = 10
"""More marks of a cut than an error gets from us: then it is hidden whole, too."""
MAX_NESTED = 4
"""Escapes in escapes, such as in JSON that a text in JSON quotes."""

_cut = re.compile(re.escape(CUT).replace(r"\{\}", r"\d+"))
_escape = re.compile(
    r"(?:%[0-9a-fA-F]{2})+|(?:\\x[0-9a-fA-F]{2})+|(?:\\u[0-9a-fA-F]{4})+|\\U[0-9a-fA-F]{8}|\\."
    r"|&#?\w{1,9};"
)
_torn = re.compile(r"\\u[0-9a-fA-F]{2,3}\Z")
_words = re.compile(r"[^\W_]+")
_letters = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "v": "\v", "a": "\a"}

Span = tuple[int, int]


class Spelling(NamedTuple):
    """What a text was read as, where in the text each character begins, and where that ends."""

    text: str
    places: Sequence[int]


def hider(hidden: Iterable[object]) -> Callable[[str], str]:
    """Return a function that replaces `hidden` values, and all inside them, in texts."""
    values = _texts(hidden)
    sought = [] if len(values) > MAX_VALUES else [form for one in values for form in _sought(one)]

    def shown(text: str) -> str:
        cuts = [cut.span() for cut in _cut.finditer(text)] if values else []
        if len(values) > MAX_VALUES or len(cuts) > MAX_CUTS:
            return MARK
        edges = [0, *chain.from_iterable(cuts), len(text)] if values else []
        spans = [
            span
            for start, end in zip(edges[::2], edges[1::2], strict=True)
            for span in _spans(sought, text, start, end)
        ]
        return _without(text, spans)

    return shown


def _texts(hidden: Iterable[object]) -> set[str]:
    """Return the texts and numbers, keys included, in values.

    Each line of a text is one, too: some places show the first line of an error only. No more are
    made than it takes to know that there are too many.
    """
    found: set[str] = set()
    seen: set[str] = set()
    waiting = list(hidden)
    while waiting and len(found) <= MAX_VALUES:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += (*value, *value.values())
        elif value is not None and not isinstance(value, bool) and str(value) not in seen:
            seen.add(str(value))
            for text in {str(value), *map(str.strip, str(value).split("\n", MAX_VALUES))}:
                if len(text) >= MIN_HIDDEN and len(found) <= MAX_VALUES:
                    found.add(text)
    return found


# --- what a text stands for -----------------------------------------------------------------------


def _read(text: str) -> Iterator[Spelling]:
    """Yield a text in lower case, then what its escapes stand for, then what theirs do."""
    places: Sequence[int] = range(len(text) + 1)
    yield Spelling(_lower(text), places)
    for _ in range(MAX_NESTED):
        parts: list[str] = []
        kept: list[int] = []
        at = 0
        for escape in _escape.finditer(text):
            if (meant := _meant(escape[0])) == escape[0]:  # no entity of HTML has that name
                continue
            parts += (text[at : escape.start()], meant)
            kept += places[at : escape.start()]
            kept += [places[escape.start()]] * len(meant)
            at = escape.end()
        if not parts:
            return
        text, places = "".join((*parts, text[at:])), [*kept, *places[at:]]
        yield Spelling(_lower(text), places)


def _lower(text: str) -> str:
    """Return a text in lower case, with as many characters, each as if it was alone."""
    lower = text.replace("\u03a3", "\u03c3").lower()  # a sigma is another one behind a word
    if len(lower) == len(text):
        return lower
    return "".join(low if len(low := one.lower()) == 1 else one for one in text)


def _meant(escape: str) -> str:
    """Return what an escape stands for."""
    if escape.startswith("&"):
        return html.unescape(escape)
    if escape.startswith(("%", r"\x")) and len(escape) > 2:
        data = bytes.fromhex(escape.replace("%", "").replace(r"\x", ""))
        try:
            return data.decode()
        except UnicodeDecodeError:  # as `ascii` and `repr` write the characters up to 255
            return data.decode("latin-1")
    if escape.startswith(r"\u") and len(escape) > 2:
        return str(json.loads(f'"{escape}"'))  # two may be one character
    if escape.startswith(r"\U") and len(escape) > 2:
        return chr(min(int(escape.removeprefix(r"\U"), base=16), sys.maxunicode))
    return _letters.get(escape[1], escape[1])


def _sought(value: str) -> Iterator[tuple[bool, str]]:
    """Yield what to look for, each with whether only letters and digits count."""
    quotes = (repr, ascii, json.dumps, partial(json.dumps, ensure_ascii=False))
    quoted = {quote(value)[1:-1] for quote in quotes}
    read = {_lower(value)}
    if len(value) <= MAX_READ:
        read.update(spelling.text for spelling in _read(value))  # if it has escapes itself
    yield from ((False, one) for one in read | set(map(_lower, quoted)) if len(one) >= MIN_HIDDEN)
    if len(value) > MAX_READ:
        return
    for words in {*map(_letters_and_digits, read)}:
        if len(words) >= MIN_LOOSE:
            yield True, words
    data = value.encode(errors="surrogatepass")
    if len(_letters_and_digits(value)) >= MIN_LOOSE:
        yield True, data.hex()
        for lead in range(3):  # what is before it decides how the bits of the value are cut
            encoded = b64encode(bytes(lead) + data).decode()
            most = len(encoded) - (0, 3, 2)[(lead + len(data)) % 3]
            yield True, _letters_and_digits(encoded[(0, 2, 3)[lead] : most].lower())


def _letters_and_digits(text: str) -> str:
    return "".join(_words.findall(text))


# --- where they are -------------------------------------------------------------------------------


def _spans(sought: Sequence[tuple[bool, str]], text: str, start: int, end: int) -> Iterator[Span]:
    """Yield where values are in a part of a text that was cut before or behind it."""
    before, behind = start > 0, end < len(text)
    if behind and (torn := _torn.search(text, start, end)):
        yield torn.start(), end
        end = torn.start()
    for plain in _read(text[start:end]):
        if not (before or behind):  # most texts have no hidden value: find that out in less time
            texts = plain.text, _letters_and_digits(plain.text)
            if not any(value in texts[loosely] for loosely, value in sought):
                continue
        runs = [word.span() for word in _words.finditer(plain.text)]
        places = [place for first, last in runs for place in plain.places[first:last]]
        loose = Spelling(_letters_and_digits(plain.text), [*places, plain.places[-1]])
        for loosely, value in sought:
            form = loose if loosely else plain
            found = _found(value, form.text)
            for first, last in chain(found, _beside_cut(value, form, before, behind)):
                behind_it = bisect_right(plain.places, form.places[last - 1])
                yield start + form.places[first], start + plain.places[behind_it]


def _found(value: str, text: str) -> Iterator[Span]:
    at = text.find(value)
    while at >= 0:
        end = at + len(value)
        while text.startswith(value, end):
            end += len(value)
        yield at, end
        at = text.find(value, end)


def _beside_cut(value: str, form: Spelling, before: bool, behind: bool) -> Iterator[Span]:
    """Yield what may be left of a value in a part of a text that was cut before or behind it.

    Only its first or last characters are looked for, so that the time does not depend on how often
    the text repeats them: too much may be hidden beside a cut, never too little. Fewer characters
    are enough where their escapes are as long.
    """
    text, places = form
    end, most = len(text), len(value) - 1
    few = range(MIN_HIDDEN - 1, 0, -1)
    if behind:
        at = text.find(value[:MIN_HIDDEN], max(0, end - most))
        if at < 0:
            left = (end - n for n in few if text.endswith(value[:n]))
            at = next((one for one in left if places[end] - places[one] >= MIN_HIDDEN), -1)
        if at >= 0:
            yield at, end
    if before:
        at = text.rfind(value[-MIN_HIDDEN:], 0, most) + MIN_HIDDEN
        if at < MIN_HIDDEN:
            right = (n for n in few if text.startswith(value[-n:]))
            at = next((n for n in right if places[n] - places[0] >= MIN_HIDDEN), 0)
        if at:
            yield 0, at
    if before and behind and text and text in value:
        yield 0, end


def _without(text: str, spans: Iterable[Span]) -> str:
    """Return a text with a mark in place of each of the spans, which may overlap."""
    shown: list[str] = []
    reached = 0
    for start, end in sorted(spans):
        if start > reached or not shown:
            shown += (text[reached:start], MARK)
        reached = max(reached, end)
    return "".join((*shown, text[reached:]))


# --- what is hidden -------------------------------------------------------------------------------

# They accept texts that are no URLs: most of the messages are about a mistake in the address.
_password_of_user = re.compile(r"^([^/?#]*//[^/?#:@]*):[^?]*@")
_password_option = re.compile(r"((?:^|[?&\s])(?:ssl)?password=)[^&\s]*")


def without_password(url: str) -> str:
    """Return the address of a server or database without its password."""
    return _password_option.sub(r"\1…", _password_of_user.sub(r"\1:…@", url))


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
