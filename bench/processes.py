"""Processes of a measurement: adapters in their environments, and what they cost.

CPU time and memory come from /proc, so the bench needs Linux.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from bench.adapter import PLACE_VARIABLE
from bench.catalogue import Subject
from bench.environments import ROOT, cache_folder, python_for
from bench.workload import TALLY_VARIABLE

COMMAND_SECONDS = 300
STOP_SECONDS = 5
TICK = os.sysconf("SC_CLK_TCK")
SEGMENTATION_FAULT = -signal.SIGSEGV
# What is left behind when the bench itself is killed would take the jobs of the next run.
END_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()


class Failed(Exception):
    """A queue did not do its work; the message says what went wrong."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a subject's adapter works, and how."""

    subject: Subject
    place: str
    tally: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            **dict(self.subject.environment),
            **self.variables,
            PLACE_VARIABLE: self.place,
            TALLY_VARIABLE: str(self.tally),
            "PYTHONPATH": str(ROOT),
        }

    def command(self, command: str, **numbers: float) -> list[str]:
        given = [f"{name}={value}" for name, value in numbers.items()]
        program = [str(python_for(self.subject)), "-m", "bench.adapter"]
        return [*program, self.subject.program, command, *given]


def log_of(name: str) -> IO[bytes]:
    """Where the output of a program goes that is not an answer."""
    folder = cache_folder() / "logs"
    folder.mkdir(exist_ok=True)
    return (folder / f"{name}.log").open("ab")


def ask(setting: Setting, command: str, **numbers: float) -> dict[str, Any]:
    """Run a command of the adapter to its end; what it found out. Raises Failed."""
    return ask_program(
        setting.command(command, **numbers), setting.environment(), setting.subject.name
    )


def ask_program(command: list[str], environment: Mapping[str, str], name: str) -> dict[str, Any]:
    """Run a program to its end; the last line that it printed, read as JSON. Raises Failed."""
    with log_of(name) as log:
        try:
            done = subprocess.run(
                [*END_WITH_PARENT, *command],
                env=environment,
                cwd=cache_folder(),
                stdout=subprocess.PIPE,
                stderr=log,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"did not end within {COMMAND_SECONDS} s") from None
    lines = done.stdout.decode().strip().splitlines()
    answer: dict[str, Any] = {}
    with contextlib.suppress(ValueError, IndexError):
        answer = json.loads(lines[-1])
    # One peer's extension crashes now and then as the interpreter ends, after it has answered.
    if done.returncode != 0 and not (answer and done.returncode == SEGMENTATION_FAULT):
        said = Path(log.name).relative_to(ROOT)
        raise Failed(f"{' '.join(command[2:5])} ended with {done.returncode}: see {said}")
    return answer


class Program:
    """A program in a session of its own, ended with all its children when the block is left."""

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str],
        name: str,
        output: Path | None = None,
    ) -> None:
        """What it prints goes to the file `output`, or with its errors to its log."""
        self._name = name
        with contextlib.ExitStack() as files:
            log = files.enter_context(log_of(name))
            self.process = subprocess.Popen(
                [*END_WITH_PARENT, *command],
                env=environment,
                cwd=cache_folder(),
                stdin=subprocess.DEVNULL,
                stdout=files.enter_context(output.open("wb")) if output else log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask it to end, then end it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End it at once: nothing that it would still write is wanted."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def check(self) -> None:
        """Raise Failed if it has ended."""
        if self.process.poll() is not None:
            raise Failed(f"ended by itself with {self.process.returncode}: see {self._name}.log")

    def cpu_seconds(self) -> float:
        """CPU time of its processes so far, in seconds."""
        return _cpu_seconds(_stats_of_session(self.process.pid))

    def wanted_seconds(self) -> float:
        """CPU time that its threads have used or waited for: at rest they do neither."""
        nanoseconds = 0
        for stat in _stats_of_session(self.process.pid):
            for file in Path(f"/proc/{stat[-1]}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    nanoseconds += sum(map(int, file.read_text().split()[:2]))
        return nanoseconds / 1e9

    def memory_mb(self) -> float:
        """Memory of its processes in MB, shared pages counted once (PSS)."""
        kilobytes = 0
        for stat in _stats_of_session(self.process.pid):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{stat[-1]}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        kilobytes += int(line.split()[1])
        return kilobytes / 1024


def cpu_seconds_of(programs: Sequence[Program]) -> float:
    """CPU time of all these programs so far, in seconds."""
    sessions = {program.process.pid for program in programs}
    return _cpu_seconds(stat for stat in _stats() if int(stat[3]) in sessions)


def worker(setting: Setting) -> Program:
    """A worker of the subject, starting."""
    return Program(setting.command("work"), setting.environment(), setting.subject.name)


def cpu_seconds_with_children(parent: int) -> float:
    """CPU time of a process and its children, those that have ended included, in seconds."""
    return _cpu_seconds(stat for stat in _stats() if str(parent) in (stat[1], stat[-1]))


def _cpu_seconds(stats: Iterable[list[str]]) -> float:
    return sum(int(part) for stat in stats for part in stat[11:15]) / TICK


def _stats_of_session(session: int) -> list[list[str]]:
    return [stat for stat in _stats() if int(stat[3]) == session]


def _stats() -> list[list[str]]:
    """Of every process: what /proc says from its state and its parent's id on, then its own id."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                found.append([*fields, entry.name])
    return found


def whole_machine_cpu() -> float:
    """CPU seconds used by all processes of the machine since it started."""
    values = [int(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle_and_waiting = values[3] + values[4]
    return (sum(values) - idle_and_waiting) / TICK
