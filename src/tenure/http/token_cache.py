"""Whose token it is: those of the settings, and those in the database.

The check of a request is one lookup by the digest of what was sent, in memory. What is in the
database is read again when it is older than `FRESH_SECONDS`, beside the requests that go on with
what was read before; from `STALE_SECONDS` on they wait for it. So a token that was revoked or has
expired is refused everywhere within seconds, and without the database nobody gets in by a token
that could have been revoked. A new one is known at once.

There is no comparing in constant time: how long a lookup takes tells something about the digest of
a guess, and nothing about the tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from tenure.app.app import Tenure
from tenure.errors import StoreUnavailable, TenureError
from tenure.tokens.scopes import ANYBODY, EVERY_SCOPE, Caller, digest_of

log = logging.getLogger(__name__)

FRESH_SECONDS = 1.0
STALE_SECONDS = 5.0
AT_ONCE_SECONDS = 0.1
"""How old what is known may be when a token is not in it: guesses cost ten reads a second."""
NOTE_SECONDS = 60.0
"""How often the use of a token is written down."""


class TokenCache:
    """Every token that opens this server. Safe to use on one event loop after another."""

    def __init__(self, app: Tenure, given: tuple[str, ...], *, closed: bool) -> None:
        """`given` are tokens for everything; `closed`: ask for one even if there is none."""
        self._app = app
        self._given = {digest_of(token.encode()): _OWNER for token in given}
        self._closed = closed or bool(given)
        self._stored: dict[bytes, Caller] = {}
        self._any_stored = False
        self._read_at: float | None = None
        self._reading: asyncio.Future[None] | None = None
        self._used: set[str] = set()
        self._noted: dict[str, float] = {}

    async def caller(self, token: bytes | None) -> Caller | None:
        """Who sends `token` (None: no token was sent); None if that opens nothing.

        Raises StoreUnavailable when that depends on a database that does not answer.
        """
        digest = None if token is None else digest_of(token)
        if digest in self._given:
            return self._given[digest]
        now = asyncio.get_running_loop().time()
        age = float("inf") if self._read_at is None else max(now - self._read_at, 0.0)
        if digest is None and not self._is_open:
            return None
        known = self._is_open or digest in self._stored
        if age > (STALE_SECONDS if known else AT_ONCE_SECONDS):
            await asyncio.shield(self._read())
        elif age > FRESH_SECONDS:
            self._read()
        if self._is_open:
            return ANYBODY
        found = None if digest is None else self._stored.get(digest)
        if found is not None:
            self._used.add(found.name)
        return found

    @property
    def _is_open(self) -> bool:
        """Whether nobody needs a token: once there was one in the database, for good."""
        return not self._closed and not self._any_stored

    def _read(self) -> asyncio.Future[None]:
        """Read the database's tokens again, once for everybody who asks meanwhile."""
        loop = asyncio.get_running_loop()
        reading = self._reading
        if reading is None or reading.done() or reading.get_loop() is not loop:
            reading = self._reading = loop.create_task(self._read_now())
            reading.add_done_callback(_hear)
        return reading

    async def _read_now(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            tokens = await asyncio.to_thread(self._app.tokens.list)
        except TenureError as error:
            log.warning("cannot read the tokens of the HTTP API: %s", error)
            raise StoreUnavailable("the database did not answer") from error
        self._stored = {bytes.fromhex(t.digest): t.caller for t in tokens if t.valid}
        self._any_stored = bool(tokens)
        self._read_at = began
        self._note_use(began)

    def _note_use(self, now: float) -> None:
        due = {name for name in self._used if now >= self._noted.get(name, now)}
        self._used.clear()
        if due:
            self._noted.update(dict.fromkeys(due, now + NOTE_SECONDS))
            names = [name.removeprefix("token:") for name in due]
            # Nobody waits for it, and where the role may not write here, it is not written.
            with contextlib.suppress(TenureError):
                self._app.maintenance().note_token_use(names)


_OWNER = Caller("http", EVERY_SCOPE)
"""Whoever has a token of the settings."""


def _hear(done: asyncio.Future[None]) -> None:
    """Take note of a failure: it is logged, and nobody may be waiting for it."""
    if not done.cancelled():
        done.exception()
