"""The pages of the documentation, read as far as the tests need: blocks, headings, links, names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_fence = re.compile(r"^(?P<indent> *)(?P<mark>`{3,})(?P<language>[\w-]*)\s*$")
_not_run = re.compile(r"<!-- not run: (?P<why>.+) -->")
_file_name = re.compile(r"^# (?P<end>at the end of )?(?P<name>[\w/-]+(?:\.[\w-]+)+)$")
_heading = re.compile(r"^#{1,6} (?P<text>.+?)\s*$", re.MULTILINE)
_link = re.compile(r"(?<!!)\[(?:[^\]]|\](?!\())*?\]\((?P<target>[^()\s]+)\)")
_span = re.compile(r"(?<!`)`(?P<text>[^`\n]+(?:\n[^`\n]+)?)`(?!`)")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. `skipped` is why it is not run, from the comment in front of it."""

    line: int
    language: str
    text: str
    skipped: str | None

    @property
    def file_name(self) -> str | None:
        """The file that the block is, if its first line names one: `# jobs.py`."""
        match = _file_name.match(self.text.partition("\n")[0])
        return match["name"] if match else None

    @property
    def is_appended(self) -> bool:
        """Whether it belongs at the end of that file: `# at the end of settings.py`."""
        match = _file_name.match(self.text.partition("\n")[0])
        return bool(match and match["end"])


class Page:
    """One Markdown file."""

    def __init__(self, path: Path, text: str | None = None) -> None:
        self.path = path
        self.text = path.read_text("utf-8") if text is None else text

    @property
    def name(self) -> str:
        """The path as people write it, from the root of the project."""
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def blocks(self) -> list[Block]:
        """Every fenced block, in order."""
        return list(self._blocks())

    def _blocks(self) -> Iterator[Block]:
        lines = self.text.splitlines()
        number = 0
        before = ""  # the last line that was not empty
        while number < len(lines):
            opening = _fence.match(lines[number])
            if opening is None:
                before = lines[number].strip() or before
                number += 1
                continue
            first = number + 1
            closing = opening["indent"] + opening["mark"]
            number = lines.index(closing, first)  # ValueError: the fence is never closed
            indent = len(opening["indent"])
            text = "\n".join(line[indent:] for line in lines[first:number])
            comment = _not_run.fullmatch(before)
            yield Block(first + 1, opening["language"], text, comment["why"] if comment else None)
            before = ""
            number += 1

    @cached_property
    def prose(self) -> str:
        """The text without its fenced blocks and comments."""
        lines = self.text.splitlines()
        for block in self.blocks:
            for number in range(block.line - 2, block.line + block.text.count("\n") + 1):
                lines[number] = ""
        return re.sub(r"<!--.*?-->", "", "\n".join(lines), flags=re.DOTALL)

    @cached_property
    def headings(self) -> list[str]:
        """The headings, with their marks of code."""
        return [match["text"] for match in _heading.finditer(self.prose)]

    @cached_property
    def anchors(self) -> set[str]:
        """What a link to this page may point at: each heading as GitHub turns it into an anchor."""
        seen: Counter[str] = Counter()
        anchors = set()
        for heading in self.headings:
            slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
        return anchors

    @cached_property
    def links(self) -> list[str]:
        """Where the page's links point."""
        return [match["target"] for match in _link.finditer(self.prose)]

    @cached_property
    def spans(self) -> list[str]:
        """What stands in backticks in the running text."""
        return [" ".join(match["text"].split()) for match in _span.finditer(self.prose)]

    def section(self, heading: str) -> str:
        """The text from a heading to the next one of its level or above."""
        start = re.search(rf"^(#+) {re.escape(heading)}\s*$", self.text, re.MULTILINE)
        assert start is not None, f"{self.name} has no heading {heading!r}"
        rest = self.text[start.end() :]
        end = re.search(rf"^#{{1,{len(start[1])}}} ", rest, re.MULTILINE)
        return rest[: end.start()] if end else rest


def table_rows(text: str) -> list[list[str]]:
    """The rows of the Markdown tables in `text`, cell by cell, heads and rules left out."""
    rows: list[list[str]] = []
    lines = text.splitlines()
    for number, line in enumerate(lines):
        below = lines[number + 1] if number + 1 < len(lines) else ""
        if not line.startswith("|") or _is_rule(line) or _is_rule(below):
            continue
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))])
    return rows


def _is_rule(line: str) -> bool:
    return re.fullmatch(r"\|[\s|:-]+\|", line.strip()) is not None


def every_page() -> list[Page]:
    """All pages of the project that people read."""
    front = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
    front.append("tests/README.md")
    return [Page(ROOT / name) for name in front] + [
        Page(path) for path in sorted(DOCS.rglob("*.md"))
    ]


def manual() -> list[Page]:
    """The pages for users, whose examples are run: all but the decisions and the measurements."""
    decisions = DOCS / "adr"
    names = ("ARCHITECTURE.md", "CHANGELOG.md", "tests/README.md", "docs/benchmarks.md")
    apart = {ROOT / name for name in names}
    return [p for p in every_page() if p.path not in apart and decisions not in p.path.parents]


def reference() -> str:
    """The text of all pages of the reference."""
    return "\n".join(page.text for page in every_page() if page.path.parent == DOCS / "reference")
