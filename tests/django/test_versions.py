"""Each Django on each database: our cases inside it, and Django's own tests of tasks.

One process each. What fails inside it is a failure here, with its text.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.django.environments import TESTED_BY, VERSIONS, own_tests, python_with, surroundings
from tests.django.ported import NOT_IN_BACKPORT, NOT_OURS, port

SITE = Path(__file__).parent / "site"
SECONDS = 500
LEAST = 65
"""Tests that Django has of its own, at least."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 300)]


def outcomes(version: str, database: str, folder: Path) -> dict[str, str]:
    """Run all cases and Django's own tests; return what each printed if it failed."""
    port(own_tests(version), folder, backport=version in TESTED_BY)
    report = folder / "report.xml"
    options = {
        "python_files": "case_*.py test_*.py",
        "pythonpath": f"{SITE} {folder}",
        "cache_dir": str(folder / "cache"),
    }
    done = subprocess.run(
        [
            *(python_with(version), "-m", "pytest", "-q", "--ds=whole", "--timeout=60"),
            *("-c", "/dev/null", f"--rootdir={SITE}", f"--confcutdir={SITE}"),
            *(f"--override-ini={name}={value}" for name, value in options.items()),
            *(f"--junitxml={report}", "cases", folder / "tasks"),
        ],
        cwd=SITE,
        env={**surroundings(version), "SITE_DATABASE": database},
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


@pytest.mark.parametrize("version", VERSIONS)
def test_the_cases_and_djangos_own_tests_pass(
    version: str, database_url: str, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    told = outcomes(version, database_url.removeprefix("sqlite:///"), tmp_path)
    own = {name for name in told if name.startswith("test_")}
    left_out = {**NOT_OURS, **(NOT_IN_BACKPORT if version in TESTED_BY else {})}
    not_ours = {name for name in own if name.partition(".")[2] in left_out}
    assert len(own) >= LEAST
    assert len(not_ours) == len(left_out)
    for name, printed in told.items():
        with subtests.test(name):
            if name in not_ours:
                assert printed, f"it passes, so this is wrong: {left_out}"
            elif printed:
                pytest.fail(printed, pytrace=False)
