"""Connections that wait too long for an answer are cut; nobody hangs."""

from __future__ import annotations

import errno
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NoReturn

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tenure.errors import StoreUnavailable
from tenure.store import open_store
from tenure.store.postgres import reader as postgres_reader
from tenure.store.postgres import session as postgres
from tenure.store.postgres.connection import address_of, connect
from tenure.store.postgres.reader import PostgresReader
from tenure.store.postgres.session import Wire, answering
from tenure.values.ids import new_id
from tests.support.no_threads import no_new_threads
from tests.support.proxy import Proxy
from tests.support.store import new_job
from tests.support.waiting import WAIT_SECONDS, wait_until

pytestmark = pytest.mark.scenario(41)


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    with Proxy(url) as made:
        yield made


@pytest.fixture
def far(proxy: Proxy, url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The database behind the proxy; what does not answer within a second hangs."""
    monkeypatch.setattr(postgres, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(postgres_reader, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(postgres_reader, "WAIT_SECONDS", 1.0)
    return f"{proxy.url_of(url)}&connect_timeout=2"


def test_who_waits_too_long_is_cut_and_who_does_not_is_left(url: str) -> None:
    with connect(address_of(url)) as connection:
        with answering(connection, WAIT_SECONDS):
            assert connection.execute("SELECT 1").fetchone() == (1,)
        with answering(connection, 0.1), pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT pg_sleep(30)")
        assert connection.broken


def test_a_slow_answer_of_the_primary_is_waited_for(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several hosts, which new connections reach, too."""
    monkeypatch.setattr(postgres, "SUSPECT_SECONDS", 0.1)
    monkeypatch.setattr(postgres, "SEARCH_SECONDS", 0.1)
    given = conninfo_to_dict(url)
    host = urllib.parse.quote(f"{given['host']},{given['host']}", safe="/,")
    address = address_of(f"{url}&host={host}")
    assert address.several
    with connect(address) as connection:
        with answering(connection, WAIT_SECONDS, address):
            assert connection.execute("SELECT 1 FROM pg_sleep(1)").fetchone() == (1,)
        search = postgres._watch._search
        assert search is not None
        search.join(WAIT_SECONDS)
        assert not search.is_alive(), "nothing waits any more"


def test_an_answer_in_time_ends_the_wait(url: str) -> None:
    with connect(address_of(url)) as connection:
        wire = Wire(connection)
        wire.expect(0.5)
        wire.answered()
        time.sleep(1.2)  # there is nothing that could be waited for: nothing is to happen
        assert connection.execute("SELECT 1").fetchone() == (1,)
        wire.close()


def test_without_a_thread_that_looks_nothing_is_sent(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "_watch", postgres._Watch())
    with connect(address_of(url)) as connection:
        with no_new_threads(), pytest.raises(psycopg.OperationalError, match="cannot be watched"):
            Wire(connection)
        with answering(connection, 0.1), pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT pg_sleep(30)")


def test_a_connection_without_a_file_descriptor_left_is_an_outage(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Callers got the OSError of the second one, and the watch ended for good."""
    caplog.set_level("INFO")

    def none_left(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    store, stop, notified = open_store(url), threading.Event(), list[str | None]()
    watch = threading.Thread(target=store.read.watch, args=(notified.append, stop))
    try:
        with monkeypatch.context() as patched:
            patched.setattr(socket, "fromfd", none_left)
            watch.start()
            for verb in (store.add([new_job()]).result, store.read.clock):
                with pytest.raises(StoreUnavailable, match="Too many open files"):
                    verb()
            wait_until(lambda: "not listening for new work" in caplog.text, "it to fail")
        wait_until(lambda: notified, "it to listen")
        assert store.add([new_job()]).result(WAIT_SECONDS)[0].created
    finally:
        stop.set()
        watch.join()
        store.close()


def test_writes_fail_and_work_again_with_the_network(proxy: Proxy, far: str) -> None:
    store = open_store(far)
    try:
        store.add([new_job()]).result(WAIT_SECONDS)
        proxy.black_hole()
        with pytest.raises(StoreUnavailable):
            store.add([new_job()]).result(WAIT_SECONDS)
        with pytest.raises(StoreUnavailable):
            store.add([new_job(), new_job()]).result(WAIT_SECONDS)
        proxy.pass_on()
        (added,) = store.add([new_job()]).result(WAIT_SECONDS)
        assert added.created
    finally:
        store.close()


def test_a_heartbeat_is_given_up_in_time_for_another(proxy: Proxy, url: str) -> None:
    """Whatever a statement may take otherwise: this one is bound by the lease."""
    store = open_store(f"{proxy.url_of(url)}&connect_timeout=2")
    try:
        assert store.renew([], 3.0) == set()
        proxy.black_hole()
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            store.renew([], 3.0)
        assert time.monotonic() - began < WAIT_SECONDS
        proxy.pass_on()
        assert store.renew([], 3.0) == set()
    finally:
        store.close()


def test_reads_fail_and_work_again_with_the_network(proxy: Proxy, far: str) -> None:
    """Several dead connections in the pool cost one wait, not one each."""
    reader = PostgresReader(far)
    try:
        reader._pool.open()
        with ExitStack() as stack:  # not by reads, which must not take a second here
            for _ in range(3):
                stack.enter_context(reader._pool.connection(WAIT_SECONDS))
        proxy.black_hole()
        with pytest.raises(StoreUnavailable):
            reader.get(new_id())
        proxy.pass_on()

        def answers() -> bool:
            try:
                reader.clock()
            except StoreUnavailable:
                return False
            return True

        wait_until(answers, "the reader to connect anew")
    finally:
        reader.close()


def test_a_reader_that_was_away_for_long_comes_back_at_once(
    proxy: Proxy, far: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool's own pauses between attempts to connect double, up to minutes."""
    monkeypatch.setattr(postgres_reader, "WAIT_SECONDS", 2.0)
    reader = PostgresReader(far)
    try:
        proxy.refuse()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                reader.clock()
        proxy.pass_on()
        reader.clock()
    finally:
        reader.close()
