"""`manage.py tenure …`: the commands of Tenure on the database of the settings."""

from __future__ import annotations

import shlex
from argparse import REMAINDER, ArgumentParser
from typing import Any

import click
from django.core.management.base import BaseCommand, CommandError

from tenure.cli import COMMANDS
from tenure.cli.command import Group, lend
from tenure.contrib.django.joining import import_worker_first


class Command(BaseCommand):
    """Hands its arguments on; `worker` runs the tasks of the project."""

    help = "Run a command of Tenure on the database of the settings, such as `tenure worker`."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Take an alias, and everything from the name of the command on."""
        parser.add_argument("--backend", default="default", help="alias in TASKS [default]")
        parser.add_argument("args", nargs=REMAINDER, help="a command of Tenure and its options")

    def handle(self, *args: str, backend: str, **_: Any) -> None:
        """Run the command; its exit code is that of the program."""
        from tenure.contrib.django.worker import app_of

        if (app := app_of(backend)) is None:
            raise CommandError(f"TASKS has no backend {backend!r} that is a TenureBackend")
        import_worker_first()
        name = "manage.py tenure"
        if backend != "default":
            name += f" --backend {shlex.quote(backend)}"
        try:
            _commands.main(args or ("--help",), prog_name=name, obj=app)
        except SystemExit as end:
            if end.code:
                raise


@click.group(cls=Group, commands=COMMANDS)
@click.pass_context
def _commands(context: click.Context) -> None:
    """Run jobs, and look after them, in the database of this project."""
    lend(context, context.obj)
