"""Rules of retention by the command line, by HTTP, and from a worker elsewhere."""

from __future__ import annotations

import pytest

from tenure import Tenure
from tenure.rules.retention import FOREVER_SECONDS, RetentionRule
from tests.support.cli import cli_json, output_of, run_cli
from tests.support.clock import Clock
from tests.support.http import api_client, assert_problem

HOUR = 3_600.0


def test_the_command_line_sets_and_lists_rules(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENURE_DATABASE", sqlite_url)
    output_of("retention", "set", "--type", "mail", "--completed", "1h")
    output_of("retention", "set", "--queue", "bulk", "--failed", "forever")
    assert cli_json("retention", "list") == [
        {"subject": "queue", "name": "bulk", "completed": None, "cancelled": None, "failed": 1e12},
        {"subject": "type", "name": "mail", "completed": HOUR, "cancelled": None, "failed": None},
    ]
    shown = output_of("retention", "list")
    assert "mail" in shown
    assert "1:00:00" in shown
    assert "forever" in shown
    output_of("retention", "set", "--type", "mail", "--completed", "none")
    assert [rule["name"] for rule in cli_json("retention", "list")] == ["bulk"]
    assert run_cli("retention", "set", "--type", "mail").exit_code == 2
    assert run_cli("retention", "set", "--completed", "1h").exit_code == 2


def test_a_rule_that_deletes_jobs_at_once_is_asked_about(
    app_on_each_engine: Tenure, clock: Clock
) -> None:
    app, here = app_on_each_engine, ("--database", app_on_each_engine.database)
    for queue in ("a", "b"):
        app.cancel(app.enqueue("mail", queue=queue).id)
    app.enqueue("mail", queue="a")
    clock.advance(HOUR)
    for of, jobs in (("--queue", "1 job that is"), ("--type", "2 jobs that are")):
        name = "a" if of == "--queue" else "mail"
        rule = ("retention", "set", of, name, "--cancelled", "59m", "--failed", "0s", *here)
        refused = run_cli(*rule)
        assert refused.exit_code == 2
        assert f"--yes: this would delete {jobs} settled; add --yes" in refused.stderr
        assert app.retention.list() == []
    for of in ((), ("--queue", "a", "--type", "mail")):  # it asked about jobs of every type
        wrong = run_cli("retention", "set", *of, "--cancelled", "59m", *here)
        assert "name a type or a queue" in wrong.stderr
    kept = ("retention", "set", "--queue", "a", *here)
    for ages in (("--cancelled", "61m"), ("--completed", "0s"), ("--cancelled", "forever")):
        output_of(*kept, *ages)
    removed = run_cli(*kept, "--cancelled", "none")  # what holds then may be shorter
    assert "this would perhaps delete 1 job that is settled; add --yes" in removed.stderr
    output_of(*kept, "--failed", "none")
    output_of(*kept, "--cancelled", "0s", "--yes")
    assert app.retention.list() == [RetentionRule("queue", "a", completed=0, cancelled=0)]


def test_rules_over_http(app: Tenure) -> None:
    with api_client(app) as api:
        rule = api.put("/types/mail/retention", json={"completed": "1h", "failed": "forever"})
        shown = {name: rule.json()[name] for name in ("completed", "cancelled", "failed")}
        again = api.put("/types/mail/retention", json=shown)  # `forever` was shown as refused
        assert again.json() == rule.json()
        assert rule.json()["failed"] == FOREVER_SECONDS
        assert api.put("/queues/bulk/retention", json={"failed": 60}).status_code == 200
        assert api.put("/types/mail/retention", json={"failed": None}).json()["completed"] == HOUR
        assert [rule["name"] for rule in api.get("/retention").json()] == ["bulk", "mail"]
        for wrong in ({"completed": "soon"}, {"completed": -1}, {"keep": 1}):
            assert_problem(api.put("/types/mail/retention", json=wrong), 400, "invalid_input")


def test_a_worker_elsewhere_says_how_long_its_jobs_are_kept(app: Tenure) -> None:
    with api_client(app) as api:
        api.put("/types/mail", json={"queue": "q", "keep": {"completed": HOUR}})
        assert app.retention.list() == [RetentionRule("handler", "mail", completed=HOUR)]
        api.put("/types/mail", json={"queue": "q", "keep": {"failed": 1e10}})
        assert app.retention.list() == [RetentionRule("handler", "mail", failed=FOREVER_SECONDS)]
        api.put("/types/mail", json={"queue": "q"})
        assert app.retention.list() == []
        wrong = {"keep": {"pending": 1.0}}
        assert_problem(api.put("/types/mail", json=wrong), 400, "invalid_input")
