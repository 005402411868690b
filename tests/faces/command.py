"""Running `tenure` in tests: in this process through click, or as a program of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import IO, Any

from click.testing import CliRunner, Result

from tenure.cli import cli

PROGRAM = (sys.executable, "-m", "tenure")


def surroundings(**more: str) -> dict[str, str]:
    """The environment without what would change what the program does."""
    own = ("TENURE_", "PORT", "COLUMNS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return {**kept, **more}


def run(
    *arguments: str, stdin: str | bytes | IO[bytes] | None = None, **environ: str | None
) -> Result:
    """Run a command in this process; a traceback is a failure of the test."""
    result = CliRunner(env=environ).invoke(cli, arguments, input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def tell(*arguments: str, **environ: str | None) -> str:
    """What a command that must succeed prints, without the last line's end."""
    result = run(*arguments, **environ)
    assert result.exit_code == 0, result.output
    return result.stdout.removesuffix("\n")


def read(*arguments: str) -> Any:
    """The JSON document that a command prints."""
    return json.loads(tell(*arguments, "--json"))


def program(
    *arguments: str, timeout: float = 60, cwd: Any = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run `tenure` as a program, to its end."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        check=False,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        cwd=cwd,
        env=surroundings(**environ),
    )
