"""Which commands help a job that does not run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tenure.jobs.queries import EVENT_OF
from tenure.lifecycle import Job

if TYPE_CHECKING:
    from tenure.jobs.explain import Explanation

ACTIONS = {"retry": "run it again", "cancel": "cancel it", "run_now": "run it now"}
REMEDIES = {
    "no_worker": "start a worker: tenure worker --app MODULE:NAME",
    "no_worker_for_queue": "start a worker: tenure worker --app MODULE:NAME --queue {queue}",
    "no_worker_for_type": "start a worker: tenure worker --app MODULE:NAME --queue {queue}",
    "queue_paused": "resume the queue: tenure queues resume {queue}",
    "type_paused": "resume the type: tenure types resume {type}",
    "partition_paused": "resume it: tenure queues partition {queue} {partition} --resume",
    "halted": "pass over that job: tenure queues partition {queue} {partition} --pass-over",
    "queue_full": "change its limit: tenure queues limit {queue} --max-running N",
    "queue_rate": "change its rate: tenure queues limit {queue} --rate N/TIME",
    "locked": "see which transactions may have jobs locked: tenure doctor",
    "partition_full": (
        "change its limit: tenure queues partition {queue} {partition} --max-running N"
    ),
}
"""By the reason of an explanation: what to do, and the command that does it."""


def advice(job: Job, explanation: Explanation) -> Iterator[str]:
    """Yield what can be done about a job, each with its command."""
    if remedy := REMEDIES.get(explanation.reason):
        where = {"queue": job.queue, "type": job.type, "partition": job.partition or ""}
        quoted = {name: shlex.quote(value) for name, value in where.items()}
        yield f"You can {remedy.format(**quoted)}"
    for action, event in EVENT_OF.items():
        if event in explanation.legal_events and (
            action != "run_now" or explanation.reason == "not_due"
        ):
            yield f"You can {ACTIONS[action]}: tenure jobs {action.replace('_', '-')} {job.id}"
