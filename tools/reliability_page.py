"""Write docs/reliability.md: `python tools/reliability_page.py`.

The faults are listed in tests/chaos/scenarios.toml, and the tests that show each are found by their
marker. The invariants are those of `tenure verify`, the promises those of the page on guarantees,
and the figures those of the last `make chaos` that were kept (tests/chaos/last_run.json, and
last_cluster.json for the failovers of a cluster).
"""

from __future__ import annotations

import ast
import json
import statistics
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tenure.store.audit import INVARIANTS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
TEXT = ROOT / "tools" / "reliability.md"
SCENARIOS = ROOT / "tests" / "chaos" / "scenarios.toml"
PROMISES = ROOT / "docs" / "explanation" / "guarantees.md"
LAST_RUN = ROOT / "tests" / "chaos" / "last_run.json"
LAST_CLUSTER = ROOT / "tests" / "chaos" / "last_cluster.json"


@dataclass(frozen=True)
class Scenario:
    """One fault, what must come of it, and the files with tests that show it."""

    number: int
    fault: str
    outcome: str
    reason: str
    shown_by: tuple[str, ...]


def groups() -> Iterator[tuple[str, list[Scenario]]]:
    """The scenarios under their headings, in order."""
    marked = marks("scenario")
    for group in tomllib.loads(SCENARIOS.read_text("utf-8"))["group"]:
        reasons = group.get("reason", {})
        yield (
            group["title"],
            [
                Scenario(
                    int(number),
                    words[0],
                    words[1] if len(words) > 1 else "",
                    reasons.get(number, ""),
                    tuple(marked.get(int(number), ())),
                )
                for number, words in group["scenario"].items()
            ],
        )


def marks(name: str) -> dict[Any, set[str]]:
    """What `pytest.mark.name(...)` says -> files with such a test, read from their source."""
    found: dict[Any, set[str]] = {}
    for file, called, arguments in marked_calls():
        if called == name:
            for argument in arguments:
                found.setdefault(argument, set()).add(file)
    return found


@cache
def marked_calls() -> list[tuple[str, str, list[Any]]]:
    """Every mark with arguments that a test file has: the file, the mark, the arguments."""
    found: list[tuple[str, str, list[Any]]] = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        file = path.relative_to(ROOT / "tests").as_posix()
        text = path.read_text("utf-8")
        if ".scenario(" not in text and ".requirement(" not in text:
            continue
        found += [
            (file, node.func.attr, [ast.literal_eval(argument) for argument in node.args])
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("scenario", "requirement")
        ]
    return found


def table(scenarios: list[Scenario]) -> str:
    """One group as a table."""
    lines = ["| | fault | expected outcome | tests |", "|---|---|---|---|"]
    for one in scenarios:
        files = links(one.shown_by)
        outcome = one.outcome or "does not apply"
        lines.append(f"| {one.number} | {one.fault} | {outcome} | {files or one.reason} |")
    return "\n".join(lines)


def links(files: Iterable[str]) -> str:
    """Files of tests, as links."""
    return ", ".join(f"[{name}](../tests/{name})" for name in sorted(files))


def requirements() -> dict[str, tuple[str, str]]:
    """What is required for security: its words, and the tests, and what they leave out."""
    listed = tomllib.loads(SCENARIOS.read_text("utf-8"))
    marked = marks("requirement")
    left_out = listed["requirement_reasons"]
    return {
        name: (words, ". ".join(filter(None, (links(marked.get(name, ())), left_out.get(name)))))
        for name, words in listed["requirements"].items()
    }


def figures() -> str:
    """The last full run that was kept."""
    if not LAST_RUN.exists():
        return "No full run has been kept yet."
    run: dict[str, Any] = json.loads(LAST_RUN.read_text("utf-8"))
    rows = "\n".join(f"| {figure} | {number:,} |" for figure, number in run["figures"].items())
    return (
        f"{run['when']}, {run['minutes']} minutes, seed {run['seed']}, {run['machine']}; "
        f"{run['tests']}.\n\n| | |\n|---|---|\n{rows}"
    )


def cluster_figures() -> str:
    """What became of the failovers of the last run of the cluster that was kept."""
    if not LAST_CLUSTER.exists():
        return "No run has been kept yet."
    run: dict[str, Any] = json.loads(LAST_CLUSTER.read_text("utf-8"))
    rows = "\n".join(
        f"| {kind} | {len(of['primary'])} | {_spread(of['primary'])} | {_spread(of['claims'])} "
        f"| {_spread(of['throughput'])} |"
        for kind, of in run["kinds"].items()
    )
    seen = run["figures"]
    return (
        f"{run['when']}, {run['minutes']} minutes, seed {run['seed']}, {run['machine']}, "
        f"{run['load']}: {seen['jobs accepted']:,} jobs accepted, {seen['jobs lost']} lost, "
        f"{seen['attempts settled twice']} attempts settled twice, "
        f"{seen['jobs run beyond their limit']} jobs run beyond their limit.\n\n"
        "| fault | times | fault to new primary, s | then claims by every way, s "
        "| then reports as before, s |\n|---|---|---|---|---|\n" + rows
    )


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} (at most {max(seconds):.1f})"


def section(title: str) -> str:
    """Return a section of the page on guarantees, with links as this page needs them."""
    _, _, rest = PROMISES.read_text("utf-8").partition(f"\n## {title}\n")
    return rest.partition("\n## ")[0].strip().replace("](../", "](")


def page() -> str:
    """The whole page."""
    parts = {
        "promise": section("The promise"),
        "not promised": section("What is not promised"),
        "survives": section("What survives what"),
        "invariants": "\n".join(f"- {words}" for words in INVARIANTS),
        "figures": figures(),
        "cluster": cluster_figures(),
        "requirements": "\n".join(
            f"| {name} | {words} | {shown} |" for name, (words, shown) in requirements().items()
        ),
        "scenarios": "\n\n".join(f"### {title}\n\n{table(rows)}" for title, rows in groups()),
    }
    text = TEXT.read_text("utf-8")
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
