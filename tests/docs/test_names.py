"""What a page names in code exists: commands, options, settings, routes, moves, and every word."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import click
import pytest

from tenure import settings
from tenure.cli import cli
from tenure.http.routes import ROUTES
from tenure.lifecycle import FIRST_EVENT, TRANSITIONS, Status
from tests.docs.monitoring import series
from tests.docs.pages import DOCS, ROOT, Page, every_page

PAGES = [
    page
    for page in every_page()
    if page.path not in (DOCS / "dependencies.md", DOCS / "benchmarks.md")
    and DOCS / "adr" not in page.path.parents  # decisions are history
]
VARIABLES = {
    *(variable for name in settings._READERS for variable in settings._variables(name)),
    *("TENURE_CONFIG", "TENURE_TEST_DATABASE_URL"),
}
ELSEWHERE = {
    *("Forwarded", "PGPASSFILE", "balance", "h30m", "idle_in_transaction_session_timeout"),
    *("paid", "sslmode", "tenure_", "console", "shareProcessNamespace"),
    *("auto_explain", "log_parameter_max_length", "log_min_duration_statement", "log_statement"),
    *("pg_stat_statements",),
}
ELSEWHERE |= {"rule_files", *series(), f"job_{FIRST_EVENT}"}
ELSEWHERE |= {f"job_{transition.event}" for transition in TRANSITIONS}
ELSEWHERE |= set(re.findall(r"\w+", (DOCS / "monitoring" / "alerts.yml").read_text("utf-8")))
"""Words of SQL, HTTP, Kubernetes, Prometheus, PostgreSQL, Markdown and durations, shown as code."""

PROBES = ("/live", "/ready", "GET /live", "GET /ready")
"""What `tenure worker --health` answers."""


def flaws(page: Page) -> Iterator[str]:
    """What a page names that does not exist."""
    typed = list(typed_commands(page))
    for span in page.spans:
        if span.startswith("tenure "):
            typed.append(span)
        elif span in PROBES:
            continue
        elif match := re.fullmatch(r"(GET|POST|PUT|PATCH|DELETE) (/\S*)", span):
            if not is_route(match[1], match[2]):
                yield f"no such route: {span}"
        elif re.fullmatch(r"/[a-z][a-z/{}_.]*", span):
            if not any(is_route(route.method, span) for route in ROUTES):
                yield f"no such path: {span}"
        elif span.startswith("--") and option_of(span) not in every_option():
            yield f"no such option: {span}"
        elif "→" in span and not is_path_of_moves(span):
            yield f"no such moves: {span}"
        for word in re.findall(r"[^\W\d_]\w{2,}", span):
            if word not in vocabulary() and word not in ELSEWHERE and word not in own_words(page):
                yield f"no such name: {word}, in `{span}`"
    for command in typed:
        yield from flaws_of_command(command)
    for variable in re.findall(r"\bTENURE_\w*[A-Z]\b", page.text):
        if variable not in VARIABLES:
            yield f"no such variable: {variable}"
    for method, path in requests(page):
        if not is_route(method, path):
            yield f"no such route: {method} {path}"


def typed_commands(page: Page) -> Iterator[str]:
    """The `tenure` commands in the page's blocks, those that are not run as well."""
    for block in page.blocks:
        if block.language in ("console", "ini"):
            text = block.text.replace("\\\n>", "")
            for match in re.finditer(
                r"(?:^\$ |\$\(|[ =/]bin/)(tenure [^)\n]*)", text, re.MULTILINE
            ):
                yield match[1]


def flaws_of_command(command: str) -> Iterator[str]:
    """What of a command line does not exist."""
    words = shlex.split(command, comments=True)[1:]
    found: click.Command = cli
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        if name.isupper():  # it stands for any
            return
        if name not in found.commands:
            yield f"no such command: {command}"
            return
        found = found.commands[name]
    options = {option for p in (*found.params, *cli.params) for option in p.opts} | {"--help"}
    for word in words:
        if word.startswith("--") and option_of(word) not in options:
            yield f"no such option: {word}, in `{command}`"


def option_of(word: str) -> str:
    return re.split(r"[= ]", word)[0]


@cache
def every_option() -> frozenset[str]:
    def options(command: click.Command) -> Iterator[str]:
        for parameter in command.params:
            yield from parameter.opts
        if isinstance(command, click.Group):
            for below in command.commands.values():
                yield from options(below)

    return frozenset({*options(cli), "--help"})


def is_route(method: str, path: str) -> bool:
    """Whether the API has a path, written as its pattern or with values in it."""
    for route in ROUTES:
        pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(route.path))
        if route.method == method and re.fullmatch(pattern, path):
            return True
    return False


def requests(page: Page) -> Iterator[tuple[str, str]]:
    """The requests that curl makes in the page's blocks."""
    for block in page.blocks:
        for line in block.text.replace("\\\n>", "").splitlines():
            if match := re.search(r"curl .*?\w+:80\d\d(/[^\s?'\"]*)", line):
                given = re.search(r" -X (\w+)", line)
                method = given[1] if given else "POST" if " -d " in line else "GET"
                yield method, match[1]


def is_path_of_moves(span: str) -> bool:
    statuses = [status.strip() for status in span.split("→")]
    legal = {(str(transition.source), str(transition.target)) for transition in TRANSITIONS}
    return set(statuses) <= set(Status) and legal.issuperset(pairwise(statuses))


@cache
def vocabulary() -> frozenset[str]:
    """Every word in the sources and in the files that describe the project."""
    files = [
        *(ROOT / "src").rglob("*.py"),
        *(ROOT / "src").rglob("*.sql"),
        *(ROOT / "tools").glob("*.py"),
        *(ROOT / name for name in ("pyproject.toml", "Makefile", "requirements-dev.txt")),
    ]
    words = {word for file in files for word in re.findall(r"\w+", file.read_text("utf-8"))}
    names = set[str]()
    for folder, folders, files_here in os.walk(ROOT):
        names |= {*folders, *files_here}
        if Path(folder) == ROOT:  # what tools have made is large
            folders[:] = {*folders} - {".venv", ".bench", ".git"}
    words |= {part for name in names for part in re.findall(r"\w+", name)}
    return frozenset(words | VARIABLES | {word.lstrip("_") for word in words})


@cache
def own_words(page: Page) -> frozenset[str]:
    """The words of the page's own examples, and on pages about tests the names of helpers."""
    texts = [block.text for block in page.blocks]
    if page.path in (ROOT / "CONTRIBUTING.md", ROOT / "tests" / "README.md"):
        shared = [
            *(ROOT / "tests" / "support").glob("*.py"),
            *(ROOT / "tests").rglob("conftest.py"),
        ]
        texts += ["monkeypatch setattr", *(file.read_text("utf-8") for file in shared)]
    return frozenset(word for text in texts for word in re.findall(r"\w+", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Page) -> None:
    found = list(flaws(page))
    assert not found, "\n".join([page.name, *found])


MADE_UP = """
`tenure jobs undo`, `tenure jobs show --loud`, `--louder`, `GET /jobs/{id}/undo`, `/undo`,
`lease_lapsed`, `JobLapsed`, `pending → completed`, `pending → lapsed`, TENURE_LAPSE

```console
$ tenure lapse
$ id=$(tenure enqueue email --lapse 3)
$ curl -s -X POST localhost:8080/queues/mail/lapse
```
"""


def test_made_up_names_are_found() -> None:
    found = " ".join(flaws(Page(DOCS / "made-up.md", MADE_UP)))
    for name in (
        *("undo", "--loud", "--louder", "GET /jobs/{id}/undo", "path: /undo", "lease_lapsed"),
        *("JobLapsed", "pending → completed", "pending → lapsed", "variable: TENURE_LAPSE"),
        *("no such command: tenure lapse", "--lapse", "POST /queues/mail/lapse"),
    ):
        assert name in found, name


def test_names_that_exist_are_not_found() -> None:
    text = """
`tenure jobs show ID --json`, `--fail-every N`, `GET /jobs/{id}`, `/health`, `lease_expired`,
`JobNotFound`, `pending → processing → failed → pending`, TENURE_TOKEN, TENURE_LOG_LEVEL
"""
    assert not list(flaws(Page(DOCS / "made-up.md", text)))
