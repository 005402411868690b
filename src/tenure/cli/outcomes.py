"""Commands that wait until a job is settled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from tenure.cli import completing, terminal
from tenure.cli.command import existing
from tenure.cli.options import Id, answer_options, option
from tenure.jobs.text import first_line, visible

if TYPE_CHECKING:
    from tenure.app.app import Tenure

OUTCOMES = {"completed": 0, "failed": 1, "cancelled": 6}
TIME_OVER = 5


@click.command()
@click.argument("id", type=Id(), shell_complete=completing.job_ids())
@option("--timeout", "TIME", "Longest time to wait: 30s, 5m.  [default: as long as it takes]")
@answer_options
def wait(id: str, timeout: str | None, as_json: bool) -> None:
    """Wait until a job is settled, and print its result.

    The exit code is 0 if it completed, 1 if it failed, 6 if it was cancelled, and 5 if it is not
    settled in time. The job then continues.
    """
    with existing() as app:
        finish(app, id, timeout, as_json=as_json)


def finish(app: Tenure, job_id: str, timeout: str | None, *, as_json: bool) -> None:
    """Wait for a job, print how it ended, and exit with the code for that."""
    from tenure.wire import responses

    try:
        job = app.core.redaction.job(app.wait(job_id, timeout))
    except TimeoutError as error:
        click.echo(f"Error: {error}", err=True)
        click.get_current_context().exit(TIME_OVER)
    if as_json:
        terminal.print_json(responses.job_body(job))
    elif job.status == "completed":
        click.echo(visible(job.result_json or "null"))
    else:
        why = f": {first_line(job.last_error)}" if job.status == "failed" else ""
        click.echo(visible(f"job {job.id} {job.event}{why}"), err=True)
    click.get_current_context().exit(OUTCOMES[job.status])
