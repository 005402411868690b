"""What a user installs: the wheel, in an environment that holds nothing else of ours."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import tenure

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "tenure"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*build, "--directory", str(folder)], cwd=ROOT, check=True)
    (built,) = folder.iterdir()
    return built


def install(python: Path, *what: str) -> None:
    """Install into another environment, with uv or with the pip of the Python below this one."""
    uv = Path(sys.executable).with_name("uv")
    base: str = sys._base_executable  # type: ignore[attr-defined]
    commands = [
        [str(uv), "pip", "install", "--system-certs", "--python", str(python), *what],
        [base, "-m", "pip", "--python", str(python), "install", *what],
    ]
    for command in commands if uv.exists() else commands[1:]:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode == 0:
            return
    pytest.fail(done.stderr)


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    ours = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    about = f"tenure-{tenure.__version__}.dist-info/"

    assert {name for name in names if not name.startswith(about)} == ours
    assert {"tenure/py.typed", f"{about}licenses/LICENSE", f"{about}entry_points.txt"} <= names
    assert any(name.endswith(".sql") for name in names), "the schema's migrations are missing"


def test_the_wheel_describes_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"tenure-{tenure.__version__}.dist-info/METADATA").decode()
    described = text.splitlines()

    assert "License-Expression: MIT" in described
    assert "Requires-Python: >=3.11" in described
    assert {"Provides-Extra: client", "Provides-Extra: postgres"} <= set(described)


def test_installed_alone_it_runs_the_demo(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "environment"
    venv.create(home, symlinks=os.name != "nt")
    scripts = home / ("Scripts" if os.name == "nt" else "bin")
    install(scripts / "python", "--require-hashes", "-r", str(ROOT / "requirements.txt"))
    install(scripts / "python", "--no-index", str(wheel))  # fails if it asks for anything else

    # Nothing of this environment or of the user's settings may help.
    own = ("TENURE_", "PYTHON")
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    demo = subprocess.run(
        [str(scripts / "tenure"), "demo"],
        cwd=tmp_path,
        env=surroundings,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert demo.returncode == 0, demo.stderr
    assert "completed" in demo.stdout
    assert "failed" in demo.stdout
