"""Connections to a SQLite file: its place, settings that the promises rest on, times, checkpoints.

The write-ahead log needs locks and shared memory that every process using the file sees alike. On
a network or a host's shared folder they do not exist, or not for all: commits are lost and files
damaged without an error. So such a place is refused before anything is written, where the kind is
known, which is on Linux.

In a folder where every user may make files, such as /tmp, any user can put a link under the name of
a database, so that it is made elsewhere or another one is read. Linux refuses such links if
fs.protected_symlinks is 1, which not every system sets.

A writer that waits finds out who holds it up: another process, or another connection of this one.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import sqlite3
import stat
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from tenure import failpoints, forks
from tenure.errors import InvalidInput, StoreUnavailable
from tenure.values.ids import EPOCH
from tenure.values.redaction import without_password

# --- who holds up a writer ------------------------------------------------------------------------

WRITE_LOCK = 120
"""The byte of the log's index that a writer locks."""
COMMITS = "tenure.store.sqlite.writer"
"""The module of the calls that also write without a transaction around them."""


def is_held_here(path: Path, ours: Iterable[Callable[[], sqlite3.Connection | None]]) -> bool:
    """Whether a write transaction of this process holds a file, and it is not one of `ours`.

    `ours` return the connections of Tenure that no caller has. Only Linux says so; elsewhere the
    answer is no.
    """
    try:
        found = os.stat(f"{path}-shm")  # noqa: PTH116 - of a path with an ending
        locks = Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return False
    index = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    lock = ["POSIX", "ADVISORY", "WRITE", str(os.getpid()), index, str(WRITE_LOCK)]
    if not any(line.split()[1:7] == lock for line in locks):
        return False
    tops = (frame.f_globals.get("__name__") for frame in sys._current_frames().values())
    return COMMITS not in tops and not any(_is_in_transaction(each()) for each in ours)


def _is_in_transaction(connection: sqlite3.Connection | None) -> bool:
    try:
        return connection is not None and connection.in_transaction
    except sqlite3.ProgrammingError:  # closed meanwhile
        return False


# --- file systems and links -----------------------------------------------------------------------

MOUNTS = Path("/proc/self/mountinfo")
"""Every mount of this process, one a line: proc_pid_mountinfo(5)."""

REMOTE = frozenset(
    {
        # file servers and cluster storage
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "lustre"),
        *("glusterfs", "beegfs", "gpfs", "pvfs2", "orangefs"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.juicefs", "fuse.smbnetfs"),
        # object stores in the shape of folders
        *("fuse.s3fs", "fuse.mount-s3", "fuse.gcsfuse", "fuse.rclone", "fuse.goofys"),
        *("fuse.geesefs", "fuse.blobfuse", "fuse.blobfuse2"),
        # folders of the host, shown to a virtual machine or container
        *("9p", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "drvfs", "fakeowner"),
        *("fuse.vmhgfs-fuse", "fuse.osxfs", "fuse.grpcfuse"),
    }
)
"""Kinds that are known not to carry the log."""
ANY = "filesystem=any"
"""After `?` in a URL, it says that the log works there. In some sandboxes every folder is
`9p`, with one kernel for all users: the log works, but the name of the kind does not show it."""

_escaped = re.compile(r"\\([0-7]{3})")


def filesystem_of(path: Path) -> str:
    """The kind of file system that `path` is or would be on (`ext4`, `nfs4`); "" if unknown."""
    try:
        mounts = MOUNTS.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""  # not Linux, or /proc is not there
    return kind_at(path.resolve(), mounts)


def kind_at(path: Path, mounts: str) -> str:
    """The kind of file system at an absolute `path` without links, by the text of `mounts`."""
    found, depth = "", -1
    for line in mounts.splitlines():
        place, _, source = line.partition(" - ")
        where, kind = place.split()[4:5], source.split()[:1]
        if not where or not kind:
            continue
        point = Path(_escaped.sub(lambda code: chr(int(code[1], 8)), where[0]))
        # Of two mounts at one place the later one covers the other.
        if path.is_relative_to(point) and len(point.parts) >= depth:
            found, depth = kind[0], len(point.parts)
    return found


def refuse_remote(path: Path) -> None:
    """Raise InvalidInput if SQLite's log does not work where `path` is or would be."""
    kind = filesystem_of(path)
    if kind in REMOTE:
        raise InvalidInput(
            f"{path} is on a file system of kind {kind}, where SQLite's locks and log do not "
            "work: jobs would be lost or the file damaged. Put it on a local disk (of a container: "
            "a volume that is a local folder), or use PostgreSQL. If only one kernel ever opens "
            f"it, and you are sure of that, add ?{ANY} to the URL"
        )


MAX_LINKS = 40
"""As many as Linux follows on the way to one file."""


def refuse_planted(path: Path) -> None:
    """Raise InvalidInput if `path` leads through a link that a stranger may have put there."""
    waiting, followed = [path], 0
    while waiting and followed < MAX_LINKS:
        way = waiting.pop()
        for step in (*reversed(way.parents), way):
            if not _is_link(step):
                continue
            followed += 1
            if is_planted(step.lstat(), step.parent.stat(), os.geteuid()):
                raise InvalidInput(
                    f"{path} leads through {step}, a link that another user made in a folder where "
                    "every user may make files: put the database into a folder that is yours"
                )
            waiting.append(step.parent / step.readlink())


def _is_link(path: Path) -> bool:
    """Whether there is a link. Path.is_symlink says no for every OSError, from Python 3.14 on."""
    try:
        return stat.S_ISLNK(path.lstat().st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise


def is_planted(link: os.stat_result, folder: os.stat_result, user: int) -> bool:
    """Whether a link is neither the user's nor the folder's owner's, where all may make files."""
    open_to_all = folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH
    return bool(open_to_all) and link.st_uid not in (user, folder.st_uid)


# --- connections ----------------------------------------------------------------------------------

T = TypeVar("T")

BUSY_TIMEOUT_MS = 10_000
HELD = (
    "{} holds the file. If it is yours, end it first, or do this in it: `app.within(connection)` "
    "for jobs, `context.step_within` for steps"
)
READ_ONLY = (
    "this process may not write the file: give its user the right to write it, its folder, and the "
    "files -wal and -shm beside it"
)
OWN_SECONDS = 0.7
OWN_LOOKS = 150
"""How long, and for how many looks at least, a writer waits for another connection of this
process. If that is the caller's, it cannot end meanwhile. A busy machine gets longer."""
OWNER_SECONDS = 0.1
"""Pause between two questions who holds the file."""
WRITER_CACHE_KIB = 65_536
"""Memory for pages of the file. A connection that only reads has the 2 MB that SQLite gives it,
because each commit of another connection empties its cache."""
LOG_BYTES = 64 * 1024 * 1024
"""Size to which a log that grew during a long read is cut, once it can start from its beginning."""
CHECKPOINT_PAGES = 2_000
PAGES_PER_COMMIT = 6
CHANGES_PER_PAGE = 8
"""What a commit adds to the log, roughly. How much of the log is new cannot be found out: its size
does not show it, and to open one of its files would drop the locks that SQLite has on it."""

LOOK_SECONDS = 0.0003
"""The first pauses between the looks of a writer whether the previous one has finished."""
LOOK_SHARE = 1 / 64
MAX_LOOK_SECONDS = 0.002
"""Later pauses are this share of the time that it has waited, up to so long. Each look takes 35 µs
of a core, perhaps from the one that is writing; where many wait, one looks soon after the end."""
AWAY = (sqlite3.Error, OSError, MemoryError)
"""What says that the database does not answer. An OSError is of a look at its files; where SQLite
gets no memory, Python raises MemoryError."""
OLDEST_SQLITE = (3, 38, 0)
MEMORY = Path(":memory:")


def path_of(url: str) -> Path:
    """The file of a `sqlite:///relative.db` or `sqlite:////absolute.db` URL."""
    path, _, option = url.removeprefix("sqlite:///").partition("?")
    is_path = path != url and path not in {"", ":memory:"} and "\0" not in path
    if not is_path or option not in {"", ANY}:
        raise InvalidInput(
            f"{without_password(url)!r} is not the URL of a SQLite file; write "
            "sqlite:///jobs.db or sqlite:////var/lib/jobs.db"
        )
    return Path(path).absolute()


def usable_path_of(url: str) -> Path:
    """Return the same, after a check of the file system and of links on the way.

    Raises StoreUnavailable if a folder on the way cannot be entered.
    """
    path = path_of(url)
    try:
        refuse_planted(path)
        if not url.endswith(f"?{ANY}"):
            refuse_remote(path)
    except OSError as error:
        said = f"the database {path} cannot be used: {error.strerror}"
        if error.errno == errno.ENAMETOOLONG:  # nor will it be usable later
            raise InvalidInput(f"{said}; choose a shorter path") from error
        advice = "this user must be able to enter each folder on the way"
        raise StoreUnavailable(f"{said}; {advice}") from error
    return path


def escaped(text: bytes) -> str:
    """Read a text that raw SQL may have written, with an escape for each byte that is not UTF-8.

    The escape has two backslashes: within JSON in JSON, as claims are read, that is no JSON inside.
    """
    return text.decode("utf-8", "tenure.escaped")


def _escape(error: Any) -> tuple[str, int]:
    other = error.object[error.start : error.end]
    return "".join(f"\\\\x{byte:02x}" for byte in other), error.end


codecs.register_error("tenure.escaped", _escape)


class Connection(sqlite3.Connection):
    """A connection that is known to be open, for the children of a fork."""

    path: Path | None = None
    is_lent = False
    """Whether callers have it: to wait for its transaction may be in vain."""

    def close(self) -> None:
        super().close()
        _open.pop(self, None)


_open: weakref.WeakKeyDictionary[Connection, tuple[int, int]] = weakref.WeakKeyDictionary()
_inherited: set[tuple[int, int]] = set()
"""Files that were open when this process was forked. SQLite takes the parent's locks on them for
its own and locks nothing: the process that closes the file last deletes the log under the child."""


def _inherit() -> None:
    _inherited.update(_open.values())


forks.in_child(_inherit)


def connect(path: Path) -> Connection:
    """A connection with every setting that the promises rest on.

    Raises StoreUnavailable if the file was open when this process was forked off.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise InvalidInput(f"SQLite {sqlite3.sqlite_version} is too old; 3.38 or newer is needed")
    real = os.path.realpath(path)
    _keep_log_of_lost(real)
    # A new file is its owner's only from its first moment; SQLite would make it by the umask.
    with suppress(OSError):
        os.close(os.open(real, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    file = identity(path)
    if file in _inherited:
        raise StoreUnavailable(
            f"{path} was open when this process was forked, and SQLite does not lock it here: "
            f"close it before the fork, or open it only after it; {forks.ADVICE}"
        )
    connection = sqlite3.connect(
        path,
        factory=Connection,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
        timeout=BUSY_TIMEOUT_MS / 1000,
    )
    connection.path = path
    if file is not None:
        _open[connection] = file
    try:
        # While another starter is writing its first transaction, SQLite refuses that at once.
        when_free(lambda: connection.execute("PRAGMA journal_mode = WAL"), 0.01)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        if resets_wal_unsafely(sqlite3.sqlite_version_info):
            connection.execute("PRAGMA wal_autocheckpoint = 0")
    except BaseException:
        connection.close()  # a kept error would keep the file open
        raise
    return connection


def _keep_log_of_lost(path: str) -> None:
    """Raise sqlite3.OperationalError if a log is there and its database is not, or is empty.

    SQLite would delete the log, and with it every commit that has not been copied: of a small
    database all.
    """
    if is_log_alone(path):
        raise sqlite3.OperationalError(
            f"{path} is missing or empty, but its log {path}-wal is there, with jobs that are "
            "nowhere else: put the database back beside it, or delete the log to begin a new one"
        )


def is_log_alone(path: str) -> bool:
    """The log is looked at first, since a new file has content before its log has."""
    return _has_content(f"{path}-wal") and not _has_content(path)


def _has_content(name: str) -> bool:
    with suppress(FileNotFoundError, NotADirectoryError):
        return os.stat(name).st_size > 0  # noqa: PTH116 - as in `identity`
    return False


def connect_writer(path: Path) -> Connection:
    """A connection for `begin_writing` and `when_free`."""
    connection = connect(path)
    connection.execute("PRAGMA busy_timeout = 0")
    connection.execute(f"PRAGMA cache_size = {-WRITER_CACHE_KIB}")
    # What a statement or savepoint may have to undo is kept in memory, not in a separate file;
    # the log, which a crash is undone by, stays where it is.
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.text_factory = escaped  # most statements here read one text, so it costs little
    return connection


def begin_writing(connection: sqlite3.Connection) -> None:
    """Begin a write transaction, waiting for another writer up to the busy timeout."""
    path = getattr(connection, "path", None)
    when_free(lambda: connection.execute("BEGIN IMMEDIATE"), path=path)


def when_free(
    act: Callable[[], T],
    pause: float = LOOK_SECONDS,
    patience: float | None = None,
    path: Path | None = None,
) -> T:
    """Do what another writer may hold up; try again after `pause` seconds or more until it is late.

    `patience` is how many seconds that takes, by default the busy timeout; less if this process
    itself holds the file at `path`.

    SQLite's own waiting sleeps longer and longer: where workers take turns of some milliseconds
    each, it finds the pauses between them by luck only.
    """
    began = time.monotonic()
    give_up = began + (BUSY_TIMEOUT_MS / 1000 if patience is None else patience)
    ask_at, looks, own_since = began + OWNER_SECONDS, 0, 0.0
    while True:
        try:
            return act()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            now = time.monotonic()
            if path is not None and now >= ask_at:
                ask_at = now + OWNER_SECONDS
                ours = (ref for ref in _open.keyrefs() if not getattr(ref(), "is_lent", False))
                if not is_held_here(path, ours):
                    looks, own_since = 0, 0.0
                elif not own_since:
                    own_since = now
            looks += 1
            itself = own_since and now - own_since >= OWN_SECONDS and looks >= OWN_LOOKS
            if itself or now >= give_up:
                who = "a write transaction of this program" if itself else "another writer"
                error.args = (f"{error}: {HELD.format(who)}",)
                error.held_here = bool(itself)  # type: ignore[attr-defined]
                raise
            time.sleep(max(pause, min((now - began) * LOOK_SHARE, MAX_LOOK_SECONDS)))


def resets_wal_unsafely(version: tuple[int, int, int]) -> bool:
    """Whether this SQLite can lose a commit made while another connection checkpoints.

    Fixed in 3.51.3, and in the maintenance releases 3.50.7 and 3.44.6. On older libraries Tenure
    checkpoints only while no other connection can write (`Checkpoints`).
    """
    branch = version[:2]
    if branch == (3, 50):
        return version < (3, 50, 7)
    if branch == (3, 44):
        return version < (3, 44, 6)
    return version < (3, 51, 3)


def to_time(millis: int) -> datetime:
    return EPOCH + timedelta(0, 0, 0, millis)  # a plain time, while freezegun replaces the class


def to_millis(time: datetime) -> int:
    return round(time.timestamp() * 1000)


def kept(time: datetime) -> datetime:
    """A time as it will be read again: to the millisecond."""
    return to_time(to_millis(time))


NOW = "(SELECT at FROM tenure_now)"
"""The store's clock, in milliseconds."""


class Checkpoints:
    """Copies the log into the database, on libraries where SQLite must not do it automatically.

    A second connection does so while the first holds the right to write: no commit anywhere can
    fall into the checkpoint. It waits for no reader, takes what readers leave to it, and the log is
    written again from its start, in place: a log that is truncated has to grow with each commit,
    which took twice as long to bring to the disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._needed = resets_wal_unsafely(sqlite3.sqlite_version_info)
        self._other: sqlite3.Connection | None = None
        self._commits = 0
        self._changes = 0
        self._due = False

    def make_due(self) -> None:
        """Checkpoint at the next `run`, whatever the library.

        The log could not grow: once it has been copied it is written again from its start, and
        what needs no more room than that, such as pruning, still works with the disk full.
        """
        self._due = True

    def note(self, commits: int) -> None:
        """Count commits of another connection."""
        self._commits += commits

    def run(self, connection: sqlite3.Connection) -> None:
        """Checkpoint if about enough was written on `connection`; called after each commit."""
        if not self._is_due(connection):
            return
        if self._other is None:
            self._other = connect(self._path)
        begin_writing(connection)
        try:
            failpoints.hit("checkpoint.before")
            self._other.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            failpoints.hit("checkpoint.after")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            return  # it stays due; a write that finds no room says so
        finally:
            connection.execute("ROLLBACK")
        self._commits = 0
        self._changes = connection.total_changes
        self._due = False

    def _is_due(self, connection: sqlite3.Connection) -> bool:
        if self._due or not self._needed:
            return self._due
        self._commits += 1
        changes = connection.total_changes - self._changes
        return self._commits * PAGES_PER_COMMIT + changes // CHANGES_PER_PAGE >= CHECKPOINT_PAGES

    def close(self) -> None:
        """Close the second connection."""
        if self._other is not None:
            self._other.close()
            self._other = None
        self._commits = self._changes = 0


class Files:
    """The files of one connection: the database, its log, and the log's index.

    A database that is moved or replaced under a running process, or whose log is deleted, still
    works for processes that have it open: they write to files that no other process can find, and
    what they acknowledge is lost with them. SQLite does not notice in WAL mode. So the names are
    looked at before each write.
    """

    def __init__(self, path: Path) -> None:
        """To be made when the connection has been used: before that there may be no log."""
        self._names = [f"{path}{ending}" for ending in ("", "-wal", "-shm")]
        self._known = [identity(name) for name in self._names]

    def check(self) -> None:
        """Raise sqlite3.OperationalError if a name now means another file, or none."""
        for name, known in zip(self._names, self._known, strict=True):
            if identity(name) != known:
                raise sqlite3.OperationalError(
                    f"{name} was replaced, moved or deleted while it was open. Nothing more is "
                    "written, since no process would find it: stop every process that uses this "
                    "database, put its files in order, and start them again"
                )


def identity(name: str | Path) -> tuple[int, int] | None:
    """Return what identifies a file whatever its name, None if there is none."""
    try:
        found = os.stat(name)  # noqa: PTH116 - on the way of every write: half as long as Path's
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
