"""Handlers for child processes, which find them here by name."""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import gc
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tenure import (
    JobContext,
    NewJob,
    PermanentFailure,
    RateLimited,
    RetryAfter,
    SignalTimeout,
    Snooze,
    Tenure,
)
from tenure.rules.jobs import Options
from tenure.worker.child import PROGRESS_SECONDS

app = Tenure("sqlite:///never-opened.db")


@app.job(process=True)
def describe(when: datetime, price: Decimal) -> list[str]:
    """The types of the arguments."""
    return [type(when).__name__, type(price).__name__]


def price_of(order: int) -> Decimal:
    """What a step calls; the file has a line for each call."""
    with Path(os.environ["TENURE_TEST_CALLS"]).open("a") as file:
        file.write(f"{order}\n")
    return Decimal(order)


@app.job(process=True, backoff=0)
def order_in_steps(context: JobContext) -> list[str]:
    """Fail, die and sleep between steps."""
    found = [repr(context.step(f"price:{n}", price_of, n)) for n in range(2)]
    last = context.state(default=0)
    context.checkpoint(last + 1, flush=context.attempt == 2)
    if context.attempt == 1:
        raise ValueError("no")
    if context.attempt == 2:
        os._exit(1)
    context.sleep("1h")
    context.progress(1)
    return [*found, str(last)]


@app.job(process=True, backoff=0)
async def order_in_steps_on_the_loop(context: JobContext) -> list[str]:
    """The same as a coroutine."""
    step, price = context.step_async, asyncio.to_thread
    found = [repr(await step(f"price:{n}", price, price_of, n)) for n in range(2)]
    last = await context.state_async(default=0)
    await context.checkpoint_async(last + 1, flush=context.attempt == 2)
    if context.attempt == 1:
        raise ValueError("no")
    if context.attempt == 2:
        os._exit(1)
    await context.sleep_async("1h")
    return [*found, str(last)]


@app.job(process=True, max_retries=1)
def swallow_parking(context: JobContext) -> None:
    """Go on although it is parked."""
    with suppress(BaseException):
        context.sleep("1h")


@app.job(process=True)
def where() -> dict[str, int]:
    """The process that this runs in, and its parent."""
    return {"pid": os.getpid(), "parent": os.getppid()}


@app.job
async def where_coroutines_run(context: JobContext) -> list[int]:
    """The process that this runs in, and its attempt."""
    return [os.getpid(), context.attempt]


@dataclass
class Approval:
    """What the signal `approved` says."""

    by: str
    amount: int = 0


@app.job
def order(context: JobContext) -> list[Any]:
    """Wait for two signals of one name."""
    first = context.wait_for_signal("approved", type=Approval)
    return [first.by, first.amount, context.wait_for_signal("approved")]


@app.job
def ask(context: JobContext) -> Any:
    """Make a one-use token in a step, and wait for what it says."""
    context.step("ask", context.signal_token, "answer", {"ok": True}, label="Yes ✓")
    return context.wait_for_signal("answer")


@app.job
def order_in_time(context: JobContext) -> list[str]:
    """Wait for a signal for an hour, then for ever."""
    try:
        return ["in time", context.wait_for_signal("approved", "1h")]
    except SignalTimeout:
        return ["too late", context.wait_for_signal("approved")]


@app.job(timeout=0.3, max_retries=2)
def overstay() -> None:
    """Never end."""
    threading.Event().wait()


@app.job(process=True)
def secrets_here() -> list[str]:
    """Tokens in the environment, now and at the start, here and in a program started here."""
    asked = [sys.executable, "-c", "import os; print(*os.environ)"]
    started = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    at_start = Path("/proc/self/environ").read_text().split("\0")
    found = {*os.environ, *started, *at_start}
    return sorted(name for name in found if name.startswith("TENURE_TOKEN"))


@app.job(process=True)
async def look_around(context: JobContext, name: str) -> dict[str, object]:
    """What a coroutine knows of its attempt, and where it runs."""
    assert context.deadline is not None
    left = (context.deadline - datetime.now(UTC)).total_seconds()
    names = ("id", "type", "queue", "attempt", "max_retries", "token")
    known = {name: getattr(context, name) for name in names}
    loop = id(asyncio.get_running_loop())
    return {**known, "name": name, "left": left, "pid": os.getpid(), "loop": loop}


@app.job(process=True, permanent=(LookupError,))
async def look_up_on_the_loop(context: JobContext) -> None:
    await asyncio.sleep(0)
    raise LookupError(f"no such customer, attempt {context.attempt}")


@app.job(process=True)
def retry_in_an_hour() -> None:
    raise RetryAfter("1h", "the service is busy")


@app.job(process=True)
def snooze_ten_minutes() -> None:
    raise Snooze("10m")


@app.job(process=True)
def rate_limited() -> None:
    raise RateLimited("10m", pause="queue")


@app.job(process=True, permanent=(LookupError,))
def look_up() -> None:
    raise LookupError("no such customer")


class RunsCode:
    """What runs a command where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"echo taken over > {self.path}",)


@app.job(process=True)
def attack_the_worker(path: str, length: int) -> str:
    """Send the worker a pickle that runs code, or so many zeros."""
    for thing in gc.get_objects():
        if isinstance(thing, Connection) and thing.writable:
            thing.send_bytes(bytes(length) or pickle.dumps(RunsCode(path)))
    return "not this"


def note(path: str) -> None:
    """Add a line to a file."""
    with Path(path).open("a") as file:
        file.write(f"{os.getpid()}\n")


@app.job(process=True)
def note_and_fail(path: str) -> None:
    """Leave a trace, then fail."""
    note(path)
    raise ValueError("flaky")


@app.job(process=True)
def fail_for_good() -> None:
    """Fail in a way that no retry can mend."""
    raise PermanentFailure("no such customer")


@app.job(process=True)
def hang(path: str) -> None:
    """Say which process this is, then never end."""
    note(path)
    threading.Event().wait()


@app.job(process=True)
def hang_with_company(path: str) -> None:
    """Never end, together with a program and a forked copy of this process."""
    program = subprocess.Popen(["sleep", "1000"])
    copy = os.fork()
    if copy == 0:
        threading.Event().wait()
    Path(path).write_text(f"{os.getpid()}\n{program.pid}\n{copy}\n")
    threading.Event().wait()


@app.job(process=True)
def leave_a_copy(path: str) -> None:
    """Die, while a copy of this process holds on to whatever was open."""
    copy = os.fork()
    if copy == 0:
        threading.Event().wait()
    Path(path).write_text(f"{copy}\n")
    os._exit(0)


@app.job(process=True)
def leave(code: int) -> None:
    """End the process without a word."""
    os._exit(code)


@app.job(process=True)
def crash() -> None:
    """What a broken extension module does."""
    ctypes.string_at(0)


@app.job(process=True)
def eat(megabytes: int) -> int:
    """Need more memory than allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20, hard))
    try:
        return len(bytearray(megabytes * 2**20))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@app.job(process=True)
def chatter() -> str:
    """Say a lot on every channel, read what is not for us, and close what is not ours."""
    print("x" * 100_000)
    print("y" * 100_000, file=sys.stderr)
    os.write(1, b"\x80\x04raw\n" * 1000)
    assert sys.stdin.read() == ""
    os.close(0)
    return "done"


@app.job(process=True)
def add(a: int, b: int) -> int:
    """An honest piece of work."""
    return a + b


@app.job(process=True)
def exit_politely() -> None:
    """End the process as Python does."""
    sys.exit(4)


@app.job(process=True)
def big(size: int) -> str:
    """A result that fills the pipe."""
    return "x" * size


hooked = Tenure("sqlite:///never-opened.db")


@hooked.around
@contextmanager
def say_where(context: JobContext) -> Iterator[None]:
    os.environ["AROUND"] = f"{context.type} attempt {context.attempt} in {os.getpid()}"
    yield


@hooked.job(process=True)
def around_here() -> list[str]:
    return [os.environ.get("AROUND", ""), f"around_here attempt 1 in {os.getpid()}"]


KEPT: list[bytes] = []


@app.job(process=True, max_jobs=2)
def two_in_a_child(path: str) -> list[int]:
    """Leave a program behind, and a trace when the child ends."""
    if not KEPT:
        KEPT.append(b"")
        atexit.register(note, path)
    return [os.getpid(), subprocess.Popen(["sleep", "1000"]).pid]


@app.job(process=True, max_jobs=1)
def leave_slowly(seconds: float) -> str:
    """Return at once from a child that takes its time to exit, as one does that sends spans."""
    atexit.register(time.sleep, seconds)
    return "done"


@app.job(process=True, max_memory="150MiB")
def keep(megabytes: int) -> int:
    """Leak memory."""
    KEPT.append(os.urandom(megabytes * 2**20))
    return os.getpid()


@hooked.job(process=True)
def count_up(context: JobContext, to: int, go: str) -> None:
    """Count to 1, and go on once a file is there."""
    context.progress(0, to, "counting")
    time.sleep(2 * PROGRESS_SECONDS)
    context.progress(1, to, "counting")
    while not Path(go).exists():
        time.sleep(0.01)
    for done in range(2, to + 1):
        context.progress(done, to, "counting")


@app.job(process=True)
def completes(context: JobContext, url: str, kind: str, how: str) -> str:
    """Complete the job in a transaction of its own, and end as is said."""
    from tests.support.lenders import KINDS, lent  # drivers, which other children need not load

    (found,) = (param.values[0] for param in KINDS if param.id == kind)
    with lent(found, url) as lender:
        lender.begin()
        lender.execute(f"INSERT INTO effect VALUES ('{context.id}')")
        lender.fenced(context, "complete", "in a child")
        if how == "rolls back" and context.attempt == 1:
            lender.rollback()
        else:
            lender.commit()
    if how == "dies" and context.attempt == 1:
        os._exit(1)
    return "ignored"


@app.job(process=True)
def split(context: JobContext, how: str, parts: int) -> list[str]:
    """Add a job for each part, and end as is said."""
    return enqueue_parts(context, how, parts)


def enqueue_parts(context: JobContext, how: str, parts: int) -> list[str]:
    """Add jobs, and raise in the first attempts; return the ids of the jobs."""
    made = [
        context.enqueue(NewJob("part", payload, {"tags": [how]}, again_of=context.id))
        for payload in ({"of": context.id, "number": number} for number in range(parts))
    ]
    if how == "raises" and context.attempt == 1:
        raise ValueError(how)
    if how == "snoozes" and context.token == 1:
        raise Snooze(0)
    if how == "dies" and context.attempt == 1:
        os._exit(1)
    return made


@app.job(process=True)
def remembers(context: JobContext) -> tuple[tuple[int, str], dict[str, int]]:
    """Fail twice; what the first attempt did is kept, and the state of each."""
    charged = context.step("charge", _charge, context.attempt)
    context.step("nothing", lambda: None)
    state = context.state(default={"after": 0})
    context.checkpoint({"after": state["after"] + 1}, flush=context.attempt == 2)
    if context.attempt < 3:
        raise ValueError("later")
    return charged, state


def _charge(attempt: int) -> tuple[int, str]:
    return attempt, "eur"


@app.job(process=True)
def adds_for_ann(context: JobContext) -> str:
    """Add a job that names who adds it."""
    return context.enqueue(NewJob("part", {}, {"actor": "ann"}))


@app.job(process=True)
def chained(context: JobContext) -> list[str]:
    """Add a job, one that waits for it, and one that waits for the job that runs."""
    first = context.enqueue(NewJob("part", {}, {"queue": "away"}))
    second = context.enqueue(NewJob("part", {}, {"queue": "away", "depends_on": [first]}))
    own: Options = {"queue": "away", "depends_on": {"it": context.id}}
    return [first, second, context.enqueue(NewJob("part", {}, own))]


@app.job(process=True)
def add_up(context: JobContext) -> list[int]:
    """What the jobs before this one have left."""
    return [sum(context.results(int)), context.results["first"], len(context.parents)]
