"""Build what a release publishes, and check it: `make dist`, or `python tools/release.py [FOLDER]`.

Writes a source distribution and a wheel to FOLDER (`dist/`) and replaces what is there. RELEASE_TAG
names the tag of a release, such as v0.1.0: it must be the version of the package, and CHANGELOG.md
must have a date for it. Without a tag, CHANGELOG.md only has to begin with the version. Then a
wheel made from the source distribution must equal the wheel, and installed alone it runs jobs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TAG = "RELEASE_TAG"
"""The variable with the tag of a release."""


def version() -> str:
    """Return the version that the package has."""
    text = (ROOT / "src" / "tenure" / "__init__.py").read_text("utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found is not None
    return found[1]


def objections(version: str, tag: str, changelog: str) -> list[str]:
    """Return why this version must not be released under `tag`; an empty tag is a try."""
    newest = re.search(r"^## (?P<version>\S+) \((?P<when>[^)]+)\)$", changelog, re.MULTILINE)
    if newest is None or newest["version"] != version:
        return [
            f"CHANGELOG.md begins with {newest and newest['version']}, the package is {version}"
        ]
    found = []
    if tag and tag != f"v{version}":
        found.append(f"the tag is {tag}, the package is {version}")
    if tag and not re.fullmatch(r"\d{4}-\d\d-\d\d", newest["when"]):
        found.append(f"CHANGELOG.md has no date for {version}, but ({newest['when']})")
    return found


def build(source: Path, folder: Path, *targets: str) -> list[Path]:
    """Build the targets from a source tree, with the hatchling of this environment."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    for target in targets:
        command += ["--target", target]
    subprocess.run(command, cwd=source, check=True, stdout=subprocess.DEVNULL)
    return sorted(folder.iterdir())


def contents(wheel: Path) -> dict[str, bytes]:
    """Return every file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rebuilt(sdist: Path, folder: Path) -> Path:
    """Build a wheel from a source distribution, as packagers do."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    (wheel,) = build(source, folder / "wheel", "wheel")
    return wheel


def try_out(wheel: Path, folder: Path) -> str:
    """Install a wheel with `standard` into a new environment; return what its demo prints."""
    uv = str(Path(sys.executable).with_name("uv"))
    python = str(folder / "environment" / "bin" / "python")
    subprocess.run([uv, "venv", "--quiet", str(folder / "environment")], check=True)
    install = [uv, "pip", "install", "--quiet", "--system-certs", "--python", python]
    subprocess.run([*install, f"{wheel}[standard]"], check=True)
    demo = [python, "-m", "tenure", "demo"]
    return subprocess.run(demo, check=True, cwd=folder, capture_output=True, text=True).stdout


def main(given: list[str]) -> int:
    """Build and check; return the exit code."""
    folder = Path(given[0]).resolve() if given else ROOT / "dist"
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    if found := objections(version(), os.environ.get(TAG, ""), changelog):
        print("\n".join(found), file=sys.stderr)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    sdist, wheel = sorted(build(ROOT, folder, "sdist", "wheel"), key=lambda path: path.suffix)
    with tempfile.TemporaryDirectory() as name:
        if contents(rebuilt(sdist, Path(name))) != contents(wheel):
            print("the source distribution makes another wheel", file=sys.stderr)
            return 1
        print(try_out(wheel, Path(name)))
    print(f"built and tried out: {sdist.name}, {wheel.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
