"""How child processes come to a project that is set up, and to the databases of a test."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from django.db import connections

WORKER = "tenure.contrib.django.worker"
TEST_DATABASES = "TENURE_DJANGO_TEST_DATABASES"
"""The variable of the environment that names the databases of a test to its child processes, as a
JSON object by alias. The settings, which a child reads, name those of the site."""


def import_worker_first() -> None:
    """Let the child processes of this one import `WORKER` before anything else."""
    sys.modules["__main__"].__spec__ = find_spec(WORKER)


@contextmanager
def for_test() -> Iterator[None]:
    """Let child processes that begin in the block use the databases of the test."""
    main = sys.modules["__main__"]
    spec = main.__spec__
    import_worker_first()
    names = {alias: str(connections[alias].settings_dict["NAME"]) for alias in connections}
    os.environ[TEST_DATABASES] = json.dumps(names)
    try:
        yield
    finally:
        del os.environ[TEST_DATABASES]
        main.__spec__ = spec


def test_databases() -> dict[str, str]:
    """Return what the test of which this is a child process calls its databases, by alias."""
    names: dict[str, str] = json.loads(os.environ.get(TEST_DATABASES, "{}"))
    return names
