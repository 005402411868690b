"""Each Django on each database: the cases of the site, and Django's own tests of tasks.

They need Django's settings, so one process runs them all. What fails in it is a failure here.
"""

from __future__ import annotations

import subprocess
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.environments import Unavailable
from tests.django.environments import TESTED_BY, VERSIONS, own_tests, python_with
from tests.django.ported import NOT_IN_BACKPORT, NOT_OURS, port
from tests.django.project import SITE, Project

SECONDS = 500
LEAST = 65
"""Tests that Django has of its own, at least."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 300)]


def outcomes(version: str, database: str, folder: Path) -> dict[str, str]:
    """Run the cases, and the tests in `tasks`; return what each printed if it failed."""
    report = folder / "report.xml"
    options = {"python_files": "case_*.py test_*.py", "pythonpath": f"{SITE} {folder}"}
    done = subprocess.run(
        [
            *(str(python_with(version)), "-m", "pytest", "-q", "-c", "pytest.ini", "--ds=whole"),
            *("-p", "no:cacheprovider", "-p", "no:schemathesis", f"--junitxml={report}"),
            *(f"--override-ini={name}={value}" for name, value in options.items()),
            *("cases", *map(str, folder.glob("tasks"))),
        ],
        cwd=SITE,
        env=Project(database).environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert report.exists(), done.stdout + done.stderr
    told: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest wrote it
        bad = [one.text or "" for one in case if one.tag in ("failure", "error")]
        told[f"{case.get('classname')}.{case.get('name')}"] = "\n".join(bad)
    return told


# The oldest and the newest show what is between them in most cases, each on one database.
IN_EACH_RUN = [("5.2", "sqlite"), ("6.1", "postgres")]
FULL, POSTGRES = [pytest.mark.full], [pytest.mark.postgres]


@pytest.mark.parametrize(
    ("version", "database_url"),
    [
        pytest.param(
            *pair, marks=FULL * (pair not in IN_EACH_RUN) + POSTGRES * ("postgres" in pair)
        )
        for pair in product(VERSIONS, ("sqlite", "postgres"))
    ],
    indirect=["database_url"],
)
def test_the_cases_and_djangos_own_tests_pass(
    version: str, database_url: str, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    missing = ""
    try:
        port(own_tests(version), tmp_path, backport=version in TESTED_BY)
    except Unavailable as error:
        missing = str(error)
    told = outcomes(version, database_url, tmp_path)
    own = {name for name in told if name.startswith("test_")}
    left_out = {**NOT_OURS, **(NOT_IN_BACKPORT if version in TESTED_BY else {})}
    not_ours = {name for name in own if name.partition(".")[2] in left_out}
    for name, printed in told.items():
        with subtests.test(name):
            if name in not_ours:
                assert printed, f"it passes, so this is wrong: {left_out}"
            elif printed:
                pytest.fail(printed, pytrace=False)
    if missing:
        pytest.skip(missing)
    assert len(own) >= LEAST
    assert len(not_ours) == len(left_out)
