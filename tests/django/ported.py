"""Django's own tests of tasks, with nothing changed but the paths of the backends.

Those of its two backends are run with `backends.py`: on Tenure's backend, with what they have
besides. Test cases get a database, which Django's backends do not need.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

OURS = "tests.django.backends"
REPLACED = (
    (r"\bSimpleTestCase\b", "TransactionTestCase"),
    (r"django\.tasks\.backends\.dummy\.DummyBackend", f"{OURS}.Listed"),
    (r"django\.tasks\.backends\.immediate\.ImmediateBackend", f"{OURS}.AtOnce"),
    (
        r"django\.tasks\.backends\.dummy import DummyBackend",
        f"{OURS} import Listed as DummyBackend",
    ),
    (
        r"django\.tasks\.backends\.immediate import ImmediateBackend",
        f"{OURS} import AtOnce as ImmediateBackend",
    ),
)
IN_BACKPORT = (
    (r"\bdjango\.tasks\b", "django_tasks"),
    (r"\bInvalidTask(Backend)?\b", r"InvalidTask\1Error"),
)

NO_LIST = "it changes a result in the list in memory, and expects to read that back"
CAN = "Tenure's backend can do what the test expects to be refused"
NOT_OURS: Mapping[str, str] = {
    "DummyBackendTestCase.test_refresh_result": NO_LIST,
    "DummyBackendTestCase.test_refresh_result_async": NO_LIST,
    "TaskTestCase.test_refresh_result": NO_LIST,
    "ImmediateBackendTestCase.test_cannot_get_result": CAN,
    "ImmediateBackendTestCase.test_cannot_refresh_result": CAN,
    "ImmediateBackendTestCase.test_cannot_pass_run_after": CAN,
}
"""Tests that do not apply, and why. They have to fail, or they belong to the others."""
NOT_IN_BACKPORT = {
    "DummyBackendTestCase.test_validate_disallowed_async_task": "it writes the message otherwise"
}
NOT_COPIED = {"test_custom_backend.py"}
"""It has backends of its own, and nothing of ours is used."""


def port(folder: Path, to: Path, *, backport: bool) -> None:
    """Copy the tests as the package `tasks`, which is what they call it."""
    package = to / "tasks"
    package.mkdir()
    for path in folder.glob("*.py"):
        if path.name in NOT_COPIED:
            continue
        text = path.read_text("utf-8")
        for pattern, other in (*REPLACED, *IN_BACKPORT * backport):
            text = re.sub(pattern, other, text)
        (package / path.name).write_text(text, "utf-8")
