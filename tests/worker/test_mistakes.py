"""What people write at first and that cannot work is refused, and the error says what to write."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

from tenure import InvalidInput, JobContext, JobNotFound, RetryPolicy, Tenure
from tenure.client import Client
from tenure.errors import ScheduleNotFound
from tenure.rules.jobs import OPTIONS
from tests.support.waiting import wait_until
from tests.support.worker_scripts import WorkerScript
from tests.support.workers import running_worker, wait_until_completed, wait_until_failed


def send(to: str) -> str:
    return to


def both(to: Any, lines: Any = ()) -> None: ...


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(InvalidInput) as refused:
        call()
    return str(refused.value)


@pytest.mark.parametrize(
    "verb", ["get", "history", "explain", "cancel", "retry", "unblock", "amend", "run_again"]
)
def test_a_job_in_place_of_its_id_is_not_called_missing(app: Tenure, verb: str) -> None:
    job = app.job(send).enqueue("a")
    wrong: Any = job
    assert refusal(partial(getattr(app, verb), wrong)) == (
        "give an id, such as job.id, not a value of type Job"
    )
    with pytest.raises(JobNotFound):
        getattr(app, verb)("17")
    assert app.get(job.id) == job


def test_a_transaction_and_a_client_say_the_same(tmp_path: Path) -> None:
    app = Tenure(f"sqlite:///{tmp_path}/jobs.db")
    with app:
        job: Any = app.job(send).enqueue("a")
    connection = sqlite3.connect(tmp_path / "jobs.db")
    with connection, Client("http://127.0.0.1:1") as client:
        connection.execute("BEGIN")
        assert "such as job.id" in refusal(lambda: app.within(connection).cancel(job))
        assert "such as job.id" in refusal(lambda: client.get(job))
    connection.close()


def test_a_batch_may_come_from_a_generator(app: Tenure) -> None:
    one = app.job(send)
    assert len(app.enqueue_many(one.new_job(str(n)) for n in range(3))) == 3
    many = app.enqueue_many_async(one.new_job(str(n)) for n in range(3))
    assert len(asyncio.run(many)) == 3
    assert len(app.group(one.new_job(str(n)) for n in range(3)).nodes) == 3
    assert app.count().jobs == 9


def test_a_generator_without_an_end_is_refused(app: Tenure) -> None:
    endless = itertools.repeat(app.job(send).new_job("a"))
    said = "add at most 10,000 jobs at once"
    assert refusal(lambda: app.enqueue_many(endless)) == said
    assert refusal(lambda: asyncio.run(app.enqueue_many_async(endless))) == said
    assert refusal(lambda: app.group(endless)) == said
    assert app.count().jobs == 0


@pytest.mark.parametrize("wrong", [{"to": "a"}, "send", send, None])
def test_a_batch_is_of_new_jobs(app: Tenure, wrong: Any) -> None:
    new_job = app.job(send).new_job("a")
    said = f"$[1]: give what new_job(...) returned, not a value of type {type(wrong).__name__}"
    assert refusal(lambda: app.enqueue_many([new_job, wrong])) == said
    assert refusal(lambda: asyncio.run(app.enqueue_many_async([new_job, wrong]))) == said
    assert refusal(lambda: app.chain([new_job, wrong])) == said
    assert app.count().jobs == 0


def test_a_job_type_in_place_of_its_name_is_named(app: Tenure) -> None:
    one: Any = app.job(send)
    said = "$.type: give the name of a job type, not a value of type JobType"
    assert refusal(lambda: app.enqueue(one, {"to": "a"})) == said
    assert refusal(lambda: app.find(type=one)) == said


def test_a_new_job_in_place_of_a_name_is_sent_to_enqueue_many(app: Tenure) -> None:
    one: Any = app.job(send).new_job("a")
    said = "$.type: give the name of a job type; what new_job(...) returned goes to enqueue_many"
    assert refusal(lambda: app.enqueue(one)).startswith(said)
    assert refusal(lambda: asyncio.run(app.enqueue_async(one))).startswith(said)


def test_arguments_that_do_not_fit_name_the_type_and_where_options_go(app: Tenure) -> None:
    one: Any = app.job(name="mail.send")(send)
    with pytest.raises(TypeError, match=r"^mail.send: missing a required argument: 'to'$"):
        one.enqueue()
    with pytest.raises(TypeError, match=r"'countdown'$"):
        one.submit("a", countdown=5)
    said = r"keyword argument 'delay'; write send.options\(delay=…, queue=…\).enqueue\(…\)$"
    with pytest.raises(TypeError, match=said):
        one.new_job("a", delay="5m", queue="mail")


def counts(context, to="a"):  # type: ignore[no-untyped-def]
    return to


def keeps(context, to):  # type: ignore[no-untyped-def]
    return to


def test_a_context_without_its_annotation_is_named(app: Tenure) -> None:
    """It was an argument that no caller gave, and the failure did not say what to write."""
    said = "; for the context of the attempt write context: JobContext"
    one: Any = app.job(max_retries=1)(counts)
    with pytest.raises(TypeError, match=f"'context'{said}$"):
        one.enqueue(to="b")
    job = app.enqueue("counts", {"to": "b"})
    with app.running():
        assert (app.wait(job.id).last_error or "").endswith(f"field `context`{said}")
    done = one.enqueue(context="of another kind")
    with app.running():
        assert app.wait(done.id).status == "completed"


def test_what_is_only_called_context_is_not_blamed(app: Tenure) -> None:
    one: Any = app.job(max_retries=1)(keeps)
    with pytest.raises(TypeError, match=r"argument: 'to'$"):
        one.enqueue(context="of a quote")
    job = app.enqueue("keeps", {"context": "of a quote"})
    with app.running():
        assert (app.wait(job.id).last_error or "").endswith("field `to`")


def test_a_prompt_shows_no_private_names_of_a_context() -> None:
    names = list(inspect.signature(JobContext).parameters)
    assert names[0] == "id"
    assert names[-1] == "stopped"


class Markup(str):
    __slots__ = ()


def test_an_argument_that_json_cannot_hold_is_named_with_what_to_pass(app: Tenure) -> None:
    one: Any = app.job(name="any")(both)
    assert refusal(lambda: one.enqueue("a", [1, Markup("b")])).startswith("$.payload.lines: an")
    assert "Markup is unsupported: pass str(value))" in refusal(lambda: one.enqueue(Markup("a")))
    assert refusal(lambda: one.enqueue(Path("a"))).startswith("$.payload.to: an argument of any")


class Mail:
    def send(self, to: str) -> str:
        return to


def test_methods_and_classes_are_no_handlers(app: Tenure) -> None:
    assert "for the context write self: JobContext" in refusal(lambda: app.job(Mail.send))
    assert "not the class Mail" in refusal(lambda: app.job(Mail))
    assert app.job(Mail().send).new_job("a").payload == {"to": "a"}


def test_arguments_in_place_of_options_are_sent_to_the_payload(app: Tenure) -> None:
    wrong: Any = {"to": "a"}
    options = ", ".join(sorted(OPTIONS))
    said = f"$: no such option: to; arguments go into the payload, and the options are {options}"
    assert refusal(lambda: app.enqueue("send", **wrong)) == said
    with Client("http://127.0.0.1:1") as client:
        assert refusal(lambda: client.enqueue("send", **wrong)) == said


def test_a_misspelt_option_is_refused_where_it_is_written(app: Tenure) -> None:
    """A handle made when a module is imported failed at its first use."""
    options: Any = {"dely": "5m"}
    said = "$: no such option: dely (the nearest is delay); arguments go into the payload, and the"
    job_type = app.job(send)
    assert refusal(lambda: job_type.options(**options)).startswith(said)
    assert refusal(lambda: app.enqueue("send", {}, **options)).startswith(said)
    wrong: Any = {"too": "a", "prority": 1}
    assert "option: prority (the nearest is priority), too;" in refusal(
        lambda: job_type.options(**wrong)
    )
    wrong = {"quue": "mail"}
    with pytest.raises(TypeError, match=r"no option quue \(the nearest is queue\); it has"):
        app.job(**wrong)
    wrong = {"payload": {"to": "a"}, "crn": "0 3 * * *"}
    said = "$: no such option: crn (the nearest is cron); the options are cron, every, offset, at,"
    assert refusal(lambda: app.schedule(**wrong)(job_type)).startswith(said)


def test_a_schedule_below_the_job_says_where_it_belongs(app: Tenure) -> None:
    wrong: Any = send
    assert "above @app.job" in refusal(lambda: app.schedule(every="1h")(wrong))


def test_a_schedule_that_no_worker_has_stored_says_when_it_is(app: Tenure) -> None:
    app.schedule(every="1h", name="hourly")(app.job(name="any")(lambda: None))
    with pytest.raises(ScheduleNotFound, match="one in code is stored when a worker or a server"):
        app.schedules.trigger("hourly")
    with app.running():
        wait_until(app.schedules.list, "the schedule to be stored")
        assert app.schedules.trigger("hourly").outcome == "fired"


def test_a_schedule_without_arguments_says_that_it_lacks_a_payload(app: Tenure) -> None:
    said = r"^payload= of a schedule for send: missing a required argument: 'to'$"
    with pytest.raises(TypeError, match=said):
        app.schedule(every="1h")(app.job(send))


def test_a_lambda_needs_a_name(app: Tenure) -> None:
    assert "@app.job(name=...)" in refusal(lambda: app.job(lambda to: to))
    assert app.job(name="named")(lambda to: to).name == "named"


@pytest.mark.parametrize("options", [{}, {"name": "named"}])
def test_a_partial_is_no_handler(app: Tenure, options: Any) -> None:
    wrong: Any = partial(send, "a")
    assert "as def makes it" in refusal(lambda: app.job(**options)(wrong))


def test_a_class_method_that_is_not_bound_is_no_handler(app: Tenure) -> None:
    wrong: Any = classmethod(lambda cls: None)
    assert "as def makes it, not <classmethod" in refusal(lambda: app.job(name="any")(wrong))


def test_a_name_of_a_function_says_where_it_has_to_be(app: Tenure) -> None:
    def local(to: Local) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    said = refusal(lambda: app.job(local))
    assert "its module must have it, outside of functions and `if TYPE_CHECKING`" in said


def test_a_hook_that_lacks_its_decorator_is_refused_before_a_worker_starts(app: Tenure) -> None:
    def around(context: JobContext) -> Iterator[None]:
        yield

    async def lifespan() -> AsyncIterator[None]:
        yield

    wrong: Any
    for wrong, how in ((around, "@contextmanager"), (lifespan, "@asynccontextmanager")):
        said = f"write {how} of contextlib above it"
        assert said in refusal(partial(app.around, wrong))
        assert said in refusal(partial(app.lifespan, wrong))
    hooks = app.core.handlers.hooks
    assert hooks.around == hooks.lifespans == []


def test_a_policy_with_units_says_where_they_may_be(app: Tenure) -> None:
    wrong: Any
    for wrong in ("5s", timedelta(seconds=5)):
        assert "write backoff={'base': '5s'}" in refusal(partial(RetryPolicy, wrong))
    assert app.job(backoff={"base": "5s"})(send).handler.defaults.backoff.base == 5


def test_a_worker_in_a_coroutine_is_sent_to_running(app: Tenure) -> None:
    """As in a notebook: a loop within a loop was refused, and left coroutines behind."""

    async def cell() -> None:
        app.run_worker()

    with pytest.raises(RuntimeError, match=r"use `async with app\.running\(\):` there"):
        asyncio.run(cell())


def passed_on(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call() -> Any:
        return function()

    return call


def test_a_generator_that_a_decorator_hides_completed_its_job(app: Tenure) -> None:
    """Nothing of it had run. A generator expression is only a result that cannot be stored."""

    @passed_on
    def hidden() -> Iterator[int]:
        yield 1

    @passed_on
    async def hidden_async() -> AsyncIterator[int]:
        yield 1

    wrong = [app.job(max_retries=1)(each).enqueue() for each in (hidden, hidden_async)]
    odd = app.job(name="odd")(lambda: (number for number in [1])).enqueue()
    with running_worker(app):
        for job in wrong:
            assert "a generator was returned, which is not run" in wait_until_failed(app, job)
        assert "no form in JSON" in str(wait_until_completed(app, odd).result)


def test_work_that_is_left_to_the_event_loop_is_no_completed_job(app: Tenure) -> None:
    """Its failure was lost: the job was completed when it began."""

    @app.job(max_retries=1)
    async def begin() -> Any:
        return asyncio.ensure_future(asyncio.sleep(0))

    with running_worker(app):
        said = wait_until_failed(app, begin.enqueue())
        assert "a Task was returned, which nothing awaits: await it in an `async def`" in said


def test_a_second_handler_says_where_the_first_is(app: Tenure) -> None:
    app.job(send)
    assert refusal(lambda: app.job(send)) == (
        f"'send' has a handler already, in {__name__}; give another name=, or import its module "
        "only once and under one name"
    )


CELLS = (
    "from tenure import Tenure\nimport sys\napp = Tenure(sys.argv[1])",
    "@app.job\ndef double(n: int) -> int: return n + n",
    "print(double.submit(3).result('20s'))",
    "@app.job(max_retries=3)\ndef double(n: int, by: int = 2) -> int: return n * by",
    "print(double.submit(3, by=5).result('20s'), double.enqueue(1).max_retries)",
    "@app.job(name='double')\ndef other(n: int) -> int: return n",
)


def test_a_cell_of_a_notebook_may_run_again(tmp_path: Path) -> None:
    """Where code is typed, `__main__` has no file. Another function is refused there, too."""
    first, *others = (f"exec({cell!r})" for cell in CELLS)
    code = "\n    ".join([f"{first}\nwith app.running():", *others])
    done = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{tmp_path}/jobs.db"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.split() == ["6", "15", "3"], done.stderr
    assert "'double' has a handler already, in __main__" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"concurrency": 0}, r"\$\.concurrency: give a whole number from 1 to 1000"),
        ({"concurrency": "8"}, r"\$\.concurrency: give a whole number from 1 to 1000"),
        ({"queues": []}, "queues: name at least one queue, or give None for every queue"),
    ],
)
def test_a_worker_that_could_run_nothing_started(app: Tenure, options: Any, said: str) -> None:
    """It waited for ever and said nothing, where the commands refuse these numbers."""
    for start in (app.running, app.run_worker):
        with pytest.raises(InvalidInput, match=said):
            start(**options)


def test_a_path_in_place_of_a_url_is_refused(tmp_path: Path) -> None:
    wrong: Any = tmp_path / "jobs.db"
    assert refusal(lambda: Tenure(wrong)).startswith("give a URL, such as sqlite:///jobs.db, not")


WAITS = """
@app.job(max_retries=1)
async def parent():
    return app.wait(child.enqueue()).status


@app.job
async def child():
    return "done"
"""


def test_a_coroutine_that_waits_for_a_job_of_its_own_worker_fails(
    app: Tenure, tmp_path: Path
) -> None:
    """The worker stood still for ever: the job can run only when the loop is free."""
    with WorkerScript(tmp_path / "meet", app.database, WAITS) as script:
        script.start()
        assert "await wait_async" in wait_until_failed(app, app.enqueue("parent", max_retries=1))
        wait_until(lambda: app.find(type="child", status="completed"), "the child to run")
