"""Applications that were open when their process was forked, as gunicorn --preload does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.scenario(53),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork"),
]
ROOT = Path(__file__).parents[2]

FORKING = """
import os, sys, warnings
from tenure import StoreUnavailable, Tenure

warnings.simplefilter("ignore")  # newer Pythons warn about forking beside threads: the point here
app = Tenure(sys.argv[1])
app.enqueue("parent")

def in_child(*, closed):
    if closed:
        app.close()
    copy = os.fork()
    if copy:
        return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
    try:
        for _ in range(3):
            app.get(app.enqueue("child").id)
        app.close()
    except StoreUnavailable as error:
        os._exit(3 if "def pre_fork(server, worker): app.close()" in str(error) else 4)
    os._exit(0)

print(in_child(closed=False))
for _ in range(3):
    app.enqueue("parent")  # on the same connections, which the child has left alone
print(in_child(closed=True))
print(len(app.find(type="parent")), len(app.verify()))
"""


@pytest.mark.each_engine
def test_a_child_of_a_fork_opens_postgresql_again(database_url: str) -> None:
    """On SQLite it is refused, with the hook that closes the file before the fork."""
    command = [sys.executable, "-c", FORKING, database_url]
    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60
    )
    refused = "3" if database_url.startswith("sqlite:") else "0"
    assert done.stderr == ""
    assert done.stdout.split() == [refused, "0", "4", "0"]
