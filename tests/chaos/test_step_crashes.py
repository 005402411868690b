"""Workers that die or freeze around a step: what is done again, and what is not."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from tenure import Tenure
from tests.support.clock import Clock
from tests.support.effort import on_either_engine
from tests.support.worker_scripts import WorkerScript, freeze, wait_for_exit
from tests.support.workers import running_sweeper, wait_until_completed

pytestmark = pytest.mark.chaos

ORDER = """
def die(where):
    if os.environ.get("DIES") == where:
        os.kill(os.getpid(), signal.SIGKILL)


def effect(number, key):
    die(f"before effect {number}")
    log(key.rpartition(":")[2])
    die(f"after effect {number}")
    return number


@app.job(backoff=0)
def order(context: JobContext) -> list[int]:
    keys = [context.step_key(f"{n}") for n in range(3)]
    return [context.step(f"{n}", effect, n, keys[n]) for n in range(3)]
"""
LEASE = 30.0
PLACES = {
    "before effect 1": 1,
    "after effect 1": 2,
    "step.before_commit=kill@2": 2,
    "step.after_commit=kill@2": 1,
}
"""Where the first worker dies -> how often the second step has its effect."""
FROZEN = """
def charge(key, first):
    log(f"charge {key}")
    if first:
        mark("charged")
        wait_for("go")
    return 1 if first else 2


@app.job(backoff=0)
def order(context: JobContext) -> int:
    try:
        return context.step("charge", charge, context.step_key("charge"), context.attempt == 1)
    except Exception as error:
        log(type(error).__name__)
        raise
"""


@on_either_engine("place", *([place] for place in PLACES))
def test_a_worker_that_is_killed_around_a_step(
    app: Tenure, clock: Clock, tmp_path: Path, place: str
) -> None:
    job = app.enqueue("order", backoff=0)
    with WorkerScript(tmp_path / "meet", app.database, ORDER, lease=LEASE) as script:
        first = script.start(**{"TENURE_FAILPOINTS" if "=" in place else "DIES": place})
        assert wait_for_exit(first) == -signal.SIGKILL
        clock.advance(LEASE + 1)
        script.start()
        with running_sweeper(app):
            end = wait_until_completed(app, job)
    assert (end.result, end.attempts) == ([0, 1, 2], 2)
    done = Counter(script.lines())
    tokens = {step.name: step.token for step in app.steps(job.id).steps}
    assert tokens.keys() == done.keys() == {"0", "1", "2"}
    # A step that was stored is not done again. Where a heartbeat has the job locked, a step is
    # stored at the second try, and the worker may die between the two.
    assert all(done[name] == 1 for name, token in tokens.items() if token == 1 or name == "2")
    if "=" not in place:
        assert (done["1"], list(tokens.values())) == (PLACES[place], [1, 2, 2])
    assert app.verify() == []


def test_a_worker_that_was_frozen_between_effect_and_step(app: Tenure, tmp_path: Path) -> None:
    """Its step does not count. The system outside has seen one key twice, so it acts once."""
    job = app.enqueue("order", backoff=0)
    with WorkerScript(tmp_path / "meet", app.database, FROZEN, lease=1) as script:
        first = script.start()
        script.wait_for_mark("charged")
        freeze(first, app)
        script.start()
        with running_sweeper(app):
            end = wait_until_completed(app, job)
        script.mark("go")
        os.kill(first.pid, signal.SIGCONT)
        lines = script.wait_for_lines(3)
    assert lines == [f"charge {job.id}:charge"] * 2 + ["LeaseLost"]
    assert end.result == 2
    assert [(step.token, step.result) for step in app.steps(job.id).steps] == [(2, 2)]
