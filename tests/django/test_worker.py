"""`manage.py tenure worker`: tasks run in real workers, on both databases."""

from __future__ import annotations

import pytest

from tests.django.project import Project, settled

pytestmark = pytest.mark.slow


@pytest.fixture
def project(database_url: str) -> Project:
    """The site on an empty database, migrated by Django."""
    project = Project(database_url)
    project.manage("migrate")
    return project


def test_tasks_run_and_their_results_are_read(project: Project) -> None:
    ids = project.run(
        """
from shop.models import Order
from shop.tasks import fail, ship, ship_async
Order.objects.create(number=1)
tell([ship.enqueue(1, by=2).id, ship_async.enqueue(1).id, fail.enqueue().id])
"""
    )
    with project.worker():
        assert list(settled(project.jobs, ids).values()) == ["completed", "completed", "failed"]
    told = project.run(
        f"""
from shop.tasks import fail, ship
backend = ship.get_backend()
results = [backend.get_result(id) for id in {ids}]
tell([[one.status, one.attempts, one._return_value and True] for one in results]
     + [results[2].errors[0].exception_class.__name__])
"""
    )
    done = ["SUCCESSFUL", 1, True]
    assert told == [done, done, ["FAILED", 1, None], "ValueError"]
    assert project.jobs.verify() == []
