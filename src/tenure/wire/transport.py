"""What carries requests to a server and responses back, the same for both kinds of client.

What clients share is written as coroutines. The client that blocks runs them with a transport that
never suspends them: see `blocking`.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit

import msgspec

from tenure.errors import InvalidInput, StoreUnavailable
from tenure.lifecycle import Job
from tenure.settings import check_token, is_loopback
from tenure.telemetry.tracing import Tracing
from tenure.values import durations
from tenure.values.payload import learn
from tenure.values.redaction import without_password
from tenure.wire import problems, responses

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("tenure.client")

DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_CONNECTIONS = 16
JSON = {"Content-Type": "application/json"}
NO_ADDRESS = "give an address such as http://127.0.0.1:8080"


_of_parents: list[object] = []
"""Kept for ever: if one were collected in a child, it might speak on its parent's connections."""


def finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the answer of a coroutine that nothing suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        answer: T = end.value
        return answer
    raise RuntimeError("it was suspended")


def blocking(
    verb: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """Return a verb as a function, for a transport that blocks."""

    @functools.wraps(verb)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return finished(verb(self, *args, **kwargs))

    return call


class Transport:
    """Requests to one server. Any number of threads may call the methods that block."""

    def __init__(
        self, url: str, token: str | None, timeout: float, *, tracing: bool, blocks: bool
    ) -> None:
        """Prepare it, as `Client` says."""
        try:
            import httpx2 as httpx
        except ImportError as error:
            raise InvalidInput(
                f"the client needs httpx2, which cannot be imported ({error}): "
                "pip install 'tenure[client]'"
            ) from error
        url = str(url)
        if not url.startswith(("http://", "https://")):
            raise InvalidInput(NO_ADDRESS, path="url")
        token = check_token(token, "token") if token else None
        self.tracing = Tracing() if tracing else None
        self.timeout = timeout = durations.positive(timeout, "timeout")
        self._address = without_password(url.rstrip("/"))
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._blocks = blocks
        try:
            is_plain = url.startswith("http://") and not is_loopback(urlsplit(url).hostname or "")
            self._make = partial(
                httpx.Client if blocks else httpx.AsyncClient,
                base_url=url.rstrip("/"),
                headers={"Accept": "application/json", **headers},
                timeout=timeout,
                limits=httpx.Limits(
                    max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS
                ),
                follow_redirects=False,
                trust_env=False,
            )
            self._http: Any = self._make()
        except (httpx.InvalidURL, ValueError):  # it may name a password
            raise InvalidInput(NO_ADDRESS, path="url") from None
        if token is not None and is_plain:
            log.warning("%s gets the token and payloads in plain text: use https", self._address)
        self._owner = os.getpid()
        self.trouble = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)

    @property
    def http(self) -> Any:
        """The client of the library; in the child of a fork another one, if it was open.

        On one connection, each process would read answers to requests of the other.
        """
        if self._owner != os.getpid() and not self._http.is_closed:
            _of_parents.append(self._http)
            self._http, self._owner = self._make(), os.getpid()
        return self._http

    async def ask(
        self, method: str, path: str, kind: type[T], body: object = None, **more: Any
    ) -> T:
        """Send a request and read its answer, or raise its error."""
        return self.read(await self.request(method, path, body, **more), path, kind)

    async def job(self, method: str, path: str, body: object = None, **more: Any) -> Job:
        """Send a request and read the job that it answers, or raise its error."""
        return responses.job_of(await self.ask(method, path, responses.JobBody, body, **more))

    async def request(
        self,
        method: str,
        path: str,
        body: object = None,
        query: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
        timeout: float | None = None,
    ) -> Any:
        """Send a request and return its response, or raise its error."""
        try:
            content = None if body is None else msgspec.json.encode(body)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInput(f"an option cannot be written as JSON: {error}") from error
        try:
            answer = self.http.request(
                method,
                path,
                params=query,
                content=content,
                headers={**(JSON if body is not None else {}), **(headers or {})},
                timeout=(self.timeout if timeout is None else timeout) + wait,
            )
            response = answer if self._blocks else await answer
        except self.trouble as error:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise StoreUnavailable(f"no answer from {self._address}: {said}") from error
        except UnicodeEncodeError as error:
            raise InvalidInput(f"an argument is not Unicode text: {error.reason}") from error
        except RuntimeError as error:
            raise StoreUnavailable(f"the client is closed: {error}") from error
        if response.status_code >= 300:
            raise problems.error_of(response.status_code, response.content)
        return response

    def read(self, response: Any, path: str, kind: type[T]) -> T:
        """Return the value of a response; raises StoreUnavailable if it is not Tenure's."""
        learn(kind)
        try:
            return msgspec.json.decode(response.content, type=kind)
        except msgspec.MsgspecError as error:
            where = f"{self._address}{path}"
            said = f"{where} answered something else than Tenure: {error}"
            raise StoreUnavailable(said) from error
