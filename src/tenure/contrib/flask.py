"""Tenure as an extension of Flask: configuration, application contexts, `flask tenure …`."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
from flask import Flask

import tenure
from tenure import InvalidInput, JobContext
from tenure.cli import COMMANDS
from tenure.cli.command import Group, lend
from tenure.settings import database_url
from tenure.values.names import check_kind

KEY = "TENURE_DATABASE"
SQLITE = "sqlite:///"
NO_FILE = ("", ":memory:")
"""What SQLAlchemy has in place of a path for a database in memory. Every use of it is refused."""


class Tenure(tenure.Tenure):
    """The `Tenure` of a Flask application: `queue = Tenure(flask_app)`, or `init_app` later.

    Handlers run in an application context, so `current_app` and `db.session` work in them, and
    what teardown functions release is released after each of them. The application finds it in
    `extensions["tenure"]`, and its command line has the commands of `tenure` as `flask tenure …`.
    """

    def __init__(self, app: Flask | None = None, **options: Any) -> None:
        """Register with a Flask application, if it is known already.

        - `app`: the application. Default: None, `init_app` names it. Job types can be registered
          before; every use of the database raises InvalidInput until then.
        - `options`: those of `tenure.Tenure` except `database`: `migrate`, `actor`, `redact`,
          `tracing`.
        """
        super().__init__(**options)
        self.core.database = _unknown
        self.flask = app
        self.around(self._in_context)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Use the database of an application, and run handlers in its context.

        - `app`: its `config["TENURE_DATABASE"]` names the database. Default: the variable
          `TENURE_DATABASE` of the environment, else `sqlite:///tenure.db`. A relative path counts
          from the instance folder, as that of `SQLALCHEMY_DATABASE_URI` does.

        Called again, as tests do with one application each, it closes the database and goes over
        to the new application. Raises InvalidInput.
        """
        check_kind(app, Flask, "a Flask application", "$.app")
        url = app.config.get(KEY) or os.environ.get(KEY) or f"{SQLITE}tenure.db"
        self.close()
        self.database = _from_instance_folder(database_url(url), app)
        self.flask = app
        app.extensions["tenure"] = self

        @app.cli.group("tenure", cls=Group, commands=COMMANDS)
        @click.pass_context
        def commands(context: click.Context) -> None:
            """Run jobs, and look after them, in the database of this application."""
            lend(context, self)

    def _in_context(self, _: JobContext) -> AbstractContextManager[Any]:
        if self.flask is None:
            raise InvalidInput(
                "this process has made no Flask application: run `flask tenure worker`, or let "
                "the module with the handlers call init_app"
            )
        return self.flask.app_context()


def _unknown() -> str:
    raise InvalidInput("no Flask application yet: call init_app first", path="database")


def _from_instance_folder(url: str, app: Flask) -> str:
    path = url.removeprefix(SQLITE)
    if path == url or path in NO_FILE or Path(path).is_absolute():
        return url
    folder = Path(app.instance_path)
    folder.mkdir(parents=True, exist_ok=True)
    return f"{SQLITE}{folder / path}"
