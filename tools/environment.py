"""Build `.venv`, the environment that every make target runs in.

    python3 tools/environment.py runtime    what `tenure` itself needs: requirements.txt
    python3 tools/environment.py dev        with tests, checks and benchmarks: requirements-dev.txt

Needs nothing but Python 3.11 with pip, root or not. Every package is checked against its hash in
the lock file. A second call finds the stamp of the first and returns at once; a changed lock file
is installed over the old one. `make clean` starts afresh, for instance with another Python.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

OLDEST_PYTHON = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
LOCKS = {"runtime": ROOT / "requirements.txt", "dev": ROOT / "requirements-dev.txt"}
UV_LOCK = ROOT / "tools" / "uv.txt"


class SetupError(Exception):
    """The environment cannot be built; the message says why and what to do."""


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in LOCKS:
        print(f"usage: python3 tools/environment.py {'|'.join(LOCKS)}", file=sys.stderr)
        return 2
    level = arguments[0]
    if sys.version_info < OLDEST_PYTHON:
        restart_with_newer_python()
    if is_ready(level):
        return 0
    try:
        with one_builder_at_a_time():
            if not is_ready(level):
                build(level)
    except SetupError as error:
        print(f"Could not set up {VENV.name}: {error}", file=sys.stderr)
        return 1
    return 0


def is_ready(level: str) -> bool:
    """Whether the environment holds `level`; `dev` holds everything that `runtime` does."""
    levels = ["dev"] if level == "dev" else ["dev", "runtime"]
    return PYTHON.exists() and any(read(stamp(each)) == fingerprint(each) for each in levels)


def fingerprint(level: str) -> str:
    """A digest of all that an environment is made from, settings of development tools left out."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    project["tool"] = project["tool"]["hatch"]
    made_from = [LOCKS[level].read_bytes(), repr(project).encode(), str(ROOT).encode()]
    return hashlib.sha256(b"\0".join(made_from)).hexdigest()


def stamp(level: str) -> Path:
    return VENV / f"{level}.stamp"


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def build(level: str) -> None:
    started = time.monotonic()
    print(f"Setting up {VENV.name} ({level}) ...", file=sys.stderr, flush=True)
    create_environment()
    for each in LOCKS:
        stamp(each).unlink(missing_ok=True)
    pip = find_pip()
    if not (level == "dev" and install_with_uv(pip, LOCKS[level])):
        run([*pip, "install", "--require-hashes", "-r", str(LOCKS[level])])
    run([*pip, "install", "--no-build-isolation", "--no-deps", "--editable", str(ROOT)])
    stamp(level).write_text(fingerprint(level))
    print(f"Ready in {time.monotonic() - started:.1f} s.", file=sys.stderr)


def create_environment() -> None:
    """Create an empty environment without pip, unless one was created in this place before.

    Scripts contain the full path of their interpreter, so an environment that was moved or copied
    is created again.
    """
    if VENV.is_symlink():  # what it leads to would be emptied
        raise SetupError("it is a link; remove it, so that this folder gets an environment")
    made_here = VENV / "root.stamp"
    if PYTHON.exists() and read(made_here) == str(ROOT):
        return
    import venv

    venv.EnvBuilder(clear=True, symlinks=os.name != "nt", with_pip=False).create(VENV)
    made_here.write_text(str(ROOT))


def find_pip() -> list[str]:
    """The command of a pip that installs into the environment.

    This Python's own pip can work on another environment since 22.3. An older one, or none, is made
    up for by the copy that comes with Python, where the distribution has left it in.
    """
    from importlib import metadata

    quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
    try:
        major, minor = metadata.version("pip").split(".")[:2]
        if (int(major), int(minor)) >= (22, 3):
            return [sys.executable, "-m", "pip", "--python", str(PYTHON), *quiet]
    except metadata.PackageNotFoundError:
        pass
    if run_quietly([str(PYTHON), "-m", "ensurepip", "--default-pip"]) is None:
        return [str(PYTHON), "-m", "pip", *quiet]
    raise SetupError(
        f"{sys.executable} has neither pip 22.3 or newer nor ensurepip. On Debian, "
        "`apt-get install python3-pip` or `python3-venv` brings one; then run make again."
    )


def install_with_uv(pip: list[str], lock: Path) -> bool:
    """Install the lock file with uv, five times faster than pip; false where uv does not work."""
    failure = run_quietly([*pip, "install", "--require-hashes", "-r", str(UV_LOCK)])
    if failure is None:
        # Pip trusts the certificates of the system by default; uv needs an option for that.
        uv = [str(BIN / "uv"), "pip", "install", "--quiet", "--system-certs", "--compile-bytecode"]
        if not has_usable_cache():
            uv.append("--no-cache")
        failure = run_quietly([*uv, "--python", str(PYTHON), "--require-hashes", "-r", str(lock)])
    if failure is None:
        return True
    print(f"uv does not work here ({failure}); pip takes a little longer.", file=sys.stderr)
    return False


def has_usable_cache() -> bool:
    """Whether uv may write to its cache: a user without a home folder cannot."""
    try:
        return "UV_CACHE_DIR" in os.environ or os.access(Path.home(), os.W_OK)
    except RuntimeError:  # there is no home at all
        return False


def run(command: list[str]) -> None:
    if (code := subprocess.run(command, cwd=ROOT, check=False).returncode) != 0:
        raise SetupError(f"this command ended with exit code {code}: {' '.join(command)}")


def run_quietly(command: list[str]) -> str | None:
    """Run a command that may fail; the last line of its error output if it did, else None."""
    try:
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[0] if lines else f"exit code {done.returncode}"


@contextlib.contextmanager
def one_builder_at_a_time() -> Iterator[None]:
    """A lock on this file, so that two calls at once do not write into each other's work."""
    with Path(__file__).open() as this_file:
        if os.name != "nt":
            import fcntl

            fcntl.flock(this_file, fcntl.LOCK_EX)
        yield


def restart_with_newer_python() -> None:
    for minor in range(14, OLDEST_PYTHON[1] - 1, -1):
        candidate = f"python3.{minor}"
        try:
            subprocess.run([candidate, "-c", ""], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        os.execvp(candidate, [candidate, *sys.argv])
    found = ".".join(map(str, sys.version_info[:3]))
    print(f"Tenure needs Python 3.11 or newer; {sys.executable} is {found}.", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
