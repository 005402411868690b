"""Commands about signals: send one to a job that waits for it, list those of a job."""

from __future__ import annotations

import click

from tenure.cli import completing
from tenure.cli.command import Group, Id, answer_options, existing, option, reading_options
from tenure.cli.jobs import options_given
from tenure.cli.terminal import print_json, table

signals = Group("signals", help="Send signals to jobs that wait for them.")


@signals.command()
@click.argument(
    "id", type=Id(), shell_complete=completing.job_ids("waiting", "pending", "processing")
)
@click.argument("name")
@click.argument("payload", required=False)
@option("--key", "TEXT", "Idempotency key: using it again sends nothing.")
@answer_options
def send(id: str, name: str, payload: str | None, key: str | None, as_json: bool) -> None:
    """Send the signal NAME to a job, and print its number.

    PAYLOAD is any JSON, of at most 64 KiB; `-` reads it from standard input.  [default: null]

    A job that waits for it runs again at once. One that does not wait yet finds it later.
    """
    from tenure.wire.responses import signal_body

    says = options_given({}, payload).get("payload")
    with existing() as app:
        sent = app.signal(id, name, says, key)
        shown = app.core.redaction.document(sent.payload_json)
    if as_json:
        print_json(signal_body(sent, shown))
    else:
        click.echo(f"signal {sent.name} {sent.number}")


@signals.command("list")
@click.argument("id", type=Id(), shell_complete=completing.job_ids())
@reading_options
def list_signals(id: str, as_json: bool) -> None:
    """List the signals of a job, oldest first."""
    from tenure.wire.responses import signal_body

    with existing() as app:
        hide = app.core.redaction.document
        found = [(one, hide(one.payload_json)) for one in app.signals.list(id)]
        now = app.core.clock()
    if as_json:
        print_json([signal_body(one, payload) for one, payload in found])
    else:
        rows = ((one.name, one.number, one.at, one.actor, payload) for one, payload in found)
        table(("NAME", "NUMBER", "AT", "BY", "PAYLOAD"), rows, now=now)
