"""Applications that were open when their process was forked, as gunicorn --preload does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tenure import Tenure
from tests.support.cli import clean_environment
from tests.support.programs import Program
from tests.support.waiting import WAIT_SECONDS
from tests.support.workers import wait_until_completed

pytestmark = [
    pytest.mark.scenario(53),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork"),
]
ROOT = Path(__file__).parents[2]

FORKING = """
import ctypes, os, sys, warnings
from tenure import StoreUnavailable, Tenure

warnings.simplefilter("ignore")  # newer Pythons warn about forking beside threads: the point here
fork = os.fork if sys.argv[2] == "python" else ctypes.PyDLL(None).fork
app = Tenure(sys.argv[1])
app.enqueue("parent")

def in_child(*, closed):
    if closed:
        app.close()
    copy = fork()
    if copy:
        return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
    try:
        for _ in range(3):
            app.get(app.enqueue("child").id)
        app.close()
    except StoreUnavailable as error:
        said = ("def pre_fork(server, worker): app.close()", "lazy-apps = true")
        os._exit(3 if all(one in str(error) for one in said) else 4)
    os._exit(0)

print(in_child(closed=False))
for _ in range(3):
    app.enqueue("parent")  # on the same connections, which the child has left alone
print(in_child(closed=True))
print(len(app.find(type="parent")), len(app.verify()))
"""


@pytest.mark.each_engine
@pytest.mark.parametrize("forked_by", ["python", "c"])
def test_a_child_of_a_fork_opens_postgresql_again(database_url: str, forked_by: str) -> None:
    """On SQLite it is refused, with the hook that closes the file before the fork.

    uWSGI forks in C and calls no function that Python has for forks.
    """
    command = [sys.executable, "-c", FORKING, database_url, forked_by]
    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60
    )
    refused = "3" if database_url.startswith("sqlite:") else "0"
    assert done.stderr == ""
    assert done.stdout.split() == [refused, "0", "4", "0"]


ASKING = """
import os, sys, threading, warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from tenure.client import Client

warnings.simplefilter("ignore")
ports = []

class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # which keeps connections

    def do_GET(self):
        ports.append(self.client_address[1])
        body = b'{"total": 0, "by_status": {}, "counts": []}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
client, closed = (Client(f"http://127.0.0.1:{server.server_port}") for _ in range(2))
closed.close()

def asked_by_child():
    if not (child := os.fork()):
        client.stats()
        client.stats()
        client.close()
        os._exit(0 if closed._to.http.is_closed else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

client.stats()
print(asked_by_child())
client.stats()
first, second, third, last = ports
print(first == last, second == third, first == second)
"""


def test_a_client_in_a_child_of_a_fork_has_other_connections() -> None:
    """Each got answers to requests of the other."""
    done = subprocess.run(
        [sys.executable, "-c", ASKING], cwd=ROOT, check=False, capture_output=True, timeout=60
    )
    assert done.stderr == b""
    assert done.stdout.split() == [b"0", b"True", b"True", b"False"]


IN_HANDLERS = """
import os, signal, time
from tenure import Tenure

app = Tenure()


def exit_code_of_a_copy_that_is_asked_to_end():
    copy = os.fork()
    if not copy:
        time.sleep(20)
        os._exit(0)
    os.kill(copy, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])


@app.job
def in_a_thread():
    return exit_code_of_a_copy_that_is_asked_to_end()


@app.job
def leave_a_copy():
    copy = os.fork()
    if not copy:
        time.sleep(600)
        os._exit(0)
    return copy


@app.job(process=True)
def in_a_child():
    return exit_code_of_a_copy_that_is_asked_to_end()
"""


@pytest.mark.parametrize("command", [["worker"], ["serve", "--port", "0"]], ids=["worker", "serve"])
def test_what_a_handler_forks_off_ends_at_a_signal(
    app: Tenure, tmp_path: Path, command: list[str]
) -> None:
    """It had the worker's answer to SIGTERM: a pool of multiprocessing waited for it for ever."""
    (tmp_path / "forking.py").write_text(IN_HANDLERS)
    process = Program(
        [sys.executable, "-m", "tenure", *command, "--app", "forking:app"],
        cwd=tmp_path,
        env=clean_environment(TENURE_DATABASE=app.database),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for kind in ("in_a_thread", "in_a_child"):
            ended = wait_until_completed(app, app.enqueue(kind))
            assert ended.result == -signal.SIGTERM
    finally:
        process.terminate()
        assert process.wait(WAIT_SECONDS) == 0


@pytest.mark.parametrize(
    "command", [["worker", "--health"], ["serve", "--port"]], ids=["worker", "serve"]
)
def test_what_a_handler_leaves_behind_does_not_keep_the_port(
    app: Tenure, tmp_path: Path, command: list[str]
) -> None:
    """The process that a supervisor started next could not listen, and ended, again and again."""
    (tmp_path / "forking.py").write_text(IN_HANDLERS)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    process = Program(
        [sys.executable, "-m", "tenure", *command, str(address[1]), "--app", "forking:app"],
        cwd=tmp_path,
        env=clean_environment(TENURE_DATABASE=app.database),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        copy = wait_until_completed(app, app.enqueue("leave_a_copy")).result
    finally:
        process.terminate()
        assert process.wait(WAIT_SECONDS) == 0
    try:
        socket.create_server(address).close()
    finally:
        os.kill(copy, signal.SIGKILL)
