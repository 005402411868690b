"""A newsletter with Flask, Flask-SQLAlchemy and Tenure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flask import Flask

from examples.flask_app.jobs import db, queue
from examples.flask_app.pages import pages

DATABASE_URL = os.environ.get("DATABASE_URL", f"sqlite:///{Path.cwd() / 'newsletter.db'}")


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Make the application; `config` takes the place of its settings."""
    app = Flask(__name__)
    app.config.from_mapping(SQLALCHEMY_DATABASE_URI=DATABASE_URL, TENURE_DATABASE=DATABASE_URL)
    app.config.from_mapping(config)
    db.init_app(app)
    queue.init_app(app)
    queue.open()  # makes the tables of Tenure
    queue.close()  # the server may fork now
    app.register_blueprint(pages)
    with app.app_context():
        db.create_all()
    return app
