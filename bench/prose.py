"""The words of the report; the numbers are filled in from a run."""

HEAD = """\
# Benchmarks

Made by `python bench/run.py {mode}` on {date}; change the bench, not this page. Tenure and its
peers do the same work in one run on one machine of {cpus} cores, which the database shares with the
workers. Ledger, guards and leases of Tenure are on, as always. Where a peer keeps less than Tenure
or promises less, it is said beside its number. Differences below a quarter mean little."""

DRAINING = """\
## Draining

Jobs per second, from the first handler to the last settled job. How many times faster Tenure is
counts on the same engine in the same run; Redis is set beside PostgreSQL."""

KEEPING = """\
## What each keeps

The numbers above are not for the same service: what is on record when a job has ended, whether
there are retries, whether a worker that lost its job can still settle it, and what becomes of a job
whose worker dies."""

ENQUEUEING = """\
## Enqueueing

Jobs per second; each call is answered before its caller makes the next."""

PICKUP = """\
## Pickup, and what a worker costs

From the start of the enqueue call in one process to the start of the handler in another."""

TARGETS = """\
## Targets

What this project holds itself to, judged by this run."""

GROWTH = """\
## As the database grows

The same drain with 1 worker process: with nothing else in the database, with {behind} jobs pending
behind it, with {behind} settled jobs kept, and with a snapshot held open by somebody else from
before it began, so that the database can clean up nothing behind it. The first and the last tenth
of the run show whether it keeps its pace."""

ALONE = """\
## Tenure alone

The bare statements are the store's own, issued by a loop on one connection without a worker around
it (`bench/raw.py`). Over HTTP, one server process answers, and a job is on disk when it does; the
load comes from a client of our own over connections kept open."""

METHOD = """\
## How it was measured

- A job carries 150 bytes of JSON. Its handler does nothing but note, in memory that all processes
  share, that it ran: no system call, no lock.
- A drain takes {drained} jobs, the retry path {retried}; a queue that would need minutes for that
  is given fewer. Its time begins with the first handler, and ends when the last has run and the
  database, asked behind the queue's back, shows nothing waiting or running.
- A number counts only if every job ran and none is left. Tenure may run none twice, and
  `tenure verify` must find no fault in what is stored.
- Enqueueing goes on for {seconds} s; pickup is timed over {samples} jobs about
  {pause} s apart, each on an idle queue.
- Everything is measured {repeats} times, in turns, but an idle worker once; shown is the median,
  and ± half the spread. An import is the median of seven processes.
- The database is made anew for each measurement, and filled, analysed and checkpointed before.
- Each peer has its own environment and its fast, documented settings, as long as they are durable:
  they stand at the top of its file in `bench/peers`. On SQLite that is `synchronous=FULL` for all:
  honker and litequeue set it to NORMAL when they open a file, and here to FULL on the connections
  that they hand out. "honker, NORMAL" is honker as it comes. PostgreSQL is reached over a Unix
  socket by everyone. A disk that takes longer to sync makes one-by-one work slower for everyone,
  and leaves batches as they are."""

AGAIN = """\
- Measured in a later run than the other workloads, all queues together: {workloads}.
  A ratio to Tenure is of one run all the same; a target that sets two workloads side by side may be
  of two."""
