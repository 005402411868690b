"""The valid tokens of a server, and the sessions of its dashboard, in memory.

To check a token is one lookup, by its digest. The tokens in the database are read again when they
are older than `FRESH_SECONDS`; meanwhile requests use the older ones. From `STALE_SECONDS` on
requests wait for the read. So a token that was revoked or has expired is refused everywhere within
seconds, and no token that could have been revoked is accepted without the database. A new token is
accepted at once. The lookup need not take constant time: its time reveals something about the
digest of a guess, but nothing about the tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from math import inf

from tenure.app.app import Tenure
from tenure.errors import StoreUnavailable, TenureError
from tenure.telemetry.repeats import Repeats
from tenure.tokens.scopes import ANONYMOUS, EVERY_SCOPE, Caller, digest_of
from tenure.tokens.sessions import hidden, new_session_secret

log = logging.getLogger(__name__)

OWNER = Caller("http", EVERY_SCOPE)
"""The caller with a token of the settings."""
FRESH_SECONDS = 1.0
STALE_SECONDS = 5.0
PAUSE_SECONDS = 0.1
"""An unknown token waits until the last read is so old: guesses cost ten reads a second."""
RECORD_SECONDS = 60.0
"""How often the use of a token is recorded."""


class TokenCache:
    """The valid tokens of this server. Can be used on one event loop after another."""

    def __init__(self, app: Tenure, given: tuple[str, ...], *, closed: bool) -> None:
        """`given` are tokens with every scope; `closed` asks for a token even if none exists."""
        self._app = app
        self._given = frozenset(digest_of(token.encode()) for token in given)
        self._closed = closed or bool(given)
        self._stored: dict[bytes | None, Caller] = {}
        self._ended: dict[bytes | None, str] = {}
        self._sessions: dict[bytes, bytes] = {}
        self._any_stored = False
        self._read_at = -inf
        self._reading: asyncio.Future[None] | None = None
        self._started = self._read_last = 0  # numbers of reads: the clock has milliseconds
        self._used: set[str] = set()
        self._recorded: dict[str, float] = {}
        self._repeats = Repeats()

    async def caller(self, token: bytes | None, session: bytes | None = None) -> Caller | None:
        """Return the caller of a token or, if none was sent, of the secret of a session.

        None if it is not valid. Raises StoreUnavailable if that depends on a database that does not
        answer.
        """
        digest = None if token is None else digest_of(token)
        if digest in self._given:
            return OWNER
        if digest is None and session is None and not self._is_open:
            return None
        loop, before = asyncio.get_running_loop(), self._started
        if self._is_open or self._find(digest, session) is not None:
            age = max(loop.time() - self._read_at, 0.0)
            if age > STALE_SECONDS:
                await asyncio.shield(self._read())
            elif age > FRESH_SECONDS:
                self._read()
        if self._is_open:
            return ANONYMOUS
        while (found := self._find(digest, session)) is None and self._read_last <= before:
            if (pause := self._read_at + PAUSE_SECONDS - loop.time()) > 0:
                await asyncio.sleep(pause)
            else:
                await asyncio.shield(self._read())
        if found is not None and found is not OWNER:
            self._used.add(found.name)
        return found

    def ended(self, token: bytes | None, session: bytes | None = None) -> str | None:
        """Return the name of a token in the database that has expired or was revoked."""
        digest = None if token is None else digest_of(token)
        return self._ended.get(self._of_session(session) if digest is None else digest)

    def _find(self, digest: bytes | None, session: bytes | None) -> Caller | None:
        digest = self._of_session(session) if digest is None else digest
        return OWNER if digest in self._given else self._stored.get(digest)

    def _of_session(self, session: bytes | None) -> bytes | None:
        token = None if session is None else self._sessions.get(digest_of(session))
        return None if session is None or token is None else hidden(token, session)

    async def begin_session(self, token: bytes) -> str:
        """Begin a session for a token, which must be valid; return the secret of the session."""
        secret = new_session_secret()
        key = secret.encode()
        session = digest_of(key), hidden(digest_of(token), key)
        await asyncio.to_thread(self._app.core.begin_session, *session)
        return secret

    async def end_session(self, session: bytes) -> None:
        """End the session of a secret, if there is one: here at once, elsewhere within seconds."""
        await asyncio.to_thread(self._app.core.end_session, digest_of(session))
        before = self._started
        while self._read_last <= before:
            await asyncio.shield(self._read())

    @property
    def _is_open(self) -> bool:
        """Whether no token is needed; never again once there was one in the database."""
        return not self._closed and not self._any_stored

    def _read(self) -> asyncio.Future[None]:
        """Read the database's tokens again, once for all requests that ask meanwhile."""
        loop = asyncio.get_running_loop()
        reading = self._reading
        if reading is None or reading.done() or reading.get_loop() is not loop:
            self._started += 1
            reading = self._reading = loop.create_task(self._read_now(self._started))
            # Retrieves a failure, which is logged already, so that asyncio does not warn of it.
            reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        return reading

    async def _read_now(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            tokens = await asyncio.to_thread(self._app.tokens.list)
            sessions = await asyncio.to_thread(self._app.core.sessions)
        except TenureError as error:
            if self._repeats.is_due(error):
                log.warning("cannot read the tokens of the HTTP API: %s", error)
            raise StoreUnavailable("the database did not answer") from error
        self._stored = {bytes.fromhex(t.digest): t.caller for t in tokens if t.valid}
        self._ended = {bytes.fromhex(t.digest): t.name for t in tokens if not t.valid}
        self._sessions = sessions
        self._any_stored = bool(tokens)
        self._read_at, self._read_last = began, number
        self._record_use(began)

    def _record_use(self, now: float) -> None:
        due = {name for name in self._used if now >= self._recorded.get(name, now)}
        self._used.clear()
        if due:
            self._recorded.update(dict.fromkeys(due, now + RECORD_SECONDS))
            names = [name.removeprefix("token:") for name in due]
            # No request waits for it. A role that may not write here does not record it.
            with contextlib.suppress(TenureError):
                self._app.core.note_token_use(names)
