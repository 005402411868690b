"""Tenure over HTTP, through one server process: `POST /jobs`, and workers without a database."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from bench.catalogue import Subject
from bench.drains import run_workers
from bench.environments import ROOT
from bench.processes import Failed, Program, Setting, ask_program
from bench.stage import Figures, Stage, check_integrity, fill

LISTENS = "Tenure listens on http://"
START_SECONDS = 20


def post_jobs(stage: Stage, subject: Subject, *, clients: int) -> Figures:
    """`POST /jobs` over connections kept open; each job is on disk when its answer comes."""
    setting = stage.fresh(subject)
    with server(stage, setting) as address:
        host, _, port = address.partition(":")
        load = [sys.executable, "-m", "bench.http_load", host, port]
        command = [*load, str(clients), str(stage.size.seconds)]
        figures = ask_program(command, setting.environment(), f"http-load-{subject.name}")
    left = stage.left(setting)
    if left != figures["jobs"]:
        raise Failed(f"{figures['jobs']:.0f} jobs were accepted and {left} are there")
    check_integrity(setting)
    return figures


def drain_remotely(stage: Stage, subject: Subject) -> Figures:
    """A drain by one worker process that knows only the address of the server."""
    jobs = stage.size.jobs_drained(subject)
    setting = stage.fresh(subject)
    fill(setting, jobs)
    stage.calm(setting)
    with server(stage, setting) as address:
        remote = replace(
            setting, subject=replace(subject, adapter="tenure_remote"), place=f"http://{address}"
        )
        return run_workers(stage, setting, remote, jobs)


@contextlib.contextmanager
def server(stage: Stage, setting: Setting) -> Iterator[str]:
    """`tenure serve` on a free port, without workers; its address."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TENURE_")}
    output = stage.folder / "server.out"
    output.unlink(missing_ok=True)
    program = [sys.executable, "-m", "tenure", "serve", "--port", "0"]
    command = [*program, "--database", setting.place]
    with Program(
        command, {**environment, "PYTHONPATH": str(ROOT)}, "tenure-serve", output
    ) as server:
        deadline = time.monotonic() + START_SECONDS
        while LISTENS not in (said := output.read_text()):
            server.check()
            if time.monotonic() > deadline:
                raise Failed("the server did not come up: see tenure-serve.log")
            time.sleep(0.02)
        yield said.partition(LISTENS)[2].split()[0]
