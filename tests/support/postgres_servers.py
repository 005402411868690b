"""Servers that a test may stop, crash and set up as it likes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.postgres import Launcher, PostgresServer, PostgresUnavailable


@contextlib.contextmanager
def durable_server(settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """A server of our own that keeps what it has committed. Where there is none, only CI fails."""
    try:
        with PostgresServer(durable=True, settings=settings) as server:
            yield server
    except PostgresUnavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no PostgreSQL: {error}")


class Standby(PostgresServer):
    """A copy of a running server that follows it until it is promoted."""

    def __init__(self, primary: PostgresServer) -> None:
        super().__init__(durable=True)
        self._primary = primary

    def _prepare(self) -> tuple[Path, Launcher]:
        folder, launcher = super()._prepare()
        shutil.rmtree(folder / "data")
        command = [
            *launcher.prefix,
            str(launcher.programs / "pg_basebackup"),
            f"--pgdata={folder / 'data'}",
            f"--dbname=host={self._primary.folder} user=postgres",
            *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
        ]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **launcher.account)
        return folder, launcher


@contextlib.contextmanager
def standby_of(primary: PostgresServer) -> Iterator[PostgresServer]:
    """A standby of a server of ours, up and following."""
    with Standby(primary) as server:
        yield server
