"""Limits of queues and partitions as JSON."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, UnsetType

from tenure.jobs.limits import MAX_RUNNING, MAX_STARTS, MAX_WEIGHT, Ordered
from tenure.jobs.names import MAX_PARTITION_LENGTH, TEXT_PATTERN
from tenure.wire.requests import Reason, Request, schema

MaxPending = Annotated[int, schema(minimum=0, maximum=2**53)]
MaxRunning = Annotated[int, schema(minimum=0, maximum=MAX_RUNNING)]
RateText = Annotated[str, schema(examples=["900/1m"], maxLength=40)]
Burst = Annotated[int, schema(minimum=1, maximum=MAX_STARTS)]
Weight = Annotated[int, schema(minimum=1, maximum=MAX_WEIGHT)]


class PerPartitionForm(Request):
    """What holds for each partition of a queue; `{}`: they only take turns."""

    max_running: MaxRunning | None = None
    rate: RateText | None = None
    burst: Burst | None = None


class LimitRequest(Request):
    """The limits of a queue to change. Null removes one; a limit that is left out stays."""

    max_pending: MaxPending | UnsetType | None = UNSET
    max_running: MaxRunning | UnsetType | None = UNSET
    rate: RateText | UnsetType | None = UNSET
    burst: Burst | UnsetType | None = UNSET
    per_partition: PerPartitionForm | UnsetType | None = UNSET
    ordered: Ordered | UnsetType | None = UNSET


class PartitionRequest(Request):
    """A partition of a queue; empty for the jobs without one."""

    partition: Annotated[str, schema(maxLength=MAX_PARTITION_LENGTH, pattern=TEXT_PATTERN)] = ""


class PartitionSettings(PartitionRequest, kw_only=True):
    """What differs for a partition; null removes it, and what is left out stays."""

    max_running: MaxRunning | UnsetType | None = UNSET
    weight: Weight | UnsetType | None = UNSET
    paused: bool | UnsetType = UNSET
    reason: Reason | None = None
