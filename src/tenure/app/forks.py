"""What happens to open applications in the child of a fork."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

_watched: list[weakref.WeakMethod[Callable[[], object]]] = []
_of_parent: list[object] = []
"""Kept for ever: if one were collected in the child, it might speak on its parent's connections."""


def watch(forget_parent: Callable[[], object]) -> None:
    """Call a method in each forked child, and keep what it returns."""
    _watched[:] = [method for method in _watched if method() is not None]
    _watched.append(weakref.WeakMethod(forget_parent))


def _begin_child() -> None:
    living = [method() for method in _watched]
    _of_parent.extend(forget_parent() for forget_parent in living if forget_parent)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)
