"""Measure the house: `python tools/house.py`, or with `--check` only what is above its ceiling.

The numbers say what a developer of Tenure has to read: lines by kind, files, which rooms
import which, circles, the files behind one call, and the places that name one option of a job.
house.toml has a ceiling for each. Exits with status 1 if a number is above its ceiling.

A room is a package or a module of `tenure`. An arrow leads from a room to one that it imports. A
circle is a set of modules each of which imports all others, directly or not
(strongly connected, after Tarjan, "Depth-first search and linear graph algorithms", 1972). They are
counted three times: of what is imported with the module, of that and what functions import, and of
these and what only type checkers read.
"""

from __future__ import annotations

import ast
import io
import logging
import re
import sys
import tempfile
import threading
import tokenize
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "tenure"
CEILINGS = Path(__file__).with_name("house.toml")
OPTION = "start_by"
"""One option of a job, like any other: how many files name it is what a new one costs."""
ASIDE = ("dashboard", "contrib", "simulator", "testing")
"""Rooms that a developer of the others need not know."""
RUNS = 3
"""How often a call is traced: a thread that had something else to do meanwhile does not count."""


class Import(NamedTuple):
    """One module imports another one: at `top`, in a function (`late`), or for `types`."""

    source: str
    target: str
    when: str


def modules() -> Mapping[str, Path]:
    """Return the modules of the package by their names without `tenure.`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


# --- lines ----------------------------------------------------------------------------------------


def lines_by_kind(text: str) -> Counter[str]:
    """Count the lines of a module: blank, imports, docstrings, comments, and code."""
    lines = text.splitlines()
    kinds = dict.fromkeys(range(1, len(lines) + 1), "code")
    kinds |= {number: "blank" for number, line in enumerate(lines, 1) if not line.strip()}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            kinds |= dict.fromkeys(_span(node), "imports")
        body = getattr(node, "body", None)
        for each in body if isinstance(body, list) else ():
            is_text = isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)
            if is_text and isinstance(each.value.value, str):
                kinds |= dict.fromkeys(_span(each), "docstrings")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            kinds[token.start[0]] = "comments"
    return Counter(kinds.values())


def _span(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


# --- imports --------------------------------------------------------------------------------------


def imports_of(name: str, path: Path, known: Iterable[str]) -> Iterator[Import]:
    """Yield the modules of the package that a module imports, all by their full names."""

    def walk(node: ast.AST, when: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inner = when
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                inner = "late" if when == "top" else when
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                inner = "types"
            if isinstance(child, ast.ImportFrom) and child.module:
                targets = [f"{child.module}.{one.name}" for one in child.names] + [child.module]
                yield from (Import(name, one, when) for one in _ours(targets, known))
            elif isinstance(child, ast.Import):
                targets = [one.name for one in child.names]
                yield from (Import(name, one, when) for one in _ours(targets, known))
            else:
                yield from walk(child, inner)

    yield from walk(ast.parse(path.read_text("utf-8")), "top")


def _ours(targets: Iterable[str], known: Iterable[str]) -> set[str]:
    short = {one.removeprefix("tenure.") for one in targets if one.startswith("tenure.")}
    found = short & set(known)
    return {one for one in found if not any(other.startswith(f"{one}.") for other in found)}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def circles(edges: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return the strongly connected sets of more than one node, the largest first."""
    after: defaultdict[str, set[str]] = defaultdict(set)
    for source, target in edges:
        after[source].add(target)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in after.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in list(after):
        if node not in index:
            visit(node)
    return sorted(found, key=len, reverse=True)


# --- the way of a call ----------------------------------------------------------------------------


class Trace:
    """The files and calls of the package, on threads that start behind it, while `on` is set."""

    def __init__(self) -> None:
        self.on = False
        self.files: set[str] = set()
        self.calls = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        path = frame.f_code.co_filename
        if self.on and event == "call" and path.startswith(str(PACKAGE)):
            self.files.add(path)
            self.calls += 1

    def take(self) -> tuple[set[str], int]:
        """Return what was found since the last call, and begin again."""
        taken = self.files, self.calls
        self.files, self.calls = set(), 0
        return taken


def traced(run: Callable[[Trace, str], list[tuple[set[str], int]]]) -> tuple[int, int]:
    """Return the files and calls that each of several runs had, on a new SQLite file."""
    trace = Trace()
    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        with tempfile.TemporaryDirectory() as folder:
            runs = run(trace, f"sqlite:///{folder}/jobs.db")
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return len(set.intersection(*(files for files, _ in runs))), min(calls for _, calls in runs)


def adding(trace: Trace, url: str) -> list[tuple[set[str], int]]:
    """Add a job by `POST /jobs`, to a server in this process."""
    from starlette.testclient import TestClient

    from tenure import Tenure
    from tenure.server import build

    new = {"type": "send_email", "payload": {"to": "a@example.com"}, "max_retries": 5}
    runs = []
    here = {"base_url": "http://127.0.0.1", "client": ("127.0.0.1", 1)}
    with Tenure(url) as app, TestClient(build(app), **here) as client:  # type: ignore[arg-type]
        for _ in range(2 + RUNS):  # the first fill the caches
            trace.take()
            trace.on = True
            client.post("/jobs", json=new).raise_for_status()
            trace.on = False
            runs.append(trace.take())
    return runs[2:]


def failing(trace: Trace, url: str) -> list[tuple[set[str], int]]:
    """Run a job whose handler raises and is tried again at once, from one attempt to the next."""
    from tenure import Tenure

    runs = []
    with Tenure(url) as app:

        @app.job(max_retries=3 + RUNS, backoff=0)
        async def fail() -> None:
            trace.on = False
            runs.append(trace.take())
            trace.on = True
            raise ValueError("no")

        fail.enqueue()
        app.run_worker(concurrency=1, max_idle=0.1)
        trace.on = False
    return runs[-RUNS:]


# --- all of it ------------------------------------------------------------------------------------


def measure() -> dict[str, float]:
    """Return every number by its name in house.toml."""
    found = modules()
    texts = {name: path.read_text("utf-8") for name, path in found.items()}
    kinds = {name: lines_by_kind(text) for name, text in texts.items()}
    lines = sum(chain.from_iterable(kind.values() for kind in kinds.values()))
    shares = Counter[str]()
    for kind in kinds.values():
        shares += kind
    core = sum(kinds[name].total() for name in found if name.split(".")[0] not in ASIDE)
    edges = {one for name, path in found.items() for one in imports_of(name, path, found)}
    top = {(e.source, e.target) for e in edges if e.when == "top"}
    late = top | {(e.source, e.target) for e in edges if e.when == "late"}
    arrows = {(room_of(a), room_of(b)) for a, b in top if room_of(a) != room_of(b)}
    every = {(e.source, e.target) for e in edges}
    numbers: dict[str, float] = {
        "lines": lines,
        "lines_without_aside": core,
        "percent_imports": round(100 * shares["imports"] / lines, 1),
        "percent_without_comments": round(100 - 100 * shares["comments"] / lines, 1),
        "files": len(found),
        "longest_file": max(kind.total() for kind in kinds.values()),
        "rooms": len({room_of(name) for name in found}),
        "arrows": len(arrows),
        "pairs": sum((b, a) in arrows for a, b in arrows) // 2,
        "files_that_name_an_option": sum(OPTION in text for text in texts.values()),
        "classes_with_an_option": sum(
            _declares(node, OPTION) for text in texts.values() for node in ast.walk(ast.parse(text))
        ),
        "inserts_into_job": sum(len(_INSERT.findall(text)) for text in _statements(texts)),
    }
    for name, chosen in (("", top), ("_with_late", late), ("_with_types", every)):
        sets = circles(chosen)
        numbers[f"circles{name}"] = len(sets)
        numbers[f"largest_circle{name}"] = max(map(len, sets), default=0)
    numbers["files_of_post_jobs"], numbers["calls_of_post_jobs"] = traced(adding)
    numbers["files_of_a_failure"], numbers["calls_of_a_failure"] = traced(failing)
    return numbers


_INSERT = re.compile(r"INSERT INTO (?:\{+\w+\}+\.?|tenure_)?(?:job(?!\w)|\{table\} \(\{names\}\))")
"""The last one is that of `store.borrowed`, for all tables."""


def _statements(texts: Mapping[str, str]) -> Iterator[str]:
    """Yield the texts that have SQL: modules, and the files of the schema."""
    yield from texts.values()
    yield from (path.read_text("utf-8") for path in PACKAGE.rglob("*.sql"))


def _declares(node: ast.AST, field: str) -> bool:
    fields = node.body if isinstance(node, ast.ClassDef) else ()
    return any(isinstance(f, ast.AnnAssign) and ast.unparse(f.target) == field for f in fields)


def main(arguments: list[str]) -> int:
    """Print the numbers, or those above their ceilings; return the exit code."""
    logging.basicConfig(stream=io.StringIO())  # what fails here is meant to
    numbers = measure()
    ceilings = tomllib.loads(CEILINGS.read_text("utf-8"))
    above = [name for name, number in numbers.items() if number > ceilings.get(name, -1)]
    for name in above if arguments == ["--check"] else numbers:
        print(f"{name:28} {numbers[name]:>8,}  of at most {ceilings.get(name, 0):>8,}")
    return bool(above)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
