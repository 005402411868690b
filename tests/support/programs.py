"""Start Python programs without their imports: forked from a process that has made them already.

`Program` is a `subprocess.Popen`, and `run` is `subprocess.run`. The first of them starts a process
that imports Tenure. It forks a copy of itself for each module, file or code that this Python is
asked to run. The copy is a process of its own and a child of this one. It has the environment, the
folder and the streams that were asked for, and is killed, stopped and waited for like any other. It
costs 5 ms; a new interpreter that imports Tenure costs nearly half a second.

Three things differ from a new interpreter: modules of Tenure are imported already, `/proc` shows
the command and the environment of the first process, and what modules still hold at the end is not
destroyed, but for that of `__main__`. Tests of imports, of the start or of these use `subprocess`.
`Program` does so too where there is no Linux, and for other commands.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, AnyStr

ROOT = Path(__file__).parents[2]
TENURE = str(Path(sys.executable).with_name("tenure"))
MODULES = (
    *("tenure.cli", "tenure.server", "tenure.worker.worker", "tenure.worker.processes"),
    *("tenure.store.postgres.reader", "tenure.store.postgres.schema", "psycopg"),
    *("tenure.store.postgres.writer", "tenure.store.sqlite.doctor", "tenure.store.sqlite.schema"),
    *("tenure.store.sqlite.reader", "importlib.readers", "encodings.idna"),
    *("uvicorn.protocols.http.auto", "uvicorn.lifespan.off", "uvloop"),
)
PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
MAX_REQUEST_BYTES = 200_000  # a packet to a socket holds no more
OF_THE_START = ("PYTHON", "COVERAGE_PROCESS", "LD_")
"""Variables that begin so are read when a process starts; all but these, which `become` obeys."""
OBEYED = ("PYTHONPATH", "PYTHONUNBUFFERED")


class Program(subprocess.Popen[AnyStr]):
    """A process. A Python program is forked off if an interpreter of its own would do the same."""

    def _execute_child(  # its arguments are the same from Python 3.11 to 3.14
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any,
        cwd: Any, env: Any, startupinfo: Any, creationflags: Any, shell: Any, p2cread: int,
        p2cwrite: int, c2pread: int, c2pwrite: int, errread: int, errwrite: int, *more: Any,
    ) -> None:  # fmt: skip
        environment = dict(os.environ if env is None else env)
        request = {
            "command": [os.fspath(each) for each in args],
            "folder": os.fspath(cwd or Path.cwd()),
            "environment": environment,
            "session": more[5],
            "terminal": preexec_fn is take_the_terminal,
        }
        pipes = (p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)
        forked = _can_be_forked(request) and (not preexec_fn or request["terminal"])
        if executable or pass_fds or shell or not forked:
            given = (args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo)
            super()._execute_child(*given, creationflags, shell, *pipes, *more)  # type: ignore[misc]
            return
        streams = (p2cread, c2pwrite, errwrite)
        used = [given if given != -1 else own for own, given in enumerate(streams)]
        self.pid = _origin().fork(request, used)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    check: bool = False,
    capture_output: bool = False,
    input: str | bytes | None = None,
    timeout: float | None = None,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end, as `subprocess.run` does."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Program(command, **options) as process:
        try:
            output, errors = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


def take_the_terminal() -> None:
    """Let Ctrl-C end this program, as if it had been started at its terminal: a `preexec_fn`.

    The process that runs the tests may ignore SIGINT: shells do that for background jobs.
    """
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _can_be_forked(request: Mapping[str, Any]) -> bool:
    command, environment = request["command"], request["environment"]
    return (
        sys.platform == "linux"
        and command[0] == sys.executable
        and (command[1] in ("-m", "-c", TENURE) or command[1].endswith(".py"))
        and _of_the_start(environment) == _of_the_start(os.environ)
        and len(json.dumps(request)) < MAX_REQUEST_BYTES
    )


def _of_the_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(OF_THE_START) and name not in OBEYED
    }


class _Origin:
    """The process that forks, seen from here; it ends with this one."""

    def __init__(self) -> None:
        # What is forked by a child of a child becomes a child of this process.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._link, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(other.fileno())],
                cwd=ROOT,
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the tests
            )
        atexit.register(self._end)

    def fork(self, request: Mapping[str, Any], streams: Sequence[int]) -> int:
        """Fork a program; its process id."""
        with self._lock:
            socket.send_fds(self._link, [json.dumps(request).encode()], list(streams))
            answer = self._link.recv(20)
        if not answer:
            raise RuntimeError(f"{__name__} could not import what it has to: see its output")
        return int(answer)

    def _end(self) -> None:
        self._link.close()
        self._process.wait()


@functools.cache
def _origin() -> _Origin:
    return _Origin()


# --- the process that forks -----------------------------------------------------------------------


def serve(link: socket.socket) -> None:
    """Fork for each request; returns at the end."""
    for name in MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    while True:
        message, streams, _, _ = socket.recv_fds(link, MAX_REQUEST_BYTES, 3)
        if not message:
            return
        told, tell = os.pipe()
        between = os.fork()
        if between == 0:
            parent, copy = os.getpid(), os.fork()
            if copy == 0:
                while os.getppid() == parent:
                    time.sleep(0.0001)
                link.detach()  # at its end it would close a file of the program with its number
                code = become(json.loads(message), streams)
                leave(code)
                sys.exit(code)
            os.write(tell, str(copy).encode())
            os._exit(0)  # the copy has no parent now, and the process of the tests takes it
        os.waitpid(between, 0)
        link.send(os.read(told, 20))
        for descriptor in (told, tell, *streams):
            os.close(descriptor)


def become(request: Mapping[str, Any], streams: Sequence[int]) -> Any:
    """Be the process that was asked for, run its program, and return what it exits with."""
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.closerange(3, 1_024)
    if request["session"]:
        os.setsid()
    if request["terminal"]:
        take_the_terminal()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    open_streams()
    failpoints = sys.modules["tenure.failpoints"]
    failpoints.ARMED = failpoints.read(os.environ.get(failpoints.ENVIRONMENT, ""))
    sys.orig_argv = request["command"]
    try:
        run_program(request["command"][1:])
    except SystemExit as ended:
        return ended.code
    return 0


def leave(code: Any) -> None:
    """End with what a program exits with; returns if an interpreter has more to do than this.

    At its end, an interpreter takes its modules apart. Here that would copy most of the memory that
    is shared with the process that forks: 30 ms of processor, where many programs take 5.
    """
    if not isinstance(code, int | None):  # it is printed
        return
    for close in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            close()
        except BaseException:
            traceback.print_exc()
    if threading.active_count() == 1:  # others may still need what the program has
        vars(sys.modules["__main__"]).clear()
        gc.collect()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except (OSError, ValueError):  # nobody reads, or it is closed
        return
    os._exit(code or 0)


def open_streams() -> None:
    """Open the standard streams as an interpreter does."""
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    if os.environ.get("PYTHONUNBUFFERED"):
        sys.stdout.reconfigure(line_buffering=True)
    sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115


def run_program(arguments: list[str]) -> None:
    """Run what `python` runs, given these arguments."""
    first, *rest = arguments
    main = sys.modules["__main__"] = ModuleType("__main__")
    folder = {"-m": str(Path.cwd()), "-c": ""}.get(first, str(Path(first).absolute().parent))
    sys.path[:1] = [folder, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)  # noqa: S102
    else:
        sys.argv, main.__file__ = arguments, str(Path(first).absolute())
        exec(compile(Path(first).read_bytes(), first, "exec"), main.__dict__)  # noqa: S102


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
