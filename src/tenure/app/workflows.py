"""Workflows: `app.workflow` adds them, `app.workflows` reads, cancels, retries and extends them.

`chain`, `group` and `batch` are made of `app.workflow`. These three are verbs of `Within`, too,
whose workflows are stored in the caller's transaction.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from msgspec.structs import replace

from tenure.app.bulk import BulkActions
from tenure.app.core import Noun
from tenure.app.jobs import Adding
from tenure.app.twins import twin
from tenure.app.waiting import Handle
from tenure.dependency import Dependency
from tenure.errors import InvalidInput, WorkflowNotFound
from tenure.rules.dependencies import LIST_OR_NAMED, DependsOn
from tenure.rules.jobs import Duration, NewJob, NewJobOf, TypeOptions, check_new, listed
from tenure.rules.search import MAX_LISTED, Bulk, Filter
from tenure.rules.tokens import own_key
from tenure.rules.workflows import (
    GraphPage,
    RelativePage,
    Workflow,
    WorkflowPage,
    WorkflowStatus,
    fingerprint_of,
)
from tenure.store.tables import workflows
from tenure.store.work import nothing
from tenure.values import durations, ids
from tenure.values.names import check_key, check_kind, check_name
from tenure.values.numbers import whole

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.app.within import Within

R = TypeVar("R")
V = TypeVar("V")
Parents = Sequence[DependsOn] | Mapping[str, DependsOn]


class Node(Handle[R]):
    """A job of a workflow, as `NewWorkflow.add` returns it; other jobs can depend on it at once.

    It is the `Handle` of its job, and so has `id`, `result`, `progress`, `settled` and `failed`.
    """

    def __init__(self, app: Tenure, type: str, name: str | None) -> None:
        handler = app.core.handlers.find(type)
        super().__init__(app, ids.new_id(), Any if handler is None else handler.returns)
        self.name = name
        """The name by which jobs that depend on it find its result, if it has one."""

    @property
    def settled(self) -> Dependency:
        """A dependency that any ending of the job meets."""
        return Dependency(self.id, "settled", self.name)

    @property
    def failed(self) -> Dependency:
        """A dependency that is met if the job fails for good, is cancelled or skipped."""
        return Dependency(self.id, "failed", self.name)

    def __repr__(self) -> str:
        return f"<node of job {self.id}>"


class NewWorkflow:
    """A workflow to add: a block of `with` or `async with`, at whose end all its jobs are stored.

    They are in one transaction: all or none. If the block raises, nothing is stored.

    - `id`: of the workflow. With a key it is known at the end of the block, not before.
    - `created`: whether the block has stored its jobs, and not found a workflow with its key.
    - `nodes`: what `add` has returned, in order.
    """

    def __init__(
        self,
        app: Tenure,
        name: str,
        key: str | None,
        actor: str | None,
        *,
        extends: str | None = None,
        own_keys: bool = False,
    ) -> None:
        self._app = app
        self._name = check_name(name, "workflow", "$.name")
        self._key = None if key is None else check_key(key, "$.key")
        self._actor = app.core.signed(actor)
        self._extends = extends is not None
        self._own_keys = own_keys
        self._jobs: list[NewJob] = []
        self._is_open = False
        self.id = ids.new_id() if extends is None else extends
        self.created = False
        self.nodes: list[Node[Any]] = []

    @overload
    def add(
        self,
        new_job: NewJobOf[R],
        *,
        depends_on: Parents = (),
        needs: Literal["all", "any"] | int = "all",
        name: str | None = None,
    ) -> Node[R]: ...
    @overload
    def add(
        self,
        new_job: NewJob,
        *,
        depends_on: Parents = (),
        needs: Literal["all", "any"] | int = "all",
        name: str | None = None,
    ) -> Node[Any]: ...
    def add(
        self,
        new_job: NewJob,
        *,
        depends_on: Parents = (),
        needs: Literal["all", "any"] | int = "all",
        name: str | None = None,
    ) -> Node[Any]:
        """Add a job to the workflow; it is stored at the end of the block.

        - `new_job`: the job, as `JobType.new_job` makes it. It has no idempotency key.
        - `depends_on`, `needs`: as of `Tenure.enqueue`: nodes of this block, and jobs that exist.
        - `name`: by which jobs that depend on it find its result, as `context.results["total"]`;
          1 to 128 characters, as a job type. Default: None.

        Returns its node. Raises InvalidInput; what is wrong with a job is raised at the end of the
        block, with the number of the job as in `$[3].queue`.
        """
        if not self._is_open:
            raise InvalidInput("add jobs inside of the block; later by app.workflows.extend(id)")
        check_new(new_job, len(self._jobs))
        options: Any = {**new_job.options}
        if options.get("idempotency_key") is not None:
            raise InvalidInput("give a key to the workflow", path="$.idempotency_key")
        if depends_on or needs != "all":
            options |= {"depends_on": _named(depends_on), "needs": needs}
        node: Node[Any] = Node(self._app, new_job.type, name and check_name(name, "name", "$.name"))
        self._jobs.append(NewJob(new_job.type, new_job.payload, options, new_job.again_of))
        self.nodes.append(node)
        return node

    def __enter__(self) -> Self:
        self._is_open = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_open = False
        if kind is None:
            self._store()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_open = False
        if kind is None:
            await self._store_async()

    def status(self) -> Mapping[str, int]:
        """Return how many jobs have which status now. Raises WorkflowNotFound."""
        return self._app.workflows.get(self.id).jobs or {}

    def wait(self, timeout: Duration | None = None) -> Workflow:
        """Wait until all jobs are settled, as `app.workflows.wait` does."""
        return self._app.workflows.wait(self.id, timeout)

    async def status_async(self) -> Mapping[str, int]:
        """Do what `status` does, without blocking the event loop."""
        import asyncio

        return await asyncio.to_thread(self.status)

    async def wait_async(self, timeout: Duration | None = None) -> Workflow:
        """Do what `wait` does, without blocking the event loop."""
        return await self._app.workflows.wait_async(self.id, timeout)

    async def _store_async(self) -> None:
        import asyncio

        await asyncio.to_thread(self._store)

    def _store(self) -> None:
        core = self._app.core
        adding, new = self._checked(core.defaults.of)
        store = workflows.extend if self._extends else workflows.add
        try:
            call = partial(store, new=new, jobs=adding.checked_jobs, queues=core.queues)
            stored = core.limited_store.write("enqueue", call).result()
        except BaseException as error:
            adding.end(error=error)
            raise
        self._end(adding, stored)

    def _checked(self, defaults: Callable[[str], TypeOptions]) -> tuple[Adding, workflows.New]:
        """Return the jobs, checked, and the workflow to add; raises InvalidInput."""
        core = self._app.core
        adding = Adding(
            core,
            self._jobs,
            defaults,
            batch=True,
            known_ids=[node.id for node in self.nodes],
            workflow=self.id,
        )
        jobs, key = adding.checked_jobs, self._key
        for number, job in enumerate(jobs if key is not None else ()):
            if job.unique:
                raise InvalidInput(
                    "a workflow with a key cannot have unique jobs: give them unique=None, or null",
                    path=f"$[{number}].unique",
                )
        fingerprint = None if key is None else fingerprint_of(self._name, self._jobs, jobs)
        if key is not None and self._own_keys:
            fingerprint = _digest(fingerprint, self._actor)
        if key is not None and self._extends:
            own = _digest(key, self.id, *core.queues or ())
            keys = (own_key(job.queue, f"{own}.{number}") for number, job in enumerate(jobs))
            adding.checked_jobs = [
                replace(job, idempotency_key=each, fingerprint=fingerprint)
                for job, each in zip(jobs, keys, strict=True)
            ]
        elif key is not None and core.queues is not None:  # it says nothing about those of others
            key = _digest(key, *core.queues)
        return adding, workflows.New(self.id, self._name, key, fingerprint, self._actor)

    def _end(self, adding: Adding, stored: workflows.Stored) -> None:
        """Keep what the store has answered."""
        adding.end(stored.added)
        self.id, self.created = stored.workflow, stored.created
        for node, job_id in zip(self.nodes, stored.jobs, strict=False):
            node._id = job_id


def _named(given: Parents) -> Parents:
    """Return dependencies with the names of the nodes that they are on."""
    if isinstance(given, Mapping):
        return given
    check_kind(given, Iterable, LIST_OR_NAMED, "$.depends_on")
    return [
        Dependency(one.id, name=one.name) if isinstance(one, Node) and one.name else one
        for one in given
    ]


def _digest(*texts: object) -> str:
    return hashlib.sha256("\n".join(map(str, texts)).encode()).hexdigest()


def workflow(
    app: Tenure, name: str = "workflow", *, key: str | None = None, actor: str | None = None
) -> NewWorkflow:
    """Begin a workflow: `with app.workflow("import") as flow:`, or `async with`.

    - `name`: what people call it, 1 to 128 characters as a job type. Default: `workflow`.
    - `key`: 1 to 255 visible ASCII characters. A second block with the same key, name and jobs adds
      nothing and is about the first workflow; with others it raises KeyConflict. Default: None.
    - `actor`: who adds it. Default: the application's actor.

    Returns a `NewWorkflow`: `flow.add(...)` adds jobs, at most 10,000 in a block, and the end of
    the block stores them. The end raises what `enqueue_many` raises.
    """
    return NewWorkflow(app, name, key, actor)


def chain(
    app: Tenure | Within, new_jobs: Iterable[NewJob], *, name: str = "chain", key: str | None = None
) -> NewWorkflow:
    """Add jobs that run one after the other, each when the one before has completed.

    - `new_jobs`: at most 10,000, in order. `name`, `key`: as of `workflow`.

    Returns the workflow; `nodes` are its jobs. Raises what `enqueue_many` raises, and KeyConflict.
    """
    with app.workflow(name, key=key) as flow:
        add_chain(flow, new_jobs)
    return flow


def add_chain(flow: NewWorkflow, new_jobs: Iterable[NewJob]) -> None:
    """Add the jobs of a `chain` to a workflow."""
    for new_job in listed(new_jobs):
        flow.add(new_job, depends_on=flow.nodes[-1:])


def group(
    app: Tenure | Within,
    new_jobs: Iterable[NewJob],
    *,
    then: NewJob | None = None,
    name: str = "group",
    key: str | None = None,
) -> NewWorkflow:
    """Add jobs that run side by side, and one that runs when all have completed.

    - `new_jobs`: at most 9,999. `name`, `key`: as of `workflow`.
    - `then`: the job that runs after them; the last of `nodes`. Default: None.

    Returns the workflow. Raises what `chain` raises.
    """
    return batch(app, new_jobs, on_success=then, name=name, key=key)


def batch(
    app: Tenure | Within,
    new_jobs: Iterable[NewJob],
    *,
    on_success: NewJob | None = None,
    on_failure: NewJob | None = None,
    on_end: NewJob | None = None,
    name: str = "batch",
    key: str | None = None,
) -> NewWorkflow:
    """Add jobs that run side by side, and others for how they end.

    - `new_jobs`: at most 9,997. `name`, `key`: as of `workflow`.
    - `on_success`: runs when all have completed. Default: None.
    - `on_failure`: runs once, as soon as the first has failed for good or was cancelled; if none
      does, it is skipped. Default: None.
    - `on_end`: runs when all are settled, whatever the ending. Default: None.

    Returns the workflow; `nodes` has the jobs, then these three in this order. Raises what `chain`
    raises.
    """
    with app.workflow(name, key=key) as flow:
        add_batch(flow, new_jobs, on_success, on_failure, on_end)
    return flow


def add_batch(
    flow: NewWorkflow,
    new_jobs: Iterable[NewJob],
    on_success: NewJob | None,
    on_failure: NewJob | None,
    on_end: NewJob | None,
) -> None:
    """Add the jobs of a `batch` to a workflow."""
    nodes = [flow.add(new_job) for new_job in listed(new_jobs)]
    if on_success is not None:
        flow.add(on_success, depends_on=nodes)
    if on_failure is not None and nodes:
        flow.add(on_failure, depends_on=[node.failed for node in nodes], needs="any")
    if on_end is not None:
        flow.add(on_end, depends_on=[node.settled for node in nodes])


chain_async, group_async, batch_async = twin(chain), twin(group), twin(batch)


# --- app.workflows --------------------------------------------------------------------------------


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
        note = partial(workflows.finish, workflows=[workflow_id])  # as the next sweep would
        self._core.store.write("sweep", note, brings=nothing).result()
        return self.get(workflow_id)

    def _open_jobs(self, workflow_id: str) -> Iterator[str]:
        """Yield a job to wait for, the newest first, until there is none."""
        read, last = self._core.store.read, ids.AFTER_ALL
        while (job_id := workflows.last_open(read, workflow_id, last)) or last != ids.AFTER_ALL:
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
