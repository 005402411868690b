"""What `tenure verify` asks the stored data, in SQL that both engines read.

An invariant is a sentence. A pass reads a table once, in one statement and therefore at one moment,
and asks its questions of each row: whether it breaks an invariant, and what there is to say about
it. The legal moves come from the lifecycle table.

What the data cannot show: that jobs were pruned and not lost, for nothing is left of them; the
order of times, for a clock may be set back; that no job ran before it was due, for `run_at` may be
changed later; and that a failure which a worker reported with budget left was a permanent one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenure.jobs.progress import Progress
from tenure.lifecycle import FIRST_EVENT, LIMIT_SQL, MAX_RELEASES, ROOM_SQL, TRANSITIONS, budget_sql
from tenure.store.constraints import SETTLED_SQL, quoted
from tenure.store.tables.stats_sql import Words

EDITED = "somebody edited or deleted ledger entries: the history of this job is not to be trusted"
BYPASSED = (
    "the row was changed behind the triggers: find out by whom, and set it right by hand "
    "according to `tenure jobs show`"
)

SOUND = "the tables and their indexes are sound"
"""Asked of SQLite files only, in SQLite's own words."""

INVARIANTS: Mapping[str, str] = {
    "every move in the ledger is legal": EDITED,
    "each entry starts where the one before it ended": EDITED,
    "the ledger ends in the job's status": f"a move is missing from the record, or {BYPASSED}",
    "a claim raises the token by one and nothing else moves it": "outside systems may have taken "
    f"the work of a stale attempt for that of a newer one; {EDITED}",
    "each entry names its attempt": EDITED,
    "attempts are the claims that were not handed back": f"{BYPASSED}. Too low a count lets the "
    "job run more often than its limit",
    "no job ran more often than its limit": "its handler ran, or can run, once too often: look at "
    "what it did outside, and whether the limit was lowered by hand",
    "no job was handed back without end": "look for the worker that keeps handing it back: its log "
    "says why it stops",
    "a lease is given out once": "two attempts could report for each other: this must not happen, "
    "not even by hand. Report it, with the ledger of both jobs",
    "one outcome per lease": "one attempt was settled twice: look at what its handler did outside. "
    f"Unless {EDITED.split(':')[0]}, report it",
    "every lease that ended was claimed": "an attempt ended that had not begun under that lease: "
    f"{EDITED}",
    "a lease is held if and only if the job is processing": f"no worker can settle it, or no sweep "
    f"takes it back: {BYPASSED}",
    "the job's lease is that of its last claim": "the worker that claimed it cannot report: "
    "wait for the lease to run out, then the job goes to another worker",
    "a job has an end time if and only if it is settled": f"retention goes by that time, and would "
    f"delete the job too early or never: {BYPASSED}",
    "the job's times are those of the ledger": BYPASSED,
    "a lease that ran out is tried again while attempts are left": "the retry that belongs to it "
    "was left out by somebody's SQL: `tenure jobs retry` makes up for it",
    "a failure says why": BYPASSED,
    "the last error is that of the last failure": f"read the errors in the ledger; {BYPASSED}",
    "only a completed job has a result": BYPASSED,
    "one job per idempotency key": "an enqueue that was repeated made a second job: cancel one of "
    "them, then make the unique index on idempotency_key anew (`tenure doctor` tells if it is "
    "gone)",
    SOUND: "the file is damaged, by a fault of the disk, or because it was copied, replaced or "
    "written by other means while it was in use: stop everything, keep a copy, restore a backup",
    "the counts are those of the jobs": "`tenure stats` is wrong by that much, no job is: somebody "
    "deleted jobs or edited the ledger by hand. `Tenure(url).recount()` counts anew",
    "no ledger without its job": "a job was deleted that was not settled, or not by Tenure: look "
    "in the ledger for what it was, and enqueue it anew if it must run",
}
"""Invariant -> what it means that it is broken, and what to do."""


@dataclass(frozen=True, slots=True)
class Question:
    """Which rows of a pass break an invariant, and what to say; both are SQL expressions.

    Where `broken` meets NULL it counts as false; `found` is then empty.
    """

    invariant: str
    broken: str
    found: str


@dataclass(frozen=True, slots=True)
class Pass:
    """Questions to the rows of one SELECT; names in braces stand for tables and `miscounts`."""

    about: str
    rows: str
    questions: Sequence[Question]

    def statement(self, words: Words) -> str:
        """The query: for each row that breaks something, its job and an answer per question."""
        answers = [f"CASE WHEN {q.broken} THEN coalesce({q.found}, '') END" for q in self.questions]
        broken = " OR ".join(f"({q.broken})" for q in self.questions)
        text = f"SELECT job_id, {', '.join(answers)} FROM ({self.rows}) AS seen WHERE {broken}"
        text = text.replace("{miscounts}", words.miscounts())
        return text.replace("{job}", words.named("job")).replace(
            "{transition}", words.named("transition")
        )


Finding = tuple[str, str, str]
"""(invariant, job id, what was found)."""


def findings(
    asked: Pass, rows: Iterable[Sequence[Any]], before: Iterable[Finding], limit: int
) -> list[Finding]:
    """What the rows of a pass say: at most `limit` per invariant, with those found `before`."""
    told = Counter(invariant for invariant, _, _ in before)
    found = []
    for job_id, *answers in rows:
        for question, answer in zip(asked.questions, answers, strict=True):
            if answer is not None and told[question.invariant] < limit:
                told[question.invariant] += 1
                found.append((question.invariant, str(job_id), str(answer)))
    return found


# --- the ledger of each job, in order, beside its row at the end ------------------------------

SETTLING = quoted(*dict.fromkeys(m.event for m in TRANSITIONS if m.source == "processing"))
LEGAL_SQL = " OR ".join(
    f"(source = '{m.source}' AND target = '{m.target}' AND event = '{m.event}')"
    for m in TRANSITIONS
)
FIRST_SQL = f"(source IS NULL AND target = 'pending' AND event = '{FIRST_EVENT}')"

STEPS = """
SELECT steps.*, job.id, job.status, job.token AS job_token, job.attempts AS job_attempts,
    job.max_retries, job.lease_id AS job_lease, job.created_at, job.started_at, job.finished_at,
    job.last_error
FROM (
    SELECT job_id, at, source, target, event, attempt, token, lease_id, detail,
        row_number() OVER path AS number,
        lag(target) OVER path AS previous,
        lag(token) OVER path AS previous_token,
        lag(lease_id) OVER path AS previous_lease,
        lag(at) OVER path AS previous_at,
        first_value(at) OVER path AS first_at,
        sum(CASE event WHEN 'claimed' THEN 1 WHEN 'released' THEN -1 ELSE 0 END) OVER path
            AS attempts,
        max(attempt) OVER path AS most,
        lead(token) OVER path AS following
    FROM {transition} WINDOW path AS (PARTITION BY job_id ORDER BY seq)
) AS steps LEFT JOIN {job} AS job ON job.id = steps.job_id AND steps.following IS NULL
"""
PATH = Pass(
    "the ledger of each job",
    STEPS,
    [
        Question(
            "every move in the ledger is legal",
            f"NOT (source IS NOT NULL AND ({LEGAL_SQL})) AND NOT {FIRST_SQL}",
            "coalesce(source, 'nothing') || ' -> ' || target || ' as ' || event",
        ),
        Question(
            "each entry starts where the one before it ended",
            "coalesce(source, '') <> coalesce(previous, '')",
            "'entry ' || number || ' starts at ' || coalesce(source, 'nothing') || ' after '"
            " || coalesce(previous, 'nothing')",
        ),
        Question(
            "a claim raises the token by one and nothing else moves it",
            "token <> coalesce(previous_token, 0) + CASE WHEN event = 'claimed' THEN 1 ELSE 0 END",
            "'token ' || coalesce(previous_token, 0) || ' -> ' || token || ' when ' || event",
        ),
        Question(
            "each entry names its attempt",
            "attempt <> attempts + CASE WHEN event = 'released' THEN 1 ELSE 0 END",
            "'entry ' || number || ' names attempt ' || attempt || ' after ' || attempts"
            " || ' claims'",
        ),
        Question(
            "every lease that ended was claimed",
            "(source = 'processing' AND (lease_id = previous_lease) IS NOT TRUE)"
            " OR (event = 'claimed' AND lease_id IS NULL)"
            " OR (coalesce(source, '') <> 'processing' AND event <> 'claimed'"
            " AND lease_id IS NOT NULL)",
            "'entry ' || number || ', ' || event || CASE WHEN lease_id IS NULL"
            " THEN ', names no lease' ELSE ', names a lease that was not claimed before it' END",
        ),
        Question(
            "a failure says why",
            "target = 'failed' AND detail IS NULL",
            "'entry ' || number || ' has no error'",
        ),
        Question(
            "no ledger without its job",
            "following IS NULL AND id IS NULL",
            "number || ' entries, the last one ' || event",
        ),
        Question(
            "the ledger ends in the job's status",
            "target <> status OR token <> job_token",
            "'status ' || status || ' with token ' || job_token || ', ledger ' || target"
            " || ' with token ' || token",
        ),
        Question(
            "attempts are the claims that were not handed back",
            "attempts <> job_attempts",
            "'attempts ' || job_attempts || ', ledger ' || attempts",
        ),
        Question(
            "a lease that ran out is tried again while attempts are left",
            f"event = 'lease_expired' AND target = status AND {budget_sql('seen')}",
            "'failed after attempt ' || attempts || ' of ' || max_retries",
        ),
        Question(
            "no job ran more often than its limit",
            "most > max_retries AND most > 1",
            "'attempt ' || most || ' of ' || max_retries || ' in the ledger'",
        ),
        Question(
            "the job's lease is that of its last claim",
            "target = 'processing' AND status = 'processing'"
            " AND (lease_id = job_lease) IS NOT TRUE AND job_lease IS NOT NULL",
            "'another lease than claimed at token ' || token",
        ),
        Question(
            "the job's times are those of the ledger",
            "first_at <> created_at"
            f" OR (target = status AND status IN ({SETTLED_SQL}) AND at <> finished_at)"
            " OR (target = status AND status = 'processing' AND at <> started_at)"
            f" OR (source = 'processing' AND status IN ({SETTLED_SQL})"
            " AND previous_at <> started_at)",
            "'created_at, started_at or finished_at of the row is not in the ledger'",
        ),
        Question(
            "the last error is that of the last failure",
            "target = 'failed' AND status = 'failed' AND detail <> last_error",
            "'last_error is not the detail of entry ' || number",
        ),
    ],
)

# --- each job by itself -----------------------------------------------------------------------

JOBS = Pass(
    "each job",
    "SELECT id AS job_id, job.* FROM {job} AS job",
    [
        Question(
            "the ledger ends in the job's status",
            "NOT EXISTS (SELECT 1 FROM {transition} AS entry WHERE entry.job_id = seen.id)",
            "'status ' || status || ', ledger empty'",
        ),
        Question(
            "no job ran more often than its limit",
            f"NOT {LIMIT_SQL} OR NOT {ROOM_SQL}",
            "'attempts ' || attempts || ' of ' || max_retries",
        ),
        Question(
            "no job was handed back without end",
            f"token - attempts > {MAX_RELEASES}",
            "'token ' || token || ', attempts ' || attempts",
        ),
        Question(
            "a lease is held if and only if the job is processing",
            "(status = 'processing') <> (lease_id IS NOT NULL)"
            " OR (status = 'processing') <> (lease_expires_at IS NOT NULL)"
            " OR (status = 'processing' AND (worker IS NULL OR started_at IS NULL))",
            "status || ' with lease '"
            " || CASE WHEN lease_id IS NULL THEN 'absent' ELSE 'present' END",
        ),
        Question(
            "a job has an end time if and only if it is settled",
            f"(status IN ({SETTLED_SQL})) <> (finished_at IS NOT NULL)",
            "status",
        ),
        Question(
            "a failure says why",
            "status = 'failed' AND last_error IS NULL",
            "'failed without last_error'",
        ),
        Question(
            "only a completed job has a result",
            "status <> 'completed' AND result IS NOT NULL",
            "status || ' with a result'",
        ),
    ],
)

# --- what must be there once ------------------------------------------------------------------

LEASES = Pass(
    "leases",
    f"""
    SELECT min(CAST(job_id AS text)) AS job_id, count(*) AS entries,
        sum(CASE WHEN event = 'claimed' THEN 1 ELSE 0 END) AS claims,
        sum(CASE WHEN event IN ({SETTLING}) THEN 1 ELSE 0 END) AS outcomes
    FROM {{transition}} WHERE lease_id IS NOT NULL
    GROUP BY lease_id HAVING count(*) > 1""",
    [
        Question("a lease is given out once", "claims > 1", "claims || ' claims with one lease'"),
        Question("one outcome per lease", "outcomes > 1", "outcomes || ' outcomes for one lease'"),
    ],
)
KEYS = Pass(
    "idempotency keys",
    """
    SELECT min(CAST(id AS text)) AS job_id, count(*) AS jobs FROM {job}
    WHERE idempotency_key IS NOT NULL GROUP BY idempotency_key HAVING count(*) > 1""",
    [Question("one job per idempotency key", "jobs > 1", "jobs || ' jobs with one key'")],
)

# --- what is shown -----------------------------------------------------------------------------

COUNTS = Pass(
    "counts",
    "{miscounts}",
    [
        Question(
            "the counts are those of the jobs",
            "told <> jobs",
            "status || ' of ' || type || ' in ' || queue || ': ' || jobs || ', counted ' || told",
        )
    ],
)

PASSES = (PATH, JOBS, LEASES, KEYS, COUNTS)


def passes(progress: Progress, more: Sequence[str] = ()) -> Iterator[Pass]:
    """The passes in turn, telling before each how many questions are answered.

    `more` are checks that whoever asks makes himself afterwards.
    """
    total = sum(len(asked.questions) for asked in PASSES) + len(more)
    done = 0
    for asked in PASSES:
        progress(done, total, asked.about)
        yield asked
        done += len(asked.questions)
    for number, check in enumerate(more):
        progress(done + number, total, check)
