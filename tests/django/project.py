"""The site in `site/`, as processes on a database of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenure import Tenure
from tests.support.programs import Program, run

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).parent / "site"
SECONDS = 60


class Project:
    """One database of the site, given as the URL of an empty one."""

    def __init__(self, url: str, site: Path = SITE) -> None:
        self.site = site
        self.jobs = Tenure(url)
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT), str(site)]),
            "SITE_DATABASE": url.removeprefix("sqlite:///"),
            "DJANGO_SETTINGS_MODULE": "config",
        }

    def options(self, **options: Any) -> None:
        """Set OPTIONS of the backend."""
        self.environment["SITE_OPTIONS"] = json.dumps(options)

    def manage(self, *arguments: str) -> str:
        """Run `manage.py` and return what it prints."""
        done = self.run("manage.py", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def answers(self, *commands: str) -> list[tuple[int, str]]:
        """Run commands of `manage.py` in one process; return exit code and output of each."""
        given = json.dumps([command.split() for command in commands])
        done = self.run("commands.py", given=given)
        assert done.returncode == 0, done.stderr
        return [(code, said) for code, said in json.loads(done.stdout)]

    def run(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run a Python program in the folder of the site."""
        return run(
            [sys.executable, *arguments],
            cwd=self.site,
            env=self.environment,
            input=given,
            text=True,
            check=False,
            capture_output=True,
            timeout=SECONDS,
        )

    @contextmanager
    def worker(self, *options: str) -> Iterator[subprocess.Popen[str]]:
        """Run `manage.py tenure worker` in the block."""
        started = Program(
            [sys.executable, "manage.py", "tenure", "worker", *options],
            cwd=self.site,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            yield started
        finally:
            started.send_signal(signal.SIGTERM)
            try:
                started.communicate(timeout=SECONDS)
            finally:
                started.kill()
