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
from tests.support.locks import pinned

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
    assert {f"Provides-Extra: {extra}" for extra in ("standard", "client", "postgres")} <= set(
        described
    )


def environment(folder: Path) -> Path:
    """Make an empty environment; return the folder of its programs."""
    venv.create(folder, symlinks=os.name != "nt")
    return folder / ("Scripts" if os.name == "nt" else "bin")


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program; nothing of this environment or of the user's settings may help it."""
    own = ("TENURE_", "PYTHON")
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return subprocess.run(
        command,
        cwd=folder,
        env=surroundings,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_installed_alone_it_runs_the_demo(wheel: Path, tmp_path: Path) -> None:
    scripts = environment(tmp_path / "environment")
    install(scripts / "python", "--require-hashes", "-r", str(ROOT / "requirements.txt"))
    install(scripts / "python", "--no-index", f"{wheel}[standard]")  # fails if it asks for more
    demo = run(tmp_path, scripts / "tenure", "demo")

    assert demo.returncode == 0, demo.stderr
    assert "completed" in demo.stdout
    assert "failed" in demo.stdout


SHOP = """\
from tenure import Tenure

app = Tenure("sqlite:///shop.db")

@app.job
def add(a: int, b: int) -> int:
    return a + b
"""


def test_a_producer_and_a_worker_need_four_packages(wheel: Path, tmp_path: Path) -> None:
    """Library, worker and command line; what shows pages says which extra it needs."""
    scripts = environment(tmp_path / "environment")
    pins = tmp_path / "pins.txt"
    pins.write_text("".join(f"{name}=={at}\n" for name, at in pinned("requirements.txt").items()))
    install(scripts / "python", "--constraint", str(pins), str(wheel))
    (tmp_path / "shop.py").write_text(SHOP)
    (installed,) = tmp_path.glob("environment/lib/python*/site-packages")
    packages = {path.name.split("-")[0] for path in installed.glob("*.dist-info")}

    assert packages == {"tenure", "msgspec", "click", "cronsim", "tzdata"}
    added = run(tmp_path, scripts / "python", "-c", "import shop; print(shop.add.enqueue(1, 2).id)")
    assert added.returncode == 0, added.stderr
    worker = run(tmp_path, scripts / "python", "-c", RUN_ONE)
    assert worker.returncode == 0, worker.stderr
    shown = run(
        *(tmp_path, scripts / "tenure", "--database", "sqlite:///shop.db"),
        *("jobs", "show", added.stdout.strip()),
    )
    assert "completed" in shown.stdout, shown.stderr
    for command, missing in (("serve", "uvicorn"), ("top", "rich")):
        refused = run(tmp_path, scripts / "tenure", "--database", "sqlite:///shop.db", command)
        assert refused.returncode == 2
        assert refused.stderr.startswith("Error: ")
        assert f"needs {missing}: pip install 'tenure[standard]'" in refused.stderr


TYPED = """\
from typing import assert_type
from shop import add

assert_type(add.submit(1, b=2).result(), int)
add.enqueue("1", 2)  # type: ignore[arg-type]
"""


def test_mypy_reads_the_types_of_the_installed_package(wheel: Path, tmp_path: Path) -> None:
    """Without `py.typed` in the wheel, all of it would be Any for users."""
    scripts = environment(tmp_path / "environment")
    install(scripts / "python", str(wheel))
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "typed.py").write_text(TYPED)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", scripts / "python"]
    done = run(tmp_path, *mypy, "shop.py", "typed.py")
    assert done.returncode == 0, done.stdout + done.stderr


RUN_ONE = """\
import os, signal, threading, time
import shop

def stop_when_done():
    while not shop.app.find(status="completed"):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=stop_when_done).start()
shop.app.run_worker()
"""

MOUNTED = """\
import asyncio, django, flask, pydantic
from fastapi import FastAPI
from shop import add, app as queue
from tenure.server import build

web = FastAPI()
web.mount("/queue", build(queue))

@web.post("/sums")
async def sums(a: int, b: int) -> dict[str, str]:
    return {"job": (await add.enqueue_async(a, b)).id}

async def ask(method, path, query=b""):
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query,
        "root_path": "", "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 9),
        "server": ("127.0.0.1", 80),
    }
    told = []
    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}
    async def send(message):
        told.append(message)
    await web(scope, receive, send)
    return told[0]["status"], b"".join(part.get("body", b"") for part in told[1:])

async def main():
    status, body = await ask("POST", "/sums", b"a=1&b=2")
    assert status == 200, (status, body)
    status, body = await ask("GET", "/queue/jobs")
    assert status == 200 and b'"type":"add"' in body, (status, body)
    status, body = await ask("GET", "/queue/")
    assert status == 200 and b"<html" in body, (status, body)

asyncio.run(main())
"""


@pytest.mark.parametrize("fastapi", ["fastapi==0.115.0", "fastapi"])
def test_it_lives_beside_the_frameworks(wheel: Path, tmp_path: Path, fastapi: str) -> None:
    """`starlette>=1.0` kept out all FastAPI before 0.133, `rich>=14` pinned applications."""
    scripts = environment(tmp_path / "environment")
    others = (fastapi, "flask", "django", "pydantic>=2")
    install(scripts / "python", f"{wheel}[standard]", *others)
    (tmp_path / "shop.py").write_text(SHOP)
    done = run(tmp_path, scripts / "python", "-c", MOUNTED)

    assert done.returncode == 0, done.stderr
