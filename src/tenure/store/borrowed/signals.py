"""Signals to jobs: stored, and the job that waits for one released, in one transaction.

It is the same for a connection of a caller and for one of the store, where `unique_keys.run`
executes it. The job is locked first, so that a signal and a suspension that happen at the same time
see each other.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from tenure import failpoints
from tenure.errors import InvalidInput, KeyConflict, PayloadTooLarge, SignalTokenNotFound
from tenure.events import Unblocked
from tenure.jobs.payload import JsonText
from tenure.jobs.signals import (
    MAX_SIGNALS,
    MAX_SIGNALS_BYTES,
    NewSignal,
    Signal,
    TokenSignal,
    check_takes,
)
from tenure.lifecycle import Job, Status, decide
from tenure.store.borrowed import jobs
from tenure.store.borrowed.drivers import Steps
from tenure.store.borrowed.json_jobs import ask, millis, time_in, written

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
ADD = f"""
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


def send(engine: str, job_id: str, signal: NewSignal) -> Steps[Signal]:
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
        raise SignalTokenNotFound()
    _check(job, found, signal)
    number = (found["last"] or 0) + 1
    asked |= {"number": number, "at": now if engine == "postgres" else millis(now)}
    yield ask(engine, ADD, written(asked))
    if signal.token is not None:
        yield ask(engine, USE_TOKENS, written(asked))
    failpoints.hit("signal.between_signal_and_job")
    if job.status is Status.WAITING and found["wait"] == {"name": signal.name, "number": number}:
        yield from _release(engine, decide(job, Unblocked(actor=signal.actor), now))
    return _signal(job_id, signal, number, now)


def _known(engine: str, job_id: str, signal: NewSignal, known: dict[str, Any]) -> Signal:
    if known["payload"] != signal.payload:
        raise KeyConflict(str(signal.key), job_id)
    at = time_in(engine, known["at"])
    return replace(_signal(job_id, signal, known["number"], at), actor=known["actor"])


def _check(job: Job, found: dict[str, Any], signal: NewSignal) -> None:
    check_takes(job)
    if (found["size"] or 0) + len(signal.payload) > MAX_SIGNALS_BYTES:
        raise PayloadTooLarge(
            f"the signals of a job have {MAX_SIGNALS_BYTES} characters at most", path="$.payload"
        )
    if found["all"] >= MAX_SIGNALS:
        raise InvalidInput(f"the job has {MAX_SIGNALS} signals, which is the limit", path="$.name")


def _signal(job_id: str, signal: NewSignal, number: int, at: datetime) -> Signal:
    return Signal(
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


def of_token(engine: str, digest: str) -> Steps[TokenSignal]:
    """Return what a one-use token sends; raises SignalTokenNotFound."""
    rows = yield ask(engine, OF_DIGEST, digest)
    for (text,) in rows:
        return TokenSignal(**json.loads(text))
    raise SignalTokenNotFound()


def send_by_token(engine: str, digest: str, payload: str | None, actor: str) -> Steps[Signal]:
    """Send the signal of a one-use token, which goes with it and all others of job and name.

    `payload` is for a token that has none. Raises what `of_token` and `send` raise, InvalidInput.
    """
    one = yield from of_token(engine, digest)
    if one.payload is not None and payload is not None:
        raise InvalidInput("this token has a payload, so send no other", path="$")
    text = JsonText(one.payload or payload or "null")
    return (yield from send(engine, one.job_id, NewSignal(one.name, text, None, actor, digest)))
