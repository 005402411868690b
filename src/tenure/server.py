"""The server: API and dashboard, with a sweeper, webhook delivery and, if wanted, workers.

`build` returns the ASGI application, to be served or mounted in another. `serve` runs it until
SIGTERM or SIGINT. Then waiting requests end at once, new work is refused, workers drain within
their grace period, and the process ends. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

try:
    import uvicorn
    from starlette.datastructures import State
    from starlette.routing import Router
    from starlette.types import Receive, Scope, Send
except ModuleNotFoundError as error:
    hint = f"the server needs {error.name}: pip install 'tenure[standard]'"
    raise ModuleNotFoundError(hint, name=error.name) from None

from tenure import dashboard, forks
from tenure.app.app import Tenure
from tenure.errors import InvalidInput, StoreMoved
from tenure.http import guard
from tenure.http.call import Dispatcher
from tenure.http.guard import Refusals, TokenCache
from tenure.http.protocol import BoundedProtocol, Room
from tenure.http.routes import OPEN_PATHS, ROUTES
from tenure.http.waiting import WorkNotifier
from tenure.settings import Settings
from tenure.telemetry import logs
from tenure.values.names import check_function, check_kind, check_queues
from tenure.worker import process
from tenure.worker.maintenance import StallWatch
from tenure.worker.worker import Worker

log = logging.getLogger(__name__)

SPARE_SECONDS = 5.0
"""How long a new server ends no lease: workers over HTTP could not renew theirs without it, and try
each second."""
KEEP_ALIVE_SECONDS = 75
MAX_UNSENT = 128 * 1024
"""Bytes of a connection that the kernel takes before they can be sent, where it may be said. Linux
would take up to 4 MiB for a client that does not read, and events be read for it all the time."""
GRACEFUL_SECONDS = 5
MAX_CONNECTIONS = 2_000
OTHER_FILES = 200
"""Files that a server may have open beside its connections: databases, libraries, pipes."""
MIN_FILES = 128
"""With fewer it does not start. Half are for connections, and an idle server has about 50 open."""
JUST_CLOSED = 100
"""Requests whose connection was closed to make room, and that have not noticed yet."""
MAX_ACCEPTED = 16
"""Connections that are accepted in one turn of the event loop. uvloop accepts one on each listener.
With a single one, the last of a thousand that come at once would wait for a thousand turns."""
LOOK_TICKS = 10
"""Each of uvicorn's ticks is 0.1 seconds."""


class Application:
    """The ASGI application. `state.notifier.stop()` ends every waiting request at a shutdown."""

    def __init__(
        self,
        app: Tenure,
        settings: Settings,
        authorize: guard.Authorize | None = None,
        *,
        mounted: bool = True,
    ) -> None:
        guard.check_tokens(settings)
        notifier = WorkNotifier(app.core, mounted=mounted)

        @contextlib.asynccontextmanager
        async def lifespan(_: object) -> AsyncIterator[None]:
            await asyncio.to_thread(app.open)
            await asyncio.to_thread(app.core.declare, app.core.handlers.options())
            if authorize is None:
                await asyncio.to_thread(guard.warn_if_closed, settings, app)
            notifier.start()
            pages.view().cache.begin()
            yield
            notifier.stop()

        self._mounted = mounted
        self.state = State({"notifier": notifier})
        redaction = app.core.redaction.also(settings.redact)
        closed = settings.is_exposed or authorize is not None
        tokens = TokenCache(app, settings.tokens, closed=closed)
        refusals = Refusals()
        self._api = guard.AccessGuard(
            Dispatcher(ROUTES, app, notifier, redaction),
            settings,
            tokens,
            OPEN_PATHS,
            refusals,
            authorize=authorize,
        )
        pages = dashboard.Dashboard(app, redaction, tokens, lambda: notifier.stopped)
        self._pages = guard.AccessGuard(
            pages,
            settings,
            tokens,
            dashboard.OPEN_PATHS,
            refusals,
            authorize=authorize,
            session=dashboard.session_secret,
            refuse=pages.refuse,
            linked=True,
        )
        self._other = Router(lifespan=lifespan)  # without routes: it closes WebSockets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        other = self._api if scope["type"] == "http" else self._other
        try:
            await (self._pages if dashboard.serves(scope) else other)(scope, receive, send)
        except asyncio.CancelledError:
            if self._mounted or not self.state.notifier.stopped:
                raise  # else it is cut off at an orderly stop: uvicorn would log a traceback


def build(
    app: Tenure, settings: Settings | None = None, *, authorize: guard.Authorize | None = None
) -> Application:
    """Return an ASGI application with the HTTP API and the dashboard of `app`.

    Serve it with any ASGI server, or mount it in another application under any path. It needs no
    lifespan events: without them it opens the database at the first request. It runs no workers and
    no sweeper; run those with `tenure worker`, or use `serve`.

    - `settings`: tokens, allowed hosts, redaction and the host that is listened on. Without a token
      only requests from this machine to a loopback name are answered, and none at all if `host` or
      `allowed_hosts` names another. Default: `Settings()`.
    - `authorize`: an async function that takes the ASGI scope of a request, with what your
      middleware has put there. It returns the name of the user (1 to 250 printable characters on
      one line; the history of jobs says `user:NAME`) and some of the scopes `enqueue`, `work`,
      `read` and `admin`, or none. If it returns None, a token or a session counts. Streams and
      waiting requests call it again every few seconds. With it, any `Host` is served unless
      `allowed_hosts` names some. Default: None, only tokens count.

    Raises InvalidInput if a token is too short for requests of other machines.
    """
    check_kind(app, Tenure, "a Tenure application", "$.app")
    check_kind(settings, Settings | None, "Settings of tenure.settings", "$.settings")
    if authorize is not None:
        check_function(authorize, "an async function that takes the ASGI scope", "$.authorize")
    return Application(app, settings or Settings(), authorize)


def serve(app: Tenure, settings: Settings, *, workers: int = 1) -> None:
    """Serve the HTTP API and the dashboard of `app` until SIGTERM or SIGINT.

    Also runs the sweeper and webhook delivery. Returns when all of them have ended in order.

    - `settings`: address, tokens, retention (`keep`), and for workers queues, concurrency, lease
      and grace period, both in seconds.
    - `workers`: workers in this process, one thread each. Default 1; none if 0 or if `app`
      has no handlers.

    Raises InvalidInput if the port is taken, if other machines could reach an API without tokens
    or guess a token, if this process may open too few files, or if workers may not take from a
    queue; StoreUnavailable or SchemaMismatch if the database cannot be opened; and what ended a
    worker, if one failed.
    """
    check_queues(settings.queues, "queues")
    places = _connections_that_fit()
    with contextlib.ExitStack() as running:
        guard.check_binding(settings, app)
        guard.warn_if_closed(settings, app)
        listener = running.enter_context(_listen(settings.host, settings.port))
        running.enter_context(app)
        watch = StallWatch(spare=SPARE_SECONDS)
        has_handlers = app.core.handlers.types() != ()
        crew = [process.worker_of(app, settings) for _ in range(workers if has_handlers else 0)]
        stops = [worker.request_stop for worker in crew]
        built = Application(app, settings, mounted=False)
        server = _Server(built, settings, [built.state.notifier.stop, *stops], watch, places)
        if threading.current_thread() is threading.main_thread():
            # Until workers and webhooks are done, which may be long after uvicorn.
            running.enter_context(process.stopped_by_signals(server.stop))
        delivery = running.enter_context(process.maintained(app, settings, crew, watch))
        server.on_stop.append(delivery.ask_to_stop)
        running.callback(built.state.notifier.stop)
        threads = running.enter_context(ThreadPoolExecutor(max(workers, 1), "tenure-worker"))
        for stop in stops:
            running.callback(stop)
        running.enter_context(process.tuned_for_jobs())
        listeners = [listener, *(listener.dup() for _ in range(MAX_ACCEPTED - 1))]
        running.enter_context(forks.kept_from_children(*listeners))
        ends = [threads.submit(_run_beside, server, app, worker) for worker in crew]
        process.run_loop(server.serve(sockets=listeners))
        for end in ends:
            end.result()


def _listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; raises InvalidInput if the address is taken or not this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidInput(
            f"{host} is not an address to listen on: {error}", path="host"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # connections inherit it
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise InvalidInput(
            f"cannot listen on {host} port {port}: {error.strerror}; "
            "stop what listens there, or choose another port with --port or TENURE_PORT",
            path="port",
        ) from error
    return listener


class _Server(uvicorn.Server):
    """uvicorn, which ends waiting requests before it stops."""

    def __init__(
        self,
        built: Application,
        settings: Settings,
        on_stop: list[Callable[[], None]],
        watch: StallWatch,
        places: int,
    ) -> None:
        room = Room(places)
        super().__init__(
            uvicorn.Config(
                built,
                http=cast(Any, partial(BoundedProtocol, room)),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",  # its warnings are of what strangers send, as often as they do
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=room.places + JUST_CLOSED,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=GRACEFUL_SECONDS,
            )
        )
        self._host = settings.host
        self.on_stop = on_stop
        self._watch = watch

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, and print the address."""
        await super().startup(sockets)
        port = sockets[0].getsockname()[1] if sockets else 0
        host = self._host.strip("[]")
        host = f"[{host}]" if ":" in host else host
        logs.announce(f"Tenure listens on http://{host}:{port}")

    async def on_tick(self, counter: int) -> bool:
        """Abort the connections of clients that are too slow, once a second."""
        self._watch.turned()
        if counter % LOOK_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in tuple(self.server_state.connections):
                cast(BoundedProtocol, connection).look(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop. Whose request has not ended in time is cut off, before uvicorn cancels it."""
        asyncio.get_running_loop().call_later(GRACEFUL_SECONDS, self._cut_off)
        await super().shutdown(sockets)

    def _cut_off(self) -> None:
        for connection in tuple(self.server_state.connections):
            cast(BoundedProtocol, connection).abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `serve`, which answers them for longer than uvicorn would."""
        yield

    def stop(self) -> None:
        """Stop in order. Safe from any thread and from a signal handler."""
        self.should_exit = True
        for stop in self.on_stop:
            stop()


def _connections_that_fit() -> int:
    """Raise this process's limit of open files if need be; return how many connections it allows.

    Many shells and services allow 1,024 files, and let a process raise that. Raises InvalidInput
    if it is less than `MIN_FILES` even then.
    """
    wanted = MAX_CONNECTIONS + OTHER_FILES
    more = f", and {wanted} for all its connections"
    soft = process.may_open(MIN_FILES, f"a server needs {MIN_FILES}{more}", wanted)
    return MAX_CONNECTIONS if soft < 0 else min(MAX_CONNECTIONS, max(soft - OTHER_FILES, soft // 2))


def _run_beside(server: _Server, app: Tenure, worker: Worker) -> None:
    """Run a worker on this thread, with its own event loop, so that no handler delays HTTP."""
    try:
        process.run_loop(process.work(app, worker))
    except BaseException as error:
        info = None if isinstance(error, StoreMoved) else error  # which the worker has logged
        log.error("the worker in this process failed, so the server stops", exc_info=info)
        server.stop()
        raise
