"""Settled jobs with their history, in files, before they are deleted. Internal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import BinaryIO, Literal

from msgspec import json
from msgspec.structs import replace

from tenure.app.core import Core
from tenure.app.jobs import transitions_shown
from tenure.errors import InvalidInput
from tenure.rules.retention import STATUSES
from tenure.rules.search import Filter, Query, check_filter, query_of
from tenure.store import search
from tenure.store.tables import retention
from tenure.store.work import nothing
from tenure.values.ids import check_id, new_id
from tenure.values.redaction import Redaction
from tenure.wire import responses

MAX_JOBS = 50_000
"""Jobs in one file."""
MAX_AT_ONCE = 500
"""Jobs that are read, or deleted, at once."""

Format = Literal["jsonl", "parquet"]
ShownJob = tuple[responses.JobBody, Sequence[responses.TransitionBody]]
Add = Callable[[Sequence[ShownJob]], None]
"""Writes jobs to a file."""


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """A file that is complete and on disk. The next one begins after the job `last`."""

    path: str
    jobs: int
    last: str
    deleted: int


def export(
    core: Core,
    folder: Path,
    filter: Filter,
    *,
    after: str | None = None,
    redaction: Redaction,
    format: Format = "jsonl",
    delete: bool = False,
) -> Iterator[ExportedFile]:
    """Write the settled jobs of a filter to files, in the order of their ids.

    - `folder`: it is made if it is not there. A file has a temporary name until it is on disk;
      then it is named for its first and its last job, with a number if there is such a file.
    - `after`: only jobs after the one with this id. Default: None, from the first one.
    - `redaction`: hides values in what is written.
    - `format`: `"jsonl"`, one line of JSON for each job, or `"parquet"`, which needs the extra
      `parquet`. Default: `"jsonl"`.
    - `delete`: delete the jobs of each file when it is on disk, except jobs that have changed
      since, jobs that retention would keep, and jobs that the database refuses to delete.

    Yields each file. Raises InvalidInput, before it writes anything, and OSError.
    """
    checked = check_filter(core.limited(filter))
    if checked.status not in (None, *STATUSES):
        raise InvalidInput(f"only {', '.join(STATUSES)} jobs are exported", path="$.status")
    if after is not None:
        check_id(after, "$.after")
    writer = _writer(format)
    among = () if checked.status else STATUSES
    folder.mkdir(parents=True, exist_ok=True)
    query = query_of(checked, limit=MAX_AT_ONCE, oldest_first=True, after=after, among=among)
    more = True
    while more:
        part = folder / f"{new_id()}.part"
        try:
            with open(part, "xb", opener=_owners) as file:
                with writer(file) as add:
                    written, query, more = _write(core, query, redaction, add)
                file.flush()
                os.fsync(file.fileno())
            if written:
                first, *_, last = (*written, *written)
                path = _free(folder, f"jobs-{first}-{last}", format)
                part.replace(path)
                _sync(folder)
                deleted = _delete(core, written) if delete else 0
                yield ExportedFile(str(path), len(written), last, deleted)
        finally:
            with suppress(FileNotFoundError):
                part.unlink()


def _owners(path: str, flags: int) -> int:
    """Open a file that only its owner can read, as the database: it has payloads and results."""
    return os.open(path, flags, 0o600)


@contextmanager
def _lines(file: BinaryIO) -> Iterator[Add]:
    """Write a line of JSON for each job."""

    def add(jobs: Sequence[ShownJob]) -> None:
        file.writelines(
            json.encode({"job": job, "history": history}) + b"\n" for job, history in jobs
        )

    yield add


def _writer(format: Format) -> Callable[[BinaryIO], AbstractContextManager[Add]]:
    if format == "jsonl":
        return _lines
    from tenure.app.parquet import rows

    return rows


def _write(
    core: Core, query: Query, redaction: Redaction, add: Add
) -> tuple[Mapping[str, int], Query, bool]:
    """Write some jobs; return how many entries each has, what is next, and whether there is."""
    read = core.limited_store.read
    written: dict[str, int] = {}
    while len(written) < MAX_JOBS:
        page = search.page(read, query)
        histories = read.histories([job.id for job in page.jobs])
        jobs: list[ShownJob] = []
        for job in page.jobs:
            history = histories.get(job.id, [])
            if not history or (history[-1].target, history[-1].token) != (job.status, job.token):
                continue  # it has changed between the two statements
            shown = transitions_shown(history, job, redaction)
            body = responses.job_body(redaction.job(job))
            jobs.append((body, [responses.TransitionBody.of(entry) for entry in shown]))
            written[job.id] = len(history)
        add(jobs)
        if page.next is None:
            return written, query, False
        query = replace(query, after=page.next)
    return written, query, True


def _free(folder: Path, name: str, format: Format) -> Path:
    """Return a path that no file has: such a file may hold jobs that were deleted."""
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    paths = (folder / f"{each}.{format}" for each in names)
    return next(path for path in paths if not path.exists())


def _sync(folder: Path) -> None:
    """Put the name of a file on disk, where a folder can be synchronised."""
    if os.name == "posix":
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _delete(core: Core, written: Mapping[str, int]) -> int:
    while core.measure():
        pass
    ids, deleted = list(written), 0
    for start in range(0, len(ids), MAX_AT_ONCE):
        some = {id: written[id] for id in ids[start : start + MAX_AT_ONCE]}
        delete = partial(retention.delete_unchanged, entries=some)
        deleted += core.store.write("prune", delete, brings=nothing).result()
    return deleted
