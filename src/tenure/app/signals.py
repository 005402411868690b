"""Signals to jobs: sent by `Tenure.signal` or by a one-use token, and listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tenure.app.core import Core, Noun
from tenure.errors import SignalTokenNotFound
from tenure.lifecycle import Job, Status
from tenure.rules.reports import Wait
from tenure.rules.signals import (
    NewSignal,
    Signal,
    TokenSignal,
    check_signal_name,
    check_takes,
    signal_text,
    token_digest,
)
from tenure.store.tables import signals as stored
from tenure.values.ids import id_of
from tenure.values.names import check_key

if TYPE_CHECKING:
    from tenure.app.app import Tenure

LINK = "signal link"
"""The actor of a signal that was sent with a one-use token."""


def signal(
    app: Tenure,
    job: Job | str,
    name: str,
    payload: object = None,
    key: str | None = None,
    *,
    actor: str | None = None,
) -> Signal:
    """Send a signal to a job; one that waits for it runs again at once.

    A signal that comes before the job waits is kept until it does: the first wait for a name takes
    the first signal of that name, the second wait the second.

    - `job`: the job, or its id.
    - `name`: what `JobContext.wait_for_signal` names; 1 to 100 of `A-Z a-z 0-9 _ : - .`.
    - `payload`: what to say, as plain JSON of at most 64 KiB. Default: None.
    - `key`: an idempotency key for this job and name, at most 255 visible ASCII characters: sending
      the same again sends nothing. Default: None.
    - `actor`: who sends it, for the ledger; as of `cancel`.

    Returns the `Signal`, with `key` perhaps the one of before. Raises JobNotFound;
    IllegalTransition if the job is settled; KeyConflict if the key was used with another payload;
    InvalidInput, also for more than 1,000 signals of a job, and PayloadTooLarge.
    """
    job_id = id_of(job)
    new = new_signal(app.core, name, payload, key, actor)
    app.core.get(job_id)  # a job of another queue is not found
    return sent(app.core, lambda db: stored.send(db, job_id, new), [job_id])


def new_signal(
    core: Core, name: str, payload: object, key: str | None, actor: str | None
) -> NewSignal:
    """Return a checked signal; raises InvalidInput or PayloadTooLarge."""
    return NewSignal(
        check_signal_name(name),
        signal_text(payload),
        None if key is None else check_key(key, "$.key"),
        core.signed(actor),
    )


def sent(core: Core, send: Callable[[Any], Signal], jobs: Sequence[str]) -> Signal:
    return core.limited_store.write("signal", send, jobs=jobs).result()


class Signals(Noun):
    """The signals of jobs. `Tenure.signal` sends one."""

    def list(self, job_id: str) -> list[Signal]:
        """Return the signals of a job, in the order in which they came.

        Those of one time, in milliseconds on SQLite, are in the order of their names, and those of
        one name in that of their numbers. Raises JobNotFound.
        """
        self._core.get(job_id)
        return stored.of_job(self._core.limited_store.read, job_id)


def by_token(core: Core, token: str, payload: str | None) -> Signal:
    """Send the signal of a one-use token; raises SignalTokenNotFound and what `signal` raises."""
    digest = _digest(token)
    job_id = stored.of_token(core.limited_store.read, digest).job_id
    return sent(core, lambda db: stored.send_by_token(db, digest, payload, LINK), [job_id])


def of_token(core: Core, token: str) -> tuple[Job, TokenSignal]:
    """Return the job of a one-use token, and what it sends.

    Raises SignalTokenNotFound; IllegalTransition if the job is settled, and takes no signal.
    """
    found = stored.of_token(core.limited_store.read, _digest(token))
    job = core.get(found.job_id)
    check_takes(job)
    return job, found


def waited_for(core: Core, job: Job) -> Wait | None:
    """Return what a suspended job waits for; None for any other."""
    suspended = job.status is Status.WAITING and job.token
    return stored.wait_of(core.limited_store.read, job.id) if suspended else None


def _digest(token: str) -> str:
    digest = token_digest(token)
    if digest is None:
        raise SignalTokenNotFound()
    return digest
