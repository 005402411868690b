"""Many processes write to one SQLite file, and some are killed while they do."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos import concurrent_writer
from tests.support import fault_counts
from tests.support.programs import Program
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.chaos


@contextmanager
def ended() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes to be killed at the end, if they still run."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def start(url: str, log: Path, seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", concurrent_writer.__name__, url, str(log), str(seconds)]
    with log.with_suffix(".error").open("wb") as error:
        return Program(command, cwd=ROOT, stderr=error)


def many_write(url: str, folder: Path, processes: int, seconds: float) -> dict[str, list[str]]:
    """Let so many processes write for so long; what they were told, which must be there."""
    logs = [folder / f"{number}.log" for number in range(processes)]
    with ended() as running:
        running += [start(url, log, seconds) for log in logs]
        for process, log in zip(running, logs, strict=True):
            assert process.wait() == 0, log.with_suffix(".error").read_text()
    found = concurrent_writer.complaints(url, logs)
    said = concurrent_writer.read(logs)
    fault_counts.count("jobs accepted", len(said["enqueued"]))
    fault_counts.count("jobs lost", sum("is missing" in complaint for complaint in found))
    fault_counts.count("attempts settled twice", sum("twice" in complaint for complaint in found))
    assert found == []
    assert len(said["longest"]) == processes
    print(f"{len(said['enqueued'])} jobs, longest wait {max(map(float, said['longest']))} s")
    return said


@pytest.mark.scenario(44)
def test_sixteen_processes_write_at_once(sqlite_url: str, tmp_path: Path, effort: int) -> None:
    said = many_write(sqlite_url, tmp_path, 16, 3 if effort == 1 else 30)
    assert said["enqueued"]
    assert said["completed"]


@pytest.mark.scenario(44)
@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_eight_processes_write_for_long(sqlite_url: str, tmp_path: Path, effort: int) -> None:
    """For ten minutes, if `make chaos` is given two hours."""
    many_write(sqlite_url, tmp_path, 8, min(12 * effort, 600))


@pytest.mark.scenario(50)
@pytest.mark.timeout(900)
def test_writers_killed_at_random_lose_nothing(
    sqlite_url: str, tmp_path: Path, effort: int, chance: random.Random
) -> None:
    kills = 15 if effort == 1 else min(25 * effort, 500)
    logs: list[Path] = []

    def another() -> tuple[subprocess.Popen[bytes], Path]:
        logs.append(tmp_path / f"{len(logs)}.log")
        process = start(sqlite_url, logs[-1], 3_600)
        running.append(process)
        return process, logs[-1]

    with ended() as running:
        writers = [another() for _ in range(5)]
        for _ in range(kills):
            number = chance.randrange(len(writers))
            process, log = writers[number]
            wait_until(lambda log=log: log.exists() and log.stat().st_size > 0, "a writer to write")
            time.sleep(chance.random() / 20)  # any moment will do: nothing waits for this
            assert process.poll() is None, log.with_suffix(".error").read_text()
            process.kill()
            process.wait()
            writers[number] = another()
        for process, _ in writers:
            process.kill()
            process.wait()
    fault_counts.count("processes killed", kills + len(writers))
    found = concurrent_writer.complaints(sqlite_url, logs)
    fault_counts.count("jobs accepted", len(concurrent_writer.read(logs)["enqueued"]))
    fault_counts.count("jobs lost", sum("is missing" in complaint for complaint in found))
    assert found == []
    assert concurrent_writer.read(logs)["completed"]
