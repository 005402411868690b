"""Jobs and limits in plain SQL, for tests of what PostgreSQL refuses."""

from __future__ import annotations

from typing import Any

from tenure.values.ids import new_ids
from tests.unit.postgres.connections import Connection

START = """
UPDATE tenure.job SET status = 'processing', attempts = attempts + 1, token = token + 1,
    lease_id = gen_random_uuid(), lease_expires_at = tenure.clock() + interval '1 minute',
    started_at = {started}, worker = 'by hand', event = 'claimed'
WHERE id = ANY (%s::uuid[])
"""


def add(raw: Connection, count: int, queue: str = "q", partition: str | None = None) -> list[str]:
    ids = new_ids(count)
    raw.execute(
        "INSERT INTO tenure.job (id, type, queue, partition, run_at, created_at)"
        " SELECT id, 'mail', %s, %s, tenure.clock(), tenure.clock() FROM unnest(%s::uuid[]) AS id",
        (queue, partition, ids),
    )
    return ids


def limit(raw: Connection, queue: str = "q", **settings: Any) -> None:
    columns = "".join(f", {name}" for name in settings)
    values = ", %s" * len(settings)
    raw.execute(
        f"INSERT INTO tenure.queue_limit (queue{columns}) VALUES (%s{values})".encode(),
        (queue, *settings.values()),
    )


def rate(starts: int, seconds: float, burst: int, per: str = "") -> dict[str, Any]:
    every = -(-round(seconds * 1_000_000) // (starts - burst + 1))
    names = [f"{per}{name}" for name in ("rate_starts", "rate_seconds", "burst", "every")]
    return dict(zip(names, (starts, seconds, burst, every), strict=True))
