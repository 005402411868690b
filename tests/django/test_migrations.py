"""Migrations of Django that run Tenure's own steps, and the checks of the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.django.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.each_engine]


@pytest.fixture
def project(database_url: str) -> Project:
    """The site on an empty database."""
    return Project(database_url)


def test_advice_names_the_commands_as_they_are_called_here(project: Project) -> None:
    """It named `tenure ...`, which would have looked in another database."""
    project.manage("migrate", "tenure")
    with project.jobs as jobs:
        job = jobs.enqueue("mail")
        jobs.queues.limit("closed", max_running=0)
    here, at_slow, check, refused = project.answers(
        f"tenure explain {job.id}",
        f"tenure --backend slow explain {job.id}",
        "tenure doctor",
        "tenure schedules show nightly",
    )
    called = "manage.py tenure"
    assert f"You can start a worker: {called} worker\n" in here[1]
    assert f"You can cancel it: {called} jobs cancel {job.id}\n" in here[1]
    assert f"`{called} queues limit`" in " ".join(check[1].split())
    assert f"see `{called} schedules list`" in refused[1]
    called = "manage.py tenure --backend slow"
    assert f"You can cancel it: {called} jobs cancel {job.id}\n" in at_slow[1]


def test_a_process_finds_the_task_of_a_result_that_it_has_not_imported(project: Project) -> None:
    project.manage("migrate", "tenure")
    with project.jobs as jobs:
        job = jobs.enqueue("shop.tasks.ship", {"args": [1]})
    read = f"print(task_backends['default'].get_result('{job.id}').task.module_path)"
    imported = "from tenure.contrib.django._api import task_backends"
    said = project.manage("shell", "--command", f"{imported}; {read}")
    assert said.endswith("shop.tasks.ship\n")


def test_migrate_makes_the_schema_once(project: Project) -> None:
    """A program of Django never does: a web server must not run DDL."""
    refused, made, models, by_tenure, again, undone = project.answers(
        "tenure enqueue mail",
        "migrate tenure",
        "makemigrations --check",
        "tenure migrate",
        "migrate tenure",
        "migrate tenure zero",
    )
    assert refused[0] == 4
    assert "`manage.py tenure migrate` makes it" in refused[1]
    assert "Applying tenure.0001_initial... OK" in made[1]
    assert models == (0, "No changes detected\n")
    assert "schema 1" in by_tenure[1]
    assert "No migrations to apply" in again[1]
    assert undone[0] == 1
    assert "not reversible, because that would delete the jobs" in undone[1]
    with project.jobs as jobs:
        jobs.enqueue("mail")
        assert jobs.verify() == []


def test_migrate_finds_the_schema_that_tenure_made(project: Project) -> None:
    with project.jobs as jobs:
        job = jobs.enqueue("mail")
        (_, sql), (code, _) = project.answers("sqlmigrate tenure 0001", "migrate")
        assert "CREATE TABLE" in sql
        assert code == 0
        assert jobs.get(job.id) == job


def test_a_schema_that_is_gone_is_an_error_of_check(project: Project) -> None:
    _, gone, _, there = project.answers(
        "migrate --fake", "check --database default", "tenure migrate", "check --database default"
    )
    assert gone[0] == 1
    assert "(tenure.E003)" in gone[1]
    assert "manage.py tenure migrate" in gone[1]
    assert there[0] == 0


def test_databases_of_tests_have_the_schema(project: Project, tmp_path: Path) -> None:
    """Also in memory, where no worker could open it, and also without migrations."""
    case = tmp_path / "test_shop.py"
    case.write_text(
        "from django.test import TestCase\n"
        "from shop.tasks import ship\n"
        "class Shop(TestCase):\n"
        "    def test_a_task(self):\n"
        "        result = ship.enqueue(1)\n"
        "        assert ship.get_result(result.id) == result\n"
    )
    assert "OK" in project.manage("test", str(tmp_path))
    project.environment["SITE_TEST_DATABASE"] = ":memory:"
    project.environment["SITE_MIGRATIONS"] = "off"
    assert "OK" in project.manage("test", str(tmp_path))
