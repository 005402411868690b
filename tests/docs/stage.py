"""Runs the examples of one page as a reader would: in one folder, from top to bottom.

- A block whose first line names a file (`# jobs.py`) becomes that file, or its end
  (`# at the end of settings.py`).
- Other `python` blocks are executed one after the other, as one program. What an `output` block
  after them shows is compared with what they printed.
- `console` blocks: the lines that begin with `$ ` are typed into one shell, `> ` goes on with the
  line above, and what stands below is compared with what the command prints; nothing shown is
  nothing compared. A command has to succeed unless the next one is `echo $?`.
- `tenure serve`, `tenure worker` (also after `flask --app NAME` or `python manage.py`), `runserver`
  of the latter, `make run` and `curl -N` go on in the background, unless an error is shown: until
  `^C` where that stands, else until the end of the page. They have to print what is shown, then may
  print more.
- A command that only reads is repeated until what it prints is right, for up to 20 seconds: jobs
  take the time they take.
- In what is shown, `…` stands for anything in a line, and for any lines when it has a line to
  itself. Any id stands for any id, any time for any time, and spaces count as one.
- `tenure` is forked off a process that has its imports (`typed.py`), unless the page has programs
  of its own.
- Ports 8080 and 8081 are exchanged for free ones and `postgresql://localhost/tenure` for a
  database of the tests. `make` runs in the root of the project.
- `<!-- not run: why -->` in front of a block leaves it out.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import IO

from tests.docs.pages import ROOT, Block, Page
from tests.support.programs import Program
from tests.support.typed import Typed

SECONDS = 60.0
"""How long it may take until something is shown."""
COMMAND_SECONDS = 60.0
"""How long one command, or one block, may take."""
MARK = "-- the command is through:"
POSTGRES = "postgresql://localhost/tenure"
PORTS = ("8080", "8081")
SCRIPTS = Path(sys.executable).parent
HELPERS = ".programs"
OUR_PLUGINS = ("schemathesis", "django", "hypothesispytest", "faker", "xdist", "xdist.looponfail")
"""Of pytest, which readers have not installed; to import them takes half of the time of a run."""
IS_LINUX = sys.platform == "linux"

_goes_on = re.compile(
    r"(\w+=\S+ )*((flask --app \w+ |python manage.py )?tenure (serve|worker(?! --help))\b"
    r"|python manage.py runserver|make run\b|curl -\w*N)"
)
_not_durable = re.compile(
    r"^\S+ ERROR tenure\.\S+: (fsync|full_page_writes): off\..*\n", re.MULTILINE
)
_is_logged = re.compile(r"\S+T\S+Z [A-Z]+ [a-z.]+: ").match
_only_reads = re.compile(
    r"(flask --app \w+ |python manage.py )?tenure"
    r" (jobs (show|list)|explain|stats|queues list|schedules (list|show|fires)|verify)\b"
    r"|curl(?!(?s:.*) -\w*[dX]\b)"
)
_patterns = (
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(\.[0-9a-f-]{32,36})?", "<id>"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?UTC|Z|[+-]\d\d:\d\d)?", "<time>"),
    (r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun) <time>", "<time>"),
    (r"worker-[0-9a-f]{16}", "<worker>"),
    (r"\b(\d+[dhm] )*\d+(\.\d+)?(ms|[smhd]) ago", "<ago>"),
)


class Mismatch(AssertionError):
    """What an example does is not what the page shows."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a console block and what is shown below it."""

    line: int
    text: str
    shown: Sequence[str]
    interrupted: bool = False  # `^C` is shown


@dataclass(slots=True)
class Background:
    """A command that goes on."""

    command: Command
    pid: int
    log: Path
    ready: bool = field(default=False)  # it has printed what is shown

    def printed(self, *, logs: bool = True) -> str:
        """What it has printed so far, without what it says of the settings of the test's server.

        Without `logs` also without lines of a log: it may log before it says that it is ready.
        """
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        lines = _not_durable.sub("", text).splitlines(keepends=True)
        return "".join(line for line in lines if logs or not _is_logged(line))


def commands(block: Block) -> list[Command]:
    """The commands of a console block; a line before the first one is a mistake."""
    found: list[Command] = []
    for number, line in enumerate(block.text.splitlines()):
        if line.startswith("$ "):
            found.append(Command(block.line + number, line[2:], []))
            continue
        if not found:
            raise Mismatch(f"line {block.line + number}: a console block begins with `$ `")
        last = found[-1]
        if line.startswith("> ") and not last.shown:
            found[-1] = Command(last.line, f"{last.text}\n{line[2:]}", [])
        elif line == "^C":
            found[-1] = Command(last.line, last.text, last.shown, interrupted=True)
        else:
            found[-1] = Command(last.line, last.text, [*last.shown, line])
    return found


def normal(line: str) -> str:
    """A line with what differs from run to run made alike."""
    for pattern, name in _patterns:
        line = re.sub(pattern, name, line)
    return " ".join(line.split())


def matches(shown: Sequence[str], printed: str, *, more: bool = False) -> bool:
    """Whether `printed` is what is shown; with `more`, whether it begins with that."""
    if not shown:
        return True
    pattern = ""
    for line in shown:
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            parts = (re.escape(normal(part)) for part in normal(line).split("…"))
            pattern += r"\s*" + ".*".join(rf"{part}" for part in parts).replace(r"\ ", " *") + r"\n"
    lines = [normal(line) for line in printed.strip().splitlines()]
    text = "".join(f"{line}\n" for line in lines)
    found = re.match(pattern, text) if more else re.fullmatch(pattern, text)
    return found is not None


class Stage:
    """The folder, the shell, the Python session and the running programs of one page."""

    def __init__(
        self, folder: Path, postgres_url: str | None = None, *, programs: Path = SCRIPTS
    ) -> None:
        self._folder = folder
        self._programs = programs
        self._postgres_url = postgres_url
        self._ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        self._environ = self._surroundings()
        self._shell = Shell(folder, self._environ)
        self._session: Session | None = None
        self._running: list[Background] = []
        self._printed: str | None = None  # by the Python block before
        self._code = 0  # of the command before
        self._typed = Typed(folder / HELPERS) if programs == SCRIPTS and IS_LINUX else nullcontext()

    def __enter__(self) -> Stage:
        self._typed.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, where: TracebackType | None
    ) -> None:
        for one in self._running:
            self._signal(one, signal.SIGTERM)
        codes = [(one, self._exit_code(one)) for one in self._running]
        self._shell.close()
        self._typed.__exit__(None, None, None)
        if self._session is not None:
            self._session.close()
        for one, code in codes:
            allowed = {0} if one.ready else {0, 128 + signal.SIGTERM}  # it may have been too early
            if kind is None and code not in allowed:
                raise Mismatch(f"`{one.command.text}` ended with {code}:\n{one.printed()}")

    def _surroundings(self) -> dict[str, str]:
        """The environment of a reader: nothing of ours but the programs."""
        kept = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "SYSTEMROOT")
        environ = {name: os.environ[name] for name in kept if name in os.environ}
        helpers = self._folder / HELPERS
        helpers.mkdir()
        if shutil.which("curl") is None:
            stand_in = helpers / "curl"
            script = Path(__file__).with_name("curl.py")
            stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
            stand_in.chmod(0o755)
        environ["PATH"] = os.pathsep.join(
            [str(helpers), str(self._programs), environ.get("PATH", "")]
        )
        environ["HOME"] = str(self._folder)
        environ["LC_ALL"] = "C.UTF-8"
        environ["TENURE_PORT"] = self._ports[PORTS[0]]
        environ["PYTEST_ADDOPTS"] = " ".join(f"-p no:{name}" for name in OUR_PLUGINS)
        return environ

    def _here(self, text: str) -> str:
        """The text with the free ports and the database of the tests in it."""
        for port, free in self._ports.items():
            text = re.sub(rf"\b{port}\b", free, text)
        if self._postgres_url is not None:
            if "?" in self._postgres_url:
                text = text.replace(f"{POSTGRES}?", f"{self._postgres_url}&")
            text = text.replace(POSTGRES, self._postgres_url)
        return text

    def port(self, shown: str) -> str:
        """Return the free port that stands for one that is shown."""
        return self._ports[shown]

    # --- blocks

    def run(self, page: Page) -> int:
        """Run every block of a page; how many were run."""
        count = 0
        for block in page.blocks:
            if block.skipped is None and self._run(block):
                count += 1
        return count

    def _run(self, block: Block) -> bool:
        printed, self._printed = self._printed, None
        text = self._here(block.text)
        if block.file_name is not None:
            with (self._folder / block.file_name).open("a" if block.is_appended else "w") as file:
                file.write(f"{text}\n")
            if block.language == "python":
                compile(text, block.file_name, "exec")
        elif block.language == "python":
            self._session = self._session or Session(self._folder, self._environ)
            self._printed = self._session.run(text, block.line)
        elif block.language == "output":
            if printed is None or not matches(text.splitlines(), printed):
                raise Mismatch(f"line {block.line}: shown is\n{text}\nprinted was\n{printed}")
        elif block.language == "console":
            for command in commands(block):
                self._type(command, self._here(command.text))
        elif block.language == "json":
            json.loads(text)
        else:
            return False
        return True

    # --- commands

    def _type(self, command: Command, text: str) -> None:
        shown = [self._here(line) for line in command.shown]
        if _goes_on.match(text) and not "".join(shown).startswith("Error:"):
            self._start(command, text, shown)
            return
        if text.startswith("make "):
            text = f"make --no-print-directory -C {shlex.quote(str(ROOT))} {text[5:]}"
        wanted = text.startswith("echo $?")
        if not wanted and self._code:
            raise Mismatch(f"line {command.line}: the command before ended with {self._code}")
        deadline = time.monotonic() + SECONDS
        while True:
            printed, code = self._shell.run(text, self._code)
            if matches(shown, printed):
                self._code = code
                break
            if time.monotonic() > deadline or not _only_reads.match(text):
                told = "\n".join(command.shown)
                raise Mismatch(
                    f"line {command.line}: `{text}` ended with {code} and printed\n{printed}\n"
                    f"where the page shows\n{told}"
                )
            time.sleep(0.1)

    def check_last(self) -> None:
        """The last command of a page has to succeed, too."""
        if self._code:
            raise Mismatch(f"the last command of the page ended with {self._code}")

    def _start(self, command: Command, text: str, shown: Sequence[str]) -> None:
        log = self._folder / f".log-{len(self._running)}"
        if text.startswith("make "):
            text = f"make --no-print-directory -C {shlex.quote(str(ROOT))} {text[5:]}"
        printed, _ = self._shell.run(f"{text} >{shlex.quote(str(log))} 2>&1 &\necho $!", 0)
        one = Background(command, int(printed), log)
        self._running.append(one)
        deadline = time.monotonic() + SECONDS
        logs = any(map(_is_logged, shown))
        while not matches(shown, one.printed(logs=logs), more=True):
            if time.monotonic() > deadline or not _is_alive(one.pid):
                told = "\n".join(command.shown)
                raise Mismatch(
                    f"line {command.line}: `{text}` printed\n{one.printed()}\n"
                    f"where the page shows\n{told}"
                )
            time.sleep(0.02)
        one.ready = bool(shown)
        if command.interrupted:
            self._running.remove(one)
            self._signal(one, signal.SIGINT)
            code = self._exit_code(one)
            if code not in {0, 0 if text.startswith("tenure") else 128 + signal.SIGINT}:
                raise Mismatch(f"line {command.line}: after ^C it ended with {code}")

    def _signal(self, one: Background, number: signal.Signals) -> None:
        """Ask a program to end, with all that it started: each has a process group of its own."""
        with suppress(ProcessLookupError):
            os.killpg(one.pid, number)

    def _exit_code(self, one: Background) -> int:
        """How a program ended; waits for that."""
        _, code = self._shell.run(f"wait {one.pid}", 0)
        return code


class Shell:
    """One bash, to which commands are given one by one."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._lines = _Lines(self._process.stdout)
        self._type("set -m")  # as in a terminal: whatever runs in the background can be interrupted

    def run(self, command: str, code_before: int) -> tuple[str, int]:
        """Run a command; what it printed, on both streams, and its exit code."""
        # In braces variables stay; the file of commands must not be taken for its input.
        self._type(f'(exit {code_before})\n{{ {command}\n}} </dev/null\nprintf "\\n{MARK} $?\\n"')
        printed: list[str] = []
        for line in self._lines.until(time.monotonic() + COMMAND_SECONDS):
            if line.startswith(MARK):
                return "".join(printed).removesuffix("\n"), int(line.removeprefix(MARK))
            printed.append(line)
        raise Mismatch(f"`{command}` does not end; so far it printed\n{''.join(printed)}")

    def close(self) -> None:
        """End the shell."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _type(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n")
        self._process.stdin.flush()


class Session:
    """One Python process that executes blocks in one namespace."""

    DRIVER = """
import contextlib, io, json, sys, traceback
names = {"__name__": "__main__"}
answers = sys.stdout
for line in sys.stdin:
    order = json.loads(line)
    printed = io.StringIO()
    error = None
    with contextlib.redirect_stdout(printed):
        try:
            code = "\\n" * (order["line"] - 1) + order["text"]
            exec(compile(code, "<the page>", "exec"), names)
        except BaseException:
            error = traceback.format_exc()
    answers.write(json.dumps({"printed": printed.getvalue(), "error": error}) + "\\n")
    answers.flush()
"""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self._process = Program(
            [sys.executable, "-c", self.DRIVER],
            cwd=folder,
            env={**environ, "PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        assert self._process.stdout is not None
        self._lines = _Lines(self._process.stdout)

    def run(self, text: str, line: int) -> str:
        """Execute a block; what it printed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"text": text, "line": line}) + "\n")
        self._process.stdin.flush()
        for answer in self._lines.until(time.monotonic() + COMMAND_SECONDS):
            told = json.loads(answer)
            if told["error"]:
                raise Mismatch(f"line {line}: the block raised\n{told['error']}")
            return str(told["printed"])
        raise Mismatch(f"line {line}: the block does not end")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


class _Lines:
    """The lines of a stream, read by a thread, so that waiting for one can end."""

    def __init__(self, stream: IO[str]) -> None:
        self._queue: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: IO[str]) -> None:
        try:
            for line in stream:
                self._queue.put(line)
        except ValueError:  # it was closed
            pass

    def until(self, deadline: float) -> Iterator[str]:
        """Lines as they come, until `deadline` by the monotonic clock."""
        while (left := deadline - time.monotonic()) > 0:
            try:
                yield self._queue.get(timeout=left)
            except Empty:
                return


def _is_alive(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
