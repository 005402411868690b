"""How long the dashboard's pages take with a million jobs, and what live updates cost a browser.

    .venv/bin/python bench/pages.py [--jobs 1000000] [--database URL ...]

Without a database it makes an SQLite file and starts the tests' PostgreSQL; a database that is
named keeps what it has, so that `--jobs 0` measures it again. Each page is asked for `--rounds`
times over one connection, one after the other, as a person does; the answers that are shared for a
moment between viewers are read anew each time. First the overview from the start of the server on,
while what was stored at full speed is still being added up; then all pages. Then jobs move at 2,000
moves a second while a page is open in Chromium: how many answers it asked for, and how far it
lagged behind.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from tenure import Tenure
from tenure.rules.jobs import NewJob
from tenure.rules.reports import ClaimRequest, Outcome, Report
from tests.support.postgres import PostgresServer

BITE = 5_000
TYPES = ("email", "report", "invoice", "resize")
QUEUES = ("default", "mail", "night")
TARGET = 200  # milliseconds


def fill(app: Tenure, jobs: int) -> None:
    """Store `jobs` jobs, three in four of them settled."""
    for start in range(0, jobs, BITE):
        app.enqueue_many(
            [
                NewJob(
                    TYPES[number % len(TYPES)],
                    {"order": number, "to": f"customer-{number % 977}@example.com"},
                    {"queue": QUEUES[number % len(QUEUES)], "max_retries": 1},
                )
                for number in range(start, min(start + BITE, jobs))
            ]
        )
        for _ in range(3):
            wanted = ClaimRequest(worker=f"w{start % 7}", limit=BITE // 4, lease_seconds=3600)
            leases = app.core.claim(wanted).leases
            app.core.report(
                [
                    Report(
                        lease.id,
                        lease.lease_id,
                        Outcome.FAILED if number % 50 == 0 else Outcome.COMPLETED,
                        error=f"ConnectionError: host {number} refused",
                    )
                    for number, lease in enumerate(leases)
                ]
            )
        if start % (BITE * 40) == 0:
            print(f"  {start:,} jobs", file=sys.stderr, flush=True)


@contextmanager
def serving(database: str) -> Iterator[str]:
    """`tenure serve`; its address."""
    command = [sys.executable, "-m", "tenure", "serve", "--port", "0", "--database", database]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[-1]
        finally:
            server.terminate()


def caught_up(app: Tenure) -> None:
    """Wait until what was stored at full speed has been counted: the server does that beside."""
    while (until := app.stats.measured_until()) is None or (
        app.core.clock() - until
    ).total_seconds() > 5:
        time.sleep(0.5)


def pages(failed: str) -> list[str]:
    listed = "/ui/jobs"
    return [
        "/",
        listed,
        f"{listed}?status=failed",
        f"{listed}?status=completed&type=report&queue=mail",
        f"{listed}?type=report&since=1h",
        f"{listed}?error=host%2077",
        f"{listed}?text=order%22:123456",
        f"{listed}?text=nowhere",
        f"/ui/jobs/{failed}",
        "/ui/queues",
        "/ui/workers",
        "/ui/failures",
        "/ui/machine",
        "/ui/bulk?action=retry&status=failed",
        "/ui/bulk?action=cancel&text=customer-1",
    ]


def measure(address: str, path: str, rounds: int) -> list[float]:
    """How long each answer took, in milliseconds."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        took.append((time.perf_counter() - began) * 1000)
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status}")
        time.sleep(max(0.45, 4 * took[-1] / 1000))  # what is shared is not fresh any more
    return took


def progress(what: str, took: list[float]) -> None:
    """Median, 95th percentile and worst."""
    high = sorted(took)[int(len(took) * 0.95)]
    print(
        f"  {what[:52]:52} p50 {statistics.median(took):6.1f} ms  p95 {high:6.1f} ms  "
        f"worst {max(took):6.1f} ms{'  over the target' * (high >= TARGET)}",
        flush=True,
    )


def watch(app: Tenure, address: str, seconds: float) -> None:
    """Move jobs at 2,000 moves a second beside an open page."""
    from playwright.sync_api import sync_playwright

    from tests.support.chromium import OPTIONS, executable

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=OPTIONS)
        page = browser.new_page()
        page.goto(f"{address}/ui/machine")
        page.evaluate(
            """() => { window.late = []; let last = performance.now(); setInterval(() => {
            const now = performance.now(); window.late.push(now - last - 50); last = now; }, 50);
            window.asked = () => performance.getEntriesByType('resource')
            .filter((one) => one.initiatorType === 'fetch').length; }"""
        )
        before, began, transitions = page.evaluate("window.asked()"), time.monotonic(), 0
        while time.monotonic() < began + seconds:
            app.enqueue_many([NewJob("burst", {}, {"queue": "burst"}) for _ in range(70)])
            wanted = ClaimRequest(worker="burst", limit=70, lease_seconds=60, queues=("burst",))
            leases = app.core.claim(wanted).leases
            app.core.report([Report(one.id, one.lease_id, Outcome.COMPLETED) for one in leases])
            transitions += 70 + 2 * len(leases)
            time.sleep(max(0.0, began + transitions / 2_000 - time.monotonic()))
        took = time.monotonic() - began
        asked = page.evaluate("window.asked()") - before
        late = sorted(page.evaluate("window.late"))
        truth = sum(count.jobs for count in app.stats.counts() if count.status == "completed")
        began = time.monotonic()
        while (
            shown := page.locator("svg.wide .box.completed .jobs").text_content()
        ) != f"{truth:,}":
            if time.monotonic() > began + 30:
                raise SystemExit(f"the page shows {shown}, there are {truth:,}")
            time.sleep(0.02)
        print(
            f"  {transitions / took:,.0f} transitions/s for {took:.0f} s: "
            f"{asked / took:.1f} answers/s, the page's thread late by "
            f"{late[len(late) // 2]:.0f} ms (median), {late[-1]:.0f} ms (worst); "
            f"true again {time.monotonic() - began:.1f} s after the last transition"
        )
        browser.close()


def run(database: str, jobs: int, rounds: int, seconds: float) -> None:
    with Tenure(database) as app:
        fill(app, jobs)
        stored = sum(count.jobs for count in app.stats.counts())
        print(f"{urlsplit(database).scheme}, {stored:,} jobs stored")
        with serving(database) as address:
            first, *later = measure(address, "/", rounds)
            progress("/ at the start of the server", [first])
            progress("/ while moves are added up", later)
            caught_up(app)
            (failed,) = app.find(status="failed", limit=1)
            for path in pages(failed.id):
                progress(path, measure(address, path, rounds))
            watch(app, address, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--database", action="append", default=[])
    given = parser.parse_args()
    if given.database:
        for database in given.database:
            run(database, given.jobs, given.rounds, given.seconds)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(f"sqlite:///{Path(folder)}/pages.db", given.jobs, given.rounds, given.seconds)
    with PostgresServer() as server:
        run(server.create_database("pages"), given.jobs, given.rounds, given.seconds)


if __name__ == "__main__":
    main()
