"""Add a workflow with its jobs, and send signals to jobs, in one transaction.

It is the same for a connection of a caller and for one of the store, where `dependencies.run`
executes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from tenure import errors, failpoints
from tenure.events import Unblocked
from tenure.lifecycle import Job, Status, decide
from tenure.rules import signals
from tenure.rules.jobs import CheckedJob
from tenure.store.borrowed import jobs
from tenure.store.borrowed.drivers import Steps, ask, millis, time_in, written
from tenure.store.tables.workflows import New, Stored
from tenure.values.payload import JsonText

ADD = """
INSERT INTO {s}workflow (id, name, key, fingerprint, created_by, created_at)
SELECT CAST(r ->> 'id' AS {uuid}), r ->> 'name', r ->> 'key', r ->> 'fingerprint',
    r ->> 'created_by', {now}
FROM (SELECT {json} AS r) AS asked WHERE true ON CONFLICT (key) DO NOTHING RETURNING 1
"""
# The workflow that has the key, and its first jobs.
KNOWN = """
WITH asked AS MATERIALIZED (SELECT {json} AS r)
SELECT CAST({array}(id, fingerprint, {nested}((SELECT {list}(job_id) FROM (
    SELECT job.id AS job_id FROM {s}job AS job WHERE job.workflow = known.id
    ORDER BY job.id LIMIT (SELECT CAST(r ->> 'jobs' AS integer) FROM asked)) AS first))) AS {text})
FROM asked, {s}workflow AS known WHERE known.key = r ->> 'key'
"""
REMOVE = "DELETE FROM {s}workflow WHERE id = {id} RETURNING 1"


def add(
    engine: str, new: New, checked_jobs: Sequence[CheckedJob], *, notify: bool
) -> Steps[Stored]:
    """Add a workflow with jobs, unless one with its key is there; raises KeyConflict.

    Raises what `jobs.add` raises, and then nothing of it is left in the transaction. The row of the
    workflow comes first, so that a transaction that adds one with the same key waits here.
    """
    if engine == "sqlite":
        yield jobs.LOCK_FILE
    if known := (yield from begin(engine, new, len(checked_jobs))):
        return known
    try:
        added = (yield from jobs.add(engine, checked_jobs, notify=notify)) if checked_jobs else []
    except errors.TenureError:
        yield ask(engine, REMOVE, new.id)
        raise
    return Stored(new.id, [one.job.id for one in added], added, created=True)


def begin(engine: str, new: New, jobs: int) -> Steps[Stored | None]:
    """Add the row of a workflow, unless one with its key is there; raises KeyConflict.

    Returns that one with its first so many jobs; None if it was added. Also for a connection of
    the store, where `dependencies.run` executes it.
    """
    while not (yield ask(engine, ADD, written(new._asdict()))):
        asked = written({"key": new.key, "jobs": jobs})
        for (text,) in (yield ask(engine, KNOWN, asked)):  # none: deleted since
            id, fingerprint, first = json.loads(text)
            if fingerprint != new.fingerprint:
                raise errors.KeyConflict(new.key or "", workflow_id=id)
            return Stored(id, first or [])
    return None


# --- signals --------------------------------------------------------------------------------------
# The job is locked first, so that a signal and a suspension that happen at the same time see each
# other.

ASKED = "WITH asked AS MATERIALIZED (SELECT {json} AS r)"
ID = "CAST(r ->> 'job_id' AS {uuid})"
LOOK = f"""
{ASKED} SELECT CAST({{object}}(
    'all', (SELECT count(*) FROM {{s}}signal WHERE job_id = {ID}),
    'size', (SELECT sum(length(payload)) FROM {{s}}signal WHERE job_id = {ID}),
    'last', (SELECT max(number) FROM {{s}}signal WHERE job_id = {ID} AND name = r ->> 'name'),
    'known', {{nested}}((
        SELECT {{object}}('number', number, 'at', at, 'payload', payload, 'actor', actor)
        FROM {{s}}signal WHERE job_id = {ID} AND name = r ->> 'name' AND key = r ->> 'key')),
    'wait', {{nested}}((
        SELECT {{object}}('name', name, 'number', number) FROM {{s}}wait WHERE job_id = {ID})),
    'usable', (SELECT count(*) FROM {{s}}signal_token WHERE digest = r ->> 'token')
) AS {{text}}) FROM asked
"""
ADD_SIGNAL = f"""
{ASKED} INSERT INTO {{s}}signal (job_id, name, number, at, key, payload, actor)
SELECT {ID}, r ->> 'name', CAST(r ->> 'number' AS integer), CAST(r ->> 'at' AS {{time}}),
    r ->> 'key', r ->> 'payload', r ->> 'actor'
FROM asked WHERE true RETURNING 1
"""
USE_TOKENS = f"""
{ASKED} DELETE FROM {{s}}signal_token
WHERE job_id = (SELECT {ID} FROM asked) AND name = (SELECT r ->> 'name' FROM asked) RETURNING 1
"""
OF_DIGEST = """
SELECT CAST({object}(
    'job_id', CAST(job_id AS text), 'name', name, 'payload', payload, 'label', label
) AS {text}) FROM {s}signal_token WHERE digest = {p}
"""


def send(engine: str, job_id: str, signal: signals.NewSignal) -> Steps[signals.Signal]:
    """Store a signal to a job, and let the job run that waits for it; return the signal.

    A signal with a key that is known is the one of before. Raises JobNotFound; IllegalTransition if
    the job is settled; KeyConflict; InvalidInput for more than `MAX_SIGNALS`; SignalTokenNotFound
    if its token was used meanwhile.
    """
    job, now = yield from jobs.locked(engine, job_id)
    asked = {
        "job_id": job_id,
        **{name: getattr(signal, name) for name in ("name", "key", "payload", "actor", "token")},
    }
    ((text,),) = yield ask(engine, LOOK, written(asked))
    found = json.loads(text)
    if found["known"]:
        return _known(engine, job_id, signal, found["known"])
    if signal.token is not None and not found["usable"]:
        raise errors.SignalTokenNotFound()
    _check(job, found, signal)
    number = (found["last"] or 0) + 1
    asked |= {"number": number, "at": now if engine == "postgres" else millis(now)}
    yield ask(engine, ADD_SIGNAL, written(asked))
    if signal.token is not None:
        yield ask(engine, USE_TOKENS, written(asked))
    failpoints.hit("signal.between_signal_and_job")
    if job.status is Status.WAITING and found["wait"] == {"name": signal.name, "number": number}:
        yield from _release(engine, decide(job, Unblocked(actor=signal.actor), now))
    return _signal(job_id, signal, number, now)


def _known(
    engine: str, job_id: str, signal: signals.NewSignal, known: dict[str, Any]
) -> signals.Signal:
    if known["payload"] != signal.payload:
        raise errors.KeyConflict(str(signal.key), job_id)
    at = time_in(engine, known["at"])
    return replace(_signal(job_id, signal, known["number"], at), actor=known["actor"])


def _check(job: Job, found: dict[str, Any], signal: signals.NewSignal) -> None:
    signals.check_takes(job)
    if (found["size"] or 0) + len(signal.payload) > signals.MAX_SIGNALS_BYTES:
        raise errors.PayloadTooLarge(
            f"the signals of a job have {signals.MAX_SIGNALS_BYTES} characters at most",
            path="$.payload",
        )
    if found["all"] >= signals.MAX_SIGNALS:
        raise errors.InvalidInput(
            f"the job has {signals.MAX_SIGNALS} signals, which is the limit", path="$.name"
        )


def _signal(job_id: str, signal: signals.NewSignal, number: int, at: datetime) -> signals.Signal:
    return signals.Signal(
        job_id=job_id,
        name=signal.name,
        number=number,
        at=at,
        key=signal.key,
        payload_json=signal.payload,
        actor=signal.actor,
    )


def _release(engine: str, after: Job) -> Steps[None]:
    yield jobs.saved(engine, after)
    yield ask(engine, jobs.END_WAIT, after.id)


def of_token(engine: str, digest: str) -> Steps[signals.TokenSignal]:
    """Return what a one-use token sends; raises SignalTokenNotFound."""
    rows = yield ask(engine, OF_DIGEST, digest)
    for (text,) in rows:
        return signals.TokenSignal(**json.loads(text))
    raise errors.SignalTokenNotFound()


def send_by_token(
    engine: str, digest: str, payload: str | None, actor: str
) -> Steps[signals.Signal]:
    """Send the signal of a one-use token, which goes with it and all others of job and name.

    `payload` is for a token that has none. Raises what `of_token` and `send` raise, InvalidInput.
    """
    one = yield from of_token(engine, digest)
    if one.payload is not None and payload is not None:
        raise errors.InvalidInput("this token has a payload, so send no other", path="$")
    text = JsonText(one.payload or payload or "null")
    return (
        yield from send(engine, one.job_id, signals.NewSignal(one.name, text, None, actor, digest))
    )
