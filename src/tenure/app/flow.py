"""Adding workflows: `app.workflow`, and `chain`, `group` and `batch`, which are made of it.

Those three are verbs of `Within`, too, whose workflows are stored in the caller's transaction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from msgspec.structs import replace

from tenure.app.adding import Adding
from tenure.app.twins import twin
from tenure.app.waiting import Handle
from tenure.dependency import Dependency
from tenure.errors import InvalidInput
from tenure.jobs import ids
from tenure.jobs.enqueue import Duration, NewJob, NewJobOf, TypeOptions, check_new, listed
from tenure.jobs.graph import LIST_OR_NAMED, DependsOn
from tenure.jobs.names import check_key, check_kind, check_name
from tenure.jobs.queue_rights import own_key
from tenure.jobs.workflows import fingerprint_of
from tenure.store.tables import flow

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.app.within import Within
    from tenure.jobs.workflows import Workflow

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
        store = flow.extend if self._extends else flow.add
        try:
            call = partial(store, new=new, jobs=adding.checked_jobs, queues=core.queues)
            stored = core.limited_store.write("enqueue", call).result()
        except BaseException as error:
            adding.end(error=error)
            raise
        self._end(adding, stored)

    def _checked(self, defaults: Callable[[str], TypeOptions]) -> tuple[Adding, flow.New]:
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
        return adding, flow.New(self.id, self._name, key, fingerprint, self._actor)

    def _end(self, adding: Adding, stored: flow.Stored) -> None:
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
