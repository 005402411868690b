"""Which queues patterns include, in Python and in SQL."""

from __future__ import annotations

import pytest

from tenure import Tenure
from tenure.rules.search import Filter, query_of
from tenure.rules.tokens import Patterns, covers, includes
from tenure.store.search import MAX_ROWS, bounded, fits

NAMES = ("mail", "Mail", "mailing", "shop", "shop.a", "shop.b.c", "shopping", "a_b", "axb")
PATTERNS: tuple[tuple[Patterns, tuple[str, ...]], ...] = (
    (("mail",), ("mail",)),
    (("mail*",), ("mail", "mailing")),
    (("shop.*",), ("shop.a", "shop.b.c")),
    (("a_*", "Mail"), ("Mail", "a_b")),
    (("none",), ()),
)


@pytest.mark.parametrize(("patterns", "wanted"), PATTERNS)
def test_a_pattern_is_a_name_or_a_beginning(patterns: Patterns, wanted: tuple[str, ...]) -> None:
    assert tuple(name for name in NAMES if includes(patterns, name)) == wanted
    assert all(includes(None, name) for name in NAMES)


def test_databases_agree(app_on_each_engine: Tenure) -> None:
    read = app_on_each_engine.core.store.read
    for name in NAMES:
        app_on_each_engine.enqueue("a", queue=name)
    for patterns, wanted in PATTERNS:
        assert sorted(read.lanes(patterns)) == sorted(wanted)


def test_a_search_within_queues_is_bounded_and_compares(app: Tenure) -> None:
    job = app.enqueue("a", queue="billing")
    assert fits(Filter(within=("bill*",)), job, job.run_at, ())
    assert not fits(Filter(within=("mail",)), job, job.run_at, ())
    assert bounded(app.core.store.read, query_of(Filter(within=("mail",)))).most == MAX_ROWS


@pytest.mark.parametrize(
    ("patterns", "others", "answer"),
    [
        (None, None, True),
        (None, ("mail",), True),
        (("mail",), None, False),
        (("mail", "shop.*"), ("mail",), True),
        (("mail", "shop.*"), ("shop.*", "shop.a", "shop.a*"), True),
        (("mail", "shop.*"), ("shop*",), False),
        (("mail", "shop.*"), ("mail", "billing"), False),
        (("mail",), ("mail*",), False),
    ],
)
def test_covers(patterns: Patterns | None, others: Patterns | None, answer: bool) -> None:
    assert covers(patterns, others) is answer
