"""Large bodies: bounded before they are decoded, and read without holding the event loop."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from tenure import Tenure
from tenure.errors import InvalidInput
from tenure.http import bodies
from tenure.http.routes import BATCH_BODY, MAX_BATCH_BYTES, REPORTS
from tenure.server import Application, build
from tenure.values import payload
from tenure.worker.process import SWITCH_SECONDS, tuned_for_jobs
from tests.support.http import (
    JSON,
    Exchange,
    api_client,
    asgi_scope,
    assert_problem,
    claim_jobs,
)

PAUSE_SECONDS = 0.1
"""Processor time of this process between two turns of the loop. None here takes more than 0.02."""


@pytest.fixture(autouse=True, scope="module")
def switching() -> Iterator[None]:
    """Threads take turns, and garbage is collected, as in a server."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    with tuned_for_jobs():
        yield
    gc.freeze()  # it is over for what conftest.py froze, too: a collection took half a second
    sys.setswitchinterval(before)


def filled(unit: str, size: int = MAX_BATCH_BYTES) -> bytes:
    """An array of units, of `size` bytes at most."""
    return f"[{','.join([unit] * ((size - 1) // (len(unit) + 1)))}]".encode()


def job_of(value: str, count: int) -> str:
    return f'{{"type":"a","payload":{{"a":[{",".join([value] * count)}]}}}}'


@asynccontextmanager
async def watched_loop() -> AsyncIterator[list[float]]:
    """The pauses of the event loop, in seconds of processor time: other processes do not count."""
    pauses = [0.0]

    async def watch() -> None:
        while True:
            before = time.process_time()
            await asyncio.sleep(0.001)
            pauses.append(time.process_time() - before)

    task = asyncio.create_task(watch())
    try:
        yield pauses
    finally:
        task.cancel()


async def posted(served: Application, path: str, body: bytes) -> tuple[int, bytes]:
    async with Exchange(served, "POST", path, body) as request:
        await request.task
    return request.status, request.answered  # not decoded: that would hold the loop


HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "objects": ("/jobs/batch", lambda: filled("{}")),
    "arrays": ("/jobs/batch", lambda: filled("[]")),
    "numbers": ("/jobs/batch", lambda: filled("0")),
    "ladders": ("/jobs/batch", lambda: filled("[" * 100 + "]" * 100)),
    "few jobs of many values": ("/jobs/batch", lambda: filled(job_of("0", 500_000))),
    "reports": ("/reports", lambda: filled("{}")),
    "lease names": ("/heartbeats", lambda: filled("0", 4 * 1024 * 1024)),
    "one job of objects": (
        "/jobs",
        lambda: b'{"type":"a","payload":{"a":%b}}' % filled("{}", 1024 * 1024),
    ),
    "one result": (
        "/reports",
        lambda: b'[{"lease_id":"x","outcome":"completed","result":%b}]' % filled("[]", 2_000_000),
    ),
}


@pytest.mark.anyio
@pytest.mark.requirement("C9")
@pytest.mark.parametrize(("path", "make"), HOSTILE.values(), ids=HOSTILE)
async def test_too_many_values_are_refused_before_decoding(
    app: Tenure, path: str, make: Callable[[], bytes]
) -> None:
    body = make()
    async with watched_loop() as pauses:
        status, answered = await posted(build(app), path, body)
    problem = json.loads(answered)
    assert (status, problem["code"]) == (413, "payload_too_large")
    assert "values" in problem["detail"]
    assert max(pauses) < PAUSE_SECONDS
    assert app.find() == []


@pytest.mark.parametrize("unit", ["{}", "[]", "0", '""', r'"\"\\,[{"', '{"a":[1]}'])
def test_no_more_is_looked_at_than_the_limit_needs(unit: str) -> None:
    body = filled(unit)
    each = 1 + unit.replace(r'"\"\\,[{"', "").count("[") + unit.count('{"a"') + (unit == "{}")
    bytes_of_most = bodies.MAX_BATCH_VALUES // each * (len(unit) + 1)
    reached = bodies._Values(bodies.MAX_BATCH_VALUES).reach(body, 0, len(body))
    assert abs(reached - bytes_of_most) <= bodies.SLICE
    fits = body[: bytes_of_most - bodies.SLICE]
    assert bodies._Values(bodies.MAX_BATCH_VALUES).reach(fits, 0, len(fits)) == len(fits)


@pytest.mark.anyio
@pytest.mark.requirement("C9")
async def test_ten_bodies_of_too_many_values_are_refused_before_they_have_arrived(
    app: Tenure,
) -> None:
    served, part = build(app), b"{}," * 20_000
    taken = []

    async def post() -> None:
        sent: list[Message] = []
        count = 0

        async def receive() -> Message:
            nonlocal count
            count += 1
            await asyncio.sleep(0)
            return {"type": "http.request", "body": part, "more_body": True}

        async def send(message: Message) -> None:
            sent.append(message)

        await served(asgi_scope("POST", "/jobs/batch"), receive, send)
        assert sent[0]["status"] == 413
        taken.append(count * len(part))

    async with watched_loop() as pauses:
        await asyncio.gather(*[post() for _ in range(10)])
    assert max(taken) < 3 * bodies.MAX_BATCH_VALUES
    assert max(pauses) < PAUSE_SECONDS


@pytest.mark.anyio
async def test_as_many_values_as_there_may_be_hold_no_loop(app: Tenure) -> None:
    """Two batches at once, each of nearly a million values that are slow to decode."""
    body = f"[{','.join([job_of('[]', 49_000)] * 10)}]".encode()
    served = build(app)
    async with watched_loop() as pauses:
        answers = await asyncio.gather(*[posted(served, "/jobs/batch", body) for _ in range(2)])
    assert [status for status, _ in answers] == [201, 201]
    assert max(pauses) < PAUSE_SECONDS


@pytest.mark.anyio
async def test_batches_of_jobs_delay_no_heartbeat(app: Tenure) -> None:
    served = build(app)
    body = f"[{','.join([job_of('0', 95_000)] * 10)}]".encode()
    batches = [asyncio.create_task(posted(served, "/jobs/batch", body)) for _ in range(3)]
    await asyncio.sleep(0)
    status, held = await posted(served, "/heartbeats", json.dumps(["x"] * 5_000).encode())
    assert (status, len(json.loads(held))) == (200, 5_000)
    assert not batches[-1].done()
    assert [status for status, _ in await asyncio.gather(*batches)] == [201] * 3


def test_a_large_batch_is_read_as_a_small_one(app: Tenure) -> None:
    payloads = [
        {"n": n, "text": 'é"\\,[{\U0001f600' * 50, "a": [n, {"b": None}]} for n in range(999)
    ]
    with api_client(app) as api:
        jobs = api.post("/jobs/batch", json=[{"type": "a", "payload": p} for p in payloads]).json()
        assert [job["payload"] for job in jobs] == payloads
        leases = claim_jobs(api, 999)
        reports = [
            {"lease_id": lease["lease_id"], "outcome": "completed", "result": lease["payload"]}
            for lease in leases
        ]
        verdicts = api.post("/reports", json=reports).json()
        assert {verdict["answer"] for verdict in verdicts} == {"recorded"}
        result = api.get(f"/jobs/{leases[7]['id']}").json()["result"]
        assert result == leases[7]["payload"]


def test_a_job_of_a_large_batch_has_a_key_like_any_other(app: Tenure) -> None:
    payload = {"x": "y" * bodies.READ_IN_PLACE}
    first = app.enqueue("a", payload, idempotency_key="k")
    with api_client(app) as api:
        new = {"type": "a", "payload": payload, "idempotency_key": "k"}
        (again,) = api.post("/jobs/batch", json=[new]).json()
    assert again["id"] == first.id


PADDING = '{"type":"a","payload":{"x":"%s"}},' % ("y" * bodies.READ_IN_PLACE)


@pytest.mark.parametrize(
    ("rest", "status", "path"),
    [
        ('{"type":"a b"}]', 400, "$[1].type"),
        ('{"type":"a","payload":{"x":[0,1e999]}}]', 400, "$[1].payload.x[1]"),
        ('{"type":"a","payload":{"x":1,"x":2}}]', 400, "$[1].payload"),
        ('{"type":"a","payload":{"x":"\\u0000"}}]', 400, "$[1].payload.x"),
        ('{"type":"a","payload":{"x":"\0"}}]', 400, "$"),
        ('{"type":"a","payload":%s}]' % ("[" * 200 + "]" * 200), 400, "$"),
        ('{"type":"a"}', 400, "$"),
        ('{"type":"a"},]', 400, "$"),
        ('{"type":"a"}}', 400, "$"),
        ('{"type":"a"}]]', 400, "$"),
        ('{"type":"a"}] 1', 400, "$"),
        ('{"type":"a","payload":{"x":"%s"}}]' % ("y" * 2**20), 413, "$[1].payload"),
        ('{"type":"a","payload":{"x":"%s"}}]' % ("y" * 2**22), 413, "$[1]"),
        (job_of("0", 300_000) + "]", 413, "$[1]"),
        (",".join(['{"type":"a"}'] * 10_000) + "]", 400, "$"),
        ("0]", 400, "$[1]"),
    ],
)
def test_a_refusal_of_a_large_batch_says_where(
    app: Tenure, rest: str, status: int, path: str
) -> None:
    with api_client(app) as api:
        response = api.post("/jobs/batch", content=f"[{PADDING}{rest}".encode(), headers=JSON)
        code = "invalid_input" if status == 400 else "payload_too_large"
        assert assert_problem(response, status, code)["path"] == path
        assert app.find() == []


def test_a_large_body_must_be_an_array(app: Tenure) -> None:
    with api_client(app) as api:
        for body in (b"{" + b" " * 99_999 + b"}", b" " * 99_999, b'"' + b"a" * 99_999 + b'"'):
            response = api.post("/jobs/batch", content=body, headers=JSON)
            assert assert_problem(response, 400, "invalid_input")["path"] == "$"
        response = api.post("/jobs/batch", content=b" [ " + b" " * 99_999 + b"] ", headers=JSON)
        assert response.json() == []


texts = st.text(alphabet='ab,[]{}"\\é\U0001f600', max_size=9)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=9,
)
containers = st.lists(values, max_size=3) | st.dictionaries(texts, values, max_size=3) | texts


@given(st.lists(containers), st.booleans(), st.sampled_from([None, 1]), st.booleans())
def test_windows_cut_nothing(
    items: list[Any], escape: bool, indent: int | None, lenient: bool
) -> None:
    """Whatever a window cuts, the items are those that the whole text has."""
    data = json.dumps(items, ensure_ascii=escape, indent=indent).encode()
    longest = max(
        [len(json.dumps(i, ensure_ascii=escape, indent=indent)) for i in items], default=0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "MAX_ITEM_BYTES", 4 * longest + 200)
        patch.setattr(bodies, "SLICE", 7)
        found = list(bodies._items(data, REPORTS if lenient else BATCH_BODY))
        assert found == items
        marks = data.decode()
        count = bodies._Values(0).reach(data, 0, len(data))
        assert count < len(data) or not marks


@given(st.text(alphabet='[]{}",:\\u0d1 ', max_size=40), st.integers(8, 60))
def test_whatever_is_no_array_is_refused(text: str, window: int) -> None:
    data = text.encode()
    try:
        whole: object = json.loads(text)
    except ValueError:
        whole = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "MAX_ITEM_BYTES", window)
        try:
            found = list(bodies._items(data, REPORTS))
        except InvalidInput:
            return
        assert found == whole


def test_bodies_that_wait_are_bounded_together(app: Tenure, monkeypatch: Any) -> None:
    monkeypatch.setattr(bodies, "MAX_HELD_BYTES", 200_000)
    body = json.dumps({"type": "a", "payload": {"x": "y" * 250_000}}).encode()
    with api_client(app) as api:
        assert_problem(api.post("/jobs", content=body, headers=JSON), 503, "too_many_bodies")
        for _ in range(3):  # what was refused or read is held no longer
            assert (
                api.post("/jobs", content=body[:-60_002] + b'"}}', headers=JSON).status_code == 201
            )
            assert_problem(api.post("/jobs", content=body, headers=JSON), 503, "too_many_bodies")
    assert frames_of(bodies.receive) == []


def frames_of(function: Callable[..., Any]) -> list[FrameType]:
    """The calls of a function that something still holds, such as an error, with their values."""
    gc.collect()
    frames = (one for one in gc.get_objects() if isinstance(one, FrameType))
    return [frame for frame in frames if frame.f_code is function.__code__]


def test_the_limits_fit_what_a_payload_may_be() -> None:
    assert bodies.MAX_ITEM_BYTES > payload.MAX_PAYLOAD_BYTES + bodies.SMALL_BODY
    assert 2 * bodies.MAX_VALUES > bodies.SLICE
