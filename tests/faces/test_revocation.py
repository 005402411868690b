"""What is open when a token is revoked ends with it: event streams, and claims that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing

import pytest

from tenure import Tenure
from tenure.http import guard, waiting
from tenure.server import build
from tests.support.http import Exchange, api_client
from tests.support.raw_sql import RawSql


@pytest.fixture
def app(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tenure]:
    """Its servers look at the tokens in the database for every request."""
    for name in ("FRESH_SECONDS", "STALE_SECONDS", "PAUSE_SECONDS"):
        monkeypatch.setattr(guard, name, -1)
    with Tenure(sqlite_url) as app:
        yield app


@pytest.mark.requirement("C3")
@pytest.mark.parametrize("path", ["/events", "/ui/live"])
def test_a_stream_ends_with_the_token_that_opened_it(
    app: Tenure, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """And with the first token that there is, one that was opened by nobody."""
    monkeypatch.setattr(waiting, "RECHECK_SECONDS", 0.01)

    async def opened(secret: str | None) -> Exchange:
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        return Exchange(build(app), "GET", path, headers=headers)

    async def watch() -> None:
        async with await opened(None) as anybody:
            await anybody.wait_for(b"retry: ")
            secret, _ = app.tokens.create("reader", ["read"])
            async with asyncio.timeout(10):
                await anybody.task
        async with await opened(secret) as reader:
            await reader.wait_for(b"retry: ")
            app.tokens.create("other", ["read"])
            app.tokens.revoke("other")
            job = app.enqueue("mail")
            await reader.wait_for(job.id.encode())  # who has a good token goes on reading
            app.tokens.revoke("reader")
            async with asyncio.timeout(10):
                await reader.task

    asyncio.run(watch())


@pytest.mark.requirement("C3")
def test_the_stream_of_a_worker_ends_with_its_token(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nothing happens that it could send."""
    monkeypatch.setattr(waiting, "RECHECK_SECONDS", 0.01)
    secret, _ = app.tokens.create("worker", ["work"])
    headers = {"authorization": f"Bearer {secret}"}

    async def watch() -> None:
        async with Exchange(
            build(app), "GET", "/leases/ended", headers=headers, query="worker=w"
        ) as listening:
            await listening.wait_for(b"ended")
            app.tokens.revoke("worker")
            async with asyncio.timeout(10):
                await listening.task

    asyncio.run(watch())


@pytest.mark.requirement("C3")
def test_a_claim_that_waits_ends_with_its_token(app: Tenure) -> None:
    """It is given no job that is added afterwards, so the job keeps its attempt."""
    secret, _ = app.tokens.create("worker", ["work"])

    async def wait_for_work() -> Exchange:
        body = b'{"worker": "w", "wait_seconds": 30}'
        headers = {"authorization": f"Bearer {secret}"}
        async with Exchange(build(app), "POST", "/leases", body, headers) as request:
            async with asyncio.timeout(10):
                while not app.workers.list():  # noqa: ASYNC110 - the store has no event to wait for
                    await asyncio.sleep(0)
            app.tokens.revoke("worker")
            job = app.enqueue("pay", {"card": "4111"})
            await request.end()
        assert app.get(job.id).attempts == 0
        return request

    request = asyncio.run(wait_for_work())
    assert request.status == 401
    assert b"4111" not in request.answered


@pytest.mark.requirement("C3")
def test_a_wait_for_a_job_ends_with_its_token(app: Tenure) -> None:
    secret, _ = app.tokens.create("reader", ["read"])
    job = app.enqueue("pay", {"card": "4111"}, delay="1h")

    async def wait_for_the_job() -> Exchange:
        headers = {"authorization": f"Bearer {secret}"}
        path = f"/jobs/{job.id}"
        async with Exchange(build(app), "GET", path, headers=headers, query="wait=30") as request:
            async with asyncio.timeout(10):
                while not app.core.store._waits._waits:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0)
            app.tokens.revoke("reader")
            app.cancel(job.id)
            await request.end()
        return request

    request = asyncio.run(wait_for_the_job())
    assert request.status == 401
    assert b"4111" not in request.answered


def test_each_use_of_a_token_is_recorded_once(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "RECORD_SECONDS", 0)
    secret, _ = app.tokens.create("reader", ["read"])
    tokens = guard.TokenCache(app, (), closed=True)

    async def ask(*secrets: str) -> None:
        for one in secrets:
            await tokens.caller(one.encode())

    def used() -> bool:
        app.core.store.write("operator", lambda db: None).result()  # after what is recorded
        return app.tokens.list()[0].used_at is not None

    asyncio.run(ask(secret, "another"))
    assert used()
    with closing(RawSql(app.database)) as raw:
        raw.run("UPDATE tenure_access SET used_at = NULL")
    asyncio.run(ask("another"))
    assert not used()


def test_tokens_are_read_again_while_they_are_still_fresh_enough(
    app: Tenure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "STALE_SECONDS", 3_600)
    secret, _ = app.tokens.create("reader", ["read"])
    tokens = guard.TokenCache(app, (), closed=True)

    async def ask() -> bool:
        found = await tokens.caller(secret.encode())
        assert tokens._reading is not None
        await tokens._reading
        return found is not None

    assert asyncio.run(ask())
    app.tokens.revoke("reader")
    assert [asyncio.run(ask()) for _ in range(2)] == [True, False]


def test_tokens_that_cannot_be_read_have_one_line_in_the_log(
    app: Tenure, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each request of an outage had one."""
    app.tokens.create("reader", ["read"])
    with api_client(app) as api, closing(RawSql(sqlite_url)) as raw:
        raw.run("ALTER TABLE tenure_access RENAME TO elsewhere")
        for _ in range(2):
            assert api.get("/jobs", headers={"Authorization": "Bearer x"}).status_code == 503
    assert caplog.text.count("cannot read the tokens of the HTTP API") == 1
