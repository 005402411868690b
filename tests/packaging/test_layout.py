"""The size of files and functions, and the rooms of the package, as ARCHITECTURE.md promises."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenure import Tenure

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "tenure"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 800
MAX_FUNCTION_LINES = 60


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def long_functions(text: str) -> Iterator[tuple[str, int]]:
    """The functions of a module with too many lines, docstrings and signatures included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield node.name, lines


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    assert list(long_functions(text)) == []


def test_a_long_function_is_found() -> None:
    body = "    pass\n" * MAX_FUNCTION_LINES
    assert list(long_functions(f"def f():\n{body}")) == [("f", MAX_FUNCTION_LINES + 1)]


def raised_constants(text: str) -> Iterator[str]:
    """What a module raises that has the name of a constant."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name | ast.Attribute):
            raised = node.exc.id if isinstance(node.exc, ast.Name) else node.exc.attr
            if raised.isupper():
                yield raised


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_each_raise_has_a_new_error(path: Path) -> None:
    """An error keeps the frames that it left, each time it is raised: a constant keeps them all.

    So 43 batches that were refused as too many held 300 MB of their bodies, for good.
    """
    assert list(raised_constants(path.read_text("utf-8"))) == []


def test_a_raised_constant_is_found() -> None:
    assert list(raised_constants("def f():\n    raise _CROWDED from None")) == ["_CROWDED"]


def test_every_room_is_on_the_map() -> None:
    """A room is a module or a package of `tenure`; the map has a line for each."""
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES}
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    table = text.partition("## The map")[2].partition("\nIn `store`")[0]
    first_cells = " ".join(line.split("|")[1] for line in table.splitlines() if "|" in line)
    listed = set(re.findall(r"`(\w+)`", first_cells))
    assert rooms - {"__init__", "__main__"} == listed


def test_only_nouns_and_parts_of_an_engine_name_three_modules() -> None:
    """A noun has one name in every room; both engines have parts of the same name."""
    rooms: defaultdict[str, set[str]] = defaultdict(set)
    for path in SOURCES:
        rooms[path.stem].add(path.parent.relative_to(PACKAGE).as_posix())
    frequent = {stem for stem, where in rooms.items() if len(where) > 2} - {"__init__"}
    nouns = {path.stem for path in (PACKAGE / "rules").iterdir()}
    nouns |= set(vars(Tenure("sqlite:///none.db")))
    parts = {stem for stem, where in rooms.items() if where >= {"store/sqlite", "store/postgres"}}
    assert "bulk" in frequent & nouns
    assert frequent <= nouns | parts
