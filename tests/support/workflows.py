"""Workflows made of a few words, without the builder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from msgspec.structs import asdict

from tenure import Dependency, NewJob, Tenure
from tenure.dependency import Meets
from tenure.rules.jobs import LinkedJob, Options, check_jobs
from tenure.values import ids
from tests.support.raw_sql import RawSql

IMPORT: Mapping[str, Any] = {
    **{f"page_{n}": {"type": "fetch", "max_retries": 1} for n in range(5)},
    "total": {"type": "sum", "after": [f"page_{n}" for n in range(5)]},
    "alert": {"type": "alert", "after": ["total:failed"]},
    "clean": {"type": "clean_up", "after": ["total:settled"]},
}
"""Five pages, their sum, and what follows a failure or any ending of that."""


def add_workflow(
    app: Tenure,
    jobs: Mapping[str, Mapping[str, Any]] = IMPORT,
    *,
    name: str = "import",
    key: str | None = None,
) -> tuple[str, dict[str, str]]:
    """Add a workflow of jobs by name, parents first; returns its id, and theirs by name.

    A job has a `type`, options, and `after`: parents with what is met, as in `total:failed`.
    """
    new_jobs = [NewJob(job["type"], {}, _options(job)) for job in jobs.values()]
    more: dict[str, Any] = {"defaults": app.core.defaults.of, "actor": "test", "several": True}
    checked = check_jobs(new_jobs, **more)
    by_name = {name: job.id for name, job in zip(jobs, checked, strict=True)}
    workflow, raw = ids.new_id(), RawSql(app.database)
    row = (
        "INSERT INTO {workflow} (id, name, key, created_at, created_by) VALUES (?, ?, ?, {now}, ?)"
    )
    raw.run(row, workflow, name, key, "test")
    raw.close()
    linked = []
    for one, job in zip(checked, jobs.values(), strict=True):
        edges = tuple(_edge(by_name, after) for after in job.get("after", ()))
        own = {"simple": False, "edges": edges, "workflow": workflow}
        linked.append(LinkedJob(**asdict(one) | own))
    app.core.limited_store.add(linked).result()
    return workflow, by_name


def _options(job: Mapping[str, Any]) -> Options:
    return cast(Options, {name: v for name, v in job.items() if name not in ("type", "after")})


def _edge(by_name: Mapping[str, str], after: str) -> Dependency:
    name, _, meets = after.partition(":")
    return Dependency(by_name[name], cast(Meets, meets or "completed"))


def finish(app: Tenure, bulk: str) -> None:
    """Carry out a bulk action."""
    while app.bulk.step(bulk).finished_at is None:
        pass


def statuses(app: Tenure, jobs: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """The statuses of some jobs of a workflow."""
    return [app.get(jobs[name]).status for name in names]
