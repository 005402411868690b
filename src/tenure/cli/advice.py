"""Which commands help a job that does not run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tenure.cli.command import application_of_host, program
from tenure.jobs.names import RESERVED
from tenure.jobs.queries import EVENT_OF
from tenure.lifecycle import Job

if TYPE_CHECKING:
    from tenure.jobs.explain import Explanation

ACTIONS = {"retry": "run it again", "cancel": "cancel it", "run_now": "run it now"}
REMEDIES = {
    "no_worker": "start a worker: {program} worker{app}",
    "no_worker_for_queue": "start a worker: {program} worker{app} --queue {queue}",
    "no_worker_for_type": "start a worker: {program} worker{app} --queue {queue}",
    "behind_others": "start another worker: {program} worker{app} --queue {queue}",
    "queue_paused": "resume the queue: {program} queues resume {queue}",
    "type_paused": "resume the type: {program} types resume {type}",
    "partition_paused": "resume it: {program} queues partition --resume {queue} {partition}",
    "halted": "pass over that job: {program} queues partition --pass-over {queue} {partition}",
    "queue_waits": "end the wait: {program} queues resume {queue}",
    "partition_waits": "end the wait: {program} queues partition --resume {queue} {partition}",
    "queue_full": "change its limit: {program} queues limit {queue} --max-running N",
    "queue_rate": "change its rate: {program} queues limit {queue} --rate N/TIME",
    "partition_full": (
        "change its limit: {program} queues partition --max-running N {queue} {partition}"
    ),
    "partition_rate": (
        "change what each partition may do: {program} queues limit {queue} --per-partition "
        "max_running=N,rate=N/TIME"
    ),
    "suspended": "send the signal: {program} signals send {id} {signal}",
    "locked": "see which transactions may have jobs locked: {program} doctor",
    "cancelled": "add a job like it: {program} jobs run-again {id}",
    "expired": "add a job like it: {program} jobs run-again {id}",
}
"""By the reason of an explanation: what to do, and the command that does it."""
OF_DELIVERIES = "see the webhooks: {program} webhooks list"
"""What to do where the queue of a webhook starts no delivery: its receiver has to answer."""
UNBLOCK = "let it run without them: {program} jobs unblock {id}"


def advice(job: Job, explanation: Explanation) -> Iterator[str]:
    """Yield what can be done about a job, each with its command."""
    where = {"id": job.id, "queue": job.queue, "type": job.type, "partition": job.partition or ""}
    where["signal"] = explanation.signal or ""
    quoted = {name: shlex.quote(value) for name, value in where.items()}
    if where["partition"].startswith("-"):
        quoted["partition"] = f"-- {quoted['partition']}"  # else it is an option
    quoted["program"] = program()
    quoted["app"] = "" if application_of_host() else " --app MODULE:NAME"
    remedy = REMEDIES.get(explanation.reason)
    if explanation.reason == "queue_waits" and job.type.startswith(RESERVED):
        remedy = OF_DELIVERIES
    if remedy:
        yield f"You can {remedy.format(**quoted)}"
    for id in explanation.jobs:
        yield f"You can look at job {id}: {program()} explain {id}"
    if explanation.reason == "blocked":
        yield f"You can {UNBLOCK.format(**quoted)}"
    for action, event in EVENT_OF.items():
        if event in explanation.legal_events and (
            action != "run_now" or explanation.reason == "not_due"
        ):
            yield f"You can {ACTIONS[action]}: {program()} jobs {action.replace('_', '-')} {job.id}"
