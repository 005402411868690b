"""Which jobs an assertion of `tenure.testing` means, and what it says of the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from tenure import InvalidInput, NewJob, Tenure, testing
from tenure.rules.search import MAX_LISTED
from tenure.testing.matching import MAX_SHOWN


@pytest.fixture
def app(nowhere: Tenure) -> Tenure:
    return nowhere


@pytest.fixture
def jobs(app: Tenure) -> Iterator[testing.Jobs]:
    with testing.on(app) as jobs:
        yield jobs


def differences(jobs: testing.Jobs, wanted: dict[str, Any]) -> str:
    """What a failing assertion says of the nearest job."""
    with pytest.raises(AssertionError) as failed:
        jobs.assert_enqueued(payload=wanted)
    return str(failed.value).splitlines()[1].partition(": ")[2].partition(": ")[2]


def test_a_type_means_the_jobs_of_that_type_only(app: Tenure, jobs: testing.Jobs) -> None:
    @app.job
    def mail() -> None: ...

    of_mail, other = mail.enqueue(), app.enqueue("other")
    assert [job.id for job in jobs.enqueued(mail)] == [of_mail.id]
    assert [job.id for job in jobs.enqueued("mail")] == [of_mail.id]
    assert [job.id for job in jobs.enqueued()] == [of_mail.id, other.id]
    with pytest.raises(TypeError, match=r"is no job type: give what @app\.job made"):
        jobs.enqueued(test_a_type_means_the_jobs_of_that_type_only)  # type: ignore[arg-type]


def test_arguments_are_those_of_the_function(app: Tenure, jobs: testing.Jobs) -> None:
    @app.job
    def some(to: str, **more: int) -> None: ...

    @app.job(name="any")
    def takes_any(**payload: Any) -> None: ...

    @app.job
    def one(to: str) -> None: ...

    some.enqueue("ada", copies=2)
    takes_any.enqueue(copies=2)
    assert len(jobs.enqueued(some, copies=2)) == 1
    assert jobs.enqueued(some, copies=3) == []
    assert len(jobs.enqueued(takes_any, copies=2)) == 1
    assert jobs.enqueued(takes_any, to="ada") == []
    with pytest.raises(TypeError, match=r"'copies' is no filter of find\(\), and no argument of o"):
        jobs.enqueued(one, copies=2)
    with pytest.raises(TypeError, match="; with the name of a type, give its arguments as a dic"):
        jobs.enqueued("one", to="ada")
    with pytest.raises(InvalidInput, match=r"\$\.payload: "):
        jobs.enqueued(payload=["ada"])  # type: ignore[arg-type]


def test_an_argument_is_never_taken_for_a_filter(app: Tenure, jobs: testing.Jobs) -> None:
    """Else `assert_none_enqueued(ship, queue="north")` would hold while the job is there."""

    @app.job
    def ship(queue: str) -> None: ...

    ship.enqueue("north")
    for look in (jobs.enqueued, jobs.assert_enqueued, jobs.assert_none_enqueued):
        with pytest.raises(TypeError, match="'queue' is a filter of find"):
            look(ship, queue="north")
    jobs.assert_enqueued(ship, {"queue": "north"})
    jobs.assert_enqueued("ship", queue="default")
    jobs.assert_none_enqueued("ship", queue="north")


@pytest.mark.parametrize("more", [0, 1])
def test_more_jobs_than_a_page_of_find_has(app: Tenure, jobs: testing.Jobs, more: int) -> None:
    app.enqueue_many([NewJob("a", {"n": n}, {}) for n in range(MAX_LISTED + more)])
    assert [job.payload["n"] for job in jobs.enqueued()] == list(range(MAX_LISTED + more))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"to": {"name": "Bo"}}, "to.name is 'Ada', not 'Bo'"),
        ({"to": {"age": 3}}, "to.age is missing, not 3"),
        ({"to": "Ada"}, "to is {'name': 'Ada'}, not 'Ada'"),
        ({"n": {"of": 1}}, "n is 1, not {'of': 1}"),
        ({"x": 1, "n": 2}, "x is missing, not 1; n is 1, not 2"),
    ],
)
def test_differences_are_named_by_their_path(
    app: Tenure, jobs: testing.Jobs, wanted: dict[str, Any], said: str
) -> None:
    app.enqueue("mail", {"to": {"name": "Ada"}, "n": 1})
    assert jobs.assert_enqueued(payload={"to": {"name": mock.ANY}}).type == "mail"
    assert differences(jobs, wanted) == said


def test_the_job_that_differs_least_is_the_nearest(app: Tenure, jobs: testing.Jobs) -> None:
    for payload in ({"a": 2, "b": 3}, {"a": 1, "b": 3}, {"a": 2}):
        app.enqueue("mail", payload)
    assert differences(jobs, {"a": 1, "b": 2}) == "b is 3, not 2"
    with pytest.raises(AssertionError) as too_few:
        jobs.assert_enqueued("mail", count=4)
    assert str(too_few.value).startswith("3 jobs, not 4, of mail is enqueued\nenqueued:\n")


def test_what_is_there_is_listed_in_bounds(app: Tenure, jobs: testing.Jobs) -> None:
    def listed() -> list[str]:
        with pytest.raises(AssertionError) as failed:
            jobs.assert_enqueued("none")
        return str(failed.value).splitlines()

    assert listed() == ["no job of none is enqueued", "nothing is enqueued"]
    with pytest.raises(AssertionError, match=r"^no job of any type, queue='q' is enqueued"):
        jobs.assert_enqueued(queue="q")
    app.enqueue("old", {"text": "x" * 300})
    assert listed()[2].startswith('  old {"text":"' + "x" * 191 + " in default, pending, 2")
    app.enqueue_many([NewJob("new", {"n": n}, {}) for n in range(MAX_SHOWN - 1)])
    assert len(listed()) == 2 + MAX_SHOWN
    assert listed()[2].startswith("  old")
    app.enqueue_many([NewJob("new", {"n": n}, {}) for n in range(2)])
    assert listed()[2].startswith('  new {"n":1}')
    assert listed()[2 + MAX_SHOWN :] == ["  and 2 older"]
