"""The admin shows jobs with their ledger, and its actions are the store's to decide."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import django
import pytest
from django.contrib.auth.models import Permission, User
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils.timezone import localtime
from shop.tasks import fail, ship

from tenure import NewJob, testing
from tenure.contrib.django import admin, app, models
from tenure.store import search
from tenure.testing import Jobs

pytestmark = pytest.mark.django_db
LIST = "admin:tenure_job_changelist"


@pytest.fixture
def jobs(db: None) -> Iterator[Jobs]:
    with testing.within(app, connection) as jobs:
        yield jobs


def signed_in(*permissions: str) -> Client:
    user = User.objects.create_user("ann@example.com", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def ann() -> Client:
    return signed_in("view_job", "change_job", "view_transition")


def act(client: Client, verb: str, *results: Any, at: str = "") -> list[str]:
    """Choose an action for tasks; return what the next page says."""
    chosen = {"action": verb, "_selected_action": [one.id for one in results]}
    page = client.post(at or reverse(LIST), chosen, follow=True)
    return [str(message) for message in page.context["messages"]]


def test_the_models_are_the_rows_that_the_store_has(jobs: Jobs) -> None:
    result = ship.enqueue(1)
    stored = app.get(result.id)
    job = models.Job.objects.get(pk=result.id)
    assert (str(job.pk), job.type, job.queue) == (stored.id, "shop.tasks.ship", "default")
    assert (job.created_at, job.run_at) == (stored.created_at, stored.run_at)
    assert models.Job.objects.get(created_at=stored.created_at) == job
    assert [one.event for one in job.transitions.order_by("seq")] == ["enqueued"]
    assert not models.Job.objects.filter(created_at__gt=stored.created_at).exists()
    with pytest.raises(DatabaseError), transaction.atomic():
        models.Job.objects.filter(pk=result.id).update(status="completed")
    assert app.get(result.id).status == "pending"


def test_jobs_are_listed_newest_first_and_found_by_id(jobs: Jobs, ann: Client) -> None:
    results = [ship.enqueue(number) for number in range(3)] + [fail.enqueue()]

    def listed(**wanted: str) -> list[str]:
        page = ann.get(reverse(LIST), wanted).text  # which repeats what is searched for
        return list(dict.fromkeys(re.findall(r"/tenure/job/([0-9a-f-]{36})/change", page)))

    assert listed() == [one.id for one in reversed(results)]
    assert listed(type="shop.tasks.fail") == listed(q=results[3].id) == [results[3].id]
    assert "0 results" in ann.get(reverse(LIST), {"q": "no such id"}).text
    assert "0 results" in ann.get(reverse(LIST), {"status__exact": "failed"}).text


def test_a_list_looks_at_a_bounded_number_of_rows(
    jobs: Jobs, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counting ten million jobs for each page made other queues' admins unusable."""
    monkeypatch.setattr(admin, "MAX_COUNTED", 2)
    monkeypatch.setattr(admin.JobAdmin, "list_per_page", 1)
    for number in range(3):
        ship.enqueue(number)
    with CaptureQueriesContext(connection) as asked:
        assert "2 results" in ann.get(reverse(LIST)).text
    of_jobs = [one["sql"] for one in asked if "tenure_job" in one["sql"] or '"job"' in one["sql"]]
    assert of_jobs
    assert all(" LIMIT " in sql for sql in of_jobs)


def rows_read(client: Client, **chosen: str) -> int:
    """Return how much the database did for a list: rows of jobs, on SQLite its own steps."""
    if connection.vendor == "sqlite":
        steps = itertools.count()
        connection.connection.set_progress_handler(lambda: next(steps) < 0, 1)
        assert client.get(reverse(LIST), chosen).status_code == 200
        connection.connection.set_progress_handler(None, 0)
        return next(steps)
    with connection.cursor() as cursor:
        # Autovacuum may have analyzed the table before, and sees none of the rows of this test.
        cursor.execute("ANALYZE tenure.job, tenure.ready")
        for way in ("seqscan", "bitmapscan", "hashjoin", "mergejoin"):  # as searches do
            cursor.execute(f"SET LOCAL enable_{way} = off")
        rows = "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables"
        rows += " WHERE relname = 'job'"
        cursor.execute(rows)
        (before,) = cursor.fetchone()
        assert client.get(reverse(LIST), chosen).status_code == 200
        cursor.execute(rows)
        return int(cursor.fetchone()[0] - before)


@pytest.mark.parametrize(
    "chosen",
    [
        {"type": "shop.tasks.fail"},
        {"queue": "rare"},
        {"status__exact": "cancelled"},
        {"status__exact": "completed"},
        {"status__exact": "pending", "type": "shop.tasks.fail"},
    ],
    ids=str,
)
def test_a_filter_with_few_matches_reads_no_more_of_a_larger_table(
    jobs: Jobs, ann: Client, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str]
) -> None:
    monkeypatch.setattr(search, "MAX_ROWS", 20)
    monkeypatch.setattr(search, "MAX_SPANS", 3)
    monkeypatch.setattr(admin, "MAX_COUNTED", 10)
    app.cancel(fail.enqueue().id)
    add(200)
    rows_read(ann, **chosen)  # what is read once
    few = rows_read(ann, **chosen)
    add(600)
    assert rows_read(ann, **chosen) <= few * 1.2


def add(number: int) -> None:
    app.enqueue_many([NewJob("shop.tasks.ship", {"number": 1}, {}) for _ in range(number)])


def test_a_filter_shows_the_newest_and_says_that_it_has_not_seen_all(
    jobs: Jobs, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MAX_ROWS", 2)
    monkeypatch.setattr(search, "MAX_SPANS", 2)
    old = fail.enqueue()
    new = [ship.enqueue(1), fail.enqueue()]
    page = ann.get(reverse(LIST), {"type": "shop.tasks.fail"}).text
    assert "2 results" in page
    assert admin.MORE not in page
    add(2)
    page = ann.get(reverse(LIST), {"type": "shop.tasks.fail"}).text
    assert "1 result" in page
    assert (new[1].id in page, old.id in page) == (True, False)
    assert admin.MORE in page
    at = f"{reverse(LIST)}?type=shop.tasks.fail"
    assert act(ann, "cancel", old, at=at)[0] == "cancel: 1 done"  # chosen on an earlier page
    assert app.get(old.id).status == "cancelled"


@pytest.mark.parametrize("other", [{"payload__contains": "x"}, {"status__isnull": "True"}])
def test_no_list_is_made_by_what_reads_all_jobs(
    jobs: Jobs, ann: Client, other: dict[str, str]
) -> None:
    assert ann.get(reverse(LIST), other).status_code == 400


def test_a_filter_for_what_cannot_be_finds_nothing(jobs: Jobs, ann: Client) -> None:
    found = ann.get(reverse(LIST), {"queue": "no such queue"})
    assert (found.status_code, found.headers["Location"]) == (302, f"{reverse(LIST)}?e=1")


def test_the_page_of_a_job_has_its_ledger_and_hides_what_is_redacted(
    jobs: Jobs, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.core, "redaction", app.core.redaction.also(["number"]))
    result = ship.enqueue(number="4 0 4", by="Zoë")
    at = reverse("admin:tenure_job_change", args=[result.id])
    page = ann.get(at).text
    assert ("Zoë" in page, ">None<" in page) == (True, False)
    jobs.drain(raise_errors=False)
    page = ann.get(at).text
    for step in app.history(result.id):
        assert f"{localtime(step.at):%Y-%m-%d %H:%M:%S.%f}"[:23] + "</p>" in page
    assert "Traceback (most recent call last)" in page
    assert "[redacted]" in page
    assert "4 0 4" not in page
    for event in ("enqueued", "claimed", "gave_up"):
        assert event in page


def test_actions_are_the_stores_to_decide(jobs: Jobs, ann: Client) -> None:
    failed, waits = fail.enqueue(), ship.enqueue(1)
    with pytest.raises(ValueError, match="no such order"):
        jobs.run(failed.id)
    said = act(ann, "cancel", failed, waits)
    assert said[0] == "cancel: 1 done"
    assert "it cannot be cancelled" in said[1]
    assert app.get(waits.id).status == "cancelled"
    assert app.history(waits.id)[-1].actor == "user:ann@example.com"
    assert act(ann, "retry", failed) == ["retry: 1 done"]
    assert (app.get(failed.id).status, app.get(failed.id).max_retries) == ("pending", 4)
    said = act(ann, "retry", *[ship.enqueue(number) for number in range(7)])
    assert len(said) == admin.MAX_REFUSALS + 1
    assert said[-1] == "2 more were refused"


def test_an_action_of_a_user_with_a_long_name(
    jobs: Jobs, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other models of users have longer names than Django's own: each action was refused."""
    waits, name = ship.enqueue(1), "a" * 260
    monkeypatch.setattr(User, "get_username", lambda user: name)
    assert act(ann, "cancel", waits) == ["cancel: 1 done"]
    assert app.history(waits.id)[-1].actor == f"user:{name}"[:255]


@pytest.mark.skipif(django.VERSION < (6, 1), reason="its admin has actions for lists only")
def test_the_page_of_a_job_has_the_actions(jobs: Jobs, ann: Client) -> None:
    failed = fail.enqueue()
    jobs.drain(raise_errors=False)
    at = reverse("admin:tenure_job_change", args=[failed.id])
    (field,) = re.findall(r'<select name="([\w-]+)"', ann.get(at).text)
    ann.post(at, {field: "retry", "_selected_action": [failed.id]})
    assert app.get(failed.id).status == "pending"


def test_who_may_only_look_changes_nothing(jobs: Jobs) -> None:
    client = signed_in("view_job")
    result = ship.enqueue(1)
    assert "Select job to view" in client.get(reverse(LIST)).text
    page = client.get(reverse("admin:tenure_job_change", args=[result.id]))
    assert 'name="_save"' not in page.text
    assert act(client, "cancel", result) != ["cancel: 1 done"]
    assert app.get(result.id).status == "pending"
    for path in ("add/", f"{result.id}/delete/"):
        assert client.get(f"{reverse(LIST)}{path}").status_code == 403
    assert client.post(page.request["PATH_INFO"], {"type": "other"}).status_code == 403
