"""How long what an application opens stays open: until a fork, or as long as it is in use."""

from __future__ import annotations

import os
import threading
from _thread import start_new_thread
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakSet, finalize

from tenure import forks

if TYPE_CHECKING:
    from tenure.app.core import Core
    from tenure.store import Store

_cores: WeakSet[Core] = WeakSet()
_ends: WeakKeyDictionary[Core, finalize[[Store, int], Core]] = WeakKeyDictionary()
_of_parent: list[object] = []
"""Kept for ever: if one were collected in the child, it might speak on its parent's connections."""


def watch(core: Core) -> None:
    """Let a core forget its parent in each child of a fork."""
    _cores.add(core)


def tied(core: Core, store: Store) -> Store:
    """Return a store that a core opens. It is closed when the core is collected.

    Otherwise its threads would keep it and its connections as long as the process runs.
    """
    untie(core)
    _ends[core] = end = finalize(core, _close, store, forks.pid)
    end.atexit = False
    return store


def untie(core: Core) -> None:
    """Forget the store of a core that is closed in order."""
    if (end := _ends.pop(core, None)) is not None:
        end.detach()


def _close(store: Store, pid: int) -> None:
    """Close on another thread, because the garbage collector may call this in the middle of any.

    `Thread.start` waits for its thread, which waits for a lock that this one may have.
    """
    closing = threading.Thread(target=_end, args=[store, pid], name="tenure-close", daemon=True)
    with suppress(RuntimeError):  # the interpreter ends, or a limit of the machine
        start_new_thread(closing.start, ())


def _end(store: Store, pid: int) -> None:
    if os.getpid() == pid:
        store.close()
    else:
        _of_parent.append(store)


def _begin() -> None:
    _of_parent.extend(core.forget_parent() for core in _cores)


forks.in_child(_begin)
