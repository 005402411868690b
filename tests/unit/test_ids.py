"""Identifiers: the layout of RFC 9562, and ids that rise whatever clock, threads and forks do."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure.errors import InvalidInput
from tenure.values import ids
from tenure.values.ids import check_id, is_id, new_id, new_ids

FROM_THE_RFC = "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"  # RFC 9562, appendix A.6


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the clock that ids read, in milliseconds, and starts from no ids made."""

    def set_to(now: int) -> None:
        monkeypatch.setattr(ids, "time", SimpleNamespace(time_ns=lambda: now * 1_000_000))

    monkeypatch.setattr(ids, "_last", -1)
    return set_to


def rises(made: list[str]) -> bool:
    return all(earlier < later for earlier, later in pairwise(made))


def millis(job_id: str) -> int:
    """When an id was made, in milliseconds of Unix time."""
    return int(job_id[:8] + job_id[9:13], 16)


def test_layout_is_that_of_the_rfc() -> None:
    before = time.time_ns() // 1_000_000
    for made in [new_id(), *new_ids(3)]:
        parsed = uuid.UUID(made)
        assert str(parsed) == made
        assert parsed.version == 7
        assert parsed.variant == uuid.RFC_4122
        assert is_id(made)
        # A full counter may carry a millisecond ahead of the clock.
        assert before <= millis(made) <= time.time_ns() // 1_000_000 + 10


def test_the_example_of_the_rfc() -> None:
    assert is_id(FROM_THE_RFC)
    assert millis(FROM_THE_RFC) == 1_645_557_742_000


def test_how_many() -> None:
    assert new_ids(0) == []
    assert new_ids(-1) == []
    assert len(new_ids(1)) == 1
    assert len(set(new_ids(10_000))) == 10_000


def test_one_by_one_and_in_bulk_rise_together() -> None:
    made = [new_id(), *new_ids(5000), new_id(), *new_ids(2), new_id()]
    assert rises(made)


def test_rises_within_one_millisecond_past_the_counter(clock: Callable[[int], None]) -> None:
    clock(1_700_000_000_000)
    made = [new_id() for _ in range(2**ids.COUNTER_BITS + 10)] + new_ids(2**ids.COUNTER_BITS)
    assert rises(made)
    assert millis(made[0]) == 1_700_000_000_000
    assert millis(made[-1]) <= 1_700_000_000_002, "a full counter carries into the milliseconds"


def test_the_counter_starts_in_its_lower_half(clock: Callable[[int], None]) -> None:
    starts = []
    for tick in range(200):
        clock(1_700_000_000_000 + tick)
        starts.append(int(new_id()[15:18], 16))
    assert max(starts) < 2 ** (ids.COUNTER_BITS - 1)
    assert len(set(starts)) > 100, "and at a random value"


def test_rises_while_the_clock_steps_back(clock: Callable[[int], None]) -> None:
    made = []
    for now in (1_700_000_000_000, 1_699_999_000_000, 0, 1_700_000_000_000, 1_700_000_000_001):
        clock(now)
        made += [new_id(), *new_ids(3)]
    assert rises(made)
    assert millis(made[-1]) == 1_700_000_000_001


@given(st.lists(st.tuples(st.integers(0, 2**47), st.integers(0, 50)), max_size=30))
def test_rises_under_any_clock(history: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids, "_last", -1)
        made = []
        for now, count in history:
            patch.setattr(ids, "time", SimpleNamespace(time_ns=lambda now=now: now * 1_000_000))
            made += [new_id(), *new_ids(count)]
    assert rises(made)
    assert all(map(is_id, made))


def test_random_bits_are_fresh_and_uniform() -> None:
    tails = [int(made[19:].replace("-", ""), 16) & (1 << 62) - 1 for made in new_ids(4000)]
    assert len(set(tails)) == len(tails)
    for bit in range(62):
        ones = sum(tail >> bit & 1 for tail in tails)
        assert 1600 < ones < 2400, f"bit {bit} is set in {ones} of {len(tails)}"  # 12 sigma


def test_threads_share_one_rising_sequence(clock: Callable[[int], None]) -> None:
    clock(1_700_000_000_000)  # one millisecond, so that every stamp follows from the last
    made: list[list[str]] = [[] for _ in range(8)]
    start = threading.Barrier(len(made))

    def make(mine: list[str]) -> None:
        start.wait()
        for _ in range(500):
            mine.append(new_id())
            mine.extend(new_ids(3))

    threads = [threading.Thread(target=make, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(rises(mine) for mine in made)
    stamps = [one[:18] for mine in made for one in mine]
    assert len(set(stamps)) == len(stamps), "no two threads were given one stamp"


def test_no_other_thread_comes_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """The race above is too short to lose by luck; so: the lock is held while a stamp is made."""
    held: list[bool] = []

    def time_ns() -> int:
        held.append(ids._lock.locked())
        return time.time_ns()

    monkeypatch.setattr(ids, "time", SimpleNamespace(time_ns=time_ns))
    assert rises([new_id(), *new_ids(3)])
    assert held == [True, True]


FORK = """
import ctypes, os, sys, threading, warnings
warnings.simplefilter("ignore")  # newer Pythons warn about forking beside threads: the point here
from tenure.values import ids
print(ids.new_id(), flush=True)
held, done = threading.Event(), threading.Event()
def hold():
    with ids._lock:
        held.set()
        done.wait()
threading.Thread(target=hold).start()
held.wait()
child = os.fork() if sys.argv[1] == "python" else ctypes.PyDLL(None).fork()
if child == 0:  # the thread that holds the lock does not exist here
    print("\\n".join(ids.new_ids(500) + [ids.new_id()]), flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
done.set()
print("\\n".join(ids.new_ids(500) + [ids.new_id()]), flush=True)
sys.exit(status)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize("forked_by", ["python", "c"])
def test_a_forked_child_makes_ids_of_its_own(forked_by: str) -> None:
    """Also where C code forks, as uWSGI does, which calls no function that Python has for that."""
    command = [sys.executable, "-c", FORK, forked_by]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    first, *made = ran.stdout.split()
    assert len(set(made)) == len(made) == 1002
    assert rises([first, *made[:501]])
    assert rises([first, *made[501:]])


@pytest.mark.parametrize(
    "wrong",
    [
        *("", "x", FROM_THE_RFC.upper(), FROM_THE_RFC.replace("-", ""), f"{{{FROM_THE_RFC}}}"),
        *(f"{FROM_THE_RFC}\n", f" {FROM_THE_RFC}", f"{FROM_THE_RFC}\0", f"urn:uuid:{FROM_THE_RFC}"),
        "017f22e2-79b0-4cc3-98c4-dc0c0c07398f",  # version 4
        "017f22e2-79b0-7cc3-c8c4-dc0c0c07398f",  # another variant
        "017f22e2-79b0-7cc3-98c4-dc0c0c07398g",
        "017f22e279b0-7cc3-98c4-dc0c-0c07398f",
        "\u0660" * 8 + FROM_THE_RFC[8:],
        *(None, 7, uuid.UUID(FROM_THE_RFC), FROM_THE_RFC.encode()),
    ],
)
def test_only_the_canonical_form_is_an_id(wrong: object) -> None:
    assert not (isinstance(wrong, str) and is_id(wrong))
    with pytest.raises(InvalidInput) as refusal:
        check_id(wrong, "$.id")
    assert refusal.value.path == "$.id"


def test_check_gives_the_id_back() -> None:
    assert check_id(FROM_THE_RFC, "$.id") == FROM_THE_RFC
