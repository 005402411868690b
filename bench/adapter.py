"""The command line that drives one queue from inside its own environment.

    python -m bench.adapter PEER COMMAND [NAME=NUMBER ...]

A peer is a module in `bench/peers` with these functions, all plain or all `async def`:

    prepare()               make the queue's tables; may be missing
    open_sender(callers)    something with one(n), and perhaps
                              many(ns)         enqueue several in one call
                              within(n, note)  enqueue in a transaction, call note(), commit
                              hold(n)          enqueue a job that runs until it is cancelled
                              cancel(held)     cancel what hold returned
                              close()
                            one and many must bear that many callers at once, threads or tasks
    work()                  run one worker until SIGTERM

`PLACE` is the URL or file it works on. Handlers call `workload.perform`. What a command found out
is the last line it prints, as JSON.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import json
import math
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from types import ModuleType
from typing import Any

from bench.workload import tally

PLACE_VARIABLE = "BENCH_PLACE"
PLACE = os.environ.get(PLACE_VARIABLE, "")


def main(arguments: list[str]) -> None:
    name, command, *rest = arguments
    peer = importlib.import_module(f"bench.peers.{name}")
    numbers = {key: float(value) for key, _, value in (item.partition("=") for item in rest)}
    if command == "prepare":
        if hasattr(peer, "prepare"):
            run(peer.prepare)
    elif command == "work":
        run(peer.work)
    else:
        send = SENDERS[command]
        answer = run_loop(send(peer, **numbers)) if is_async(peer) else send(peer, **numbers)
        print(json.dumps(answer), flush=True)


def is_async(peer: ModuleType) -> bool:
    return inspect.iscoroutinefunction(peer.open_sender)


def run(function: Callable[[], Any]) -> None:
    if inspect.iscoroutinefunction(function):
        run_loop(function())
    else:
        function()


def run_loop(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine, on uvloop where the peer's environment has it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def until_terminated() -> asyncio.Event:
    """An event of the running loop that SIGTERM sets."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    return stop


def send_singly(
    peer: ModuleType, callers: float, seconds: float, most: float, first: float = 0
) -> Any:
    """Enqueue one by one from `callers` at once, for `seconds` or until `most` jobs are in.

    Each caller's first job is not timed: it connects. `jobs` counts all, `rate` the timed ones.
    """
    work = _singly_async if is_async(peer) else _singly_in_threads
    return work(peer, int(callers), seconds, range(int(first), int(first + most)))


def _singly_in_threads(peer: ModuleType, callers: int, seconds: float, numbers: range) -> Any:
    sender = peer.open_sender(callers)
    source = iter(numbers)
    everyone = threading.Barrier(callers + 1)
    ends: list[float] = []
    failures: list[BaseException] = []

    def call() -> None:
        try:
            for n in itertools.islice(source, 1):
                sender.one(n)
            everyone.wait()
            deadline = time.monotonic() + seconds
            for n in source:
                sender.one(n)
                if time.monotonic() > deadline:
                    break
            ends.append(time.monotonic())
        except BaseException as error:
            failures.append(error)
            everyone.abort()

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        everyone.wait()
    except threading.BrokenBarrierError:
        raise failures[0] from None
    started = time.monotonic()
    for thread in threads:
        thread.join()
    close(sender)
    if failures:
        raise failures[0]
    return _answer(_taken(source, numbers), callers, max(ends) - started)


async def _singly_async(peer: ModuleType, callers: int, seconds: float, numbers: range) -> Any:
    sender = await peer.open_sender(callers)
    source = iter(numbers)
    await asyncio.gather(*(sender.one(n) for n in itertools.islice(source, callers)))
    started = time.monotonic()
    deadline = started + seconds

    async def call() -> None:
        for n in source:
            await sender.one(n)
            if time.monotonic() > deadline:
                break

    if callers == 1:
        await call()
    else:
        await asyncio.gather(*(call() for _ in range(callers)))
    took = time.monotonic() - started
    await close_async(sender)
    return _answer(_taken(source, numbers), callers, took)


def _taken(source: Iterator[int], numbers: range) -> int:
    return next(source, numbers.stop) - numbers.start


def _answer(jobs: int, untimed: int, seconds: float) -> dict[str, float]:
    return {"jobs": jobs, "seconds": seconds, "rate": (jobs - untimed) / seconds}


def send_in_bulk(
    peer: ModuleType, jobs: float, size: float = 1000, first: float = 0, seconds: float = math.inf
) -> Any:
    """Enqueue `jobs` by calls of `size`, or as many as go in `seconds`."""
    calls = [
        range(n, min(n + int(size), int(first + jobs)))
        for n in range(int(first), int(first + jobs), int(size))
    ]
    if is_async(peer):
        return _in_bulk_async(peer, calls, seconds)
    sender = peer.open_sender(1)
    done = 0
    started = time.monotonic()
    for numbers in calls:
        sender.many(numbers)
        done += len(numbers)
        if time.monotonic() - started > seconds:
            break
    took = time.monotonic() - started
    close(sender)
    return _answer(done, 0, took)


async def _in_bulk_async(peer: ModuleType, calls: list[range], seconds: float) -> Any:
    sender = await peer.open_sender(1)
    done = 0
    started = time.monotonic()
    for numbers in calls:
        await sender.many(numbers)
        done += len(numbers)
        if time.monotonic() - started > seconds:
            break
    took = time.monotonic() - started
    await close_async(sender)
    return _answer(done, 0, took)


Act = Callable[[Any, int], Any]
"""Does something about job `n` with a sender, noting when it began."""


def send_slowly(peer: ModuleType, samples: float, pause: float) -> Any:
    """Enqueue a job about every `pause` seconds, each an instant after its call began."""

    def enqueue(sender: Any, n: int) -> Any:
        note(n)
        return sender.one(n)

    return act_slowly(peer, enqueue, int(samples), pause)


def commit_slowly(peer: ModuleType, samples: float, pause: float) -> Any:
    """Enqueue jobs in transactions of the caller, noting for each when its commit began."""

    def commit(sender: Any, n: int) -> Any:
        return sender.within(n, partial(note, n))

    return act_slowly(peer, commit, int(samples), pause)


def cancel_slowly(peer: ModuleType, jobs: float, pause: float) -> Any:
    """Cancel `jobs` jobs one by one, once all of them run."""
    held: list[Any] = []

    def cancel(sender: Any, n: int) -> Any:
        note(n)
        return sender.cancel(held[n])

    return act_slowly(peer, cancel, int(jobs), pause, held)


def note(n: int) -> None:
    tally().began[n] = time.monotonic_ns()


def act_slowly(
    peer: ModuleType, act: Act, samples: int, pause: float, held: list[Any] | None = None
) -> Any:
    """Act on each job, `pause` seconds apart; how long a call took.

    The pauses vary by half, so that they do not keep step with a worker that polls. `held`, if
    given, is filled with jobs that run before anything is done about them.
    """
    if is_async(peer):
        return _act_slowly_async(peer, act, samples, pause, held)
    sender = peer.open_sender(1)
    if held is not None:
        held += [sender.hold(n) for n in range(samples)]
        while not _all_run(samples):
            time.sleep(0.01)
    took = []
    for n in range(samples):
        time.sleep(_pause(n, pause))
        began = time.monotonic()
        act(sender, n)
        took.append(time.monotonic() - began)
    close(sender)
    return {"jobs": samples, "call_p50_ms": statistics.median(took) * 1e3}


async def _act_slowly_async(
    peer: ModuleType, act: Act, samples: int, pause: float, held: list[Any] | None
) -> Any:
    sender = await peer.open_sender(1)
    if held is not None:
        held += [await sender.hold(n) for n in range(samples)]
        while not _all_run(samples):  # noqa: ASYNC110 - other processes run them
            await asyncio.sleep(0.01)
    took = []
    for n in range(samples):
        await asyncio.sleep(_pause(n, pause))
        began = time.monotonic()
        await act(sender, n)
        took.append(time.monotonic() - began)
    await close_async(sender)
    return {"jobs": samples, "call_p50_ms": statistics.median(took) * 1e3}


def _all_run(jobs: int) -> bool:
    return not tally().missing(jobs)


def _pause(n: int, pause: float) -> float:
    return pause * (0.75 + 0.5 * (n * 0.618034 % 1))


def close(sender: Any) -> None:
    if hasattr(sender, "close"):
        sender.close()


async def close_async(sender: Any) -> None:
    if hasattr(sender, "close"):
        await sender.close()


SENDERS: dict[str, Callable[..., Any]] = {
    "singly": send_singly,
    "bulk": send_in_bulk,
    "slowly": send_slowly,
    "committing": commit_slowly,
    "cancel": cancel_slowly,
}

if __name__ == "__main__":
    # Peers import this module by its name: run that one, so that there are no two of it.
    importlib.import_module("bench.adapter").main(sys.argv[1:])
