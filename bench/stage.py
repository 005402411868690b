"""Where measurements take place: servers started when first needed, a fresh database each time."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bench.catalogue import Subject
from bench.environments import Unavailable
from bench.processes import Failed, Program, Setting, ask
from bench.servers import ENGINES, Engine
from bench.workload import Tally

STALLED_SECONDS = 30.0
MAX_SECONDS = 120.0
POLL_SECONDS = 0.005
MAX_REPEATS_OF_OTHERS = 3
CONNECTIONS_TO_FILL = {"sqlite": 1}  # one writer; the others fill with several at once
FOREVER = 1e9

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: numbers of jobs, and seconds of enqueueing and of watching."""

    seconds: float
    drained: int
    drained_beside: int  # in a drain beside what takes long to make
    retried: int
    share: float  # of what the catalogue says that a slow queue drains and retries
    samples: int
    pause: float  # seconds between the jobs whose pickup is timed
    idle_seconds: float
    behind: int  # jobs pending behind a drain, or settled and kept beside it
    repeats: int
    fleet_seconds: float  # how long a fleet would take if no slot were ever empty

    def jobs_drained(self, subject: Subject) -> int:
        """Jobs in a drain by this queue."""
        return min(self.drained, round(subject.most_drained * self.share))

    def jobs_drained_beside(self, subject: Subject) -> int:
        """Jobs in a drain beside many others."""
        return min(self.drained_beside, self.jobs_drained(subject))

    def repeats_of(self, subject: Subject) -> int:
        """How often this queue is measured: the others less often than those it is about."""
        judged = subject.strong and subject.engine != "redis"
        return self.repeats if judged else min(self.repeats, MAX_REPEATS_OF_OTHERS)

    def jobs_retried(self, subject: Subject) -> int:
        """Jobs that fail once."""
        return min(self.retried, round(subject.most_retried * self.share))


@dataclass(slots=True)
class Stage:
    """Give it a size; close it to stop all servers."""

    size: Size
    _engines: dict[str, Engine | Unavailable] = field(default_factory=dict)
    _kept: dict[str, str] = field(default_factory=dict)
    _folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="tenure-bench-")
    )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as closing:
            closing.callback(self._folder.cleanup)
            for engine in self._engines.values():
                if not isinstance(engine, Unavailable):
                    closing.callback(engine.close)

    def engine(self, subject: Subject) -> Engine:
        """The engine of a subject, started at its first use. Raises Unavailable."""
        name = subject.engine
        if name not in self._engines:
            try:
                self._engines[name] = ENGINES[name]()
            except Unavailable as reason:
                self._engines[name] = reason
        found = self._engines[name]
        if isinstance(found, Unavailable):
            raise found
        return found

    def started(self) -> dict[str, Engine]:
        """The engines that ran, by name."""
        return {
            name: engine
            for name, engine in self._engines.items()
            if not isinstance(engine, Unavailable)
        }

    @property
    def folder(self) -> Path:
        """A folder for files of a measurement."""
        return Path(self._folder.name)

    @property
    def _tally_path(self) -> Path:
        return self.folder / "tally"

    def fresh(self, subject: Subject, **variables: str) -> Setting:
        """An empty database with the subject's tables; `variables` go into its environment."""
        place = self.engine(subject).fresh(subject)
        setting = Setting(subject, place, self._tally_path, variables)
        ask(setting, "prepare")
        return setting

    def kept(self, subject: Subject, what: str, make: Callable[[Setting], None]) -> Setting:
        """A database in a state that takes long to make: made once, then copied back each time."""
        engine = self.engine(subject)
        if self._kept.get(subject.name) == what:
            place = engine.fresh(subject)
            engine.again(place)
            return Setting(subject, place, self._tally_path)
        setting = self.fresh(subject)
        make(setting)
        engine.calm(setting.place)
        if self.size.repeats > 1:
            engine.keep(setting.place)
            self._kept[subject.name] = what
        return setting

    def calm(self, setting: Setting) -> None:
        """Let the database come to rest after it was filled."""
        self.engine(setting.subject).calm(setting.place)

    def tally(self, jobs: int) -> Tally:
        """An empty tally of jobs 0 to `jobs`; processes started from now on write to it."""
        return Tally.create(self._tally_path, jobs)

    def left(self, setting: Setting) -> int:
        """How many jobs wait or run."""
        return self.engine(setting.subject).left(setting.subject, setting.place)


def fill(setting: Setting, jobs: int, first: int = 0) -> None:
    """Enqueue `jobs` as fast as the queue can."""
    if setting.subject.bulk:
        done = ask(setting, "bulk", jobs=jobs, first=first)
    else:
        callers = CONNECTIONS_TO_FILL.get(setting.subject.engine, 8)
        done = ask(setting, "singly", callers=callers, seconds=FOREVER, most=jobs, first=first)
    if done["jobs"] != jobs:
        raise Failed(f"{done['jobs']} jobs were enqueued, not {jobs}")


def wait_for(
    tally: Tally, jobs: int, programs: Iterable[Program], *, starts: int = 1, missing: int = 0
) -> None:
    """Wait until all but `missing` of the first `jobs` were started `starts` times.

    Raises Failed if nothing happens for half a minute, if it takes more than two minutes, or if a
    program ends.
    """
    least, since = jobs + 1, time.monotonic()
    deadline = since + MAX_SECONDS
    while (still := tally.missing(jobs, starts)) > missing:
        now = time.monotonic()
        if still < least:
            least, since = still, now
        elif now - since > STALLED_SECONDS:
            raise Failed(f"{still} of {jobs} jobs never ran")
        if now > deadline:
            raise Failed(f"{still} of {jobs} jobs had not run after {MAX_SECONDS:.0f} s")
        for program in programs:
            program.check()
        time.sleep(POLL_SECONDS)


def check_integrity(setting: Setting) -> None:
    """Have Tenure check its stored data against every invariant. Raises Failed."""
    if setting.subject.ours:
        from tenure import Tenure

        with Tenure(setting.place) as app:
            violations = app.verify()
        if violations:
            raise Failed(f"tenure verify found {len(violations)} violations: {violations[0]}")
