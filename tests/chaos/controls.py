"""Negative controls: break one rule at a time, and see the tests notice.

    python -m tests.chaos.controls [--only WORDS] [--guards] [--table FILE] [--processes N]

Each control is a copy of Tenure's source with one change, against which the layers of the battery
run, cheapest first, until one of them goes red. A control that nothing catches is a rule without a
test: exit 1. `--guards` does the same for every condition in the SQL of both stores, each replaced
by one that always holds; what survives there must stand in UNNEEDED with its reason. The test that
noticed is printed with what it said: on a busy machine a red test may have had another reason. So a
control may name the test that is about its rule, and that one runs first. What stands in FILE
already is not tried again.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tenure"
LIFECYCLE = "lifecycle.py"
SQLITE, POSTGRES = "store/sqlite/statements.py", "store/postgres/statements.py"
SQLITE_LIMITS = "store/migrations/sqlite/0001_4_limits.sql"
LIMITS = "store/migrations/postgres/0001_5_limits.sql"
FOLLOWING = "store/migrations/postgres/0001_8_dependencies.sql"
HOT_PATH = "store/migrations/postgres/0001_2_statements.sql"
GUARDED_FILES = (
    SQLITE,
    POSTGRES,
    "store/constraints.py",
    "store/migrations/sqlite/0001_1_jobs.sql",
    "store/migrations/postgres/0001_1_jobs.sql",
    HOT_PATH,
)
LAYERS: Mapping[str, tuple[str, ...]] = {
    "rules": ("tests/unit/test_lifecycle.py", "tests/unit/test_retry.py"),
    "every interleaving": ("tests/model/test_explorer.py",),
    "contract": ("tests/contract", "tests/unit/sqlite", "tests/unit/postgres"),
    "random histories": ("tests/model",),
    "workers": ("tests/worker",),
    "faults": ("tests/chaos",),
    "faces": ("tests/faces",),
}
COUNTED_UNDER_LOCK = (
    "tests/unit/postgres/test_limits.py"
    "::test_who_waited_for_a_lock_counts_what_was_committed_meanwhile"
)
MINUTES = 6
"""A layer that takes longer has been made to hang, and that is noticed, too."""
RED = re.compile(r"^(?:FAILED|ERROR) (\S+::.+)$", re.MULTILINE)
"""The test that went red first, and why. Not the exit code: stopped at the first red test, pytest
on several processes says that it was interrupted; nor a file that cannot be imported."""


@dataclass(frozen=True)
class Control:
    """One rule, and the change of the source that breaks it."""

    words: str
    file: str
    old: str
    new: str
    held_by: str = ""  # the test that runs first: others may only see that they wait in vain


CONTROLS = (
    Control(
        "a report needs no lease", LIFECYCLE, "if event.name in NEED_LEASE and", "if False and"
    ),
    Control(
        "SQLite: a completion needs no lease",
        SQLITE,
        "tenure_job.id = report.id AND tenure_job.lease_id = report.lease_id",
        "tenure_job.id = report.id AND tenure_job.lease_id IS NOT NULL",
    ),
    Control(
        "PostgreSQL: a completion needs no lease",
        HOT_PATH,
        "WHERE job.id = report.id AND job.lease_id = report.lease_id",
        "WHERE job.id = report.id AND job.lease_id IS NOT NULL",
    ),
    Control(
        "attempts are charged at the failure",
        LIFECYCLE,
        '"a worker asking for work", (DUE, IN_TIME), attempts=+1, token=+1)',
        '"a worker asking for work", (DUE, IN_TIME), attempts=0, token=+1)',
    ),
    Control(
        "the sweep does not test the lease again",
        LIFECYCLE,
        "job.lease_expires_at is not None and job.lease_expires_at > now",
        "False",
    ),
    Control(
        "SQLite: the sweep takes leases that still run",
        SQLITE,
        "AND lease_expires_at <= ?\n",
        "AND lease_expires_at <= 86400000 + ?\n",
    ),
    Control(
        "PostgreSQL: the sweep takes leases that still run",
        POSTGRES,
        """" AND at <= {NOW}")} JOIN {{s}}.job USING (id)
WHERE status = 'processing' AND lease_expires_at <= {NOW}""",
        """" AND at <= {NOW} + interval '1 day'")} JOIN {{s}}.job USING (id)
WHERE status = 'processing' AND lease_expires_at <= {NOW} + interval '1 day'""",
    ),
    Control("retries need no budget", LIFECYCLE, "return attempts < max_retries", "return True"),
    Control(
        "one attempt more than the limit",
        LIFECYCLE,
        "return attempts < max_retries",
        "return attempts <= max_retries",
    ),
    Control(
        "a failure leaves its retry to somebody else",
        LIFECYCLE,
        "return (after, decide(after, events.Retried(delay=wait), now))",
        "return (after,)",
    ),
    Control(
        "a lease that ends brings no retry",
        LIFECYCLE,
        "if after.status is not F or at_rest(after):",
        'if after.event == "lease_expired" or after.status is not F or at_rest(after):',
    ),
    Control(
        "permanent failures are tried again",
        LIFECYCLE,
        "return job.event == FINAL_FAILURE or not has_budget(",
        "return not has_budget(",
    ),
    Control(
        "jobs are handed back without end",
        LIFECYCLE,
        "if job.token - job.attempts - job.snoozes >= MAX_RETURNS:",
        "if False:",
    ),
    Control(
        "SQLite: only the last outcome of a job is remembered",
        SQLITE,
        "WHERE job_id = ? AND lease_id = ? AND event <> 'claimed' ORDER BY seq DESC LIMIT 1",
        "WHERE seq = (SELECT max(seq) FROM tenure_transition WHERE job_id = ?1"
        " AND lease_id IS NOT NULL) AND lease_id = ?2",
    ),
    Control(
        "a repeated report is refused",
        "store/transitions.py",
        "        return ALREADY_RECORDED",
        "        return Verdict(Answer.LOST, event)",
    ),
    Control(
        "any outcome counts as recorded",
        "store/transitions.py",
        "    if event == outcome:\n        return ALREADY_RECORDED",
        "    if event:\n        return ALREADY_RECORDED",
    ),
    Control(
        "callers are answered before the commit",
        "store/commit.py",
        "            asked_to_commit = True\n            db.commit()\n",
        "            self._answer(answers)\n            answers = []\n"
        "            asked_to_commit = True\n            db.commit()\n",
    ),
    Control(
        "SQLite: jobs are claimed before they are due",
        SQLITE,
        "AND run_at <= :now",
        "AND run_at <= :now + 3600000",
    ),
    Control(
        "SQLite: a claim takes what somebody else holds",
        SQLITE,
        "WHERE status = 'pending' AND queue = :queue AND priority = :priority\n        AND run_at",
        "WHERE status IN ('pending', 'processing') AND queue = :queue"
        " AND priority = :priority AND run_at",
    ),
    Control(
        "PostgreSQL: a claim does not lock what it reads",
        HOT_PATH,
        "FOR NO KEY UPDATE OF token SKIP LOCKED\n"
        "        ) AS free JOIN {schema}.job ON job.id = free.id\n"
        "        LIMIT most FOR NO KEY UPDATE OF job SKIP LOCKED",
        ") AS free JOIN {schema}.job ON job.id = free.id\n        LIMIT most",
    ),
    Control(
        "SQLite: a heartbeat needs no lease",
        SQLITE,
        "WHERE tenure_job.id = value ->> 0 AND tenure_job.lease_id = value ->> 1",
        "WHERE tenure_job.id = value ->> 0 AND tenure_job.lease_id IS NOT NULL",
    ),
    Control("a heartbeat shortens a lease", SQLITE, "max(lease_expires_at, ?)", "?"),
    Control(
        "SQLite: commits do not wait for the disk",
        "store/sqlite/connection.py",
        'execute("PRAGMA synchronous = FULL")',
        'execute("PRAGMA synchronous = NORMAL")',
    ),
    Control(
        "SQLite: a transaction begins as a reader",
        "store/sqlite/connection.py",
        '"BEGIN IMMEDIATE"',
        '"BEGIN"',
    ),
    Control(
        "PostgreSQL: the role decides whether commits wait for the disk",
        "store/postgres/session.py",
        '(waits == "off")',
        '(waits == "never")',
    ),
    Control(
        "PostgreSQL: one key makes two jobs",
        "store/migrations/postgres/0001_1_jobs.sql",
        "CREATE UNIQUE INDEX job_key",
        "CREATE INDEX job_key",
    ),
    Control(
        "a key stands for any payload",
        "store/enqueue.py",
        "if key is None or fingerprint == checked_job.fingerprint:",
        "if True:",
    ),
    Control(
        "retention takes what is not settled",
        SQLITE,
        "status = {{status}} AND workflow IS NULL AND finished_at < ? AND finished_at <= ?",
        "status IN ({{status}}, 'pending') AND coalesce(finished_at, created_at) < ?"
        " AND coalesce(finished_at, 0) <= ?",
    ),
    Control(
        "the event stream does not wait for older transactions",
        POSTGRES,
        't.xid < pg_snapshot_xmin(pg_current_snapshot())"',
        't.xid < pg_snapshot_xmax(pg_current_snapshot())"',
    ),
    Control(
        "a worker forgets outcomes that the store did not take",
        "worker/exchanges.py",
        "        self._leases.put_back(attempts)\n        self.demand.notify()\n",
        "        self.demand.notify()\n",
        "tests/worker/test_refused_reports.py::test_an_outcome_that_the_store_did_not_take_is_kept",
    ),
    Control(
        "a worker runs on after its lease is lost",
        "worker/heartbeat.py",
        "        self._leases.lose(ended)",
        "        pass",
        "tests/worker/test_leases.py::test_a_heartbeat_notes_which_leases_were_lost",
    ),
    Control(
        "a worker that is asked to stop goes on claiming",
        "worker/exchanges.py",
        "if limit <= 0 or self._leases.is_closed:",
        "if limit <= 0:",
    ),
    Control(
        "the first heartbeat comes after the lease",
        "worker/heartbeat.py",
        "        interval = self._lease_seconds / 3\n        rounds",
        "        interval = self._lease_seconds * 1.5\n        rounds",
    ),
    Control(
        "PostgreSQL: starts are counted without a lock of the queue",
        LIMITS,
        "queue_limit WHERE queue = of FOR NO KEY UPDATE;",
        "queue_limit WHERE queue = of;",
        COUNTED_UNDER_LOCK,
    ),
    Control(
        "PostgreSQL: starts are counted without a lock of the partition",
        LIMITS,
        "PERFORM pg_advisory_xact_lock(place) FROM",
        "PERFORM place FROM",
        COUNTED_UNDER_LOCK,
    ),
    Control(
        "PostgreSQL: starts are counted in a snapshot from before the lock",
        LIMITS,
        "IF current_setting('transaction_isolation') <> 'read committed' THEN\n"
        "        PERFORM {schema}.refuse_start(",
        "IF false THEN\n        PERFORM {schema}.refuse_start(",
    ),
    Control(
        "SQLite: one more runs than the limit of the queue",
        SQLITE_LIMITS,
        "> l.max_running",
        "> 1 + l.max_running",
    ),
    Control(
        "SQLite: one more runs than the limit of the partition",
        SQLITE_LIMITS,
        "> iif(l.ordered IS NULL, coalesce(p.max_running, l.per_max_running),",
        "> 1 + iif(l.ordered IS NULL, coalesce(p.max_running, l.per_max_running),",
    ),
    Control(
        "PostgreSQL: a change of what rests is counted as an ending",
        "store/migrations/postgres/0001_1_jobs.sql",
        "ON n.id = o.id WHERE {at_rest} <> {was_at_rest};",
        "ON n.id = o.id WHERE {at_rest} OR {was_at_rest};",
    ),
    Control(
        "PostgreSQL: an ending does not lock what a retry restores",
        FOLLOWING,
        "    PERFORM FROM {schema}.job WHERE id = ANY (v_children)\n"
        "        AND ((status = 'waiting' AND token = 0)"
        " OR (status = 'cancelled' AND event = 'skipped'))\n"
        "    ORDER BY id FOR NO KEY UPDATE;\n",
        "",
    ),
    Control(
        "PostgreSQL: a gate counts again what it has counted",
        FOLLOWING,
        "(g.need <= 0)::integer - (g.need + t.met <= 0)::integer AS met",
        "(g.need <= 0)::integer AS met",
    ),
    Control(
        "SQLite: a job that leaves its rest is not taken back",
        "store/migrations/sqlite/0001_1_jobs.sql",
        "(NEW.followed > 0) * ({at_rest} - {was_at_rest})",
        "(NEW.followed > 0) * {at_rest}",
    ),
    Control(
        "what is overdue is counted by a retry, too",
        "store/transitions.py",
        "late.parent IS NULL AND ",
        "",
    ),
    Control(
        "a job behind an overdue one is counted twice",
        "store/borrowed/dependencies.py",
        "if parent.rests and parent.followed]",
        "if parent.rests and parent.followed > 1_000]",
    ),
    Control(
        "PostgreSQL: a step does not look at its lease when it is stored",
        "store/borrowed/drivers.py",
        '"{share}": SHARE,',
        '"{share}": "",',
    ),
)

MISSED = "**nothing**"
LONGER_WAY = "a queue with a row but without a limit is then added to by the longer way, alike"
UNNEEDED: Mapping[str, str] = {
    f"{SQLITE} CLAIM: without +tenure_job.status = 'pending'": "picked in the same transaction, and"
    " no other writes; the trigger refuses to claim what is not pending",
    f"{HOT_PATH} enqueue_many: without max_pending IS NOT NULL": LONGER_WAY,
    f"{HOT_PATH} enqueue_one: without q.max_pending IS NOT NULL": LONGER_WAY,
    f"{HOT_PATH} limited(names text[]): without q.max_pending IS NOT NULL": LONGER_WAY,
    f"{SQLITE} DELETABLE: without finished_at <= ?": "bounds the search; the ledger's end"
    " beside it decides",
    f"{HOT_PATH} claim: without status = 'pending'": "picked and locked in the statement before",
}
"""Conditions that can go without anything that could be seen by their words, and why they stay."""


def guards() -> Iterator[Control]:
    """Every comparison that SQL of the stores joins with AND, replaced by what always holds."""
    condition = re.compile(
        r"\bAND ((?:NOT )?[+\w.?:{}%-]+ (?:=|<>|<=|<|>|IS NOT DISTINCT FROM|IS NOT|IS)"
        r" [\w.:'%?{}]+(?: ->> \d)?)(?=[\s);\"])"
    )
    named: Counter[tuple[str, str]] = Counter()
    for file in GUARDED_FILES:
        text = (SOURCE / file).read_text("utf-8")
        for match in condition.finditer(text):
            line_start = text.rfind("\n", 0, match.start()) + 1
            line = text[line_start : text.find("\n", match.end())]
            if not line.lstrip().startswith(("--", "#")):
                where = f"{file} {statement_at(text, match.start())}"
                named[where, match[1]] += 1
                again = f" ({number})" if (number := named[where, match[1]]) > 1 else ""
                changed = text[: match.start()] + f"AND (1 = 1 OR {match[1]})" + text[match.end() :]
                yield Control(f"{where}: without {match[1]}{again}", file, text, changed)
    yield from parts_of_generated_guards()


def statement_at(text: str, place: int) -> str:
    """The name of the constant, function, table or trigger in which a place stands."""
    names = r"^(?:def |CREATE [A-Z ]+ (?:\{schema\}\.)?)(\w+(?:\([\w \[\]]*\))?)|^(\w+) = "
    *_, last = re.finditer(names, text[:place], re.MULTILINE)
    return last[1] or last[2]


def parts_of_generated_guards() -> Iterator[Control]:
    """Every rule of a row, every part of what a legal move is, every reason to refuse an insert."""
    file = "store/constraints.py"
    text = (SOURCE / file).read_text("utf-8")
    rules = text[text.index("def row_rules(") : text.index("def is_legal(")]
    rules += (SOURCE / "store/constraints.py").read_text("utf-8")
    for name in dict.fromkeys(re.findall(r'^        "(\w+)": ', rules, re.MULTILINE)):
        others = f"for name, rule in rules.items() if name != {name!r}"
        filtered = text.replace("for name, rule in rules.items())", f"{others})")
        filtered = filtered.replace("    return rules\n", f"    return {{name: rule {others}}}\n")
        yield Control(f"{file}: without the rule {name}", file, text, filtered)
    for part in re.findall(r'^        (f"(?:OLD|NEW)\.[^"]+"),$', text, re.MULTILINE):
        yield Control(
            f"{file}: a legal move without {part}", file, text, text.replace(part, '"1=1"')
        )
    for part in re.findall(r" OR (NEW\.\w+ (?:<>|IS)[^\"]*?)(?= OR|\")", text):
        changed = text.replace(f" OR {part}", "", 1)
        yield Control(f"{file}: an insert without {part}", file, text, changed)


def broken(control: Control, folder: Path) -> Path:
    """A copy of the source with the change in it, to be put first on Python's path."""
    shutil.copytree(SOURCE, folder / "tenure", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "tenure" / control.file
    text = path.read_text("utf-8")
    if text.count(control.old) < 1:
        raise SystemExit(f"{control.words}: {control.file} has changed, mend the control")
    path.write_text(text.replace(control.old, control.new), encoding="utf-8")
    return folder


def caught_by(control: Control, processes: int = 2) -> str:
    """The first layer that goes red on the broken source, and what it said; or nothing.

    Before all layers comes the test that holds the rule, if the control names one.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": str(broken(control, Path(folder))),
            "COLUMNS": "250",  # room for the reason in the last lines of pytest
        }
        command = [sys.executable, "-m", "pytest", "-qx", "--tb=line", "-p", "no:cacheprovider"]
        command += ["-n", str(processes), "-m", engine_of(control)]
        own = {"its test": (control.held_by,)} if control.held_by else {}
        for layer, paths in {**own, **LAYERS}.items():
            try:
                done = subprocess.run(
                    [*command, *paths],
                    cwd=ROOT,
                    env=environment,
                    timeout=MINUTES * 60,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return f"{layer}: hangs"
            if red := RED.search(done.stdout):
                return f"{layer}: {red[1].replace('|', '/')}"
            if done.returncode not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
                last = " ".join(done.stdout.split()[-40:])
                raise SystemExit(f"the tests cannot be run: {last}")
    return ""


def engine_of(control: Control) -> str:
    """The tests that a change can concern, as pytest's `-m` has them."""
    if "sqlite" in control.file:
        return "not postgres"
    return "postgres" if "postgres" in control.file else ""


def unneeded(control: Control) -> str:
    """Why it is known that nothing notices."""
    return UNNEEDED.get(control.words, "")


def main() -> int:
    """Try the controls that were asked for; 1 if nothing caught one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="those whose words contain this")
    parser.add_argument("--guards", action="store_true", help="every condition in the SQL")
    parser.add_argument("--table", type=Path, help="add to the table in this file")
    parser.add_argument("--processes", type=int, default=2, help="of pytest")
    asked = parser.parse_args()
    table = asked.table.read_text("utf-8") if asked.table and asked.table.exists() else ""
    for control in guards() if asked.guards else CONTROLS:
        if asked.only in control.words and f"| {control.words} |" not in table:
            layer = caught_by(control, asked.processes) or unneeded(control) or MISSED
            row = f"| {control.words} | {layer} |\n"
            print(row, end="", flush=True)
            table += row
            if asked.table:
                asked.table.write_text(table, encoding="utf-8")
    missed = table.count(f"| {MISSED} |")
    print(f"{table.count(chr(10))} controls, {missed} not caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
