"""A pgbouncer of our own in front of a test server.

    with PgBouncer(server, pool_mode="transaction", pool_size=5) as pooler:
        connect(pooler.url("jobs"))

The program is Debian's (`apt-get install pgbouncer`), or the one that TENURE_TEST_PGBOUNCER names;
no wheel carries it, so a plain machine skips these tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.parse
from typing import Self

import psycopg
import pytest

from tests.support.postgres import PostgresServer

START_SECONDS = 30
PORT = 6432  # of a socket in the server's own folder, so it is always free


def program() -> str:
    """The path of pgbouncer; skips the test where there is none."""
    named = os.environ.get("TENURE_TEST_PGBOUNCER")
    found = named or shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if found is None:
        pytest.skip(
            "no pgbouncer: on Debian `apt-get install pgbouncer`, or set TENURE_TEST_PGBOUNCER"
        )
    return found


class PgBouncer:
    """One pgbouncer; as a context manager, started on entry and ended on exit."""

    def __init__(
        self, server: PostgresServer, *, pool_mode: str, pool_size: int, round_robin: bool = False
    ) -> None:
        assert server.folder is not None
        assert server._launcher is not None
        self.folder = server.folder / f"pooler_{pool_mode}_{pool_size}_{int(round_robin)}"
        self._launcher = server._launcher
        self._config = f"""
[databases]
* = host={server.folder} user=postgres
[pgbouncer]
listen_addr =
listen_port = {PORT}
unix_socket_dir = {self.folder}
auth_type = any
pool_mode = {pool_mode}
default_pool_size = {pool_size}
server_round_robin = {int(round_robin)}
ignore_startup_parameters = extra_float_digits
"""
        self._program = program()
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        """The URL of a database through the pooler."""
        host = urllib.parse.quote(str(self.folder), safe="/")
        return f"postgresql://postgres@/{database}?host={host}&port={PORT}"

    def __enter__(self) -> Self:
        self.folder.mkdir()
        account = self._launcher.account
        if account:
            os.chown(self.folder, account["user"], account["group"])
        config, log = self.folder / "pgbouncer.ini", self.folder / "pgbouncer.log"
        config.write_text(self._config)
        config.chmod(0o644)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*self._launcher.prefix, self._program, str(config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                **account,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = log.read_text(errors="replace")[-2000:]
                    self.__exit__()
                    raise AssertionError(f"pgbouncer did not come up: {said}") from error
                time.sleep(0.01)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        shutil.rmtree(self.folder, ignore_errors=True)
