"""Stacks of a workflow and their picture: what shares a box, and that nothing lies on a box."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest

from tenure.dashboard.workflows import GraphPicture, draw
from tenure.rules.workflows import MANY, MAX_STACKS, Link, Member, Shape, shape_of


def job(
    number: int, type: str = "work", status: str = "waiting", needs: int | None = None
) -> Member:
    return f"{number:032x}", type, status, needs


def link(parent: int, child: int, meets: str = "completed") -> Link:
    return f"{parent:032x}", f"{child:032x}", meets


def shape(members: Sequence[Member], links: Sequence[Link]) -> Shape:
    found = shape_of(members, links)
    assert found is not None
    return found


def test_thousands_of_siblings_are_one_box() -> None:
    size = 2_000
    status = ("completed", "failed")
    work = [job(n, status=status[n == 7]) for n in range(1, size + 1)]
    members = [job(0, "split", "completed"), *work, job(size + 1, "sum"), job(size + 2, "alert")]
    links = [link(0, n) for n in range(1, size + 1)]
    links += [link(n, size + 1) for n in range(1, size + 1)] + [link(size + 1, size + 2, "failed")]
    found = shape(members, links)
    assert [(one.type, one.jobs, one.layer) for one in found.stacks] == [
        ("split", 1, 0),
        ("work", size, 1),
        ("sum", 1, 2),
        ("alert", 1, 3),
    ]
    assert found.stacks[1].statuses == {"completed": size - 1, "failed": 1}
    assert found.stacks[1].example == work[0][0]
    assert [tuple(tie) for tie in found.ties] == [
        (0, 1, "completed", size),
        (1, 2, "completed", size),
        (2, 3, "failed", 1),
    ]


def test_what_differs_has_a_box_of_its_own() -> None:
    """By type, parents, children, what is met, and how many parents are needed."""
    members = [job(0), job(1), *(job(n) for n in range(2, 8)), job(8, "other"), job(9, needs=1)]
    links = [link(0, n) for n in range(2, 10)] + [link(1, 3), link(1, 9), link(4, 5), link(0, 6)]
    links[4] = link(0, 6, "settled")
    found = shape(members, links)
    assert sorted(one.jobs for one in found.stacks) == [1] * 8 + [2]
    assert [one.layer for one in found.stacks] == sorted(one.layer for one in found.stacks)


@pytest.mark.parametrize("chains", [MANY // 4 - 1, MANY])
def test_equal_chains_share_boxes_if_there_are_many(chains: int) -> None:
    """Each link of fifty equal chains had a box: 200 boxes that said the same."""
    members = [job(4 * n + step, f"step_{step}") for n in range(chains) for step in range(4)]
    links = [link(4 * n + step, 4 * n + step + 1) for n in range(chains) for step in range(3)]
    links += [link(4 * n + 3, 99_999) for n in range(chains)]
    found = shape([*members, job(99_999, "end")], links)
    assert len(found.stacks) == (4 * chains + 1 if chains < MANY else 5)
    assert max(one.layer for one in found.stacks) == 4


def test_alike_jobs_have_alike_children_and_parents() -> None:
    """Of chains that differ at one end, not even the other end shares a box."""
    members, links = [], []
    for n in range(MANY):
        first, last = ("one" if n % 2 else "other"), ("left" if n % 3 else "right")
        members += [job(3 * n, first), job(3 * n + 1), job(3 * n + 2, last)]
        links += [link(3 * n, 3 * n + 1), link(3 * n + 1, 3 * n + 2)]
    assert len(shape(members, links).stacks) == 12


def test_alike_jobs_may_have_another_number_of_parents() -> None:
    """Where many jobs share boxes, one parent and two parents of one box are alike."""
    members = [*(job(n, "fetch") for n in range(3 * MANY)), *(job(1_000 + n) for n in range(MANY))]
    links = [link(n, 1_000 + n) for n in range(MANY)]
    links += [link(MANY + 2 * n + one, 1_000 + n) for n in range(MANY // 2) for one in (0, 1)]
    found = shape(members, links)
    assert [one.jobs for one in found.stacks] == [2 * MANY, MANY, MANY]
    assert [tuple(tie) for tie in found.ties] == [(0, 2, "completed", 2 * MANY)]


def test_the_ways_through_a_graph_are_not_counted() -> None:
    """There are 2 ** 50 from the first to the last job, and 4 dependencies in each of 50 layers."""
    members = [job(n, f"type_{n}") for n in range(100)]
    pairs = [(2 * n + a, 2 * n + 2 + b) for n in range(49) for a in (0, 1) for b in (0, 1)]
    assert shape(members, [link(*pair) for pair in pairs]).stacks[-1].layer == 49


def test_what_cannot_be_drawn() -> None:
    """Too many different jobs are None; a cycle of raw SQL and jobs elsewhere change nothing."""
    different = [job(n, f"type_{n}") for n in range(MAX_STACKS + 1)]
    assert shape_of(different, []) is None
    assert shape(different[1:], []).ties == []
    found = shape([job(1), job(2), job(3)], [link(1, 2), link(2, 1), link(3, 4), link(5, 3)])
    assert sum(one.jobs for one in found.stacks) == 3
    assert found.ties == []
    assert draw(found).boxes
    assert shape([], []).stacks == []


def some_shape(seed: int) -> Shape:
    chance = random.Random(seed)
    size = chance.randint(1, 40)
    status = ["waiting", "completed", "failed"]
    members = [job(n, f"type_{chance.randrange(9)}", chance.choice(status)) for n in range(size)]
    pairs = {(chance.randrange(n), n) for n in range(1, size) for _ in range(chance.randrange(4))}
    links = [link(*pair, chance.choice(["completed", "settled", "failed"])) for pair in pairs]
    return shape(members, sorted(links))


def uprights(picture: GraphPicture) -> list[tuple[int, int, int]]:
    """The straight parts of all lines: where they are, from where to where."""
    found = [re.findall(r"M(-?\d+) (\d+)V(\d+)", line.path) for line in picture.lines]
    return [(int(x), int(top), int(bottom)) for some in found for x, top, bottom in some]


def test_no_box_lies_on_another_or_on_a_line() -> None:
    for seed in range(40):
        found = some_shape(seed)
        check_places(found, draw(found))


def check_places(found: Shape, picture: GraphPicture) -> None:
    assert len(picture.boxes) == len(found.stacks)
    for number, box in enumerate(picture.boxes):
        assert min(box.x, box.y) >= 0
        assert box.x + box.width <= picture.width
        assert box.y + box.height <= picture.height
        for other in picture.boxes[:number]:
            beside = box.x + box.width <= other.x or other.x + other.width <= box.x
            assert beside or box.y >= other.y + other.height
        for x, top, bottom in uprights(picture):
            crosses = box.x < x < box.x + box.width
            assert not crosses or bottom <= box.y or top >= box.y + box.height
    arrive = {(tie.child, tie.meets) for tie in found.ties}
    assert arrive == {(n, e.meets) for n, box in enumerate(picture.boxes) for e in box.entrances}
    entrances = {(b.x + e.x, b.y) for b in picture.boxes for e in b.entrances}
    stops = [re.findall(r"(-?\d+) (\d+)(?=M|$)", one.path) for one in picture.lines]
    assert entrances <= {(int(x), int(y)) for some in stops for x, y in some}
    for parent, child, _, _ in found.ties:
        assert picture.boxes[parent].y < picture.boxes[child].y


def test_children_are_below_their_parents() -> None:
    """Also if they were added the other way round."""
    members = [job(1, "a"), job(2, "b"), job(3, "of_b"), job(4, "of_a")]
    boxes = draw(shape(members, [link(1, 4), link(2, 3)])).boxes
    places = {box.stack.type: box.x for box in boxes}
    assert places["a"] == places["of_a"] < places["b"] == places["of_b"]


def test_one_failure_of_thousands_is_seen() -> None:
    members = [job(n, status="failed" if n == 5 else "completed") for n in range(2_000)]
    (box,) = draw(shape(members, [])).boxes
    done, failed = box.bar
    assert (done.status, failed.status) == ("completed", "failed")
    assert failed.width >= 4
    assert round(failed.x + failed.width) == box.width - 24
