"""Run `tenure` in tests: in this process through click, or as a separate program."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from typing import IO, Any

from click.testing import CliRunner, Result

from tenure.cli import cli
from tests.support.programs import Program, run, take_the_terminal

PROGRAM = (sys.executable, "-m", "tenure")


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without variables that would change what the program does."""
    own = ("TENURE_", "PORT", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return {**kept, **more}


def run_cli(
    *arguments: str, stdin: str | bytes | IO[bytes] | None = None, **environ: str | None
) -> Result:
    """Run a command in this process; a traceback is a failure of the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    restored = {"TENURE_DATABASE": os.environ.get("TENURE_DATABASE"), **environ}
    try:
        result = CliRunner(env=restored).invoke(cli, arguments, input=stdin)
    finally:  # a command that sets up the log would write to this run's streams for ever
        root.handlers[:] = handlers
        root.setLevel(level)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def output_of(*arguments: str, **environ: str | None) -> str:
    """What a command that must succeed prints, without the last line's end."""
    result = run_cli(*arguments, **environ)
    assert result.exit_code == 0, result.output
    return result.stdout.removesuffix("\n")


def cli_json(*arguments: str) -> Any:
    """The JSON document that a command prints."""
    return json.loads(output_of(*arguments, "--json"))


class Terminal:
    """A program on a pseudo-terminal; `shown` is everything that it has written."""

    def __init__(self, *arguments: str, columns: int = 100, rows: int = 40, **environ: str) -> None:
        self._keys, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process = Program(
            arguments,
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            preexec_fn=take_the_terminal,
            env=clean_environment(**{"TERM": "xterm-256color", **environ}),
        )
        os.close(inside)
        self.shown = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._keys)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._keys, keys.encode())

    def wait_for(self, text: str, seconds: float = 30.0) -> str:
        """Read on until `text` has been shown; everything shown so far."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} was not shown, but {self.shown!r}"
            self.read(deadline - time.monotonic())
        return self.shown

    def wait_for_exit(self, seconds: float = 30.0) -> int:
        """Read on until the program has ended; its exit code."""
        deadline = time.monotonic() + seconds
        while self.read(deadline - time.monotonic()):
            pass
        return self.process.wait(max(deadline - time.monotonic(), 1))

    def read(self, seconds: float) -> bool:
        """Read what there is, waiting so long for it; False where nothing came."""
        if not select.select([self._keys], [], [], max(seconds, 0))[0]:
            return False
        try:
            data = os.read(self._keys, 65_536)
        except OSError:  # Linux: the program has closed the terminal
            data = b""
        self.shown += data.decode("utf-8", "replace")
        return bool(data)


def output_on_terminal(*arguments: str, **environ: str) -> str:
    """What a program shows on a terminal, to its end."""
    with Terminal(*arguments, **environ) as terminal:
        assert terminal.wait_for_exit() == 0, terminal.shown
        return terminal.shown


def run_program(
    *arguments: str, timeout: float = 60, cwd: Any = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run `tenure` as a program, to its end."""
    return run(
        [*PROGRAM, *arguments],
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        cwd=cwd,
        env=clean_environment(**environ),
    )
