"""Before when jobs must have settled to be deleted, by the rules of a database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tenure.rules.retention import FOREVER_SECONDS, Cutoffs, RetentionRule, RetentionRules

NOW = datetime(2030, 1, 2, tzinfo=UTC)
RULES = (
    RetentionRule("queue", "mail", completed=60),
    RetentionRule("type", "audit", completed=FOREVER_SECONDS),
    RetentionRule("type", "ping", completed=10, failed=20),
    RetentionRule("queue", "slow", failed=5),
)


def seconds_ago(time: datetime | None) -> float | None:
    return None if time is None else (NOW - time).total_seconds()


@pytest.mark.parametrize(
    ("rules", "otherwise", "latest"),
    [(RULES, 3_600, 10), (RULES[:2], 3_600, 60), ((), 3_600, 3_600), (RULES[1:2], None, None)],
    ids=["rules", "a queue", "none", "kept for ever"],
)
@pytest.mark.parametrize("wait", [0, 5])
def test_all_are_kept_longer_by_the_wait_and_none_goes_after_the_latest_time(
    rules: tuple[RetentionRule, ...], otherwise: float | None, latest: float | None, wait: float
) -> None:
    settled = None if otherwise is None else NOW - timedelta(seconds=otherwise)
    cutoffs = Cutoffs(RetentionRules(rules), "completed", NOW, settled, timedelta(seconds=wait))
    assert seconds_ago(cutoffs.latest) == (None if latest is None else latest + wait)
    if rules == RULES:
        kept = [cutoffs.of("mail", "ping"), cutoffs.of("mail", "x"), cutoffs.of("x", "x")]
        assert [seconds_ago(time) for time in kept] == [10 + wait, 60 + wait, 3_600 + wait]
        assert cutoffs.of("mail", "audit") is None
