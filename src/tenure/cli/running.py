"""Commands that run jobs: serve, worker and demo.

With --reload, `tenure worker` starts a worker as another process, and again when the code changes.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import click

from tenure.cli import command, completing
from tenure.cli.terminal import attempts, print_json, progress_bar, room
from tenure.errors import InvalidInput
from tenure.values.text import first_line, quantity, visible

if TYPE_CHECKING:
    from tenure.app.app import Tenure
    from tenure.client import Client
    from tenure.demo import DemoResult
    from tenure.settings import Settings

GRACE = "1s"
"""For handlers that run during a change, if the user says nothing else. Their jobs go back
uncharged, and run again with the new code."""
LEASE = "5s"
"""When the jobs of a worker that had to be killed run again, if the user says nothing else."""
STOP_SECONDS = 15.0
"""How long a worker may take to end after its grace."""


def run_again_on_changes(arguments: Sequence[str], grace: float) -> None:
    """Run Python with these arguments until SIGTERM or Ctrl-C; again after each change.

    Watches the Python files below the current folder. `grace` is that of the worker, in seconds.
    """
    from watchfiles import PythonFilter, watch

    from tenure.worker.child import answered_stop_signals

    stopped = threading.Event()
    for number in {*answered_stop_signals()} - {signal.SIGINT}:
        signal.signal(number, lambda *_: stopped.set())
    process = _start(arguments)
    try:
        files = PythonFilter()
        for changes in watch(".", watch_filter=files, stop_event=stopped, raise_interrupt=False):
            path = Path(min(path for _, path in changes))
            click.echo(f"{path.name} has changed: the worker starts again", err=True)
            _stop(process, grace)
            process = _start(arguments)
    finally:
        _stop(process, grace)


def _start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a worker in a separate group, which Ctrl-C does not reach: it is stopped once."""
    return subprocess.Popen([sys.executable, *arguments], process_group=0)  # noqa: S603


def _stop(process: subprocess.Popen[bytes], grace: float) -> None:
    process.terminate()
    try:
        process.wait(grace + STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# --- serve and worker -----------------------------------------------------------------------------

work_options = command.together(
    command.repeated("--app apps", "MODULE:NAME", "Your Tenure object, whose handlers run here"),
    command.flag("--fake-handlers", "Run fake handlers for every type that has no handler."),
    command.repeated(
        "--fail-type fail_types",
        "TYPE",
        "With --fake-handlers: fail every attempt of this type",
        completing.types,
    ),
    command.option(
        "--fail-every",
        "N",
        "With --fake-handlers: fail the first attempt of every Nth job.",
        type=int,
    ),
    command.queues("Run only jobs of this queue", completing.queue_names),
    command.option("--concurrency", "N", "Jobs to run at once.  [default: 16]"),
    command.option(
        "--lease lease_seconds",
        "TIME",
        "Time until a dead worker's jobs go to other workers.  [default: 30s]",
    ),
    command.option(
        "--grace grace_seconds",
        "TIME",
        "Time that running jobs get to finish when this stops.  [default: 30s]",
    ),
    command.option(
        "--config", "FILE", "TOML file with settings; also TENURE_CONFIG.", type=click.Path()
    ),
    command.option(
        "--token-file",
        "FILE",
        "File with one API token a line; see also TENURE_TOKEN.",
        type=click.Path(),
    ),
    command.flag("--webhooks-private", "Also deliver webhooks to private addresses.", default=None),
    command.option(
        "--log-format",
        "text|json",
        "Format of the log lines.  [default: text]",
        completing.words("text", "json"),
    ),
    command.option(
        "--log-level",
        "LEVEL",
        "debug, info, warning or error.  [default: info]",
        completing.words("debug", "info", "warning", "error"),
    ),
    command.database_option,
)
"""The options that `serve` and `worker` share."""


class WorkCommand(click.Command):
    """A command that says how an application is given to it: by `--app`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse what is not an option."""
        ctx.allow_extra_args = True
        extra = super().parse_args(ctx, args)
        if extra:
            ctx.fail(f"{extra[0]} is no option; an application is given as --app MODULE:NAME")
        return extra


class HostAndPort(click.ParamType):  # type: ignore[type-arg]
    """`[HOST:]PORT` as (host, port)."""

    name = "address"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Split the text; 0 lets the system choose a port."""
        host, _, port = str(value).rpartition(":")
        if not (port.isascii() and port.isdigit() and len(port) < 6 and int(port) < 65_536):
            self.fail("give a port, as in 8081 or 0.0.0.0:8081", param, ctx)
        return host or "127.0.0.1", int(port)


@click.command(cls=WorkCommand)
@command.option("--host", "NAME", "Address to listen on.  [default: 127.0.0.1]")
@command.option("--port", "N", "Port to listen on; also TENURE_PORT or PORT.  [default: 8080]")
@work_options
def serve(**flags: Any) -> None:
    """Serve dashboard and HTTP API until SIGTERM or Ctrl-C.

    With --app or --fake-handlers, a worker runs in the same process.
    """
    from tenure import server
    from tenure.worker.process import end_process

    app, settings = _prepared(**flags)
    server.serve(app, settings)
    end_process()


@click.command(cls=WorkCommand)
@command.option(
    "--server", "URL", "Get jobs from this server instead of a database; the token is TENURE_TOKEN."
)
@command.flag(
    "--prune", "Delete settled jobs by the keep settings; not needed where a server runs."
)
@command.option(
    "--health",
    "[HOST:]PORT",
    "Answer GET /live and /ready there; HOST is 127.0.0.1 if not given.",
    type=HostAndPort(),
)
@command.option(
    "--max-idle", "TIME", "End once there was no job to run for so long; jobs due later stay."
)
@command.flag(
    "--reload",
    "Start again when a Python file below this folder changes; "
    f"then --grace is {GRACE} and --lease {LEASE} by default.",
)
@work_options
def worker(
    server: str | None,
    prune: bool,
    health: tuple[str, int] | None,
    max_idle: str | None,
    reload: bool,
    **flags: Any,
) -> None:
    """Run jobs until SIGTERM or Ctrl-C.

    At the signal, running jobs get the time of --grace to finish. Jobs that have not started go to
    other workers. A second signal ends the worker at once.
    """
    from tenure.telemetry import logs
    from tenure.values.durations import positive, seconds
    from tenure.worker.process import end_process, run_worker

    if not (flags["apps"] or flags["fake_handlers"] or command.application_of_host()):
        raise InvalidInput(
            "nothing to run: give --app module:name, or --fake-handlers", path="--app"
        )
    if prune and server is not None:
        raise InvalidInput("the server deletes settled jobs, not this worker", path="--prune")
    max_idle_seconds = None if max_idle is None else positive(max_idle, "--max-idle")
    if reload:
        # As it was started, by `tenure` or by a program that has its commands.
        arguments = [argument for argument in sys.orig_argv[1:] if argument != "--reload"]
        grace, lease = flags["grace_seconds"] or GRACE, flags["lease_seconds"] or LEASE
        arguments += ["--grace", grace, "--lease", lease]
        run_again_on_changes(arguments, seconds(grace, "--grace"))
        return
    app, settings = _prepared(**flags, remote=server is not None)
    types = app.core.handlers.types()
    if flags["apps"] and types == ():
        raise InvalidInput(
            "nothing to run: it has no handlers; name a module that imports all of them",
            path=" ".join(["--app", *flags["apps"]]),
        )
    if not prune:
        settings = replace(settings, keep_completed=None, keep_cancelled=None, keep_failed=None)
    remote: Client | None = None
    if server is not None:
        from tenure import client

        remote = client.Client(
            server, next(iter(settings.tokens), None), tracing=app.core.tracing is not None
        )
    with remote or app:
        names = "any type" if types is None else ", ".join(types)
        where = _address(server or app.database)
        logs.announce(f"Tenure worker runs jobs of {names} from {where}")
        run_worker(app, settings, source=remote, health=health, max_idle_seconds=max_idle_seconds)
    end_process()


def _address(url: str) -> str:
    """Return an address for people; of a file all of it, since other folders have other files."""
    from tenure.values.redaction import without_password

    return f"sqlite:///{_place(url)[0]}" if url.startswith("sqlite:") else without_password(url)


def _prepared(
    apps: Sequence[str],
    fake_handlers: bool,
    fail_types: Sequence[str],
    fail_every: int | None,
    *,
    remote: bool = False,
    **flags: Any,
) -> tuple[Tenure, Settings]:
    """Load the settings and applications that `work_options` name, and set up the log."""
    from tenure.demo import add_fake_handlers
    from tenure.settings import load
    from tenure.telemetry import logs

    # An option that may be repeated is an empty tuple if it was not given.
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    settings = load({"database": command.chosen_database(), **given}, os.environ)
    app = _application(apps, settings, remote=remote)
    if fake_handlers:
        add_fake_handlers(app.core.handlers, fail_types=fail_types, fail_every=fail_every)
    elif fail_types or fail_every is not None:
        raise InvalidInput(
            "--fail-type and --fail-every need --fake-handlers", path="--fake-handlers"
        )
    redact = app.core.redaction.also(settings.redact).keys
    logs.configure(settings.log_format, settings.log_level, redact)
    logs.outlast_output()
    for caution in settings.cautions:
        logging.getLogger("tenure.settings").warning("%s", caution)
    return app, settings


def _imported(spec: str) -> Tenure:
    """Import the application that `module:name` names, from the current folder too.

    Raises InvalidInput if there is none. Exceptions of the module itself are not caught.
    """
    from tenure.app.app import Tenure

    module, _, name = spec.partition(":")
    where = f"--app {spec}"
    if not module or not name:
        raise InvalidInput("write module:name, as in shop.jobs:app", path=where)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        why = f"no module {error.name!r} here or installed"
        why += f"; write {Path(module).stem}:{name}" if module.endswith(".py") else ""
        raise InvalidInput(why, path=where) from None
    app = getattr(found, name, None)
    if not isinstance(app, Tenure):
        kind = type(app).__name__
        what = "has no such name" if app is None else f"holds a value of type {kind} there"
        raise InvalidInput(f"{module} {what}; name a Tenure object", path=where)
    return app


def _application(specs: Sequence[str], settings: Settings, *, remote: bool) -> Tenure:
    """Make one application with all handlers, on the database that the user chose, or on theirs.

    Raises InvalidInput if those differ, because other programs would add jobs to a database that
    this worker does not read. A `remote` worker gets its jobs from a server.
    """
    from tenure.app.app import Tenure
    from tenure.settings import DEFAULT_DATABASE
    from tenure.values.redaction import without_password

    chosen = settings.database
    given = command.chosen_database() is not None or "TENURE_DATABASE" in os.environ
    given = given or chosen != DEFAULT_DATABASE  # by the file
    if given:
        os.environ["TENURE_DATABASE"] = chosen  # for Tenure() without a URL, in children too
    apps = [_imported(spec) for spec in specs] or [command.application_of_host() or Tenure(chosen)]
    if given and not remote:
        for spec, app in zip(specs, apps, strict=False):
            if _place(app.database) != _place(chosen):
                raise InvalidInput(
                    f"it uses {without_password(app.database)}, but this process is to use "
                    f"{without_password(chosen)}, where no job that is added with it would arrive. "
                    "Write Tenure() without a URL, which reads TENURE_DATABASE, and set that for "
                    "all programs; or give this one the URL of the application",
                    path=f"--app {spec}",
                )
        for app in apps:  # perhaps as another user of it
            app.close()
            app.database = chosen
    elif len({app.database for app in apps}) > 1:
        raise InvalidInput(
            "these applications use different databases: choose one", path="--database"
        )
    first, *others = apps
    if settings.migrate != "new":  # the file may say so; it opens what is not open yet
        first.core.migrate = settings.migrate
    for other in others:
        first.core.take_over(other.core)
    return first


def _place(url: str) -> tuple[str, ...]:
    """Return what two URLs of the same database have in common, for any user."""
    address, _, query = url.partition("?")
    scheme, _, rest = address.partition("://")
    if scheme == "sqlite":
        return (str(Path(rest.removeprefix("/")).resolve()),)
    given = dict(parse_qsl(query))
    host, _, name = rest.rpartition("@")[2].partition("/")
    host = (host or given.get("host", "")).removesuffix(":5432")
    return (host, given.get("port", ""), given.get("dbname", name), given.get("schema", "tenure"))


# --- demo -----------------------------------------------------------------------------------------

OPENING = """\
A few dozen jobs, one worker, one store. Payments always fail, and so does the first attempt of
every sixth job that starts; a worker that vanished holds one import; one job is cancelled.
"""
MIN_ERROR_WIDTH = 20


@click.command()
@command.answer_options
def demo(as_json: bool) -> None:
    """Run a few dozen jobs through success, retry and failure.

    Uses a throw-away SQLite file, or --database if that is empty. Ends in a few seconds, with the
    same result every time.
    """
    import tempfile

    from tenure import demo
    from tenure.telemetry import logs
    from tenure.wire import responses

    logs.configure(level="critical")  # each failure of a payment is an error
    if not as_json:
        click.echo(OPENING)
    with (
        tempfile.TemporaryDirectory(prefix="tenure-demo-") as folder,
        progress_bar("Running jobs", shown=not as_json) as progress,
    ):
        result = demo.run(command.chosen_database() or f"sqlite:///{folder}/demo.db", progress)
    if as_json:
        jobs = [{"job": responses.job_body(job), "transitions": of} for job, of in result.jobs]
        print_json({"jobs": jobs, "violations": result.violations})
    else:
        _show(result)
    if result.violations:
        click.get_current_context().exit(command.REFUSED)


def _show(result: DemoResult) -> None:
    """Print a line or more for each job, then the sums."""
    line = "{:>3}  {:<15} {:<10} {:<5}  {}"
    click.echo(
        line.format(
            *("#", "TYPE", "STATUS", "TRIES", "TRANSITIONS, AND THE LAST ERROR IF THERE WAS ONE")
        )
    )
    below = " " * len(line.format(0, "", "", "", ""))
    width = room() - len(below)
    for number, (job, statuses) in enumerate(result.jobs, 1):
        tries = attempts(job.attempts, job.max_retries)
        transitions = " → ".join(statuses)
        if len(transitions) > width:  # then each attempt has a line
            transitions = transitions.replace(" → pending", f" →\n{below}pending")
        click.echo(line.format(number, visible(job.type), job.status, tries, transitions))
        error = visible(first_line(job.last_error))
        for part in textwrap.wrap(
            error, max(width, MIN_ERROR_WIDTH), max_lines=2, placeholder=" …"
        ):
            click.echo(below + part)
    sums = Counter(job.status for job, _ in result.jobs).most_common()
    runs = sum(job.attempts for job, _ in result.jobs)
    ends = ", ".join(f"{count} {status}" for status, count in sums)
    jobs = quantity(len(result.jobs), "job")
    click.echo(f"\n{jobs}: {ends}. {quantity(runs, 'attempt')} in all.")
    for violation in result.violations:
        click.echo(f"VIOLATION {violation.job_id} {violation.invariant}: {violation.found}")
    if not result.violations:
        click.echo("verify found no violation: no job lost, none run more often than allowed.")
