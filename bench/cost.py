"""What workers and the server they work on use while jobs run."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench.processes import Program, Setting, cpu_seconds_of, whole_machine_cpu
from bench.stage import Figures, Stage


class Cost:
    """What `programs` and the server behind `store` use from now on."""

    def __init__(self, stage: Stage, store: Setting, programs: Sequence[Program]) -> None:
        self._programs = programs
        self._engine = stage.engine(store.subject)
        self._place = store.place
        self._since = time.monotonic()
        self._machine = whole_machine_cpu()
        self._workers = cpu_seconds_of(programs)
        self._server = self._engine.spent(store.place)  # last: what is judged starts now

    def connections(self) -> Figures:
        """How many connections are open to the database; nothing where there are none."""
        found = self._engine.connections(self._place)
        return {"connections": found} if found else {}

    def per_job(self, jobs: int) -> Figures:
        """CPU per job in microseconds, of workers and server; log bytes per job; cores; MB."""
        spent = self._engine.spent(self._place)
        workers = cpu_seconds_of(self._programs) - self._workers
        cores = (whole_machine_cpu() - self._machine) / (time.monotonic() - self._since)
        figures = {
            "cpu_us_per_job": workers / jobs * 1e6,
            "machine_cores": cores,
            "memory_mb": sum(program.memory_mb() for program in self._programs),
        }
        for name, value in spent.items():
            scale, figure = SERVER_FIGURES[name]
            figures[figure] = (value - self._server[name]) / jobs * scale
        images = self._engine.image_bytes(self._place, self._server.get("wal", 0))
        if images is not None:
            figures["image_bytes_per_job"] = images / jobs
        return figures


SERVER_FIGURES = {
    "cpu": (1e6, "server_us_per_job"),
    "wal": (1, "wal_bytes_per_job"),
    "writes": (1, "writes_per_job"),
}
