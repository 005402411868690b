"""The files in `deploy`, read as far as the tests need: what each starts, how, and with what."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


@dataclass(frozen=True, slots=True)
class Program:
    """One command that a file starts. It is killed `stop_seconds` after SIGTERM, if known."""

    where: str
    command: tuple[str, ...]
    environ: Mapping[str, str | None]  # None: a secret, or to be given
    stop_seconds: float | None = None


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile: name and what follows, without comments."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(name.upper(), rest) for name, _, rest in (line.partition(" ") for line in joined)]


def dockerfile() -> list[tuple[str, str]]:
    return instructions((DEPLOY / "Dockerfile").read_text("utf-8"))


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    return loaded


def manifests() -> list[dict[str, Any]]:
    """Every object of the manifests for Kubernetes."""
    files = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    return [one for file in files for one in yaml.safe_load_all(file.read_text("utf-8"))]


def unit(path: Path) -> configparser.ConfigParser:
    """A unit of systemd; of a setting that it has twice, the last one counts."""
    read = configparser.ConfigParser(interpolation=None, strict=False)
    read.optionxform = str  # type: ignore[assignment,method-assign]
    read.read_string(path.read_text("utf-8"))
    return read


def programs() -> Iterator[Program]:
    """All that the files start, migrations first in each file."""
    for name, rest in dockerfile():
        if name == "CMD":
            yield Program("Dockerfile", tuple(json.loads(rest)), {})
    for name, service in sorted(compose()["services"].items(), key=lambda s: s[0] != "migrate"):
        if "command" in service:
            environ = {k: None if "$" in v else v for k, v in service["environment"].items()}
            seconds = float(service["stop_grace_period"].removesuffix("s"))
            yield Program(f"compose:{name}", tuple(service["command"]), environ, seconds)
    for one in manifests():
        pod = one["spec"].get("template", {}).get("spec")
        for container in pod["containers"] if pod else ():
            given = {env["name"]: env.get("value") for env in container["env"]}
            seconds = pod.get("terminationGracePeriodSeconds")
            pause = container.get("lifecycle", {}).get("preStop", {}).get("exec", {})
            slept = float(pause["command"][1]) if pause else 0.0
            where = f"kubernetes:{container['name']}"
            yield Program(where, tuple(container["command"]), given, seconds and seconds - slept)
    for path in UNITS:
        service = unit(path)["Service"]
        environ = dict([service["Environment"].split("=", 1)])
        for key in ("ExecStartPre", "ExecStart"):
            if key in service:
                started, *rest = shlex.split(service[key])
                command = (Path(started).name, *rest)
                seconds = float(service["TimeoutStopSec"])
                yield Program(f"systemd:{path.stem}:{key}", command, environ, seconds)
    for line in (DEPLOY / "Procfile").read_text("utf-8").splitlines():
        name, _, command = line.partition(": ")
        yield Program(f"Procfile:{name}", tuple(shlex.split(command)), {}, 30.0)
