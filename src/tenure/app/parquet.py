"""Exported jobs in a Parquet file, which analytics read: a row is a job with its history. Internal.

It holds what a line of JSON holds. JSON (payload, result, backoff) stays text: the payloads of two
types have nothing in common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, BinaryIO

from msgspec import json, structs, to_builtins

from tenure.errors import InvalidInput
from tenure.wire.responses import JobBody, TransitionBody, text_of

try:
    import pyarrow
    from pyarrow import parquet
except ImportError as error:
    hint = "the format parquet needs pyarrow: pip install 'tenure[parquet]'"
    raise InvalidInput(hint, path="$.format") from error

History = Sequence[TransitionBody]

_TEXT, _NUMBER, _TIME = pyarrow.string(), pyarrow.int64(), pyarrow.timestamp("us", "UTC")
_TYPES = {
    **dict.fromkeys(("priority", "attempts", "attempt", "max_retries", "token"), _NUMBER),
    **dict.fromkeys(("run_at", "start_by", "created_at", "started_at", "finished_at", "at"), _TIME),
    "timeout": pyarrow.float64(),
    "tags": pyarrow.list_(_TEXT),
}
"""Column -> type, where it is not text."""

_OF_JOBS = [
    name
    for name in JobBody.__struct_fields__
    if name not in ("lease_expires_at", "progress")  # no settled job has them
]


def _columns(names: Sequence[str]) -> list[pyarrow.Field]:
    return [pyarrow.field(name, _TYPES.get(name, _TEXT)) for name in names]


_HISTORY = pyarrow.list_(pyarrow.struct(_columns(TransitionBody.__struct_encode_fields__)))
SCHEMA = pyarrow.schema([*_columns(_OF_JOBS), pyarrow.field("history", _HISTORY)])


@contextmanager
def rows(file: BinaryIO) -> Iterator[Callable[[Sequence[tuple[JobBody, History]]], None]]:
    """Write a row for each job. The jobs of one call are a row group."""
    with parquet.ParquetWriter(file, SCHEMA, compression="zstd") as writer:

        def add(jobs: Sequence[tuple[JobBody, History]]) -> None:
            found = [_row(job, history) for job, history in jobs]
            writer.write_batch(pyarrow.RecordBatch.from_pylist(found, SCHEMA))

        yield add


def _row(job: JobBody, history: History) -> dict[str, Any]:
    return {
        **structs.asdict(job),
        "payload": text_of(job.payload),
        "result": text_of(job.result),
        "backoff": json.encode(job.backoff).decode(),
        "history": to_builtins(history, builtin_types=(datetime,)),
    }
