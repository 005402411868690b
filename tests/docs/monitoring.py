"""The metrics that there are, as a monitoring system would find them."""

from __future__ import annotations

from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from tenure.http import stats
from tenure.rules.queues import Limits
from tenure.rules.stats import BUCKETS, Count, QueueState, Total
from tenure.wire.responses import MetricsBody

NOW = datetime(2027, 1, 1, tzinfo=UTC)
SEEN = MetricsBody(
    total=1,
    by_status={"pending": 1},
    counts=[Count("pending", "mail", "email", 1)],
    queues=[QueueState("mail", None, None, 1, 0, None, limits=Limits(5), running=0)],
    oldest_running={},
    halted_partitions={"mail": 0},
    workers=1,
    late_leases=0,
    totals=[
        Total("email", "mail", event, 1, 0.5, (0,) * 4 + (1,) + (0,) * (len(BUCKETS) - 5))
        for event in ("claimed", "completed")
    ],
    bounds=[],
    measured_until=NOW,
    fires={"nightly": {"fired": 1}},
    next_tick=NOW,
    refused={"unauthorized": 1},
)


def metrics_with_labels() -> dict[str, set[str]]:
    """Name -> labels; a histogram by the name that its parts have in common."""
    found = {}
    for family in text_string_to_metric_families(stats.prometheus_text(SEEN, NOW).decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    return found


def series() -> set[str]:
    """Every name that a query may use."""
    text = stats.prometheus_text(SEEN, NOW).decode()
    families = text_string_to_metric_families(text)
    return {sample.name for family in families for sample in family.samples}
