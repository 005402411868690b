"""A disk under SQLite that remembers what is written, and fails when it is told to.

It is a VFS, SQLite's layer between pages and files, put between the SQLite library that Python's
own `sqlite3` uses and that library's real VFS. So the store under test is the real one, statement
for statement, on the very library it runs on; only the calls that write, sync, truncate, delete,
open or map come through here. It stays in place until the process ends: use it in a child process.

What it cannot show: a disk that says "synced" and lies, and what a file system does to the names of
files at a power cut (here a file that was made exists).
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Sequence
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

OK, FULL = 0, 13
FAILURES = {
    "write": 10 | (3 << 8),
    "sync": 10 | (4 << 8),
    "truncate": 10 | (6 << 8),
    "delete": 10 | (10 << 8),
    "map": 10 | (21 << 8),
    "open": 14,
}
"""What a VFS answers to a call of each kind when the disk fails: SQLITE_IOERR_…, CANTOPEN."""


class Call(NamedTuple):
    """A call that changed a file, or made its changes last."""

    file: str  # its name without the folder
    kind: str
    offset: int = 0
    data: bytes = b""


_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_DELETE = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_CLOSE = CFUNCTYPE(c_int, c_void_p)
_WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
_MAP = CFUNCTYPE(c_int, c_void_p, c_int, c_int, c_int, c_void_p)


class _Vfs(ctypes.Structure):
    """sqlite3_vfs, version 3; what is passed through is a plain pointer."""

    _fields_ = [
        *((name, c_int) for name in ("iVersion", "szOsFile", "mxPathname")),
        ("pNext", c_void_p),
        ("zName", c_char_p),
        ("pAppData", c_void_p),
        ("xOpen", c_void_p),
        ("xDelete", c_void_p),
        ("others", c_void_p * 14),
    ]


class _Methods(ctypes.Structure):
    """sqlite3_io_methods, version 3."""

    _fields_ = [
        ("iVersion", c_int),
        *((name, c_void_p) for name in ("xClose", "xRead", "xWrite", "xTruncate", "xSync")),
        ("others", c_void_p * 7),
        ("xShmMap", c_void_p),
        ("more", c_void_p * 5),
    ]


_in_place: list[Disk] = []  # SQLite goes on calling them


def available() -> bool:
    """Whether Python's SQLite lets itself be reached: not where it is linked in and hidden."""
    return hasattr(_library(), "sqlite3_vfs_register")


def _library() -> Any:
    # Through the extension, so that it is the library it uses, not one of the same name.
    return ctypes.CDLL(importlib.import_module("_sqlite3").__file__)


class Disk:
    """The VFS of every SQLite connection that this process opens from now on."""

    def __init__(self, *, really_sync: bool = False, remember: bool = True) -> None:
        """Without `really_sync`, syncs are noted only, which is much faster."""
        self.calls: list[Call] = []
        self._really_sync = really_sync
        self._remember = remember
        self._fails: Sequence[str] = ()
        self._after = 0
        self._until_repaired = False
        self._answer: int | None = None
        self.failed = 0
        """How many calls have failed since `fail`."""
        self._names: dict[int, str] = {}
        self._kept: list[Any] = []  # what SQLite holds pointers to
        self._tables: dict[int, tuple[Any, dict[str, Any]]] = {}

        library = _library()
        library.sqlite3_vfs_find.restype = c_void_p
        base = library.sqlite3_vfs_find(None)
        vfs = _Vfs.from_buffer_copy(ctypes.string_at(base, ctypes.sizeof(_Vfs)))
        self._base = base
        self._base_open = _OPEN(vfs.xOpen)
        self._base_delete = _DELETE(vfs.xDelete)
        vfs.pNext, vfs.zName = None, b"tenure-test"
        vfs.xOpen = self._pointer(_OPEN(self._open))
        vfs.xDelete = self._pointer(_DELETE(self._delete))
        self._kept.append(vfs)
        assert library.sqlite3_vfs_register(ctypes.byref(vfs), 1) == OK
        _in_place.append(self)

    def fail(
        self, kinds: Sequence[str], after: int, *, for_good: bool = False, full: bool = False
    ) -> None:
        """Let the call after the next `after` calls of these kinds fail, or every one from there.

        `full`: by saying that the disk is full.
        """
        self._fails, self._after, self._until_repaired = kinds, after, for_good
        self._answer = FULL if full else None
        self.failed = 0

    def repair(self) -> None:
        """Nothing fails any more."""
        self._fails = ()

    def _fault(self, kind: str) -> int:
        if kind not in self._fails:
            return OK
        self._after -= 1
        if self._after >= 0:
            return OK
        self.failed += 1
        if not self._until_repaired:
            self._fails = ()
        return self._answer or FAILURES[kind]

    def _note(self, file: int | None, kind: str, offset: int = 0, data: bytes = b"") -> None:
        if self._remember and file in self._names:
            self.calls.append(Call(self._names[file], kind, offset, data))

    def _pointer(self, callback: Any) -> int | None:
        self._kept.append(callback)
        return ctypes.cast(callback, c_void_p).value

    def _open(self, vfs: int, name: int | None, file: int, flags: int, out: Any) -> int:
        if error := self._fault("open"):
            # SQLite does not close a file without methods.
            ctypes.cast(file, POINTER(c_void_p))[0] = None
            return error
        answer = self._base_open(self._base, name, file, flags, out)
        slot = ctypes.cast(file, POINTER(c_void_p))
        if answer == OK and name and slot[0]:
            self._names[file] = Path(ctypes.string_at(name).decode()).name
            slot[0] = ctypes.addressof(self._table(slot[0])[0])
        return answer

    def _table(self, methods: int) -> tuple[Any, dict[str, Any]]:
        """The methods of a file with ours in between; the same for every file of one kind."""
        if methods not in self._tables:
            table = _Methods.from_buffer_copy(ctypes.string_at(methods, ctypes.sizeof(_Methods)))
            base = {
                "close": _CLOSE(table.xClose),
                "write": _WRITE(table.xWrite),
                "truncate": _TRUNCATE(table.xTruncate),
                "sync": _SYNC(table.xSync),
                "map": _MAP(table.xShmMap) if table.xShmMap else None,  # only of databases
            }

            def close(file: int) -> int:
                self._names.pop(file, None)
                return int(base["close"](file))

            def write(file: int, data: int, size: int, offset: int) -> int:
                error = self._fault("write") or base["write"](file, data, size, offset)
                if not error and self._remember:
                    self._note(file, "write", offset, ctypes.string_at(data, size))
                return int(error)

            def truncate(file: int, size: int) -> int:
                error = self._fault("truncate") or base["truncate"](file, size)
                if not error:
                    self._note(file, "truncate", size)
                return int(error)

            def sync(file: int, flags: int) -> int:
                error = self._fault("sync") or (base["sync"](file, flags) * self._really_sync)
                if not error:
                    self._note(file, "sync")
                return int(error)

            def map_shared(file: int, region: int, size: int, extend: int, out: int) -> int:
                return self._fault("map") or int(base["map"](file, region, size, extend, out))

            table.xClose = self._pointer(_CLOSE(close))
            table.xWrite = self._pointer(_WRITE(write))
            table.xTruncate = self._pointer(_TRUNCATE(truncate))
            table.xSync = self._pointer(_SYNC(sync))
            if table.xShmMap:
                table.xShmMap = self._pointer(_MAP(map_shared))
            self._tables[methods] = table, base
        return self._tables[methods]

    def _delete(self, vfs: int, name: bytes, sync_folder: int) -> int:
        error = self._fault("delete") or self._base_delete(self._base, name, sync_folder)
        if not error and self._remember:
            self.calls.append(Call(Path(name.decode()).name, "delete"))
        return int(error)
