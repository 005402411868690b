"""A real Chromium for the tests: found, or installed where that needs no asking."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

SHELL = "chromium-headless-shell"
"""The same engine without windows, which needs half of the processor time."""
NAMES = (SHELL, "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGES = (SHELL, "fonts-dejavu-core")  # without a font there is no text to see
INSTALL = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
FIX = f"install one with `{' '.join(INSTALL)}`, or name yours in TENURE_CHROMIUM"
OPTIONS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class BrowserUnavailable(Exception):
    """There is no Chromium, and none can be installed here."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser for the block. Without Chromium the test is skipped, and fails in CI."""
    try:
        path = executable()
    except BrowserUnavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no Chromium: {error}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield browser
        browser.close()


@functools.cache
def executable() -> str:
    """The path of a Chromium; raises BrowserUnavailable with the way to get one.

    Root gets the one without windows also where there is another; in containers that is all of us.
    """
    given = os.environ.get("TENURE_CHROMIUM")
    if given:
        return given
    found = _found()
    if (found is None or (os.geteuid() == 0 and not shutil.which(SHELL))) and _installed():
        found = _found()
    if found is None:
        raise BrowserUnavailable(FIX)
    return found


def _found() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def _installed() -> bool:
    """Whether the system's packages brought one."""
    if shutil.which("apt-get") is None:
        return False
    ahead = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if ahead and shutil.which("sudo") is None:
        return False
    commands = ([*ahead, "apt-get", "update"], [*ahead, *INSTALL])
    try:
        done = [
            subprocess.run(command, capture_output=True, timeout=300, check=False)
            for command in commands
        ]
    except subprocess.TimeoutExpired:
        return False
    return done[-1].returncode == 0
