"""docs/how-to/django.md, followed to the letter beside the newest Django."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from bench.environments import Unavailable, find_python
from tests.docs.pages import DOCS, ROOT, Page
from tests.docs.stage import Stage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
PAGE = Page(DOCS / "how-to" / "django.md")
EXTRAS = "[standard,django]"
MOST_LINES = 10
"""To a task that runs, and that the dashboard shows."""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The programs of a new environment; its pip is uv, which takes a tenth of the time."""
    try:
        python = find_python((3, 12))
    except Unavailable as error:
        pytest.skip(str(error))
    folder = tmp_path / "environment"
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    uv = Path(sys.executable).with_name("uv")
    pip = folder / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec "{uv}" pip "$@" --system-certs --python "{folder}"\n')
    pip.chmod(0o755)
    return folder / "bin"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory"]
    subprocess.run([*build, str(tmp_path / "dist")], cwd=ROOT, check=True)
    (built,) = (tmp_path / "dist").iterdir()
    return built


def test_the_page_does_what_it_says(
    programs: Path, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.docs.stage.COMMAND_SECONDS", 300)  # it installs from the network
    (folder := tmp_path / "project").mkdir()
    command = [programs / "pip", "install", "--quiet", "--dry-run", "asgiref"]
    if subprocess.run(command, check=False).returncode != 0:
        pytest.skip("nothing can be installed here")
    text = PAGE.text.replace(f"'tenure{EXTRAS}'", f"--quiet '{wheel}{EXTRAS}'")
    with Stage(folder, programs=programs) as stage:
        stage.run(Page(PAGE.path, text))
        stage.check_last()
        with httpx2.Client(base_url=f"http://127.0.0.1:{stage.port('8081')}", timeout=60) as admin:
            look_at_the_jobs(admin)
        dashboard = f"http://127.0.0.1:{stage.port('8080')}/ui/jobs"
        assert "shop.tasks.welcome" in httpx2.get(dashboard, timeout=60).text


def look_at_the_jobs(admin: httpx2.Client) -> None:
    """Sign in to the admin, which lists the task."""
    form = admin.get("/admin/login/").text
    secret = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
    assert secret is not None
    fields = {"username": "admin", "password": "secret", "csrfmiddlewaretoken": secret[1]}
    assert admin.post("/admin/login/", data=fields).status_code == 302
    assert "shop.tasks.welcome" in admin.get("/admin/tenure/job/?status__exact=completed").text


def test_a_running_task_takes_ten_lines() -> None:
    section = PAGE.text.partition("The last command")[0]
    typed = [
        line
        for block in Page(PAGE.path, section).blocks
        for line in block.text.splitlines()
        if line.startswith("$ ") or (block.language == "python" and line[:1].strip("#"))
    ]
    assert len(typed) <= MOST_LINES, typed
