"""FastAPI's dependencies in handlers, and jobs in the transaction of a request."""

from __future__ import annotations

import functools
import itertools
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import Depends, FastAPI, Header, Request

from tenure import InvalidInput, JobContext, Tenure
from tenure.contrib.fastapi import Within, enqueuer, with_dependencies
from tests.support.workers import running_worker, wait_until_completed, wait_until_failed

said: list[str] = []


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    said.clear()


def clock() -> Iterator[str]:
    said.append("clock begins")
    yield "noon"
    said.append("clock ends")


async def session(now: Annotated[str, Depends(clock)]) -> AsyncIterator[str]:
    said.append(f"session begins at {now}")
    try:
        yield "session"
    except ValueError as error:
        said.append(f"rolled back: {error}")
        raise
    said.append("committed")


class Repository:
    def __init__(self, session: Annotated[str, Depends(session)], limit: int = 3) -> None:
        self.session = session
        self.limit = limit


Session = Annotated[str, Depends(session)]


def test_a_handler_gets_its_dependencies_and_the_payload_does_not(app: Tenure) -> None:
    @app.job
    @with_dependencies
    async def pay(
        context: JobContext,
        order: int,
        session: Session,
        now: str = Depends(clock),
        repository: Repository = Depends(),
    ) -> str:
        assert repository.session is session
        return f"{context.attempt}: {order} {session} {now} {repository.limit}"

    with running_worker(app):
        job = pay.enqueue(7)  # type: ignore[call-arg]
        assert job.payload == {"order": 7}
        assert wait_until_completed(app, job.id).result == "1: 7 session noon 3"
    # Each runs once. They end before the outcome is recorded, the last one first.
    assert said == ["clock begins", "session begins at noon", "committed", "clock ends"]
    with pytest.raises(TypeError, match="session"):
        pay.enqueue(7, session="mine")  # type: ignore[call-arg]


def test_the_exception_of_a_handler_passes_through_its_dependencies(app: Tenure) -> None:
    @app.job(max_retries=1)
    @with_dependencies
    async def pay(order: int, session: Session) -> None:
        raise ValueError(f"order {order} is paid")

    with running_worker(app):
        error = wait_until_failed(app, pay.enqueue(order=7).id)  # type: ignore[call-arg]
    assert "order 7 is paid" in error
    assert said[2:] == ["rolled back: order 7 is paid"]


def test_a_dependency_that_swallowed_an_error_completed_the_job(app: Tenure) -> None:
    """As FastAPI, which answers such a request with an error."""

    def careless() -> Iterator[None]:
        with suppress(Exception):
            yield

    async def careless_too(before: None = Depends(careless)) -> AsyncIterator[None]:
        with suppress(Exception):
            yield

    @app.job(max_retries=1)
    @with_dependencies
    def plain(session: None = Depends(careless)) -> None:
        raise ValueError("no order")

    @app.job(max_retries=1)
    @with_dependencies
    async def coroutine(session: None = Depends(careless_too)) -> None:
        raise ValueError("no order")

    with running_worker(app):
        for job_type in (plain, coroutine):
            assert "no order" in wait_until_failed(app, job_type.enqueue().id)


def test_a_commit_that_fails_fails_the_attempt(app: Tenure) -> None:
    async def broken() -> AsyncIterator[None]:
        yield
        raise RuntimeError("the commit failed")

    @app.job(max_retries=1)
    @with_dependencies
    async def pay(order: int, session: None = Depends(broken)) -> int:
        return order

    with running_worker(app):
        error = wait_until_failed(app, pay.enqueue(7).id)
    assert "the commit failed" in error


def test_a_plain_handler_gets_plain_dependencies_on_its_thread(app: Tenure) -> None:
    numbers = itertools.count(1)

    def thread() -> int:
        return threading.get_ident()

    def number() -> int:
        return next(numbers)

    @app.job
    @with_dependencies
    def pay(
        order: int,
        made_on: int = Depends(thread),
        now: str = Depends(clock),
        once: int = Depends(number),
        again: int = Depends(number),
        anew: int = Depends(number, use_cache=False),
    ) -> list[Any]:
        return [order, made_on == threading.get_ident(), now, once, again, anew]

    with running_worker(app):
        assert wait_until_completed(app, pay.enqueue(7).id).result == [7, True, "noon", 1, 1, 2]
    assert said == ["clock begins", "clock ends"]


def test_tests_call_a_handler_with_their_own_arguments(app: Tenure) -> None:
    @app.job
    @with_dependencies
    def pay(order: int, now: str = Depends(clock)) -> str:
        return f"{order} {now}"

    assert pay(7, "midnight") == pay(order=7, now="midnight") == "7 midnight"
    assert said == []
    assert pay(7) == "7 noon"


def test_objects_and_parts_of_functions_are_dependencies(app: Tenure) -> None:
    class Counter:
        def __init__(self) -> None:
            self.calls = 0

        async def __call__(self) -> int:
            self.calls += 1
            return self.calls

    def times(number: int, factor: int) -> int:
        return number * factor

    async def later(number: int) -> int:
        return number

    counter = Counter()
    twelve, five = functools.partial(times, 4, 3), functools.partial(later, 5)

    @app.job
    @with_dependencies
    async def count(
        once: int = Depends(counter),
        again: int = Depends(counter),
        anew: int = Depends(counter, use_cache=False),
        product: int = Depends(twelve),
        after: int = Depends(five),
        other: Any = Depends(Counter),
    ) -> list[int]:
        return [once, again, anew, product, after, other.calls]

    with running_worker(app):
        assert wait_until_completed(app, count.enqueue().id).result == [1, 1, 2, 12, 5, 0]


def needs_a_request(request: Request) -> str:
    return str(request.url)


def needs_a_header(x_user: str = Header()) -> str:
    return x_user


@pytest.mark.parametrize("dependency", [needs_a_request, needs_a_header], ids=["request", "header"])
def test_what_only_a_request_has_is_refused_at_import(dependency: Any) -> None:
    async def pay(order: int, told: str = Depends(dependency)) -> None: ...

    with pytest.raises(InvalidInput, match="a job has no request"):
        with_dependencies(pay)


async def user() -> str:
    return "ann"


@pytest.mark.parametrize(
    ("dependency", "named"), [(Repository, "session"), (user, "user")], ids=["nested", "coroutine"]
)
def test_what_needs_an_event_loop_is_refused_for_a_plain_handler(
    dependency: Any, named: str
) -> None:
    def pay(order: int, needed: Any = Depends(dependency)) -> None: ...

    with pytest.raises(InvalidInput, match=f"{named} needs an event loop"):
        with_dependencies(pay)


def test_a_dependency_may_take_any_arguments_and_gets_none() -> None:
    def settings(*args: Any, **kwargs: Any) -> list[Any]:
        return [args, kwargs]

    @with_dependencies
    def pay(given: Any = Depends(settings)) -> Any:
        return given

    assert pay() == [(), {}]


ORDERS = "CREATE TABLE orders (number INTEGER PRIMARY KEY)"


@pytest.fixture
def shop(app: Tenure) -> FastAPI:
    """A shop on sqlite3, whose sessions are one connection with one transaction."""
    path = app.database.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(ORDERS)

    async def transaction() -> AsyncIterator[sqlite3.Connection]:
        with closing(sqlite3.connect(path, check_same_thread=False)) as connection, connection:
            yield connection
            said.append("committed")

    web = FastAPI()
    late, early = Depends(transaction), Depends(transaction, scope="function")

    @web.post("/late/{number}")
    async def order_late(
        number: int,
        session: Any = late,
        jobs: Within = Depends(enqueuer(app, Annotated[Any, late])),
    ) -> str:
        return order(number, session, jobs)

    @web.post("/early/{number}")
    async def order_early(
        number: int,
        session: Any = early,
        jobs: Within = Depends(enqueuer(app, Annotated[Any, early])),
    ) -> str:
        return order(number, session, jobs)

    return web


def order(number: int, session: sqlite3.Connection, jobs: Within) -> str:
    session.execute("INSERT INTO orders VALUES (?)", (number,))
    job = jobs.enqueue("write_invoice", {"order": number})
    if number == 0:
        raise RuntimeError("this rolls both back")
    return job.id


class Client:
    """Sends requests to an ASGI application and notes when the answer is sent."""

    def __init__(self, web: FastAPI) -> None:
        async def noting(scope: Any, receive: Any, send: Any) -> None:
            async def sending(message: Any) -> None:
                if message["type"] == "http.response.body":
                    said.append("answered")
                await send(message)

            await web(scope, receive, sending)

        self._transport = httpx2.ASGITransport(noting)

    async def post(self, path: str) -> httpx2.Response:
        async with httpx2.AsyncClient(
            transport=self._transport, base_url="http://shop.test"
        ) as client:
            return await client.post(path)


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["early", "late"])
async def test_a_job_is_added_in_the_session_of_the_request(
    app: Tenure, shop: FastAPI, when: str
) -> None:
    id = (await Client(shop).post(f"/{when}/7")).json()
    assert app.get(id).payload == {"order": 7}
    with pytest.raises(RuntimeError):
        await Client(shop).post(f"/{when}/0")
    assert app.count().jobs == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("when", "order"), [("early", ["committed", "answered"]), ("late", ["answered", "committed"])]
)
async def test_a_dependency_commits_after_the_answer_unless_its_scope_is_the_function(
    shop: FastAPI, when: str, order: list[str]
) -> None:
    """The pitfall that how-to/fastapi.md warns of: the client has its 200, and the commit fails."""
    assert (await Client(shop).post(f"/{when}/7")).status_code == 200
    assert said == order
