"""Migrations of Django that run Tenure's own steps, and the checks of the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.django.project import Project

pytestmark = pytest.mark.slow


@pytest.fixture
def project(database_url: str) -> Project:
    """The site on an empty database."""
    return Project(database_url)


def test_migrate_makes_the_schema_once(project: Project) -> None:
    """A program of Django never does: a web server must not run DDL."""
    refused = project.manage("tenure", "enqueue", "mail", code=4)
    assert "`tenure migrate` makes it" in refused
    assert "Applying tenure.0001_initial... OK" in project.manage("migrate", "tenure")
    assert project.manage("makemigrations", "--check").strip() == "No changes detected"
    assert "schema 1" in project.manage("tenure", "migrate")
    with project.jobs as jobs:
        jobs.enqueue("mail")
        assert jobs.verify() == []
    assert "No migrations to apply" in project.manage("migrate", "tenure")
    assert "not reversible" in project.manage("migrate", "tenure", "zero", code=1)


def test_migrate_finds_the_schema_that_tenure_made(project: Project) -> None:
    project.jobs.migrate()
    job = project.jobs.enqueue("mail")
    assert "CREATE TABLE" in project.manage("sqlmigrate", "tenure", "0001")
    project.manage("migrate")
    assert project.jobs.get(job.id) == job
    project.jobs.close()


def test_a_schema_that_is_gone_is_an_error_of_check(project: Project) -> None:
    project.manage("migrate", "--fake")
    said = project.manage("check", "--database", "default", code=1)
    assert "(tenure.E003)" in said
    assert "manage.py tenure migrate" in said
    project.manage("tenure", "migrate")
    assert "no issues" in project.manage("check", "--database", "default")


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
