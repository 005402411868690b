"""The queues that are measured, and what a reader must know about each beside its number.

`requirements` pins what the adapter needs; the bench installs it into an environment of its own.
`left` is how the bench itself, not the queue, sees how many jobs are waiting or running: SQL for
PostgreSQL and SQLite, a Lua script for Redis. An adapter's settings stand in its docstring.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace

UVLOOP = "uvloop==0.23.0"
PSYCOPG = "psycopg[binary]==3.3.9"
PSYCOPG_POOL = "psycopg-pool==3.3.3"
REDIS = ("redis==8.1.0", "hiredis==3.5.0")

ON_DISK = "each commit on disk"
REDIS_DURABLE = "up to 1 s lost with the machine"


@dataclass(frozen=True, slots=True)
class Subject:
    """One queue on one engine. Without requirements it runs in the project's own environment."""

    name: str
    title: str
    engine: str  # postgres, sqlite or redis
    _: KW_ONLY
    adapter: str = ""  # module in bench/peers, if it has not the name of the queue
    imports: str  # as its users write it
    left: str
    history: str = "none"  # what is kept of a job that has ended
    retries: str = "yes"
    fencing: str = "none"  # whether a worker that lost its job can still settle it
    crash: str  # what becomes of a job whose worker dies
    durable: str = ON_DISK
    table: str = ""  # on PostgreSQL: the jobs, which a claim has to write
    requirements: tuple[str, ...] = ()
    oldest_python: tuple[int, int] = (3, 11)
    most_drained: int = 200_000  # jobs in a drain, so that a slow queue takes seconds as well
    most_retried: int = 5_000
    bulk: bool = True  # has a call that takes many jobs
    within: bool = False  # enqueues in a transaction of the caller
    cancels: bool = False  # a job that runs
    strong: bool = False  # among the two strongest of its engine: part of the quick run
    environment: tuple[tuple[str, str], ...] = ()  # variables for its adapter
    # Not durable as all others of its engine are: shown beside them on a few workloads, judged
    # nowhere.
    aside: bool = False

    @property
    def ours(self) -> bool:
        """Whether this is Tenure."""
        return not self.requirements

    @property
    def program(self) -> str:
        """The module in bench/peers that drives it."""
        return self.adapter or self.name


TENURE = Subject(
    *("tenure-postgres", "Tenure", "postgres"),
    adapter="tenure_local",
    imports="from tenure import Tenure",
    left="SELECT count(*) FROM tenure.job WHERE status = 'pending'"
    " UNION ALL SELECT count(*) FROM tenure.job WHERE status = 'processing'",
    history="job and every move",
    retries="yes, backoff as data",
    fencing="by lease, in the database",
    crash="lease runs out, runs again",
    within=True,
    cancels=True,
    strong=True,
    most_retried=20_000,
)
HONKER = Subject(
    *("honker", "honker", "sqlite"),
    imports="import honker",
    requirements=("honker==0.5.0",),
    left="SELECT count(*) FROM _honker_live",
    fencing="by worker and expiry",
    crash="claim expires, runs again",
    within=True,
    strong=True,
    most_retried=20_000,
)
SUBJECTS = (
    TENURE,
    Subject(
        *("pgqueuer", "PgQueuer", "postgres"),
        table="pgqueuer",
        imports="from pgqueuer import PgQueuer",
        requirements=("pgqueuer==1.6.0", "asyncpg==0.32.0", UVLOOP),
        left="SELECT count(*) FROM pgqueuer",
        history="log rows, the job is deleted",
        retries="yes, one commit each",
        fencing="none: settles by job id",
        crash="heartbeat stops, runs again",
        most_drained=100_000,
        within=True,
        cancels=True,
        strong=True,
    ),
    Subject(
        *("awa", "awa", "postgres"),
        table="awa.leases, awa.lease_claims, awa.lease_claim_batches",
        imports="from awa import AsyncClient",
        requirements=("awa-pg==0.6.9",),
        left="SELECT count(*) FROM awa.jobs"
        " WHERE state NOT IN ('completed', 'failed', 'cancelled')",
        history="batch receipts, rotated away",
        fencing="by lease",
        crash="lease runs out, runs again",
        within=True,
        cancels=True,
        most_drained=20_000,
        strong=True,
        most_retried=3_000,
    ),
    Subject(
        *("chancy", "Chancy", "postgres"),
        table="chancy_jobs",
        imports="from chancy import Chancy",
        requirements=("chancy==0.26.0",),
        left="SELECT count(*) FROM chancy_jobs WHERE state NOT IN ('succeeded', 'failed')",
        history="job",
        fencing="by claim",
        crash="runs again",
        within=True,
        most_drained=5_000,
    ),
    Subject(
        *("oban", "Oban", "postgres"),
        table="oban_jobs",
        imports="from oban import Oban",
        requirements=("oban==0.7.0", PSYCOPG, PSYCOPG_POOL, UVLOOP),
        oldest_python=(3, 12),
        left="SELECT count(*) FROM oban_jobs WHERE state <> 'completed'",
        history="job, for a day",
        fencing="by time of the attempt",
        crash="rescued by the leader",
        within=True,
        cancels=True,
        most_drained=10_000,
    ),
    Subject(
        *("procrastinate", "Procrastinate", "postgres"),
        table="procrastinate_jobs",
        imports="from procrastinate import App",
        requirements=("procrastinate==3.10.0", PSYCOPG, PSYCOPG_POOL, UVLOOP),
        left="SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')",
        history="job and its events",
        fencing="none: settles by job id",
        crash="stalled until a task of yours retries it",
        within=True,
        cancels=True,
        most_drained=2_000,
        most_retried=1_000,
    ),
    Subject(
        *("dbos", "DBOS", "postgres"),
        table="dbos.workflow_status",
        imports="from dbos import DBOS",
        requirements=("dbos==3.4.0", PSYCOPG),
        left="SELECT count(*) FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING')",
        history="workflow, its input and result",
        retries="none for a workflow, of its steps",
        fencing="by owner of the start",
        crash="recovered when its executor starts again",
        within=True,
        most_drained=1_000,
        bulk=False,
    ),
    replace(
        TENURE,
        name="tenure-sqlite",
        engine="sqlite",
        left="SELECT (SELECT count(*) FROM tenure_job WHERE status = 'pending')"
        " + (SELECT count(*) FROM tenure_job WHERE status = 'processing')",
    ),
    HONKER,
    replace(
        HONKER,
        name="honker-normal",
        adapter="honker",
        title="honker, NORMAL",
        strong=False,
        within=False,
        durable="last commits lost with the machine",
        environment=(("BENCH_SYNCHRONOUS", "NORMAL"),),
        aside=True,
    ),
    Subject(
        *("huey", "Huey", "sqlite"),
        imports="from huey import SqliteHuey",
        requirements=("huey==3.5.4",),
        left="SELECT count(*) FROM task",
        crash="job is lost",
        most_drained=10_000,
        most_retried=2_000,
        bulk=False,
        strong=True,
    ),
    Subject(
        *("litequeue", "litequeue", "sqlite"),
        imports="from litequeue import LiteQueue",
        requirements=("litequeue==0.9",),
        left="SELECT count(*) FROM Queue WHERE status < 2",
        history="message, until pruned",
        retries="none",
        crash="stays locked",
        within=True,
        most_drained=2_000,
    ),
    Subject(
        *("ardiq", "ardiq", "redis"),
        imports="from ardiq import Ardiq",
        requirements=("ardiq==1.2.0", UVLOOP),
        oldest_python=(3, 12),
        left="return redis.call('xlen', 'ardiq:bench:queues:default')",
        history="result, for a time",
        crash="reclaimed when idle, runs again",
        most_drained=30_000,
        durable=REDIS_DURABLE,
        strong=True,
    ),
    Subject(
        *("dramatiq", "Dramatiq", "redis"),
        imports="import dramatiq",
        requirements=("dramatiq==2.2.1", *REDIS),
        left="return redis.call('hlen', 'dramatiq:default.msgs')",
        retries="yes, 1 ms delay at least",
        crash="heartbeat stops, runs again",
        durable=REDIS_DURABLE,
        most_drained=10_000,
        most_retried=2_000,
        bulk=False,
        strong=True,
    ),
    Subject(
        *("saq", "SAQ", "redis"),
        imports="from saq import Queue",
        requirements=("saq==0.26.4", "typing-extensions==4.15.0", *REDIS, UVLOOP),
        left="return redis.call('llen', 'saq:default:queued')"
        " + redis.call('llen', 'saq:default:active')",
        history="result, for a time",
        crash="swept, runs again",
        durable=REDIS_DURABLE,
        most_drained=5_000,
        most_retried=2_000,
        bulk=False,
    ),
    Subject(
        *("streaq", "streaQ", "redis"),
        imports="from streaq import Worker",
        requirements=("streaq==7.2.0",),
        left="return redis.call('xlen', 'streaq:bench:queues:normal')",
        history="result, for a time",
        crash="reclaimed when idle, runs again",
        durable=REDIS_DURABLE,
        most_drained=3_000,
        most_retried=2_000,
    ),
    Subject(
        *("celery", "Celery", "redis"),
        imports="from celery import Celery",
        requirements=("celery==5.7.0", "packaging==25.0", *REDIS),
        left="return redis.call('llen', 'celery') + redis.call('hlen', 'unacked')",
        history="none (results off)",
        crash="redelivered after an hour",
        durable=REDIS_DURABLE,
        most_drained=2_000,
        most_retried=500,
        bulk=False,
    ),
    Subject(
        *("rq", "RQ", "redis"),
        imports="from rq import Queue",
        requirements=("rq==3.0.0", *REDIS),
        left="return redis.call('llen', 'rq:queue:default')",
        history="none (deleted at once)",
        crash="failed or retried by a cleanup",
        durable=REDIS_DURABLE,
        most_drained=500,
        most_retried=500,
    ),
)
