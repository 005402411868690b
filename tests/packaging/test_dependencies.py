"""The lock files and the page about dependencies say the same as pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.support.locks import name_of, pinned

ROOT = Path(__file__).parents[2]
LOCKS = ["requirements.txt", "requirements-dev.txt", "deploy/requirements.txt", "tools/uv.txt"]


def declared() -> dict[str, set[str]]:
    """What the project asks for itself, by the lock file that has to hold it."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    of_extra = project["optional-dependencies"]
    build = pyproject["dependency-groups"]["build"]
    runtime = [*project["dependencies"], *of_extra["standard"], *build]
    extras = [each for extra in of_extra.values() for each in extra]
    lines = (ROOT / "requirements-dev.in").read_text().splitlines()
    tools = [line for line in lines if line and not line.startswith("#")]
    return {
        "requirements.txt": set(map(name_of, runtime)),
        "requirements-dev.txt": set(map(name_of, [*runtime, *extras, *tools])),
        "deploy/requirements.txt": set(
            map(name_of, [*runtime, *of_extra["postgres"], *of_extra["client"]])
        ),
        "tools/uv.txt": {"uv"},
    }


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_file_holds_what_is_asked_for(lock: str) -> None:
    assert declared()[lock] <= set(pinned(lock))


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_file_holds_hashes_and_no_addresses(lock: str) -> None:
    text = (ROOT / lock).read_text()
    entries = re.split(r"\n(?=\S)", text.strip())

    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text
    assert "--" not in text.replace("--hash=sha256:", "")


@pytest.mark.parametrize("lock", ["requirements.txt", "deploy/requirements.txt"])
def test_development_runs_on_the_versions_that_users_get(lock: str) -> None:
    runtime = pinned(lock)

    assert {name: pinned("requirements-dev.txt").get(name) for name in runtime} == runtime


def test_each_dependency_has_its_line() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    rows = {line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")}
    by_extra = {line.split("|")[2].strip() for line in page.splitlines() if line.startswith("| `")}
    described = {name_of(cell) for cell in rows | by_extra}

    assert set.union(*declared().values()) <= described
