"""LISTEN to what other processes notify of new work in PostgreSQL. A hint: polling continues."""

from __future__ import annotations

import logging
import selectors
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from tenure.store.postgres.connection import Address, connect
from tenure.store.postgres.watchdog import ANSWER_SECONDS, answering

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.1
"""How often it looks whether it should stop. Notifications arrive at once."""
RECONNECT_SECONDS = (0.5, 10.0)
PROBE_SECONDS = 30.0
"""How often it makes sure that the server still answers."""


def watch(address: Address, notify: Callable[[], None], stop: threading.Event) -> None:
    """Call `notify` at the start and at every notification, until `stop` is set.

    Behind a transaction pooler none may come. Database errors are logged and end nothing.
    """
    shortest, longest = RECONNECT_SECONDS
    pause = shortest
    while not stop.is_set():
        try:
            with connect(address) as connection:
                _listen(address, connection)
                pause = shortest
                notify()  # of what was missed before
                _listen_until(address, connection, notify, stop)
        except psycopg.Error as error:
            log.info("not listening for new work, polling continues: %s", error)
            stop.wait(pause)
            pause = min(2 * pause, longest)


def _listen_until(
    address: Address,
    connection: psycopg.Connection[Any],
    notify: Callable[[], None],
    stop: threading.Event,
) -> None:
    # Not `notifies` with a time limit, each round of which takes a millisecond.
    with selectors.DefaultSelector() as selector:
        selector.register(connection.fileno(), selectors.EVENT_READ)
        listened = time.monotonic()
        while not stop.is_set():
            if time.monotonic() - listened > PROBE_SECONDS:
                _listen(address, connection)  # harmless, and it must be answered
                listened = time.monotonic()
            if selector.select(WATCH_SECONDS):
                for _ in connection.notifies(timeout=0):
                    notify()


def _listen(address: Address, connection: psycopg.Connection[Any]) -> None:
    with answering(connection, ANSWER_SECONDS):
        connection.execute(address.sql("LISTEN {s}"))
