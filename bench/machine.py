"""What the numbers were measured on: they mean nothing without it."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.catalogue import Subject
from bench.environments import python_for
from bench.servers import Engine

TENURE_USES = ("psycopg", "msgspec", "uvloop", "uvicorn", "httptools", "starlette", "httpx2")


def describe() -> dict[str, Any]:
    """Date, processors, memory, kernel, and the versions that Tenure runs on."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpus": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("tenure", *TENURE_USES)},
    }


def describe_engines(engines: dict[str, Engine]) -> dict[str, dict[str, str]]:
    """Version and settings of every database that ran."""
    return {
        name: {"version": engine.version, "settings": engine.settings}
        for name, engine in engines.items()
    }


def python_of(subject: Subject) -> str:
    """The version of Python that a peer's environment was made with."""
    config = python_for(subject).parent.parent / "pyvenv.cfg"
    for line in config.read_text().splitlines():
        name, _, value = line.partition("=")
        if name.strip() in {"version", "version_info"}:
            return value.strip()
    return platform.python_version()


def _field(path: str, name: str) -> str:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


def _memory_gb() -> int | None:
    kilobytes = _field("/proc/meminfo", "MemTotal").removesuffix("kB").strip()
    return round(int(kilobytes) / 1024**2) if kilobytes else None


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
