"""Find jobs by any property without reading a table of millions in one call.

No index has types, times or texts: the hot path would pay for it. So a search goes along the ids
in order, of all jobs or of those of a tag or a workflow, and looks at a bounded number of rows; the
next page starts where it stopped. Where a status has few jobs, their partial index is read whole
instead.
The same for both engines.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from tenure.events import Amended, Snoozed
from tenure.lifecycle import Job, Status
from tenure.rules.reports import MAX_BYTES
from tenure.rules.search import TIMES, Counted, Filter, Page, Query, State
from tenure.rules.tokens import includes
from tenure.store.constraints import quoted
from tenure.store.database import Dialect, Reads
from tenure.values import ids
from tenure.values.redaction import Redaction

if TYPE_CHECKING:
    from tenure.store.reader import Reader

MAX_ROWS = 10_000
"""Rows that one call looks at."""
MAX_TEXTS = 2_000
"""Rows that one call reads the payloads or errors of: each may be 1 MiB."""
MAX_SPANS = 10
"""How many times as far counting goes."""
AT_ONCE = 50
"""Jobs that are loaded at once where redacted texts have to be searched outside SQL."""
CLOCKS_APART = timedelta(hours=1)
"""How far the clock that made a job's id may be from the store's: searches by time start and end at
ids of that time, so that they need not walk there. `tenure.testing`, which moves the store's clock,
raises it."""

ENDED = (Status.FAILED, Status.CANCELLED)
"""What the index `job_ended` holds, in the order of its condition."""

PUT_OFF = (
    "(event = 'snoozed' OR (event = 'amended' AND coalesce(snoozes, 0) > 0 AND (SELECT t.event"
    " FROM {ledger} AS t WHERE t.job_id = id AND t.event <> 'amended'"
    " ORDER BY t.seq DESC LIMIT 1) = 'snoozed'))"
)
"""Whether its handler put a job off, whatever operators have changed of it since."""
STATES: Mapping[str, str] = {
    State.SCHEDULED: f"attempts = 0 AND run_at > {{now}} AND NOT {PUT_OFF}",
    State.READY: "run_at <= {now}",
    State.RETRYING: f"attempts > 0 AND NOT {PUT_OFF}",
    State.SNOOZED: f"run_at > {{now}} AND {PUT_OFF}",
    State.BLOCKED: "need > 0",
}
"""What is true of the jobs of a state, beside their status."""

Statement = tuple[str, list[Any]]
"""A statement and its values."""


def folded(text: str) -> str:
    """Return `text` as both engines lower it for a search: A to Z only."""
    if text.isascii():
        return text.lower()
    # Bytes know no other capitals. A table for `translate` took nine times as long.
    return text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


def between(query: Query) -> tuple[str | None, str | None]:
    """Return the ids between which the jobs of a query are, both exclusive."""
    after, before = query.after, query.before
    if query.created_after is not None:
        after = max(after or "", ids.first_of(query.created_after, -CLOCKS_APART))
    if query.created_before is not None:
        first = ids.first_of(query.created_before, CLOCKS_APART)
        before = first if before is None else min(before, first)
    return after, before


def edge(read: Reader, query: Query, rows: int) -> Statement:
    """Select the id of the last of so many rows that a search passes, if there are as many.

    It passes all rows, or those of a tag, of a workflow or of an indexed status.
    """
    after, before = between(query)
    status = query.status if query.status in ENDED and not query.is_narrow else None
    along = Query(
        tag=query.tag,
        workflow=query.workflow if query.tag is None else None,
        status=status,
        after=after,
        before=before,
        oldest_first=query.oldest_first,
        limit=1,
    )
    statement, values = read.listing(read.dialect.id("id"), along)
    return f"{statement} OFFSET {int(rows) - 1}", values


def waiting(read: Reader, query: Query, most: int) -> Statement:
    """Count the jobs, up to `most`, in the status of a query, and in its queue if pending."""
    d, values = read.dialect, list[Any]()
    place = d.pending if query.status == Status.PENDING else d.processing
    if query.status == Status.PENDING and query.queue is not None:
        place, values = f"{place} WHERE queue = {d.value}", [query.queue]
    some = f"SELECT 1 FROM {place} LIMIT {int(most)}"
    return f"SELECT count(*) FROM ({some}) AS waiting", values


def others(d: Dialect, query: Query) -> Iterator[Statement]:
    """Yield the conditions that no index helps with, and their values."""
    compared = (
        ("type =", query.type),
        ("queue =", query.queue),
        ("partition =", query.partition),
        ("created_at >=", d.to_bound(query.created_after)),
        ("created_at <", d.to_bound(query.created_before)),
        ("created_at <=", d.to_bound(query.created_by)),
        ("finished_at >=", d.to_bound(query.finished_after)),
        ("finished_at <", d.to_bound(query.finished_before)),
        ("finished_at <=", d.to_bound(query.settled_by)),
    )
    yield from ((f"{part} {d.value}", [value]) for part, value in compared if value is not None)
    if query.state is not None:
        status = quoted(State(query.state).status)
        ledger = d.table("transition")
        yield f"status = {status} AND {STATES[query.state].format(now=d.now, ledger=ledger)}", []
    if query.running_longer_than is not None:
        since = d.later(f"-{query.running_longer_than:f}")
        yield f"status = {quoted(Status.PROCESSING)} AND started_at <= {since}", []
    if query.leaves_followers:
        ties = f"SELECT 1 FROM {d.table('dependency')} WHERE child = id"
        needing = f"EXISTS ({ties} AND meets = 'completed')"
        # One that has waited for a signal has a need, too.
        yield f"(need IS NULL OR {needing} OR NOT EXISTS ({ties}))", []
    if query.not_due:
        yield f"run_at > {d.now}", []
    if query.leaves_snoozed:
        yield f"NOT {PUT_OFF.format(ledger=d.table('transition'))}", []
    if query.within is not None:
        yield d.in_queues("queue", query.within)
    for column, text in (("last_error", query.error), ("payload", query.text)):
        if text is not None:
            yield d.folded.format(column=column), [folded(text)]


def put_off(db: Reads, jobs: Iterable[Job]) -> set[str]:
    """Return the jobs that their handlers put off: `PUT_OFF`."""
    d, last = db.dialect, (Snoozed.name, Amended.name)
    found = {job.id: job.event for job in jobs if job.snoozes and job.event in last}
    if changed := [id for id, event in found.items() if event == Amended.name]:
        still = PUT_OFF.format(ledger=d.table("transition"))
        some = f"FROM {d.table('job')} AS job WHERE id IN ({d.ids(len(changed))})"
        rows = db.rows(f"SELECT {d.id('id')} {some} AND NOT {still}", changed)
        return found.keys() - {id for (id,) in rows}
    return set(found)


def fits(filter: Filter, job: Job, now: datetime, put_off: Collection[str]) -> bool:
    """Whether a job matches at a time. Texts are compared in the form that is shown."""
    due, tried, asleep = job.run_at <= now, job.attempts > 0, job.id in put_off
    so = {
        State.SCHEDULED: not (due or tried or asleep),
        State.READY: due,
        State.RETRYING: tried and not asleep,
        State.SNOOZED: asleep and not due,
    }
    state, least = filter.state and State(filter.state), filter.running_longer_than
    ended = job.finished_at
    lasts = now - job.started_at if job.started_at and job.status is Status.PROCESSING else None
    shown = Redaction(filter.hidden).job(job) if filter.error or filter.text else job
    return bool(
        filter.status in (None, job.status)
        and (not state or (job.status is state.status and so.get(state, True)))
        and (not least or (lasts is not None and lasts.total_seconds() >= least))
        and filter.type in (None, job.type)
        and filter.queue in (None, job.queue)
        and (filter.tag is None or filter.tag in job.tags)
        and filter.partition in (None, job.partition)
        and filter.workflow in (None, job.workflow)
        and includes(filter.within, job.queue)
        and (filter.created_after is None or job.created_at >= filter.created_after)
        and (filter.created_before is None or job.created_at < filter.created_before)
        and (not filter.finished_after or (ended and ended >= filter.finished_after))
        and (not filter.finished_before or (ended and ended < filter.finished_before))
        and (filter.error is None or folded(filter.error) in folded(shown.last_error or ""))
        and (filter.text is None or folded(filter.text) in folded(shown.payload_json))
    )


def page(read: Reader, query: Query) -> Page:
    """Return up to `limit` jobs, and where to continue."""
    span = bounded(read, query)
    some = filled(_fitting(read, span), span.limit) if _hides(span) else read.some(span)
    jobs, has_ended_early = some
    if has_ended_early:
        return Page(jobs, jobs[-1].id, searched_all=True)
    return Page(jobs, span.through, searched_all=span.through is None)


def filled(jobs: Iterable[Job], limit: int) -> tuple[list[Job], bool]:
    """Take jobs until there are `limit`, or MAX_BYTES; also return whether there were so many."""
    taken: list[Job] = []
    size = 0
    for job in jobs:
        taken.append(job)
        size += sum(len(text.encode()) for text in (job.payload_json, job.result_json) if text)
        if len(taken) == limit or size >= MAX_BYTES:
            return taken, True
    return taken, False


def all_of(read: Reader, query: Query) -> list[Job]:
    """Return up to `limit` jobs, in as many bounded statements as that takes."""
    jobs: list[Job] = []
    wanted = query.limit
    while True:
        found = page(read, query)
        jobs += found.jobs
        if found.next is None or len(jobs) == wanted:
            return jobs
        query = replace(_after(query, found.next), limit=wanted - len(jobs))


def some_ids(read: Reader, query: Query) -> tuple[Sequence[str], str | None]:
    """Return what `page` would, with the ids of the jobs only."""
    if _hides(query):
        found = page(read, query)
        return [job.id for job in found.jobs], found.next
    span = bounded(read, query)
    statement = read.listing(read.dialect.id("id"), span)
    some = [id for (id,) in read.rows_by_index(*statement)]
    return some, some[-1] if len(some) == query.limit else span.through


def newest_ids(read: Reader, query: Query, at_most: int) -> tuple[list[str], bool]:
    """Return ids of a query, as far as `count` goes, and whether there are no others."""
    found: list[str] = []
    for _ in range(MAX_SPANS):
        some, last = some_ids(read, replace(query, limit=at_most - len(found)))
        found += some
        if last is None:
            return found, True
        if len(found) == at_most:
            break
        query = _after(query, last)
    return found, False


def count(read: Reader, query: Query, at_most: int) -> Counted:
    """Count the jobs of a query, as far as a bounded search goes."""
    found = 0
    for _ in range(MAX_SPANS):
        span = bounded(read, replace(query, limit=at_most + 1 - found))
        if _hides(span):
            found += sum(1 for _ in islice(_fitting(read, span), span.limit))
        else:
            found += read.count(span)
        if found > at_most:
            return Counted(at_most, exact=False)
        if span.through is None:
            return Counted(found, exact=True)
        query = _after(query, span.through)
    return Counted(found, exact=False)


def bounded(read: Reader, query: Query) -> Query:
    """Return the query with a bound: `through` is the last id to look at, None at the end."""
    most = MAX_TEXTS if query.error or query.text else MAX_ROWS
    if _is_indexed(query):
        return query
    waits = query.status in (Status.PENDING, Status.PROCESSING) and not query.is_narrow
    if waits and read.rows_by_index(*waiting(read, query, most + 1))[0][0] <= most:
        return replace(query, gather=True)
    last = read.rows_by_index(*edge(read, query, most))
    return replace(query, through=last[0][0] if last else None, most=most)


def _is_indexed(query: Query) -> bool:
    """Whether an index holds the jobs of the query, in order, and no others."""
    names = (query.state, query.type, query.queue, query.partition, query.within)
    times = (*(getattr(query, name) for name in TIMES), query.created_by, query.settled_by)
    by_status = (None,) if query.is_narrow else (None, *ENDED)
    is_one = query.tag is None or query.workflow is None
    in_order = query.status in by_status and is_one and not query.among
    return in_order and all(value is None for value in (*names, query.error, query.text, *times))


def _after(query: Query, last: str) -> Query:
    return replace(query, after=last) if query.oldest_first else replace(query, before=last)


def _hides(query: Query) -> bool:
    return bool(query.hidden and (query.error or query.text))


def _fitting(read: Reader, span: Query) -> Iterator[Job]:
    """Yield the jobs of a span whose texts, as shown, contain what is searched for.

    Every job that the database finds is looked at, so that the end of a page does not depend on
    jobs that are left out.
    """
    part, now = replace(span, limit=AT_ONCE), read.clock()
    while True:
        found, has_more = read.some(part)
        off = put_off(read, found) if span.state else ()
        yield from (job for job in found if fits(span, job, now, off))
        if not has_more:
            return
        part = _after(part, found[-1].id)
