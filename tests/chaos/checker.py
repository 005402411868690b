"""Holds what was recorded (`tests.chaos.history`) against what the store kept.

    assert checker.check(folder, url) == []

Everything is decided by the store's own order of events, the ledger, and by what handlers wrote
themselves; clocks decide nothing. `unknown` allows both: that it happened, and that it did not.
The rules are the functions in RULES; each gives its findings, and none is good.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tenure import Tenure
from tests.support import fault_counts
from tests.support.raw_sql import RawSql

SETTLED = ("completed", "failed", "cancelled")
UNCHARGED = ("released", "interrupted", "snoozed")
"""What ends a claim that does not count as an attempt."""
REPORTED = ("completed", "failed", *UNCHARGED)
ENDS = (*REPORTED, "gave_up", "lease_expired", "cancelled")
STAMP = {"kind", "file", "who", "n", "mono", "wall", "op"}
"""What every line of a record has, beside what it is about."""


@dataclass(frozen=True)
class Finding:
    """Something that must not be; `rule` is one of RULES by name, or `verify`."""

    rule: str
    job: str
    found: str

    def __str__(self) -> str:
        return f"{self.rule}: job {self.job}: {self.found}"


@dataclass
class Call:
    """Something that was asked for, and the answer; without one its outcome is unknown."""

    op: str
    who: str
    asked: dict[str, Any]
    kind: str = "unknown"  # or ok, refused
    answer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """An entry of the ledger."""

    source: str | None
    target: str
    event: str
    attempt: int
    token: int
    lease: str | None
    actor: str | None


@dataclass(frozen=True)
class Run:
    """One execution of a handler; `end` is None if it never got there."""

    job: str
    token: int
    attempt: int
    start: float  # by the monotonic clock, which all processes of a machine share
    end: float | None


@dataclass
class Records:
    """A whole run of a test: what everybody wrote down, and what the store holds now."""

    calls: list[Call]
    runs: list[Run]
    jobs: dict[str, dict[str, Any]]
    ledger: dict[str, list[Rule]]
    drained: bool = True

    def of(self, op: str, *kinds: str) -> list[Call]:
        """The calls of one kind, with one of these answers (any, if none is named)."""
        return [c for c in self.calls if c.op == op and (not kinds or c.kind in kinds)]

    @cached_property
    def retried(self) -> dict[str, list[Call]]:
        """Job id -> the retries by operators that may have happened."""
        retried: dict[str, list[Call]] = defaultdict(list)
        for call in self.of("retry", "ok", "unknown"):
            retried[call.asked["job"]].append(call)
        return retried

    @cached_property
    def accepted(self) -> dict[str, list[Call]]:
        """Job id -> the enqueues that were answered with it."""
        accepted: dict[str, list[Call]] = defaultdict(list)
        for call in self.of("enqueue", "ok"):
            accepted[call.answer["job"]].append(call)
        return accepted

    def pruned_unseen(self) -> bool:
        """Whether nobody knows how many jobs retention deleted."""
        return bool(self.of("prune", "unknown"))

    def ends_of(self, job: str) -> dict[str, str]:
        """Lease -> how it ended, by the ledger."""
        return {
            m.lease: m.event.replace("gave_up", "failed")  # one outcome to a worker
            for m in self.ledger[job]
            if m.lease and m.event in ENDS
        }


# --- reading --------------------------------------------------------------------------------


def lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Every line of every record; of a process that was killed the last one may be incomplete."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines(keepends=True):
            if line.endswith("\n"):
                yield {"file": path.name, **json.loads(line)}


def read(folder: Path, url: str, *, drained: bool = True) -> Records:
    """The records of a folder beside the contents of a store."""
    calls: dict[tuple[str, int], Call] = {}
    runs: dict[tuple[str, str, int, int], Run] = {}
    for line in lines(folder):
        key = (line["file"], line["n"])
        rest = {name: value for name, value in line.items() if name not in STAMP}
        match line["kind"]:
            case "invoke":
                calls[key] = Call(line["op"], line["who"], rest)
            case "ok" | "refused" | "unknown":
                calls[key].kind, calls[key].answer = line["kind"], rest
            case "exec_start":
                run = Run(line["job"], line["token"], line["attempt"], line["mono"], None)
                runs[line["file"], line["job"], line["token"], line["run"]] = run
            case "exec_end":
                started = (line["file"], line["job"], line["token"], line["run"])
                runs[started] = replace(runs[started], end=line["mono"])
    jobs, ledger = _stored(url)
    return Records(list(calls.values()), list(runs.values()), jobs, ledger, drained)


def _stored(url: str) -> tuple[dict[str, dict[str, Any]], dict[str, list[Rule]]]:
    raw = RawSql(url)
    columns = ("status", "type", "payload", "idempotency_key", "attempts", "max_retries", "token")
    jobs = {
        str(id): dict(zip(columns, row, strict=True))
        for id, *row in raw.run(f"SELECT id, {', '.join(columns)} FROM {{job}}")
    }
    ledger: dict[str, list[Rule]] = defaultdict(list)
    for job, source, target, event, attempt, token, lease, actor in raw.run(
        "SELECT job_id, source, target, event, attempt, token, lease_id, actor"
        " FROM {transition} ORDER BY seq"
    ):
        held = None if lease is None else str(lease)
        ledger[str(job)].append(Rule(source, target, event, attempt, token, held, actor))
    raw.close()
    return jobs, ledger


# --- jobs -----------------------------------------------------------------------------------


def accepted_jobs_are_kept(records: Records) -> Iterator[Finding]:
    """Every acknowledged enqueue is in the store, or was pruned; after a drain it has settled."""
    missing = [id for id in records.accepted if id not in records.jobs]
    pruned = sum(call.answer["count"] for call in records.of("prune", "ok"))
    if not records.pruned_unseen() and len(missing) > pruned:
        for id in missing:
            yield Finding("lost", id, f"accepted and gone ({pruned} jobs were pruned in all)")
    if records.drained:
        for id, job in records.jobs.items():
            if job["status"] not in SETTLED:
                yield Finding("lost", id, f"still {job['status']} after everything was drained")


def jobs_are_as_accepted(records: Records) -> Iterator[Finding]:
    """What was stored is what was asked for."""
    for id, calls in records.accepted.items():
        job = records.jobs.get(id)
        for call in calls if job else ():
            assert job is not None
            if _what(call.asked) != _stored_what(job):
                yield Finding("changed", id, f"asked for {call.asked}, stored {job}")
            limit = call.asked["options"].get("max_retries")
            if limit is not None and call.answer["max_retries"] < limit:
                yield Finding("changed", id, f"max_retries {limit} became {call.answer}")


def no_job_comes_from_nowhere(records: Records) -> Iterator[Finding]:
    """A job that was not acknowledged is one whose enqueue has an unknown outcome."""
    accepted = records.accepted
    may_be = Counter(_what(call.asked) for call in records.of("enqueue", "unknown"))
    for id, job in records.jobs.items():
        if id in accepted:
            continue
        what = _stored_what(job)
        may_be[what] -= 1
        if may_be[what] < 0:
            yield Finding("unexpected", id, f"nobody asked for this job, or not so often: {what}")


def _what(asked: dict[str, Any]) -> tuple[str, str]:
    return asked["type"], json.dumps(asked["payload"], sort_keys=True)


def _stored_what(job: dict[str, Any]) -> tuple[str, str]:
    payload = job["payload"]
    value = json.loads(payload) if isinstance(payload, str) else payload
    return job["type"], json.dumps(value, sort_keys=True)


def a_key_makes_one_job(records: Records) -> Iterator[Finding]:
    """All enqueues with one idempotency key are answered with one job, while it is there."""
    answered = defaultdict(set)
    for call in records.of("enqueue", "ok"):
        if key := call.asked["options"].get("idempotency_key"):
            answered[key].add(call.answer["job"])
    for key, ids in answered.items():
        there = sorted(id for id in ids if id in records.jobs)
        if len(there) > 1:
            yield Finding("key", there[0], f"key {key!r} also made {there[1:]}")
        elif len(ids) > 1 and not records.of("prune"):
            yield Finding("key", min(ids), f"key {key!r} was answered with {sorted(ids)}")
        for id in there:
            if records.jobs[id]["idempotency_key"] != key:
                yield Finding("key", id, f"key {key!r} is stored as another one")


# --- executions -----------------------------------------------------------------------------


def limit_of(records: Records, id: str) -> int:
    """How often a job may run, by what was asked: never by what the row says, if that is known.

    Bulk actions give one attempt more each, as they do if nothing else is said.
    """
    job = records.jobs[id]
    calls = records.accepted.get(id) or [
        call for call in records.of("enqueue", "unknown") if _what(call.asked) == _stored_what(job)
    ]
    told = [m for c in calls if (m := c.asked["options"].get("max_retries")) is not None]
    told += [call.answer["max_retries"] for call in calls if call.kind == "ok"]
    if not told:
        return max(int(job["max_retries"]), 1)
    more = sum(int(call.asked["more"]) for call in records.retried.get(id, ()))
    more += sum(m.event == "retried" and _is_bulk(m) for m in records.ledger[id])
    return max(min(told), 1) + more


def no_job_runs_beyond_its_limit(records: Records) -> Iterator[Finding]:
    """Neither claims nor handlers that started are more than allowed, but for those returned."""
    started = defaultdict(set)
    for run in records.runs:
        started[run.job].add(run.token)
    for id in records.jobs:
        ends = records.ends_of(id)
        claims = [m for m in records.ledger[id] if m.event == "claimed"]
        returned = {m.token for m in claims if ends.get(m.lease or "") in UNCHARGED}
        claimed = {m.token for m in claims} - returned
        ran = started[id] - returned
        if len(claimed | ran) > 1 and (most := limit_of(records, id)) < len(claimed | ran):
            yield Finding("beyond", id, f"claimed {len(claimed)}, ran {len(ran)}, allowed {most}")


def a_lease_runs_once(records: Records) -> Iterator[Finding]:
    """A handler starts under a claim on record, and once under each."""
    for (id, token), times in Counter((run.job, run.token) for run in records.runs).items():
        if times > 1:
            yield Finding("beyond", id, f"token {token} ran {times} times")
    for run in records.runs:
        if run.job in records.jobs:
            claims = {m.token: m for m in records.ledger[run.job] if m.event == "claimed"}
            claim = claims.get(run.token)
            if claim is None:
                yield Finding("unclaimed", run.job, f"token {run.token} ran without a claim")
            elif claim.attempt != run.attempt:
                yield Finding("unclaimed", run.job, f"{run} is on record as {claim}")


def runs_that_overlap_are_explained(records: Records) -> Iterator[Finding]:
    """Two executions of one job at once: the older one's lease had ended before the newer claim."""
    of_job = defaultdict(list)
    for run in records.runs:
        of_job[run.job].append(run)
    for id, runs in of_job.items():
        order = [(m.event, m.token) for m in records.ledger.get(id, ())]
        # By token: a worker that was frozen after its claim may start when the next one has ended.
        for older, newer in ((a, b) for a in runs for b in runs if a.token < b.token):
            apart = ends_before(older, newer) or ends_before(newer, older)
            if apart or ("claimed", newer.token) not in order:
                continue
            before = order[: order.index(("claimed", newer.token))]
            if not any(token == older.token and event in ENDS for event, token in before):
                yield Finding("overlap", id, f"{older} and {newer}, and no end of a lease between")


def ends_before(one: Run, other: Run) -> bool:
    """Whether one execution was over when the other began."""
    return one.end is not None and one.end < other.start


# --- leases ---------------------------------------------------------------------------------


def claims_are_on_record(records: Records) -> Iterator[Finding]:
    """A lease that was handed out is the ledger's, by its token, and nobody else has it."""
    seen: dict[str, str] = {}
    for call in records.of("claim", "ok"):
        leases = call.answer["leases"]
        if len(leases) > call.asked["limit"]:
            yield Finding("claim", leases[0]["job"], f"{len(leases)} leases for {call.asked}")
        for one in leases:
            if one["lease"] in seen:
                yield Finding("claim", one["job"], f"lease handed out twice: {one}")
            seen[one["lease"]] = call.who
            if one["job"] not in records.jobs:
                continue
            transitions = records.ledger[one["job"]]
            said = ("claimed", one["lease"], one["token"], one["attempt"])
            if said not in [(m.event, m.lease, m.token, m.attempt) for m in transitions]:
                yield Finding("claim", one["job"], f"handed out and not on record: {one}")


def one_lease_at_a_time(records: Records) -> Iterator[Finding]:
    """In the ledger's order a claim finds the job free, and what ends a lease finds it held."""
    for id, transitions in records.ledger.items():
        held: str | None = None
        for transition in transitions:
            if transition.event == "claimed":
                if held is not None:
                    yield Finding("overlap", id, f"claimed while lease {held} was held")
                held = transition.lease
            elif transition.source == "processing":
                if transition.lease != held:
                    yield Finding(
                        "overlap", id, f"{transition.event} ends {transition.lease}, held is {held}"
                    )
                held = None


def one_outcome_per_lease(records: Records) -> Iterator[Finding]:
    """A lease ends once, and one report of it is the one that did that."""
    for id, transitions in records.ledger.items():
        ends = Counter(m.lease for m in transitions if m.lease and m.source == "processing")
        for lease, times in ends.items():
            if times > 1:
                yield Finding("twice", id, f"lease {lease} has {times} outcomes")
    said = Counter(
        (call.asked["job"], call.asked["lease"])
        for call in records.of("report", "ok")
        if call.answer["answer"] == "recorded"
    )
    for (id, lease), times in said.items():
        if times > 1:
            yield Finding("twice", id, f"{times} reports were told that they ended lease {lease}")


def answers_to_reports_are_true(records: Records) -> Iterator[Finding]:
    """What was said to be recorded is on record; what was refused is not."""
    for call in records.of("report", "ok", "refused"):
        id, outcome = call.asked["job"], call.asked["outcome"]
        if id not in records.jobs:
            continue
        found = records.ends_of(id).get(call.asked["lease"])
        if call.kind == "ok" and found != outcome:
            yield Finding("untrue", id, f"{outcome} acknowledged, on record is {found}")
        if call.kind == "refused" and found == outcome:
            yield Finding("untrue", id, f"{outcome} refused ({call.answer}) and on record")
        if call.answer.get("answer") == "conflict" and found != call.answer["recorded"]:
            yield Finding("untrue", id, f"told of {call.answer['recorded']}, on record is {found}")


def outcomes_come_from_reports(records: Records) -> Iterator[Finding]:
    """An outcome of a lease that was handed out on record was reported by somebody."""
    reported = {
        (c.asked["job"], c.asked["lease"], c.asked["outcome"]) for c in records.of("report")
    }
    for call in records.of("claim", "ok"):
        for one in call.answer["leases"]:
            id, lease = one["job"], one["lease"]
            event = records.ends_of(id).get(lease) if id in records.ledger else None
            # Returned too often counts as a failure.
            may_be = {event, *UNCHARGED} if event == "failed" else {event}
            if event in REPORTED and not any((id, lease, said) in reported for said in may_be):
                yield Finding("unexpected", id, f"{event}, which nobody reported, for {lease}")


def heartbeats_are_true(records: Records) -> Iterator[Finding]:
    """A lease is only called lost once it has ended, and held only if it was ever claimed."""
    for call in records.of("heartbeat", "ok"):
        for id, lease in call.asked["leases"]:
            if id not in records.jobs:
                continue
            claimed = any(m.lease == lease for m in records.ledger[id] if m.event == "claimed")
            held = lease in call.answer["held"]
            if held and not claimed:
                yield Finding("untrue", id, f"lease {lease} called held and never claimed")
            if not held and claimed and lease not in records.ends_of(id):
                yield Finding("untrue", id, f"lease {lease} called lost and never ended")


# --- operators ------------------------------------------------------------------------------


def operators_are_told_the_truth(records: Records) -> Iterator[Finding]:
    """As many cancellations and retries are on record as were acknowledged, or may have been."""
    for op, event in (("cancel", "cancelled"), ("retry", "retried")):
        sure = Counter(call.asked["job"] for call in records.of(op, "ok"))
        unsure = Counter(call.asked["job"] for call in records.of(op, "unknown"))
        for id in records.jobs:
            transitions = [m for m in records.ledger[id] if m.event == event]
            by_hand = [m for m in transitions if m.actor != "store" and not _is_bulk(m)]
            if not sure[id] <= len(by_hand) <= sure[id] + unsure[id]:
                told = f"{sure[id]} acknowledged, {unsure[id]} unknown"
                yield Finding("untrue", id, f"{event} {len(by_hand)} times; {told}")


def a_bulk_action_is_on_a_job_once(records: Records) -> Iterator[Finding]:
    """Whoever drove it, and whatever came between."""
    for id in records.jobs:
        actors = Counter(m.actor for m in records.ledger[id] if _is_bulk(m))
        for actor, times in actors.items():
            if times > 1:
                yield Finding("bulk", id, f"{actor} changed it {times} times")


def _is_bulk(transition: Any) -> bool:
    return "(bulk " in (transition.actor or "")


RULES: tuple[Callable[[Records], Iterable[Finding]], ...] = (
    accepted_jobs_are_kept,
    jobs_are_as_accepted,
    no_job_comes_from_nowhere,
    a_key_makes_one_job,
    no_job_runs_beyond_its_limit,
    a_lease_runs_once,
    runs_that_overlap_are_explained,
    claims_are_on_record,
    one_lease_at_a_time,
    one_outcome_per_lease,
    answers_to_reports_are_true,
    outcomes_come_from_reports,
    heartbeats_are_true,
    operators_are_told_the_truth,
    a_bulk_action_is_on_a_job_once,
)


# --- the whole ------------------------------------------------------------------------------


def examine(records: Records) -> list[Finding]:
    """What every rule finds."""
    return [finding for rule in RULES for finding in rule(records)]


def verified(url: str) -> list[Finding]:
    """What `tenure verify` finds."""
    with Tenure(url) as app:
        return [Finding("verify", v.job_id, f"{v.invariant}: {v.found}") for v in app.verify()]


def figures(records: Records, findings: Iterable[Finding]) -> dict[str, int]:
    """What a run comes to, in the figures of the tally."""
    by_rule = Counter(finding.rule for finding in findings)
    return {
        "jobs accepted": len(records.accepted),
        "jobs lost": by_rule["lost"],
        "jobs run beyond their limit": by_rule["beyond"],
        "attempts settled twice": by_rule["twice"],
    }


def check(folder: Path, url: str, *, drained: bool = True) -> list[str]:
    """The last step of a test: every finding, none is good. The figures go into the tally.

    Everybody who added jobs, and everybody who reported, cancelled or retried, must have been on
    record. `drained`: by now everything has settled.
    """
    records = read(folder, url, drained=drained)
    findings = [*examine(records), *verified(url)]
    for figure, number in figures(records, findings).items():
        fault_counts.count(figure, number)
    return [str(finding) for finding in findings]
