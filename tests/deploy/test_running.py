"""Each way to run Tenure in `deploy` runs a job: its commands, as processes, until SIGTERM."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tenure.client import Client
from tests.deploy import plans
from tests.deploy.plans import DEPLOY, Program
from tests.support import programs
from tests.support.cli import PROGRAM, clean_environment
from tests.support.postgres import PostgresServer
from tests.support.waiting import wait_until

PROBE = [sys.executable, str(DEPLOY / "probe.py")]
TOKEN = "a-token-that-nobody-guesses"


def free_ports() -> dict[str, str]:
    """A free port in place of each that the files name."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return dict(zip(("8080", "8081"), ports, strict=True))


class Way:
    """The programs of one file, in a folder with the application."""

    def __init__(self, name: str, folder: Path, url: str) -> None:
        self.programs = [p for p in plans.programs() if p.where.startswith(name)]
        self.folder = folder
        self.ports = free_ports()
        self.environ = {"TENURE_DATABASE": url, "TENURE_TOKEN": TOKEN}
        shutil.copy(DEPLOY / "jobs.py", folder)

    def here(self, program: Program) -> tuple[list[str], dict[str, str]]:
        """The command and environment of a program, with free ports and the test's database."""
        command = list(program.command[1:])
        for port, free in self.ports.items():
            command = [word.replace(port, free) for word in command]
        declared = {name: value for name, value in program.environ.items() if value is not None}
        own = {**declared, "TENURE_PORT": self.ports["8080"], **self.environ}
        return [*PROGRAM, *command], clean_environment(**own)

    def migrate(self) -> None:
        for program in self.programs:
            if program.command[1] == "migrate":
                command, environ = self.here(program)
                programs.run(command, env=environ, cwd=self.folder, check=True, timeout=30)

    @contextmanager
    def running(self, program: Program) -> Iterator[None]:
        """Run a server or worker; SIGTERM ends it in time and without an error."""
        command, environ = self.here(program)
        log = self.folder / f"{program.command[1]}.log"
        with log.open("wb") as file:
            process = programs.Program(command, env=environ, cwd=self.folder, stderr=file)
        try:
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(program.stop_seconds) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()

    def answers(self, port: str, path: str) -> bool:
        """Whether the probe of the image finds a program in order."""
        command = [*PROBE, self.ports[port], path]
        environ = clean_environment(**self.environ)
        return not programs.run(command, env=environ, check=False, capture_output=True).returncode


@pytest.mark.slow
@pytest.mark.parametrize("name", ["compose", "kubernetes", "systemd", "Procfile"])
def test_a_job_runs(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    database = f"sqlite:///{tmp_path / 'tenure.db'}"
    way = Way(name, tmp_path, database if name == "systemd" else request.getfixturevalue("empty"))
    way.migrate()
    with ExitStack() as stack:
        for program in way.programs:
            if program.command[1] != "migrate":
                stack.enter_context(way.running(program))
        wait_until(lambda: way.answers("8080", "/ready"), "the server to be ready")
        if name in ("compose", "kubernetes"):
            wait_until(lambda: way.answers("8081", "/ready"), "the worker to be ready")
        with Client(f"http://127.0.0.1:{way.ports['8080']}", token=TOKEN) as client:
            job = client.enqueue("send_email", {"to": "a@example.com"})
            settled = client.wait(job.id, timeout="30s")
    assert (settled.status, settled.result) == ("completed", "sent to a@example.com")


def test_the_probe_notices_a_program_that_is_not_in_order(tmp_path: Path) -> None:
    way = Way("none", tmp_path, f"sqlite:///{tmp_path / 'tenure.db'}")
    assert not way.answers("8080", "/ready")
    (server,) = (p for p in plans.programs() if p.where == "Dockerfile")
    with way.running(server):
        wait_until(lambda: way.answers("8080", "/health"), "the server to start")
        assert way.answers("8080", "/ready")
        assert not way.answers("8080", "/none")
        way.environ["TENURE_TOKEN"] = "another"
        assert not way.answers("8080", "/ready")


@pytest.fixture
def empty(postgres_server: PostgresServer) -> Iterator[str]:
    """A database of PostgreSQL without Tenure's schema."""
    url = postgres_server.create_database("deployed")
    yield url
    postgres_server.drop_database("deployed")
