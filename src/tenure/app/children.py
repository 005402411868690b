"""What happens to open applications in the child of a fork."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakSet

from tenure import forks

if TYPE_CHECKING:
    from tenure.app.core import Core

_cores: WeakSet[Core] = WeakSet()
_of_parent: list[object] = []
"""Kept for ever: if one were collected in the child, it might speak on its parent's connections."""


def watch(core: Core) -> None:
    """Let a core forget its parent in each child of a fork."""
    _cores.add(core)


def _begin() -> None:
    _of_parent.extend(core.forget_parent() for core in _cores)


forks.in_child(_begin)
