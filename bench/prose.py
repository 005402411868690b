"""The words of the report; the numbers are filled in from a run."""

HEAD = """\
# Benchmarks

Made by `python bench/run.py {mode}` on {date}; change the bench, not this page. Tenure and its
peers do the same work in one run on one machine of {cpus} cores, which the database shares with the
workers. Ledger, guards and leases of Tenure are on, as always. Where a peer keeps less than Tenure
or promises less, it is said beside its number. Numbers are medians, with the first and the third
quartile behind them. Differences below a quarter mean little. Not all workloads were measured
on one machine, as the end of this page says: compare queues, and not workloads."""

FLEETS = """\
## Fleets

What most applications have: several workers with a few slots each, whose jobs take time. The ideal
is the rate at which no slot would ever be empty. The processor time is that of all processes of the
database server, those that have ended included: it is what a job costs however fast the machine
is."""

DRAINING = """\
## Draining

Jobs per second, from the first handler to the last settled job, by worker processes that were
ready before. How many times faster Tenure is counts on the same engine in the same run; Redis is
set beside PostgreSQL."""

KEEPING = """\
## What each keeps

The numbers above are not for the same service: what is on record when a job has ended, whether
there are retries, whether a worker that lost its job can still settle it, and what becomes of a job
whose worker dies."""

ENQUEUEING = """\
## Enqueueing

Jobs per second; each call is answered before its caller makes the next."""

PICKUP = """\
## Pickup, commit, cancel

Pickup: from the start of the enqueue call in one process to the start of the handler in another,
with one idle worker or with ten. Commit: the job is enqueued in a transaction of the caller, and
the time runs from the start of its commit. Cancel: from the start of the call to the moment at
which the running handler has noticed, with ten workers; where a handler has to ask the queue, it
asks each millisecond."""

COSTS = """\
## What a worker costs

Idle, and while it drains as above. Bytes of the log are those of PostgreSQL; the first change of a
page after a checkpoint puts an image of the whole page into it, and the bench checkpoints before
each drain, so that every drain has the same number of them."""

TARGETS = """\
## Targets

What this project holds itself to, judged by this run. A target that sets two workloads side by
side is judged only where both were measured in one run. A peer "keeps jobs" if a job whose worker
dies runs again."""

GROWTH = """\
## As the database grows

The same drain with 1 worker process: with nothing else in the database, with {behind} jobs pending
behind it, with {behind} settled jobs kept, and with a snapshot held open by somebody else from
before it began, so that the database can clean up nothing behind it. The first and the last tenth
of the run show whether it keeps its pace."""

ALONE = """\
## Tenure alone

The bare statements are the store's own, issued by a loop on one connection without a worker around
it (`bench/raw.py`). With a limit, two workers drain one queue. A workflow is one job, a hundred
that wait for it, and one that waits for these. All schedules are due at one moment, from which the
time runs until all of their jobs have started. Over HTTP, one server process answers, and a job is
on disk when it does; the load comes from a client of our own over connections kept open."""

METHOD = """\
## How it was measured

- A job carries 150 bytes of JSON. Its handler does nothing but note, in memory that all processes
  share, that it ran: no system call, no lock.
- A drain takes {drained} jobs, {drained_beside} beside much else, and the retry path {retried}; a
  slow queue is given fewer. Its workers are started behind a gate and have come to rest when it
  opens: for Tenure that is a paused queue; for the others a lock on what a claim has to write, so
  that each worker waits within its first claim: on the table of jobs (PostgreSQL), the file
  (SQLite), all writes (Redis). The time begins with the first handler, and ends when the last has
  run and the database, asked behind the queue's back, shows nothing waiting or running.
- A fleet has as many jobs as would take {fleet_seconds} s if no slot were ever empty, or as many as
  a drain. What it costs is counted from when a quarter of them has run, because the first claim of
  each connection makes plans, once for hours of work. The handler sleeps. A worker has the slots
  that its adapter sets: threads for Huey, tasks of the event loop for the others, for honker a
  batch of that size.
- A number counts only if every job ran and none is left. Tenure may run none twice, and
  `tenure verify` must find no fault in what is stored.
- Enqueueing goes on for {seconds} s; pickup is timed over {samples} jobs about
  {pause} s apart, each on an idle queue.
- Tenure and the two strongest peers on its databases are measured {repeats} times, the others 3
  times, in turns; an idle worker once. An import is the median
  of seven processes.
- The database is made again for each measurement, and filled, analysed and checkpointed before. A
  file of SQLite is on disk before the clock starts; after a large one was copied, the kernel has
  nothing left to write back.
- Each peer has its own environment and its fast, documented settings, as long as they are durable:
  they stand at the top of its file in `bench/peers`. On SQLite that is `synchronous=FULL` for all:
  honker and litequeue set it to NORMAL when they open a file, and here to FULL on the connections
  that they hand out. "honker, NORMAL" is honker as it comes. PostgreSQL is reached over a Unix
  socket by everyone. A disk that takes longer to sync makes one-by-one work slower for everyone,
  and leaves batches as they are.
- Every peer is at its newest release on the package index on the day of the run. Releases that are
  only announced, as PgQueuer 2 and Procrastinate 3.11 were in November 2026, are not on it."""

RUNS = """\
## When it was measured

All queues of a workload are measured together, so that a ratio is of one run."""
