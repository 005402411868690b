"""A handler of five steps, a sleep of two days and an approval, killed between any two lines."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tenure import Tenure
from tenure.app.signals import by_token
from tests.support.clock import Clock
from tests.support.effects import make_effects, own_connection
from tests.support.waiting import wait_until
from tests.support.worker_scripts import WorkerScript
from tests.support.workers import running_sweeper, transitions

pytestmark = pytest.mark.chaos

LEASE = 30.0
DAY = 86_400.0
ORDER = """
def die(place):
    if not (FOLDER / place).exists():
        mark(place)
        os.kill(os.getpid(), signal.SIGKILL)


def outside(what, key):
    die(f"before the {what}")
    log(f"{what} {key.partition(':')[0]}")
    die(f"after the {what}")
    return what


def debit(connection, job):
    die("before the debit")
    connection.execute(f"INSERT INTO effect VALUES ('{job}')")
    die("before the commit of the debit")
    return "debited"


@app.job(max_retries=100, backoff=0)
def order(context: JobContext) -> list[object]:
    die("at the start")
    done = [context.step("charge", outside, "charge", context.step_key("charge"))]
    die("after step 1")
    done.append(context.step_within("debit", debit, context.id))
    die("after step 2")
    context.sleep("2d")
    die("after the sleep")
    context.step("link", context.signal_token, "approved")
    die("after step 3")
    answer = context.wait_for_signal("approved", timeout="7d")
    die("after the approval")
    done.append(context.step("ship", outside, "ship", context.step_key("ship")))
    die("after step 4")
    done.append(context.step("mail", outside, "mail", context.step_key("mail")))
    die("after step 5")
    return [*done, answer]
"""
PLACES = ORDER.count("die(") - 1 + 2 * 2
"""Calls of `die`; `outside` has two of them and three callers."""


def test_five_steps_a_sleep_and_an_approval(app: Tenure, clock: Clock, tmp_path: Path) -> None:
    """A process dies once at each place. Outside, each effect has one key; inside, it is one."""
    make_effects(app.database)
    job = app.enqueue("order", max_retries=100, backoff=0)
    slept = False
    with WorkerScript(tmp_path / "meet", app.database, ORDER, lease=LEASE) as script:
        worker = script.start()

        def help_on() -> bool:
            """Replace the dead, let time pass, and approve by the link."""
            nonlocal worker, slept
            if worker.poll() is not None:
                worker = script.start()
                clock.advance(LEASE + 1)
            now = app.get(job.id)
            if now.status == "pending" and not slept and now.run_at > clock.now:
                slept = bool(clock.advance(2 * DAY))
            if now.status == "waiting":
                (link,) = [step for step in app.steps(job.id).steps if step.name == "link"]
                by_token(app.core, str(link.result), json.dumps({"by": "ada"}))
            return now.status == "completed"

        with running_sweeper(app):
            wait_until(help_on, "the order to complete", 120)
        lines = Counter(script.lines())
    done = app.get(job.id)
    assert done.result == ["charge", "debited", "ship", "mail", {"by": "ada"}]
    assert lines == {f"{what} {job.id}": 2 for what in ("charge", "ship", "mail")}
    with own_connection(app.database) as connection:
        assert connection.execute("SELECT job FROM effect").fetchall() == [(job.id,)]
    history = Counter(transitions(app, job))
    assert (history["snoozed"], history["suspended"], history["unblocked"]) == (1, 1, 1)
    assert history["retried"] == PLACES
    assert app.verify() == []
