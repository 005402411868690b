"""The dashboard and the alerts of docs/monitoring ask for metrics that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tenure.http import stats
from tenure.lifecycle import FAILURES
from tests.docs.monitoring import NOW, SEEN, series
from tests.docs.pages import DOCS

GRAFANA = json.loads((DOCS / "monitoring" / "grafana.json").read_text("utf-8"))
ALERTS = yaml.safe_load((DOCS / "monitoring" / "alerts.yml").read_text("utf-8"))
EVENTS = re.compile(r'event=~?\\?"([^"\\]+)')
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]


def queries() -> Iterator[str]:
    """Every query of the dashboard and of the alerts."""
    for panel in GRAFANA["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (rule["expr"] for rule in RULES)


def test_every_metric_that_is_asked_for_exists_and_each_is_on_the_dashboard() -> None:
    asked = {name for query in queries() for name in re.findall(r"\btenure_\w+", query)}
    assert asked <= series()
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in series()}
    assert families == {re.sub("_(bucket|sum|count)$", "", name) for name in asked}


def test_queries_are_well_formed() -> None:
    for query in queries():
        bare = re.sub(r'"[^"]*"', '""', query)
        for opens, closes in ("()", "{}", "[]"):
            assert bare.count(opens) == bare.count(closes), query
        assert not re.search(r"rate\(\w+({[^}]*})?\)", query), f"a rate needs a range: {query}"


def test_panels_have_places_of_their_own() -> None:
    ids = [panel["id"] for panel in GRAFANA["panels"]]
    assert len(set(ids)) == len(ids)
    places = [
        (x, y)
        for grid in (panel["gridPos"] for panel in GRAFANA["panels"])
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(places)) == len(places)
    assert all(x < 24 for x, _ in places)


def test_every_alert_says_what_to_do_and_stands_on_the_page() -> None:
    page = (DOCS / "how-to" / "monitor.md").read_text("utf-8")
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"], rule["alert"]
    assert {rule["alert"] for rule in RULES} == set(re.findall(r"`(Tenure[A-Z]\w+)`", page))


def test_who_asks_for_failures_asks_for_all_three() -> None:
    """A payload that does not fit, and PermanentFailure, are `gave_up`."""
    asked = [set(found.split("|")) for query in queries() for found in EVENTS.findall(query)]
    assert any(events == set(FAILURES) for events in asked)
    assert all(set(FAILURES) <= events for events in asked if "failed" in events)


def test_failures_are_counted_from_zero() -> None:
    """A counter that begins at 16, since a worker died, has not increased for Prometheus."""
    text = stats.prometheus_text(SEEN, NOW).decode()
    for event in FAILURES:
        labels = f'event="{event}",queue="mail",type="email"'
        assert f"tenure_transitions_total{{{labels}}} 0.0\n" in text


@pytest.mark.parametrize("page", ["operate.md", "webhooks.md"])
def test_commands_that_ask_for_failures_name_all_three(page: str) -> None:
    text = (DOCS / "how-to" / page).read_text("utf-8")
    commands = [line for line in text.splitlines() if "--event failed" in line]
    assert commands
    for line in commands:
        assert set(FAILURES) <= set(re.findall(r"--event (\w+)", line)), line
