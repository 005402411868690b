"""The first command after a clone: tools/environment.py, on a copy of what it reads."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]  # pip, on a busy machine
ROOT = Path(__file__).parents[2]
READ_BY_IT = ["LICENSE", "README.md", "pyproject.toml", "requirements.txt", "requirements-dev.txt"]

BUILD = (
    "editables",
    "hatchling",
    "packaging",
    "pathspec",
    "pluggy",
    "tomlkit",
    "trove-classifiers",
)
"""What builds the package, with what that needs in turn."""


def set_up(clone: Path) -> str:
    """Run it as make does, with the Python below this environment; what it had to say."""
    base: str = sys._base_executable  # type: ignore[attr-defined]
    command = [base, str(clone / "tools" / "environment.py"), "runtime"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def keep_only_what_builds(lock: Path) -> None:
    """Change the lock file so that an environment is made from little, which saves seconds.

    That all of it can be installed is shown in test_wheel.py.
    """
    entries = re.split(r"\n(?=[a-z])", lock.read_text("utf-8"))
    kept = [entry for entry in entries if entry.partition("==")[0] in BUILD]
    assert len(kept) == len(BUILD)
    lock.write_text("\n".join(kept) + "\n", "utf-8")


def test_it_builds_once_and_again_only_for_a_reason(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for folder in ("src", "tools"):
        shutil.copytree(ROOT / folder, clone / folder)
    for file in READ_BY_IT:
        shutil.copy(ROOT / file, clone)
    keep_only_what_builds(clone / "requirements.txt")

    assert "Ready" in set_up(clone)
    where = [str(clone / ".venv/bin/python"), "-c", "import tenure; print(tenure.__file__)"]
    found = subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()
    assert found == str(clone / "src/tenure/__init__.py")
    assert (clone / ".venv/bin/tenure").exists()

    assert set_up(clone) == ""
    with (clone / "pyproject.toml").open("a") as settings:
        settings.write("\n[tool.of-a-developer]\nshine = true\n")
    assert set_up(clone) == ""

    with (clone / "requirements.txt").open("a") as lock:
        lock.write("# another package\n")
    assert "Ready" in set_up(clone)
    assert set_up(clone) == ""

    moved = clone.rename(tmp_path / "moved")
    assert "Ready" in set_up(moved)


def test_what_a_link_leads_to_is_not_emptied(tmp_path: Path) -> None:
    """In a worktree with such a link, the environment of the other folder was gone."""
    other, clone = tmp_path / "other", tmp_path / "clone"
    other.mkdir()
    (other / "kept").touch()
    shutil.copytree(ROOT / "tools", clone / "tools")
    for name in READ_BY_IT:
        shutil.copy(ROOT / name, clone)
    (clone / ".venv").symlink_to(other)
    command = [sys.executable, str(clone / "tools" / "environment.py"), "runtime"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, "it is a link" in done.stderr) == (1, True)
    assert (other / "kept").exists()
