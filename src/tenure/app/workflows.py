"""Reading, cancelling and retrying workflows: `app.workflows`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from tenure.app.bulk import BulkActions
from tenure.app.core import Noun
from tenure.app.flow import NewWorkflow
from tenure.app.twins import twin
from tenure.errors import InvalidInput, WorkflowNotFound
from tenure.jobs import durations, ids
from tenure.jobs.enqueue import Duration, whole
from tenure.jobs.names import check_name
from tenure.jobs.queries import MAX_LISTED, Bulk, Filter
from tenure.jobs.workflows import GraphPage, RelativePage, Workflow, WorkflowPage, WorkflowStatus
from tenure.store.tables import flow, workflows
from tenure.store.work import nothing

if TYPE_CHECKING:
    from tenure.app.app import Tenure


class Workflows(Noun):
    """The workflows of one database."""

    def __init__(self, app: Tenure) -> None:
        super().__init__(app.core)
        self._app = app

    def get(self, workflow_id: str) -> Workflow:
        """Return a workflow, with the number of its jobs by status. Raises WorkflowNotFound."""
        core, found = self._core, None
        if ids.is_id(workflow_id):
            found = workflows.get(core.limited_store.read, workflow_id, core.queues)
        if found is None:
            raise WorkflowNotFound(workflow_id)
        return found

    def list(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> WorkflowPage:
        """Return workflows, newest first, without the numbers of their jobs.

        - `status`: only `running`, `completed`, `failed` or `cancelled` ones. Default: None, all.
        - `name`: only workflows of this name. Default: None, all.
        - `limit`: at most this many, 1 to 500. Default: 50.
        - `before`: only workflows older than the one with this id, for the next page.
          Default: None.

        Raises InvalidInput.
        """
        if status is not None and status not in tuple(WorkflowStatus):
            raise InvalidInput(f"use one of {', '.join(WorkflowStatus)}", path="$.status")
        if name is not None:
            check_name(name, "workflow", "$.name")
        if before is not None:
            ids.check_id(before, "$.before")
        most = whole(limit, 1, MAX_LISTED, "$.limit")
        found = workflows.listed(
            self._core.limited_store.read,
            self._core.queues,
            status=None if status is None else WorkflowStatus(status),
            name=name,
            limit=most + 1,
            before=before,
        )
        return WorkflowPage(found[:most], found[most - 1].id if len(found) > most else None)

    def graph(self, workflow_id: str, *, limit: int = 500, after: str | None = None) -> GraphPage:
        """Return jobs of a workflow, oldest first, and what these depend on.

        - `workflow_id`: the workflow.
        - `limit`: at most this many jobs, 1 to 500; fewer if they have more than 50,000
          dependencies. Default: 500.
        - `after`: only jobs newer than the one with this id, for the next page. Default: None.

        Raises WorkflowNotFound or InvalidInput.
        """
        if after is not None:
            ids.check_id(after, "$.after")
        most, core = whole(limit, 1, MAX_LISTED, "$.limit"), self._core
        page = None
        if ids.is_id(workflow_id):
            read = core.limited_store.read
            page = workflows.graph(read, workflow_id, core.queues, limit=most, after=after)
        if page is None or not page.jobs:
            self.get(workflow_id)
        return page or GraphPage([], [], None)

    def parents(self, job_id: str, *, limit: int = 50, after: str | None = None) -> RelativePage:
        """Return the jobs that a job waits for, or has waited for, oldest first.

        - `job_id`: the job.
        - `limit`: at most this many, 1 to 500. Default: 50.
        - `after`: only jobs newer than the one with this id, for the next page. Default: None.

        Raises JobNotFound or InvalidInput.
        """
        return self._relatives(job_id, limit, after, followers=False)

    def followers(self, job_id: str, *, limit: int = 50, after: str | None = None) -> RelativePage:
        """Return the jobs that wait for a job, or have waited for it, oldest first.

        - `job_id`: the job.
        - `limit`: at most this many, 1 to 500. Default: 50.
        - `after`: only jobs newer than the one with this id, for the next page. Default: None.

        Raises JobNotFound or InvalidInput.
        """
        return self._relatives(job_id, limit, after, followers=True)

    def _relatives(
        self, job_id: str, limit: int, after: str | None, *, followers: bool
    ) -> RelativePage:
        if after is not None:
            ids.check_id(after, "$.after")
        most, core = whole(limit, 1, MAX_LISTED, "$.limit"), self._core
        job, read = core.get(job_id), core.limited_store.read
        more: Any = {"followers": followers, "limit": most, "after": after}
        return workflows.relatives(read, job.id, core.queues, **more)

    def cancel(
        self,
        workflow_id: str,
        *,
        everything: bool = False,
        actor: str | None = None,
        reason: str | None = None,
    ) -> Bulk:
        """Start to cancel the jobs of a workflow that are not settled; return the bulk action.

        - `workflow_id`: the workflow.
        - `everything`: cancel also jobs of which a failure meets all dependencies, such as a
          clean-up. Default: False: these run once their parents are cancelled.
        - `actor`: who does this. Default: the application's actor.
        - `reason`: why, for the ledger; at most 500 characters. Default: None.

        The action continues in the background, see `app.bulk`. Raises WorkflowNotFound or
        InvalidInput.
        """
        jobs = Filter(workflow=self.get(workflow_id).id, leaves_followers=not everything)
        return BulkActions(self._core).start("cancel", jobs, actor=actor, reason=reason)

    def retry(
        self,
        workflow_id: str,
        *,
        more_retries: int = 1,
        actor: str | None = None,
        reason: str | None = None,
    ) -> Bulk:
        """Start to retry the jobs of a workflow that failed for good; return the bulk action.

        Jobs that were skipped because of these wait again.

        - `workflow_id`: the workflow.
        - `more_retries`: how much to add to each job's `max_retries`, 1 to 1,000. Default: 1.
        - `actor`: who does this. Default: the application's actor.
        - `reason`: why, for the ledger; at most 500 characters. Default: None.

        The action continues in the background, see `app.bulk`. Raises WorkflowNotFound or
        InvalidInput.
        """
        jobs = Filter(workflow=self.get(workflow_id).id)
        start = BulkActions(self._core).start
        return start("retry", jobs, more_retries=more_retries, actor=actor, reason=reason)

    def extend(
        self, workflow_id: str | None, *, key: str | None = None, actor: str | None = None
    ) -> NewWorkflow:
        """Begin to add jobs to a workflow that exists: `with app.workflows.extend(id) as flow:`.

        - `workflow_id`: the workflow; it may have finished, and then runs again. None, as a job
          without a workflow has it, is refused.
        - `key`: as of `Tenure.workflow`, within this workflow. Default: None.
        - `actor`: who adds them. Default: the application's actor.

        Up to 100,000 jobs in all. Without a key, a handler that runs again adds them again:
        `JobContext.enqueue` adds jobs once. Returns what `Tenure.workflow` returns; the end of the
        block also raises WorkflowNotFound. Raises InvalidInput.
        """
        if workflow_id is None:
            said = "the job is in no workflow: begin one with `app.workflow(...)`"
            raise InvalidInput(said, path="workflow_id")
        ids.is_id(workflow_id)  # refuses what is no text; another text names no workflow
        return NewWorkflow(self._app, "workflow", key, actor, extends=workflow_id)

    def wait(self, workflow_id: str, timeout: Duration | None = None) -> Workflow:
        """Return a workflow once all its jobs are settled; its status says how it ended.

        - `workflow_id`: the workflow.
        - `timeout`: a duration to wait at most. Default: None, as long as it takes.

        In a handler, this holds one of the worker's slots. Raises WorkflowNotFound; TimeoutError if
        the workflow is not finished in time (it continues); ResultGone if retention deleted it; and
        StoreUnavailable.
        """
        limit = _Limit(workflow_id, timeout)
        self.get(workflow_id)
        with limit:
            for job_id in self._open_jobs(workflow_id):
                self._app.wait(job_id, limit.left())
        return self._ended(workflow_id)

    async def wait_async(self, workflow_id: str, timeout: Duration | None = None) -> Workflow:
        """Wait like `wait`, without blocking the event loop or holding a thread."""
        import asyncio

        limit = _Limit(workflow_id, timeout)
        await self.get_async(workflow_id)
        find = self._open_jobs(workflow_id)
        with limit:
            while (job_id := await asyncio.to_thread(next, find, None)) is not None:
                await self._app.wait_async(job_id, limit.left())
        return await asyncio.to_thread(self._ended, workflow_id)

    def _ended(self, workflow_id: str) -> Workflow:
        found = self.get(workflow_id)
        if found.finished_at is not None:
            return found
        note = partial(flow.finish, workflows=[workflow_id])  # as the next sweep would
        self._core.store.write("sweep", note, brings=nothing).result()
        return self.get(workflow_id)

    def _open_jobs(self, workflow_id: str) -> Iterator[str]:
        """Yield a job to wait for, the newest first, until there is none."""
        read, last = self._core.store.read, ids.AFTER_ALL
        while (job_id := flow.last_open(read, workflow_id, last)) or last != ids.AFTER_ALL:
            if job_id is not None:
                yield job_id
            last = job_id or ids.AFTER_ALL  # what was added meanwhile is seen at the end

    get_async = twin(get)
    list_async = twin(list)
    graph_async = twin(graph)
    cancel_async = twin(cancel)
    retry_async = twin(retry)
    parents_async = twin(parents)
    followers_async = twin(followers)


class _Limit:
    """The time that waiting for a workflow may take; for `with`, which says so if it is over."""

    def __init__(self, workflow_id: str, timeout: Duration | None) -> None:
        self._said = f"workflow {workflow_id} is not finished in time; it continues"
        seconds = None if timeout is None else durations.seconds(timeout, path="$.timeout")
        self._until = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float | None:
        return None if self._until is None else max(self._until - time.monotonic(), 0.0)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, TimeoutError):
            raise TimeoutError(self._said) from None
