"""Each Django that is supported, in an environment of its own, and Django's own tests of tasks.

Django 6 needs Python 3.12; with 5.2 goes the package `django-tasks`, which is how 5.2 has tasks.
Where there is no such Python, or nothing can be installed, there is nothing to test with.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

from bench.environments import Unavailable, cache_folder, environment, find_python, one_at_a_time
from tests.support.locks import pinned

BACKPORT = "django-tasks==0.12.0"
VERSIONS = {"5.2": "django==5.2.19", "6.0": "django==6.0.10", "6.1": "django==6.1.3"}
"""What is installed for each Django."""
TESTED_BY = {"5.2": "6.0"}
"""The backport has the tests of the Django that its code became a part of."""
NEEDED = (
    *("psycopg", "psycopg-binary", "psycopg-pool"),
    *("pytest", "pytest-django", "pytest-timeout"),
)


@cache
def python_with(version: str) -> Path:
    """The interpreter of an environment with a Django and all that Tenure needs; skips without."""
    if VERSIONS[version] == f"django=={metadata.version('django')}":
        return Path(sys.executable)
    oldest = (3, 11) if version in TESTED_BY else (3, 12)
    pins = {**pinned("requirements.txt"), **_pins_of(NEEDED)}
    requirements = [VERSIONS[version], *(f"{name}=={at}" for name, at in pins.items())]
    if version in TESTED_BY:
        requirements.append(BACKPORT)
    try:
        return environment(f"django-{version}", oldest, tuple(requirements), compiled=False)
    except Unavailable as error:
        pytest.skip(f"no Django {version}: {error}")


def _pins_of(names: tuple[str, ...]) -> dict[str, str]:
    pins = pinned("requirements-dev.txt")
    return {name: pins[name] for name in names}


@cache
def own_tests(version: str) -> Path:
    """The folder of Django's own tests of tasks, from its source distribution.

    Raises Unavailable where that is not to be had.
    """
    release = VERSIONS[TESTED_BY.get(version, version)]
    folder = cache_folder() / "django-tests" / release
    with one_at_a_time("django-tests"):
        if not folder.exists():
            _unpack(_downloaded(release), folder)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    top = archive.name.removesuffix(".tar.gz")
    with tarfile.open(archive) as opened, tempfile.TemporaryDirectory(dir=cache_folder()) as to:
        wanted = [m for m in opened.getmembers() if m.name.startswith(f"{top}/tests/tasks/")]
        opened.extractall(to, wanted, filter="data")
        folder.parent.mkdir(exist_ok=True)
        (Path(to) / top / "tests" / "tasks").rename(folder)


def _downloaded(release: str) -> Path:
    """The archive of a release; pip finds and checks it, from whatever index it is set up for."""
    to = cache_folder() / "downloads"
    command = [str(find_python((3, 12))), "-m", "pip", "download", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*command, "--no-binary", ":all:", "--dest", str(to), release],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise Unavailable(f"the source of {release} is not to be had: {lines[-1]}")
    (archive,) = to.glob(f"{release.replace('==', '-')}.tar.gz")
    return archive
