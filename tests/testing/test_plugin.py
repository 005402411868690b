"""The plugin of pytest, in a separate pytest: alone, and with pytest-django."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 120

SHOP = """
from tenure import Tenure

app = Tenure("postgresql://nowhere/none")
sent = []

@app.job
def send(to: str) -> None:
    sent.append(to)
"""
CONFTEST = """
import pytest
import shop

@pytest.fixture
def tenure_app():
    return shop.app
"""
TESTS = """
import pytest
from shop import app, send, sent

@pytest.mark.parametrize("number", [1, 2])
def test_a_view(jobs, number):
    assert app.find() == []
    send.enqueue(f"{number}@example.com")
    jobs.assert_enqueued(send, to=f"{number}@example.com", count=1)
    assert jobs.drain().completed == 1
    assert sent == [f"{number}@example.com"]
    sent.clear()

async def test_in_a_loop(jobs):
    await send.enqueue_async("a@example.com")
    assert (await jobs.drain_async()).completed == 1
    sent.clear()
"""

SETTINGS = """
import os
from urllib.parse import urlsplit

url = urlsplit(os.environ["SITE_DATABASE"])
POSTGRES = url.scheme == "postgresql"
DATABASES = {"default": {
    "ENGINE": "django.db.backends." + ("postgresql" if POSTGRES else "sqlite3"),
    "NAME": url.path.lstrip("/") if POSTGRES else url.path,
    "USER": url.username or "", "HOST": url.hostname or "", "PORT": url.port or "",
}}
INSTALLED_APPS = ["tenure.contrib.django", "site_shop"]
USE_TZ = True
SECRET_KEY = "for tests"
TASKS = {"default": {"BACKEND": "tenure.contrib.django.TenureBackend", "QUEUES": []}}
"""
MODELS = """
from django.db import models
from tenure.contrib.django import app

class Order(models.Model):
    number = models.IntegerField()
    shipped = models.BooleanField(default=False)

@app.job(name="ship")
def ship(number: int) -> int:
    Order.objects.filter(number=number).update(shipped=True)
    return number
"""
IN_A_TRANSACTION = """
import pytest
from django.db import connection
from tenure.contrib.django import app
from site_shop.models import Order, ship

@pytest.mark.django_db
@pytest.mark.parametrize("number", [1, 2])
def test_in_the_transaction(jobs, number):
    assert app.find() == [] and not Order.objects.exists()
    Order.objects.create(number=number)
    ship.enqueue(number)
    app.within(connection).enqueue("ship", {"number": number})
    jobs.assert_enqueued(ship, number=number, count=2)
    assert jobs.drain().completed == 2
    assert Order.objects.get().shipped
    assert connection.in_atomic_block
    jobs.travel("1h")

def test_without_the_database_of_django(jobs):
    app.enqueue("ship", {"number": 3})
    assert len(jobs.enqueued()) == 1
"""
COMMITTED = """
import pytest
from tenure.contrib.django import app
from site_shop.models import Order, ship

@pytest.mark.parametrize("number", [1, 2])
def test_committed(transactional_db, jobs, number):
    assert app.find() == []
    Order.objects.create(number=number)
    jobs.run(ship.enqueue(number))
    assert Order.objects.get().shipped
    ship.enqueue(7)

@pytest.mark.django_db(transaction=True)
def test_committed_too(jobs):
    assert app.find() == []
"""


def run_pytest(folder: Path, files: dict[str, str], *options: str, **environment: str) -> str:
    """Run a pytest with the plugin in a folder; return what it prints."""
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    path = os.pathsep.join([str(ROOT / "src"), str(folder)])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tenure.contrib.pytest", *options],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": path,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "",
            **environment,
        },
        text=True,
        check=False,
        capture_output=True,
        timeout=SECONDS,
    )
    return done.stdout + done.stderr


def test_each_test_has_a_separate_database(tmp_path: Path) -> None:
    files = {"shop.py": SHOP, "conftest.py": CONFTEST, "test_shop.py": TESTS}
    said = run_pytest(tmp_path, files, "-p", "anyio", "-o", "anyio_mode=auto")
    assert "3 passed" in said


def test_it_asks_which_application_is_tested(tmp_path: Path) -> None:
    said = run_pytest(tmp_path, {"test_none.py": "def test_none(jobs): ..."})
    assert "Define the fixture `tenure_app` in conftest.py" in said


@pytest.mark.postgres
@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_with_pytest_django(tmp_path: Path, engine: str, request: pytest.FixtureRequest) -> None:
    """Celery's `delay_on_commit` never ran in a TestCase (pytest-django #752)."""
    url = request.getfixturevalue("postgres_url") if engine == "postgres" else "sqlite:///x"
    files = {
        "settings.py": SETTINGS,
        "site_shop/__init__.py": "",
        "site_shop/models.py": MODELS,
        "test_within.py": IN_A_TRANSACTION,
    }
    if engine == "postgres":  # in memory there is nothing to commit
        files["test_committed.py"] = COMMITTED
    options = ("-p", "pytest_django.plugin", "--ds", "settings")
    said = run_pytest(tmp_path, files, *options, SITE_DATABASE=url)
    assert ("6 passed" if engine == "postgres" else "3 passed") in said, said


def test_the_plugin_imports_nothing_before_it_is_used() -> None:
    program = (
        "import sys, tenure.contrib.pytest\n"
        "loaded = {n for n in sys.modules if n.partition('.')[0] in ('tenure', 'msgspec')}\n"
        "assert loaded == {'tenure', 'tenure.contrib', 'tenure.contrib.pytest'}, loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_rest_needs_no_pytest() -> None:
    program = "import sys; from tenure.testing import Jobs, on; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_plugin_is_installed_with_tenure() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert declared["project"]["entry-points"]["pytest11"] == {"tenure": "tenure.contrib.pytest"}
