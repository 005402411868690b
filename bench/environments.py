"""An environment of its own for each peer and each Django, pinned, kept in `.bench/`."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from bench.catalogue import Subject

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".bench"
ON_DISK = Path("/var/tmp")  # /tmp may be in memory
NEWEST_MINOR = 14
INSTALL_SECONDS = 600


class Unavailable(Exception):
    """This queue, or a part it needs, cannot be run here; the message says why."""


def python_for(subject: Subject) -> Path:
    """The interpreter that runs a subject's adapter; raises Unavailable as `environment` does."""
    if subject.ours:
        return Path(sys.executable)
    return environment(subject.program, subject.oldest_python, subject.requirements)


def environment(
    name: str, oldest: tuple[int, int], requirements: tuple[str, ...], *, compiled: bool = True
) -> Path:
    """The interpreter of an environment with these requirements, installed at the first use.

    Unless all of it is `compiled` then, Python compiles what a program imports first.
    Raises Unavailable if there is no Python new enough, or nothing can be installed.
    """
    folder = cache_folder() / "venvs" / name
    python = folder / "bin" / "python"
    base = find_python(oldest)
    wanted = json.dumps([str(base), *requirements])
    stamp = folder / "made-of.json"
    with one_at_a_time(name):
        if python.exists() and stamp.exists() and stamp.read_text() == wanted:
            return python
        print(f"installing {', '.join(requirements)}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _install(base, folder, requirements, compiled=compiled)
        stamp.write_text(wanted)
    return python


def cache_folder() -> Path:
    """The folder of everything the bench keeps between runs; version control ignores it."""
    CACHE.mkdir(exist_ok=True)
    (CACHE / ".gitignore").write_text("*\n")
    return CACHE


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Let one process after the other fill a part of the folder: tests run in several."""
    with (cache_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@cache
def find_python(oldest: tuple[int, int]) -> Path:
    """A Python of at least this version: the running one if it will do."""
    if sys.version_info[:2] >= oldest:
        return Path(sys.executable)
    for minor in range(oldest[1], NEWEST_MINOR + 1):
        for candidate in _named(f"python3.{minor}"):
            if _works(candidate):
                return candidate
    needed = ".".join(map(str, oldest))
    raise Unavailable(f"needs Python {needed}, none was found on PATH or through pyenv")


def _named(name: str) -> list[Path]:
    """Programs of this name: on PATH, and those that pyenv keeps off it."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    found = [folder / name for folder in folders if os.access(folder / name, os.X_OK)]
    for version in _pyenv("versions", "--bare"):
        if version.startswith(name.removeprefix("python") + "."):
            found += [Path(prefix) / "bin" / name for prefix in _pyenv("prefix", version)]
    return found


def _pyenv(*arguments: str) -> list[str]:
    try:
        done = subprocess.run(["pyenv", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return done.stdout.split()


def _works(python: Path) -> bool:
    """Whether it starts: a shim of pyenv stands for versions that are switched off, too."""
    try:
        done = subprocess.run(
            [python, "-c", "import ssl, sqlite3"], check=False, capture_output=True
        )
    except OSError:
        return False
    return done.returncode == 0


def _install(base: Path, folder: Path, requirements: tuple[str, ...], *, compiled: bool) -> None:
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is not None:
        steps = [
            [uv, "venv", "--quiet", "--python", str(base), str(folder)],
            [
                *(uv, "pip", "install", "--quiet", "--system-certs"),
                *["--compile-bytecode"] * compiled,
                *("--python", str(folder / "bin" / "python"), *requirements),
            ],
        ]
    else:
        steps = [
            [str(base), "-m", "venv", str(folder)],
            [
                *(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"),
                *["--no-compile"] * (not compiled),
                *requirements,
            ],
        ]
    for step in steps:
        done = subprocess.run(
            step, check=False, capture_output=True, text=True, timeout=INSTALL_SECONDS
        )
        if done.returncode != 0:
            shutil.rmtree(folder, ignore_errors=True)
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise Unavailable(f"cannot be installed: {lines[-1].strip()}")
