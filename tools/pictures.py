"""Take the pictures of the dashboard that the documentation shows: `python tools/pictures.py`.

On a throw-away database the jobs of a small shop (tools/shop.py) run through an hour, played in
seconds with the store's clock in hand; then a real server and real workers take over, and a real
Chromium looks at them. The mix of jobs is the same every time, the moments are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import linecache
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import msgspec
from playwright.sync_api import Browser, Page, sync_playwright

from tenure import JobContext, Tenure
from tenure.handlers.results import failure
from tenure.rules.reports import ClaimRequest, Lease, Outcome, Report
from tenure.worker.process import run_loop, stopped_by_signals
from tenure.worker.worker import Worker

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # where the tests are, too

from tests.support.chromium import OPTIONS, executable

TOOLS = Path(__file__).resolve().parent
PICTURES = TOOLS.parent / "docs" / "pictures"
SHOP = TOOLS / "shop.py"
SHOWN_AS = "/srv/shop/jobs.py"
"""The path of the shop's code in tracebacks."""
WORKERS = ("shop-1:812", "shop-2:797", "shop-2:798")
HOUR = 3_600
MAX_BYTES = 200_000
WIDTH = 1280


def shop(database: str) -> ModuleType:
    """The shop's jobs, on a database."""
    os.environ["TENURE_DATABASE"] = database
    text = SHOP.read_text("utf-8")
    module = ModuleType("jobs")
    sys.modules["jobs"] = module
    linecache.cache[SHOWN_AS] = (len(text), None, text.splitlines(keepends=True), SHOWN_AS)
    exec(compile(text, SHOWN_AS, "exec"), vars(module))  # noqa: S102 - it is ours
    return module


# --- the hour before --------------------------------------------------------------------------


@contextlib.contextmanager
def clock_in_hand(file: Path) -> Iterator[sqlite3.Connection]:
    """The store's clock as a table with one row, for as long as this lasts."""
    connection = sqlite3.connect(file, isolation_level=None)
    (view,) = connection.execute(
        "SELECT sql FROM sqlite_schema WHERE name = 'tenure_now'"
    ).fetchone()
    connection.execute("DROP VIEW tenure_now")
    connection.execute("CREATE TABLE tenure_now (at INTEGER NOT NULL)")
    connection.execute("INSERT INTO tenure_now VALUES (0)")
    try:
        yield connection
    finally:
        connection.execute("DROP TABLE tenure_now")
        connection.execute(view)
        connection.execute("DELETE FROM tenure_worker")
        connection.close()


def attempt(jobs: ModuleType, lease: Lease) -> tuple[float, Report]:
    """Run the handler of a lease without waiting: the seconds it would take, and its report."""
    taken = [0.05]

    async def work(seconds: float) -> None:
        taken.append(seconds)

    vars(jobs)["work"] = work
    arguments = msgspec.json.decode(lease.payload)
    function = vars(jobs)[lease.type].handler.function
    given: list[Any] = []
    if lease.type in ("send_email", "charge_card"):
        known = (lease.id, lease.type, lease.queue, lease.attempts, lease.max_retries, lease.token)
        given.append(JobContext(*known, deadline=None))
    try:
        result = asyncio.run(function(*given, **arguments))
    except Exception as error:
        failed = failure(error)
        report = Report(
            lease.id,
            lease.lease_id,
            Outcome.FAILED,
            error=failed.error or "",
            retryable=failed.retryable,
        )
    else:
        text = msgspec.json.encode(result).decode()
        report = Report(lease.id, lease.lease_id, Outcome.COMPLETED, text)
    return sum(taken), report


def play_the_past(jobs: ModuleType, file: Path) -> int:
    """An hour of the shop, second by second; how many jobs it has had."""
    app: Tenure = jobs.app
    app.open()
    really = jobs.work
    began = time.time() - HOUR
    number = 0
    due = 0.0
    unique = itertools.count()
    running: list[tuple[float, int, Report]] = []
    with clock_in_hand(file) as connection:
        for second in range(HOUR):
            connection.execute("UPDATE tenure_now SET at = ?", (round((began + second) * 1000),))
            due += 1.1 + 0.5 * math.sin(second / 500) + (1.4 if 1_900 < second < 2_050 else 0)
            fresh = [jobs.new_job(number + n) for n in range(int(due) - number)]
            if fresh:
                app.enqueue_many(fresh)
                number += len(fresh)
            done = []
            while running and running[0][0] <= second:
                done.append(heapq.heappop(running)[2])
            worker = WORKERS[second % len(WORKERS)]
            room = 18 - len(running)
            claim = ClaimRequest(worker=worker, label=worker, limit=room, lease_seconds=600)
            for lease in app.core.exchange(done, claim if room > 0 else None).result().leases:
                seconds, report = attempt(jobs, lease)
                heapq.heappush(running, (second + seconds, next(unique), report))
        app.core.exchange([report for _, _, report in running], None).result()
    vars(jobs)["work"] = really
    return number


# --- now --------------------------------------------------------------------------------------


@contextlib.contextmanager
def programs(database: str, folder: Path) -> Iterator[str]:
    """A server, and workers that know the shop; the server's address."""
    environ = {**os.environ, "TENURE_DATABASE": database}
    commands = [[sys.executable, "-m", "tenure", "serve", "--port", "0"]]
    commands += [[sys.executable, __file__, "work", name] for name in WORKERS]
    running: list[subprocess.Popen[str]] = []
    try:
        running += [
            subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.PIPE, text=True)
            for command in commands
        ]
        greeting = running[0].stdout.readline() if running[0].stdout else ""
        yield greeting.split()[-1]
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(40)


def work(name: str) -> None:
    """Be a worker of the shop, under a name that says nothing of this machine."""
    jobs = shop(os.environ["TENURE_DATABASE"])

    async def until_stopped() -> None:
        worker = Worker(
            jobs.app.core, jobs.app.core.handlers, concurrency=6, label=name, grace_seconds=1
        )
        with stopped_by_signals(worker.request_stop):
            await worker.run()

    run_loop(until_stopped())


@contextlib.contextmanager
def customers(jobs: ModuleType, number: int) -> Iterator[None]:
    """Jobs that keep coming."""
    stop = threading.Event()

    def buy() -> None:
        for one in itertools.count(number):
            jobs.app.enqueue_many([jobs.new_job(one)])
            if stop.wait(0.2 + one % 5 / 10):
                return

    thread = threading.Thread(target=buy)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


# --- pictures ---------------------------------------------------------------------------------


def take(browser: Browser, address: str, failed: str) -> None:
    """All of them."""
    PICTURES.mkdir(exist_ok=True)
    shown: list[tuple[str, str, Literal["light", "dark"], int]] = [
        ("overview-light", "/", "light", 1130),
        ("overview-dark", "/", "dark", 1130),
        ("machine-light", "/ui/machine", "light", 880),
        ("jobs-light", "/ui/jobs?status=failed", "light", 760),
        ("job-light", f"/ui/jobs/{failed}", "light", 1000),
    ]
    for name, path, scheme, height in shown:
        context = browser.new_context(
            base_url=address,
            viewport={"width": WIDTH, "height": height},
            color_scheme=scheme,
            reduced_motion="reduce",
        )
        page = context.new_page()
        page.goto(path)
        settle(page)
        file = PICTURES / f"{name}.png"
        page.screenshot(path=file)
        context.close()
        if file.stat().st_size > MAX_BYTES:
            raise SystemExit(f"{file} has {file.stat().st_size:,} bytes, more than {MAX_BYTES:,}")
        print(f"{file.relative_to(TOOLS.parent)}  {file.stat().st_size:,} bytes")


def settle(page: Page) -> None:
    """Wait until the page is complete and has received an update."""
    page.wait_for_load_state("load")
    page.wait_for_timeout(2_500)


def failed_job(app: Tenure) -> str:
    """A report that has failed for good, by a real worker."""
    job = app.enqueue(
        "render_report", {"month": "2026-10", "country": "FR"}, backoff=1, max_retries=3
    )
    while app.get(job.id).status != "failed":
        time.sleep(0.1)
    return job.id


def main() -> None:
    """Play the past, then look at the present."""
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2])
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "jobs.db"
        database = f"sqlite:///{file}"
        jobs = shop(database)
        app: Tenure = jobs.app
        number = play_the_past(jobs, file)
        for part in range(30):
            payload = {"edition": 48, "part": part}
            later = app.enqueue("send_newsletter", payload, queue="newsletter", delay="9h")
            if part % 10 == 0:
                app.cancel(later.id, actor="mia")
        with (
            programs(database, Path(folder)) as address,
            customers(jobs, number),
            sync_playwright() as playwright,
        ):
            failed = failed_job(app)
            browser = playwright.chromium.launch(executable_path=executable(), args=OPTIONS)
            take(browser, address, failed)
            browser.close()
        app.close()


if __name__ == "__main__":
    main()
