"""Everything at once, for minutes or hours: `python -m tests.chaos.soak SECONDS SEED`.

On each engine: a server, producers and workers beside the database and over HTTP, as processes of
their own, behind a proxy where there is a network. Meanwhile they are killed, frozen and told to
stop, the network loses answers and connections, the database's backends are terminated and its
server crashes. Then the faults stop, everything is drained, and what everybody was told is held
against what is stored.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg

from tenure import StoreUnavailable, Tenure
from tenure.app.bulk import run_batches
from tenure.rules.search import Filter
from tests.chaos import checker
from tests.chaos.soak_part import LEASE_SECONDS
from tests.support import fault_counts
from tests.support.postgres import PostgresServer
from tests.support.programs import Program
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
DRAIN_SECONDS = 120.0
FROZEN_SECONDS = 1.5 * LEASE_SECONDS
PARTS = (("producer", False), ("producer", True), ("worker", False), ("worker", True))
"""(role, over HTTP)"""


class Crew:
    """The processes of one engine; whoever ends is started again until `dismiss`."""

    def __init__(self, folder: Path, database: str, port: int, address: str, seed: int) -> None:
        self.folder = folder
        self._commands: dict[str, list[str]] = {
            "server": [
                *(sys.executable, "-m", "tenure", "serve"),
                *("--database", database, "--port", str(port)),
            ]
        }
        for number, (role, remote) in enumerate(PARTS):
            name = f"{role}-{number}"
            source = address if remote else database
            self._commands[name] = [
                *(sys.executable, "-m", "tests.chaos.soak_part"),
                *(role, source, str(folder), name, str(seed)),
            ]
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._log = (folder / "output").open("ab")

    def muster(self, *names: str) -> None:
        """Start whoever should run and does not."""
        for name in names or tuple(self._commands):
            process = self.running.get(name)
            if process is None or process.poll() is not None:
                self.running[name] = Program(
                    self._commands[name],
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    start_new_session=True,
                )

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one of them, if it still runs."""
        if self.running[name].poll() is None:
            os.kill(self.running[name].pid, number)

    def dismiss(self) -> None:
        """End them all."""
        for name, process in self.running.items():
            self.send(name, signal.SIGCONT)
            self.send(name, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
        self._log.close()


class Stage:
    """One engine with its crew, and what is done to it."""

    def __init__(
        self, folder: Path, database: str, chance: random.Random, server: PostgresServer | None
    ) -> None:
        self.folder = folder
        self._database = database
        self._chance = chance
        self._postgres = server
        self._pause = threading.Event()
        with Proxy(("127.0.0.1", 9)) as placeholder:  # a port that is free
            self._port = placeholder.address[1]
        self._network = Proxy(("127.0.0.1", self._port))
        self._crew: Crew | None = None

    @property
    def crew(self) -> Crew:
        assert self._crew is not None
        return self._crew

    @contextlib.contextmanager
    def played(self) -> Iterator[None]:
        """The crew at work, until the end."""
        with self._network as network:
            address = "http://{}:{}".format(*network.address)
            seed = self._chance.randrange(2**31)
            self._crew = Crew(self.folder, self._database, self._port, address, seed)
            self._crew.muster("server")
            try:
                yield
            finally:
                self._crew.dismiss()

    def torment(self, seconds: float) -> None:
        """One fault after the other, for so long."""
        faults: list[Callable[[], None]] = [self._kill, self._freeze, self._ask_to_stop]
        faults += [self._drop_answers, self._cut, self._slow_down, self._act_on_all]
        if self._postgres is not None:
            faults += [self._terminate_backends, self._crash_postgres]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.crew.muster()
            self._pause.wait(self._chance.uniform(0.2, 1.5))
            self._chance.choice(faults)()

    def settle(self) -> list[str]:
        """No more faults, no more jobs; every finding once everything has settled."""
        (self.folder / "enough").touch()
        self._network.pass_on()
        for name in self.crew.running:
            self.crew.send(name, signal.SIGCONT)

        def drained() -> bool:
            self.crew.muster(*(name for name in self.crew.running if "producer" not in name))
            with Tenure(self._database) as app:
                run_batches(app.core)
                left: list[object] = [bulk for bulk in app.bulk.list() if bulk.finished_at is None]
                left += [c for c in app.stats.counts() if c.status in ("pending", "processing")]
            producing = any(
                process.poll() is None
                for name, process in self.crew.running.items()
                if "producer" in name
            )
            self._pause.wait(0.5)
            return not left and not producing

        wait_until(drained, "everything to settle", DRAIN_SECONDS)
        self.crew.dismiss()
        return checker.check(self.folder, self._database)

    # --- the faults

    def _anybody(self) -> str:
        return self._chance.choice(list(self.crew.running))

    def _kill(self) -> None:
        self.crew.send(self._anybody(), signal.SIGKILL)
        fault_counts.count("processes killed")

    def _freeze(self) -> None:
        name = self._anybody()
        self.crew.send(name, signal.SIGSTOP)
        fault_counts.count("processes frozen")
        self._pause.wait(FROZEN_SECONDS)
        self.crew.send(name, signal.SIGCONT)

    def _ask_to_stop(self) -> None:
        self.crew.send(self._anybody(), signal.SIGTERM)

    def _drop_answers(self) -> None:
        self._network.drop_answers(b"POST /", times=self._chance.randrange(1, 5))

    def _cut(self) -> None:
        self._network.reset()

    def _slow_down(self) -> None:
        self._network.delay(self._chance.uniform(0.05, 0.5))
        self._pause.wait(1.0)
        self._network.pass_on()

    def _act_on_all(self) -> None:
        """An operator's action on every job that matches: the sweepers go on with it, in bites."""
        action, status = self._chance.choice([("retry", "failed"), ("cancel", "pending")])
        with contextlib.suppress(StoreUnavailable), Tenure(self._database) as app:
            app.bulk.start(action, Filter(type="fails", status=status))

    def _terminate_backends(self) -> None:
        with psycopg.connect(self._database, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        fault_counts.count("connections cut")

    def _crash_postgres(self) -> None:
        if self._postgres is not None:
            self._postgres.stop("immediate")
            self._pause.wait(self._chance.uniform(0, 2))
            self._postgres.start()
            fault_counts.count("database crashes")


@contextlib.contextmanager
def stages(folder: Path, seed: int) -> Iterator[list[Stage]]:
    """One stage for each engine that there is."""
    with PostgresServer(durable=True) as server:
        places = []
        for name, url, its_server in (
            ("sqlite", f"sqlite:///{folder}/sqlite/jobs.db", None),
            ("postgres", server.create_database("soak"), server),
        ):
            (folder / name).mkdir()
            Tenure(url).open().close()
            chance = random.Random(f"{seed} soak {name}")
            places.append(Stage(folder / name, url, chance, its_server))
        yield places


def soak(seconds: float, seed: int, folder: Path) -> list[str]:
    """Torment both engines side by side; every finding, none is good."""
    # PostgreSQL ends with the thread that started it: so it is started again on this one.
    with stages(folder, seed) as places, contextlib.ExitStack() as stack:
        for stage in places:
            stack.enter_context(stage.played())
        first, last = places
        with ThreadPoolExecutor(1) as other:
            tormented = other.submit(first.torment, seconds)
            last.torment(seconds)
            tormented.result()
            settled = other.submit(first.settle)
            found = {last: last.settle(), first: settled.result()}
    return [f"{stage.folder.name}: {finding}" for stage in places for finding in found[stage]]


def main() -> int:
    """Soak, and print what was found; 1 if anything was."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        print(f"everything at once, {seconds:.0f} s, seed {seed}", flush=True)
        findings = soak(seconds, seed, Path(folder))
        print("\n".join(findings) or "nothing lost, nothing beyond its limit, nothing twice")
        if findings:
            for output in Path(folder).glob("*/output"):
                print(f"--- {output.parent.name}:\n{output.read_text('utf-8')[-3000:]}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
