"""Type checkers know what users write: `api.py` and `others.py` pass, mistakes included.

pyright is what editors show: it inferred that `submit` of a coroutine waits for the coroutine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(400)  # it reads the whole package, on a busy machine

ROOT = Path(__file__).parents[2]
WRITTEN = ["tests/typing/api.py", "tests/typing/others.py"]


def test_what_users_write_is_checked_as_they_expect() -> None:
    mypy = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *WRITTEN],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert mypy.returncode == 0, mypy.stdout + mypy.stderr


def test_pyright_agrees(tmp_path: Path) -> None:
    settings = {
        "include": [str(ROOT / name) for name in WRITTEN],
        "extraPaths": [str(ROOT / "src"), str(ROOT)],
        "pythonVersion": "3.11",
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    pyright = Path(sys.executable).with_name("basedpyright")
    command = [pyright, "-p", str(tmp_path), "--pythonpath", sys.executable]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
