"""A process that storms a queue with limits until its time is over.

    python -m tests.chaos.storming URL SECONDS SEED

Claimers that complete, fail, release and forget jobs; a sweeper; and vandals, who start jobs in
plain SQL at every isolation level. It prints how many starts of theirs were refused, and how many
let in.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from contextlib import closing, suppress

from tenure import NewJob, StoreUnavailable, Tenure
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tests.support.raw_sql import RawSql, Refused

CLAIMERS, VANDALS = 4, 2
LEASE_SECONDS = 0.5
PARTITIONS = ("a", "b", "c", None)
LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
OUTCOMES = (Outcome.COMPLETED, Outcome.COMPLETED, Outcome.FAILED, Outcome.RELEASED)
START = """
UPDATE {job} SET status = 'processing', attempts = attempts + 1, token = token + 1,
    lease_id = {new_lease}, lease_expires_at = LATER, started_at = {now}, worker = 'vandal',
    event = 'claimed', actor = 'vandal'
WHERE id IN (SELECT id FROM {job} WHERE status = 'pending' AND queue = 'q' AND run_at <= {now}
    ORDER BY random() LIMIT ?)"""


def jobs(count: int) -> list[NewJob]:
    options = {"queue": "q", "backoff": 0, "max_retries": 1000}
    return [
        NewJob("work", {}, {**options, "partition": PARTITIONS[n % len(PARTITIONS)]})
        for n in range(count)
    ]


def claim(app: Tenure, chance: random.Random) -> None:
    """Start a few jobs, and end those of them that are not forgotten."""
    limit = chance.randrange(1, 8)
    request = ClaimRequest(worker="claimer", limit=limit, lease_seconds=LEASE_SECONDS)
    leases = app.core.claim(request).leases
    if not leases:
        time.sleep(0.01)
    time.sleep(chance.random() / 100)
    ends = [
        Report(lease.id, lease.lease_id, chance.choice(OUTCOMES), error="boom")
        for lease in leases
        if chance.random() < 0.9
    ]
    app.core.report([*ends, *ends[:1]])
    done = sum(one.outcome is Outcome.COMPLETED for one in ends)
    if done:
        app.enqueue_many(random.Random(chance.random()).sample(jobs(done * 4), done))


def vandal(raw: RawSql, chance: random.Random) -> bool:
    """Start jobs by hand; whether that was let in."""
    start = START.replace("LATER", raw.later("{now}", 1))
    level = chance.choice(LEVELS)
    with suppress(*Refused), raw.transaction():
        if raw.engine == "postgres":
            raw.run(f"SET TRANSACTION ISOLATION LEVEL {level}")
        raw.run(start, chance.randrange(1, 4))
        time.sleep(chance.random() / 200)
        return True
    return False


def main() -> None:
    url, seconds, seed = sys.argv[1], float(sys.argv[2]), sys.argv[3]
    over, figures = time.monotonic() + seconds, {"refused": 0, "let in": 0}
    failed = list[str]()

    def repeat(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        try:
            with Tenure(url) as app, closing(RawSql(url)) as raw:
                while time.monotonic() < over:
                    with suppress(StoreUnavailable):
                        if number < CLAIMERS:
                            claim(app, chance)
                        elif number == CLAIMERS:
                            app.core.sweep()
                            time.sleep(0.05)
                        else:
                            figures["let in" if vandal(raw, chance) else "refused"] += 1
                            time.sleep(0.02)
        except BaseException as error:
            failed.append(repr(error))
            raise

    threads = [
        threading.Thread(target=repeat, args=(number,)) for number in range(CLAIMERS + 1 + VANDALS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(figures))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
