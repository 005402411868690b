"""The power is cut under SQLite at any moment: what was acknowledged is there.

A run of the real store is recorded at its disk, in a process of its own; then the files are made as
a power cut would leave them after this or that call (`power.Cut`), opened by a new store and held
against what had been acknowledged by then.
"""

from __future__ import annotations

import pickle
import random
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tenure.errors import StoreUnavailable
from tenure.rules.jobs import CheckedJob
from tenure.rules.reports import ClaimRequest
from tenure.store import open_store
from tests.chaos import disk
from tests.chaos.power_cuts import NAME, Cut, Recording
from tests.support import fault_counts
from tests.support.programs import run

ROOT = Path(__file__).parents[2]
CUTS = 60
CONTROL = 20
pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(
        not disk.available(), reason="this Python hides its SQLite: use one of a distribution"
    ),
]


def record(setting: str, seed: str, rounds: int, folder: Path) -> Recording:
    """The recording of a run in a process of its own."""
    file = folder / "recording"
    command = [
        sys.executable,
        "-m",
        "tests.chaos.power_cuts",
        setting,
        seed,
        str(rounds),
        str(file),
    ]
    run(command, cwd=ROOT, check=True, timeout=110)
    recording: Recording = pickle.loads(file.read_bytes())  # noqa: S301 - of our own making
    return recording


def moments(recording: Recording, count: int, chance: random.Random) -> list[int]:
    """After which calls to cut: every third time within a checkpoint."""
    found = []
    for number in range(count):
        low, high = 0, len(recording.calls)
        if number % 3 == 0:
            low, high = chance.choice(recording.checkpoints)
        found.append(chance.randint(low, high))
    return sorted(found)


def lost_at(recording: Recording, after: int, folder: Path) -> list[str]:
    """What a new store on the files in `folder` does not know of what was acknowledged by then."""
    url = f"sqlite:///{folder}/{NAME}"
    try:
        store = open_store(url)
    except StoreUnavailable as error:
        return [str(error)]
    try:
        with closing(sqlite3.connect(folder / NAME)) as plain:
            (sound,) = plain.execute("PRAGMA integrity_check").fetchone()
            transitions = plain.execute("SELECT job_id, event, lease_id FROM tenure_transition")
            known = set(transitions.fetchall())
            known |= {(id, "enqueued", None) for id, event, _ in known if event == "enqueued"}
        told = {fact[1:] for fact in recording.facts if fact.after <= after}
        lost = [f"{event} of {id}" for id, event, lease_id in told - known]
        if sound != "ok":
            lost.append(sound)
        lost += [str(violation) for violation in store.read.violations(5)]
        # And it can be worked with.
        store.add([CheckedJob(id="0190163d-8694-739b-aea5-966c26f8ad90", type="after")]).result()
        exchange = store.exchange([], ClaimRequest(worker="w", limit=1, lease_seconds=60)).result()
        assert exchange.leases
        return lost
    finally:
        store.close()


def cut_often(recording: Recording, count: int, chance: random.Random, folder: Path) -> list[str]:
    """What was lost in so many power cuts at moments of chance."""
    cut = Cut(recording.calls)
    lost = []
    for number, after in enumerate(moments(recording, count, chance)):
        left = folder / str(number)
        left.mkdir()
        cut.leave(after, chance, left)
        fault_counts.count("power cuts")
        lost += [f"cut after call {after}: {what}" for what in lost_at(recording, after, left)]
        shutil.rmtree(left)
    return lost


@pytest.mark.scenario(49)
@pytest.mark.timeout(600)
def test_what_was_acknowledged_survives_a_power_cut(
    tmp_path: Path, effort: int, chance: random.Random
) -> None:
    recording = record("full", str(chance.random()), 40 + 10 * min(effort, 10), tmp_path)
    assert len(recording.checkpoints) > 5
    accepted = {fact.job_id for fact in recording.facts if fact.event == "enqueued"}
    assert accepted

    lost = cut_often(recording, CUTS * effort, chance, tmp_path)

    fault_counts.count("jobs accepted", len(accepted))
    fault_counts.count("jobs lost", len(lost))
    assert lost == []


@pytest.mark.scenario(49)
@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_thousand_power_cuts(tmp_path: Path, chance: random.Random) -> None:
    recording = record("full", str(chance.random()), 200, tmp_path)
    assert cut_often(recording, 1_000, chance, tmp_path) == []


@pytest.mark.scenario(49)
def test_the_cuts_are_real_with_less_syncing_they_lose_jobs(
    tmp_path: Path, chance: random.Random
) -> None:
    recording = record("normal", str(chance.random()), 40, tmp_path)

    lost = cut_often(recording, CONTROL, chance, tmp_path)

    assert any("enqueued of" in what for what in lost)
    assert any("claimed of" in what or "completed of" in what for what in lost)
    assert all(" of " in what for what in lost), "the newest commits, but no damage"
