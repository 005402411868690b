"""Hears what other processes say of new work in PostgreSQL, by LISTEN. A hint: polling goes on."""

from __future__ import annotations

import logging
import selectors
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from tenure.store.postgres.connection import Place, connect
from tenure.store.postgres.watchdog import ANSWER_SECONDS, answering

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.1
"""How often it looks whether it should stop; notifications ring at once."""
RECONNECT_SECONDS = (0.5, 10.0)
PROBE_SECONDS = 30.0
"""How often it makes sure that somebody is at the other end."""


def watch(place: Place, notify: Callable[[], None], stop: threading.Event) -> None:
    """Ring at the beginning and at every note of another process, until `stop` is set.

    Behind a transaction pooler none may come. Database errors are logged and end nothing.
    """
    shortest, longest = RECONNECT_SECONDS
    pause = shortest
    while not stop.is_set():
        try:
            with connect(place) as connection:
                _listen(place, connection)
                pause = shortest
                notify()  # what was said while nobody listened
                _hear(place, connection, notify, stop)
        except psycopg.Error as error:
            log.info("not listening for new work, polling goes on: %s", error)
            stop.wait(pause)
            pause = min(2 * pause, longest)


def _hear(
    place: Place,
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
                _listen(place, connection)  # harmless, and it must be answered
                listened = time.monotonic()
            if selector.select(WATCH_SECONDS):
                for _ in connection.notifies(timeout=0):
                    notify()


def _listen(place: Place, connection: psycopg.Connection[Any]) -> None:
    with answering(connection, ANSWER_SECONDS):
        connection.execute(place.sql("LISTEN {s}"))
