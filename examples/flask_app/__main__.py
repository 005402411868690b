"""The newsletter and a worker in one process: `python -m examples.flask_app [port]`."""

from __future__ import annotations

import sys

from examples.flask_app import create_app
from examples.flask_app.jobs import queue

if __name__ == "__main__":
    app = create_app()
    with queue.running(concurrency=4, grace=5):
        app.run(port=int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
