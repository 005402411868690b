"""Three PostgreSQL under Patroni, synchronous replication, etcd, HAProxy and PgBouncer.

    with Cluster() as cluster:
        cluster.create_database("jobs")
        connect(cluster.url("haproxy", "jobs"))   # on machine 0
        with cluster.frozen_primary():
            cluster.wait_for_primary()

Machine 0 has etcd, HAProxy, two PgBouncer and the clients; each other machine one PostgreSQL with
its Patroni. The programs are Debian's, PostgreSQL that of `tests.support.postgres`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest

from tests.support import fault_counts
from tests.support.machines import Machines, address_of
from tests.support.postgres import PostgresUnavailable, data_parent, find_programs, own_folder
from tests.support.waiting import wait_until

MEMBERS = (1, 2, 3)
WAYS = ("haproxy", "hosts", "pooler", "preparing-pooler")
"""How clients reach the primary: by HAProxy, by all hosts in the URL, by HAProxy and PgBouncer in
transaction mode with two sessions, which lets no prepared statements through, or does."""
PORTS = {"haproxy": 5000, "pooler": 6432, "preparing-pooler": 6433}
PACKAGES = "patroni python3-etcd etcd-server haproxy pgbouncer"
POOL_SIZE = 2
PATIENCE = 90.0
"""Seconds for the cluster itself: Patroni gives a primary 20 before it elects another."""
ASK = """
import urllib.request
print(urllib.request.urlopen("http://{address}:8008/cluster", timeout=2).read().decode())"""
FOLLOWING = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"


def program(name: str) -> str:
    """The path of a program of the cluster; skips the test where there is none."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found is None:
        pytest.skip(f"no {name}: on Debian `apt-get install {PACKAGES}`")
    return found


class Cluster:
    """A cluster that is up within the block."""

    def __init__(self) -> None:
        self.machines = Machines(len(MEMBERS))
        self.folder = Path()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        names = ("etcd", "patroni", "patronictl", "haproxy", "pgbouncer")
        self._programs = {name: program(name) for name in names}
        try:
            self._programs["postgres"] = str(find_programs())
        except PostgresUnavailable as error:
            pytest.skip(f"no PostgreSQL: {error}")
        with contextlib.ExitStack() as stack:
            self.folder = stack.enter_context(own_folder(data_parent(durable=True)))
            stack.enter_context(self.machines)
            self._start_etcd()
            for member in MEMBERS:
                config = self._write(f"{member}.yml", json.dumps(self._patroni(member)))
                (self.folder / str(member)).mkdir()
                self._start("patroni", [str(config)], member)
            haproxy = self._write("haproxy.cfg", HAPROXY + "".join(map(server_line, MEMBERS)))
            self._start("haproxy", ["-f", str(haproxy)])
            for way in ("pooler", "preparing-pooler"):
                config = self._write(f"{way}.ini", pooler(way))
                self._start("pgbouncer", [str(config)], log=way)
            try:
                self.wait_until_whole()
            except AssertionError as error:
                error.add_note(self.said())
                raise
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # --- who asks it

    def url(self, way: str, database: str) -> str:
        """The URL of a database for clients on machine 0, by one of WAYS."""
        if way == "hosts":
            hosts = ",".join(map(address_of, MEMBERS))
            return f"postgresql://postgres@{hosts}/{database}?target_session_attrs=read-write"
        return f"postgresql://postgres@{address_of(0)}:{PORTS[way]}/{database}"

    def inner_url(self, database: str, members: Sequence[int] = MEMBERS) -> str:
        """The URL for this process, by the sockets of the servers: whatever happens to networks."""
        hosts = ",".join(str(self.folder / str(member)) for member in members)
        return f"postgresql://postgres@/{database}?host={hosts}&connect_timeout=2"

    def writer_url(self, database: str) -> str:
        """The same for the primary."""
        return f"{self.inner_url(database)}&target_session_attrs=read-write"

    def create_database(self, name: str) -> None:
        with self.admin() as admin:
            admin.execute(f'CREATE DATABASE "{name}"'.encode())

    def admin(self, member: int | None = None) -> psycopg.Connection[Any]:
        """A session of one server, or of the primary."""
        url = self.writer_url("postgres")
        if member is not None:
            url = self.inner_url("postgres", [member])
        return psycopg.connect(url, autocommit=True)

    def primary(self, members: Sequence[int] = MEMBERS) -> int | None:
        """Which of these is the primary, by its own word."""
        for member in members:
            with contextlib.suppress(psycopg.Error), self.admin(member) as admin:
                if admin.execute("SELECT pg_is_in_recovery()").fetchone() == (False,):
                    return member
        return None

    def wait_for_primary(self, members: Sequence[int] = MEMBERS) -> float:
        """Wait until one of these is the primary; when it was seen, on the monotonic clock."""
        wait_until(lambda: self.primary(members), "a new primary", PATIENCE)
        return time.monotonic()

    def synchronous(self) -> int | None:
        """Which standby Patroni would promote, once both standbys follow the primary; else None."""
        with contextlib.suppress(psycopg.Error), self.admin() as admin:
            if admin.execute(FOLLOWING).fetchone() == (len(MEMBERS) - 1,):
                for one in self.seen_by_patroni():
                    if one["role"] == "sync_standby" and one["state"] == "streaming":
                        return int(one["name"].removeprefix("member"))
        return None

    def seen_by_patroni(self) -> Sequence[Mapping[str, Any]]:
        """The members as the first Patroni that answers sees them."""
        for member in MEMBERS:
            ask = ASK.format(address=address_of(member))
            with contextlib.suppress(AssertionError):
                said = self.machines.run([sys.executable, "-S", "-c", ask])
                return list(json.loads(said)["members"])
        return []

    def wait_until_whole(self) -> None:
        """Wait until one is the primary, and both others follow it, one of them synchronously."""
        wait_until(self.synchronous, "the cluster to be whole", PATIENCE)

    def logged(self, words: str) -> int:
        """How often the servers' logs have these words."""
        return sum(log.read_text().count(words) for log in self.folder.glob("patroni?.log"))

    def said(self, lines: int = 12) -> str:
        """The last lines of every program's log."""
        ends = ((log.name, log.read_text(errors="replace")) for log in self.folder.glob("*.log"))
        return "\n".join(f"--- {name}\n" + "\n".join(t.splitlines()[-lines:]) for name, t in ends)

    # --- faults: each is over at the end of its block

    @contextlib.contextmanager
    def killed_primary(self) -> Iterator[Sequence[int]]:
        """Kill the first process of the primary's server. Each fault yields who may follow."""
        servers = self.machines.processes(self._known_primary(), "postgres")
        (postmaster,) = [pid for pid, parent in servers.items() if parent not in servers]
        os.kill(postmaster, signal.SIGKILL)
        fault_counts.count("database crashes")
        yield MEMBERS

    @contextlib.contextmanager
    def frozen_primary(self) -> Iterator[Sequence[int]]:
        """Stop all processes of the primary and its Patroni, as if their machine stood still."""
        primary = self._known_primary()
        self.machines.signal(signal.SIGSTOP, primary)
        fault_counts.count("processes frozen")
        try:
            yield others(primary)
        finally:
            self.machines.signal(signal.SIGCONT, primary)

    @contextlib.contextmanager
    def cut_primary(self) -> Iterator[Sequence[int]]:
        """Take the primary from the network: nothing reaches it, and it reaches nothing."""
        primary = self._known_primary()
        self.machines.cut(primary)
        fault_counts.count("connections cut")
        try:
            yield others(primary)
        finally:
            self.machines.cut(primary, cut=False)

    @contextlib.contextmanager
    def switched_primary(self) -> Iterator[Sequence[int]]:
        """Hand over to the synchronous standby, as operators do."""
        primary = self._known_primary()
        candidate = wait_until(self.synchronous, "a synchronous standby", PATIENCE)
        config = str(self.folder / f"{primary}.yml")
        asked = self._start(
            "patronictl",
            [
                *("-c", config, "switchover", "tenure", "--force"),
                *("--leader", f"member{primary}", "--candidate", f"member{candidate}"),
            ],
        )
        yield others(primary)
        assert asked.wait(PATIENCE) == 0, self.said()

    @contextlib.contextmanager
    def killed_etcd(self) -> Iterator[Sequence[int]]:
        """Kill etcd until the primary gives up, and start it again."""
        self.machines.signal(signal.SIGKILL, 0, "etcd")
        fault_counts.count("processes killed")
        self._wait_until_given_up()
        self._start_etcd()
        yield MEMBERS

    @contextlib.contextmanager
    def frozen_etcd(self) -> Iterator[Sequence[int]]:
        """Freeze etcd, with its connections open, until the primary gives up."""
        self.machines.signal(signal.SIGSTOP, 0, "etcd")
        fault_counts.count("processes frozen")
        try:
            self._wait_until_given_up()
        finally:
            self.machines.signal(signal.SIGCONT, 0, "etcd")
        yield MEMBERS

    def _wait_until_given_up(self) -> None:
        """Wait for that; on a busy machine one look may be in vain for other reasons."""
        wait_until(
            lambda: not any(self.primary() for _ in range(3)), "the primary to give up", PATIENCE
        )

    def _known_primary(self) -> int:
        primary = wait_until(self.primary, "a primary", PATIENCE)
        assert primary is not None
        return primary

    # --- programs and their configuration

    def _start_etcd(self) -> None:
        peer, client = (f"http://{address_of(0)}:{port}" for port in (2380, 2379))
        options = {
            "name": "etcd",
            "data-dir": str(self.folder / "etcd"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"etcd={peer}",
        }
        # It is killed and never loses power; it would share the disk with three servers.
        arguments = [f"--{name}={value}" for name, value in options.items()]
        self._start("etcd", [*arguments, "--unsafe-no-fsync"])

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def _start(
        self, name: str, arguments: Sequence[str], machine: int = 0, log: str | None = None
    ) -> subprocess.Popen[bytes]:
        path = self.folder / f"{log or name}{machine or ''}.log"
        return self.machines.start([self._programs[name], *arguments], machine, path)

    def _patroni(self, member: int) -> Mapping[str, Any]:
        address, place = address_of(member), self.folder / str(member)
        return {
            "scope": "tenure",
            "name": f"member{member}",
            "restapi": {"listen": f"{address}:8008", "connect_address": f"{address}:8008"},
            "etcd3": {"host": f"{address_of(0)}:2379"},
            "bootstrap": {
                "dcs": {
                    # The shortest that Patroni accepts for the lease of a primary.
                    "ttl": 20,
                    "loop_wait": 2,
                    "retry_timeout": 5,
                    "primary_start_timeout": 0,
                    "synchronous_mode": True,
                    "postgresql": {"use_pg_rewind": True, "parameters": SETTINGS},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums", "no-sync"],
            },
            "postgresql": {
                "listen": f"{address}:5432",
                "connect_address": f"{address}:5432",
                "data_dir": str(place / "data"),
                "bin_dir": self._programs["postgres"],
                "pgpass": str(place / "pgpass"),
                "authentication": {
                    "superuser": {"username": "postgres"},
                    "replication": {"username": "postgres"},
                    "rewind": {"username": "postgres"},
                },
                "pg_hba": [f"{kind} trust" for kind in TRUSTED],
                "parameters": {"unix_socket_directories": str(place)},
                "basebackup": [{"checkpoint": "fast"}, "no-sync"],
                "remove_data_directory_on_rewind_failure": True,
                "remove_data_directory_on_diverged_timelines": True,
            },
        }


def others(member: int) -> Sequence[int]:
    """The members but one."""
    return [one for one in MEMBERS if one != member]


def server_line(member: int) -> str:
    """A member as HAProxy knows it."""
    return f"    server member{member} {address_of(member)}:5432 maxconn 100 check port 8008\n"


def pooler(way: str) -> str:
    """The configuration of PgBouncer, whose server is the primary by HAProxy."""
    prepared = 100 if way == "preparing-pooler" else 0
    return f"""
[databases]
* = host={address_of(0)} port={PORTS["haproxy"]} user=postgres
[pgbouncer]
listen_addr = {address_of(0)}
listen_port = {PORTS[way]}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {POOL_SIZE}
max_prepared_statements = {prepared}
server_login_retry = 1
server_connect_timeout = 3
ignore_startup_parameters = extra_float_digits
"""


HAPROXY = f"""
defaults
    mode tcp
    option redispatch 1
    timeout connect 2s
    timeout client 30m
    timeout server 30m
    timeout check 2s
listen primary
    bind {address_of(0)}:{PORTS["haproxy"]}
    option httpchk OPTIONS /primary
    http-check expect status 200
    default-server inter 1s fall 2 rise 1 on-marked-down shutdown-sessions
"""
SETTINGS = {"max_connections": 150, "max_wal_size": "1GB", "wal_log_hints": "on"}
TRUSTED = ("local all all", "host all all 10.77.0.0/24", "host replication all 10.77.0.0/24")

FAULTS: Mapping[str, Callable[[Cluster], contextlib.AbstractContextManager[Sequence[int]]]] = {
    "primary killed": Cluster.killed_primary,
    "switchover": Cluster.switched_primary,
    "primary frozen": Cluster.frozen_primary,
    "primary cut off": Cluster.cut_primary,
    "etcd killed": Cluster.killed_etcd,
    "etcd frozen": Cluster.frozen_etcd,
}
