"""The cases in `site/cases`: they need Django's settings, so a process runs them per database."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.django.project import SITE, Project

pytestmark = pytest.mark.slow


def test_the_cases_of_the_site(database_url: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "pytest.ini"]
    done = subprocess.run(
        [*command, "cases"],
        cwd=SITE,
        env=Project(database_url).environment,
        text=True,
        check=False,
        capture_output=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{done.stdout}{os.linesep}{done.stderr}"
