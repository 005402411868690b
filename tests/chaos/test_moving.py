"""`tenure move` with workers and producers at work, while its processes are killed."""

from __future__ import annotations

import argparse
import uuid
from pathlib import Path

import pytest

from tests.chaos.moving import run
from tests.support.effort import on_either_engine
from tests.support.postgres import PostgresServer

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.full, pytest.mark.timeout(900)]


@on_either_engine("seed", (1,), (2,))
def test_every_job_is_once_on_the_other_side(
    database_url: str, seed: int, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    name = f"tenure_test_{uuid.uuid4().hex}"
    target = postgres_server.create_database(name)
    options = argparse.Namespace(
        jobs=20_000, kills=8, seed=seed, after=3.0, seconds=0.05, patience=600
    )
    try:
        assert run(tmp_path, database_url, target, options) == []
    finally:
        postgres_server.drop_database(name)
