"""The databases of tests, as `manage.py test` makes and drops them."""

from __future__ import annotations

import pytest

from tests.django.project import Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_an_application_keeps_no_database_of_tests(postgres_url: str) -> None:
    """PostgreSQL drops none with a session: "is being accessed by other users"."""
    said = Project(postgres_url).manage("test", "--noinput", "cases.case_without_mixin")
    assert "OK" in said
