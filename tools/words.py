"""Report words that the project does not use: `make words`, or `python tools/words.py PATH...`.

Reads comments, strings and names of Python, SQL, templates and scripts, and the prose of Markdown
without its code. The words are in words.toml. Prints a line for each hit: `file:line: word -> use
instead`, and exits with status 1 if there is any.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIST = tomllib.loads(Path(__file__).with_name("words.toml").read_text("utf-8"))
ALLOWED: dict[str, list[str]] = LIST["allowed"]
EVERYWHERE = ("src/tenure", "tools", "docs", "*.md", "tests/*.md")
READ = (".py", ".sql", ".html", ".js", ".css", ".md")
SKIPPED = re.compile(
    r"tests/docs/test_words\.py|docs/benchmarks\.md|docs/reliability\.md"
    r"|docs/reference/(cli|python|lifecycle)\.md|.*/vendor/.*"
)
"""The test of this list, third-party files, and pages that a program writes from other files."""
VERB = "(is|are|was|were|has|have|had|do|does|did|can|cannot|could|may|must|will|would|needs?)"


def _compiled(rules: dict[str, str]) -> dict[re.Pattern[str], str]:
    """Compile one table of the list. No pattern matches a part of a longer word."""
    made = {}
    for words, instead in rules.items():
        start = "" if words.startswith("[") else r"(?<![A-Za-z-])"
        flags = re.NOFLAG if re.match(r"\(?[A-Z]", words) else re.IGNORECASE
        spaced = words.replace("VERB", VERB).replace(" ", r"\s+")
        made[re.compile(rf"{start}(?:{spaced})(?![A-Za-z-])", flags)] = instead
    return made


_hits, _names = _compiled(LIST["hits"]), _compiled(LIST["names"])


def _without(text: str, pattern: str) -> str:
    """Blank every match. What remains keeps its line and its column."""
    flags = re.MULTILINE | re.DOTALL
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", "\0", m[0]), text, flags=flags)


def _only(text: str, kept: Iterable[tuple[int, int, str]]) -> str:
    """Blank everything but some parts, each given as its start, its end and the text to show."""
    parts, behind = [], 0
    for start, end, shown in kept:
        parts += [_without(text[behind:start], r"\S+"), shown]
        behind = end
    return "".join([*parts, _without(text[behind:], r"\S+")])


def _program(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the comments and strings of a Python program, without their marks and quotes."""
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    shown = {"STRING", "COMMENT", "FSTRING_MIDDLE"}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if tokenize.tok_name[token.type] in shown:
            start = starts[token.start[0] - 1] + token.start[1]
            end = starts[token.end[0] - 1] + token.end[1]
            marks = r"\\[nt]|^#|^\w*(\"\"\"|\"|')|(\"\"\"|\"|')$"
            part = re.sub(marks, lambda m: " " * len(m[0]), text[start:end])
            is_formatted = re.match("[rR]?[fF]", text[start:])
            yield start, end, _without(part, r"\{[^{}]*\}") if is_formatted else part


def prose(text: str, suffix: str) -> str:
    """Return what people read of a file, with all else blanked."""
    if suffix == ".md":
        return _without(text, r"^ *(`{3,}).*?^ *\1|`[^`]+`|\]\([^)]*\)|<[^>]*>|https?://\S+")
    if suffix == ".html":
        return _without(text, r"\{%.*?%\}|\{\{.*?\}\}|<[^>]*>")
    if suffix in (".js", ".css"):
        parts = re.finditer(r"/\*.*?\*/|(?<!:)//[^\n]*|\"[^\"\n]*\"|`[^`]*`", text, re.DOTALL)
        return _only(text, ((p.start(), p.end(), p[0].replace("//", "  ")) for p in parts))
    return text.replace("--", "  ") if suffix == ".sql" else _only(text, _program(text))


def names(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the names that a program gives to its things: line, name, the name as words."""
    before, seen = "", set[str]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = token.string
        is_ours = not before.endswith(".") or before.endswith("self.")
        if token.type == tokenize.NAME and is_ours and name not in seen:
            seen.add(name)
            words = re.sub(r"_+|(?<=[a-z])(?=[A-Z])", " ", name)
            yield token.start[0], name, words.strip().lower()
        before = before[-4:] + name


def empty_docstrings(text: str) -> Iterator[tuple[int, str]]:
    """Yield docstrings of one or two words, which say no more than the name: line, docstring."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            docstring = ast.get_docstring(node)
            if docstring is not None and len(docstring.split()) <= 2:
                yield node.body[0].lineno, docstring


def found(text: str, file: str) -> list[str]:
    """Return a line for each word of a file that is on the list, in the order of the file."""
    suffix, lines, allowed = Path(file).suffix, set[tuple[int, str]](), ALLOWED.get(file, [])
    shown = prose(text, suffix)
    for pattern, instead in _hits.items():
        for match in pattern.finditer(shown):
            words = " ".join(match[0].split()).lstrip(",;: ")
            if words.lower() not in allowed:
                line = shown.count("\n", 0, match.start()) + 1
                lines.add((line, f"{words} -> {instead}"))
    for line, name, words in names(text) if suffix == ".py" else ():
        use = [v for pattern, v in _names.items() if pattern.fullmatch(words)]
        use += [v for pattern, v in _hits.items() if pattern.search(words)]
        if use and name.lower() not in allowed:
            lines.add((line, f"{name} -> {use[0]}"))
    for line, docstring in empty_docstrings(text) if suffix == ".py" else ():
        lines.add((line, f"{docstring} -> a docstring that says something, or none"))
    return [f"{file}:{line}: {words}" for line, words in sorted(lines)]


def main(given: list[str]) -> int:
    """Print every hit in the files and folders given, or in the whole project."""
    paths = map(Path, given) if given else (p for e in EVERYWHERE for p in sorted(ROOT.glob(e)))
    count = 0
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            full = file.resolve()
            name = str(full.relative_to(ROOT) if full.is_relative_to(ROOT) else file)
            if file.suffix in READ and not SKIPPED.fullmatch(name):
                lines = found(file.read_text("utf-8"), name)
                count += len(lines)
                print("\n".join(lines), end="\n" if lines else "")
    print(f"{count} words to replace")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
