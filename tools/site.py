"""Build the documentation as a web site: `make docs`, or `python tools/site.py [FOLDER]`.

The pages are plain Markdown that a forge can show, with links into the whole project. For the site
they are copied together with the few pages of the project's root, links to files that are no pages
become plain words, and the navigation is taken from docs/index.md. Search is made to work without a
server and to show decisions last. Then every link and every anchor of the finished site is
followed; a dead one, or a page that would fetch something from another host, ends the build. The
build itself does not use the network.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tenure.dashboard import machine

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SETTINGS = Path(__file__).with_name("site.toml")
STYLE = Path(__file__).with_name("site.css")
SITE = ROOT / "site"
HOME = "docs/index.md"
IN_THE_ROOT = {
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Pages outside docs/ -> their place in the site."""
LAST = ("adr/", "changelog")
"""How the places of pages begin that search shows after all others."""
FETCHED = {"script": "src", "img": "src", "source": "srcset", "iframe": "src", "video": "src"}

_link = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\]\[]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")
_mermaid = re.compile(r"^```mermaid\nstateDiagram.*?^```$", re.MULTILINE | re.DOTALL)
"""The state machine for forges, which draw it; a site would have to fetch a program for that."""
_list_item = re.compile(r"^- .*?\]\((?P<target>[^()#\s]+)", re.MULTILINE)


# --- pages ------------------------------------------------------------------------------------


def places() -> dict[str, str]:
    """Every file of the documentation, by its path in the project -> its path in the site."""
    found = dict(IN_THE_ROOT)
    for path in sorted(DOCS.rglob("*")):
        if path.is_file():
            place = path.relative_to(DOCS).as_posix()
            found[f"docs/{place}"] = re.sub(r"README\.md$", "index.md", place)
    return found


def moved(text: str, page: str, where: Mapping[str, str]) -> str:
    """Return the text of `page` with links to the places that pages have in the site."""

    def lead(match: re.Match[str]) -> str:
        target = match["target"]
        file, mark, anchor = target.partition("#")
        if not file or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), file))
        if path not in where:
            return match["text"]  # a file of the project that is no page
        here = posixpath.dirname(where[page])
        there = posixpath.relpath(where[path], here or ".")
        return f"{match['image']}[{match['text']}]({there}{mark}{anchor})"

    parts = re.split(r"(^ *```.*?^ *```\s*?$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if n % 2 else _link.sub(lead, part) for n, part in enumerate(parts))


def state_machine() -> str:
    """Draw the state machine of the dashboard in the colours of the page."""
    picture = machine.draw(machine.WIDE, {"waiting": 1}, {})
    sheet = picture.sheet
    arrow = 'fill="none" stroke="currentColor" stroke-width="1.5" marker-end="url(#tip)"'
    lines = [f'<path d="{picture.entrance}" {arrow}/>']
    for one in picture.arrows:
        lines.append(f'<path d="{one.path}" {arrow}/>')
        x, y, anchor = {
            "across": (one.x, one.y - 10, "middle"),
            "left": (one.x - 11, one.y + 5, "end"),
            "right": (one.x + 11, one.y + 5, "start"),
            "on": (one.x - 14, one.y + (16 if one.y > sheet.height / 2 else 0), "end"),
        }[one.label]
        name = ", ".join(rule.event for rule in one.rules)
        lines.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{name}</text>')
    width, height = sheet.box_width, sheet.box_height
    for box in picture.boxes:
        lines.append(
            f'<rect x="{box.x}" y="{box.y}" width="{width}" height="{height}" rx="16" '
            'fill="none" stroke="currentColor" stroke-width="2"/>'
        )
        middle = f'x="{box.x + width / 2}" y="{box.y + height / 2 + 6}"'
        lines.append(f'<text {middle} text-anchor="middle" font-weight="bold">{box.status}</text>')
    tip = (
        '<marker id="tip" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="9" markerHeight="9" '
        'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 1L9 5L0 9z" fill="currentColor"/>'
        "</marker>"
    )
    return (
        f'<div><svg viewBox="0 0 {sheet.width} {sheet.height}" width="100%" role="img" '
        'aria-label="The transitions of a job, as in the table below" font-size="17" '
        f'fill="currentColor"><defs>{tip}</defs>{"".join(lines)}</svg></div>'
    )


def lay_out(folder: Path) -> None:
    """Write every page, as the site has it, and copy what they show."""
    where = places()
    for name, place in where.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".md"):
            text = moved((ROOT / name).read_text("utf-8"), name, where)
            target.write_text(_mermaid.sub(lambda _: state_machine(), text), "utf-8")
        else:
            shutil.copyfile(ROOT / name, target)
    shutil.copyfile(STYLE, folder / STYLE.name)


# --- navigation -------------------------------------------------------------------------------


def navigation() -> list[tuple[str, list[str]]]:
    """Return the sections of the home page, each with the places of its pages in the site."""
    where = places()
    sections = []
    for section in re.split(r"^## ", (ROOT / HOME).read_text("utf-8"), flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0].strip()
        targets = (match["target"] for match in _list_item.finditer(section))
        pages = [where[posixpath.normpath(f"docs/{t}")] for t in targets if "://" not in t]
        if pages:
            sections.append((title, pages))
    return sections


def as_toml(sections: list[tuple[str, list[str]]]) -> str:
    """The navigation as the site's settings want it."""
    decisions = sorted(p for p in places().values() if re.match(r"adr/\d", p))
    lines = ['  { "Home" = "index.md" },']
    for title, pages in sections:
        lines.append(f'  {{ "{title}" = [')
        for page in pages:
            below = "".join(f'"{one}", ' for one in decisions)
            lines.append(
                f'    {{ "Decisions" = ["{page}", {below}] }},'
                if page == "adr/index.md"
                else f'    "{page}",'
            )
        lines.append("  ] },")
    return "nav = [\n" + "\n".join(lines) + "\n]\n"


# --- search -----------------------------------------------------------------------------------

_sorting = re.compile(r"\.items\.sort\((?P<compare>\w+)\(\.\.\.(?P<orders>\w+)\)\)")
"""Where the search program sorts what it has found."""


def ranked(worker: str, first: int) -> str:
    """Return the search program changed: sections from number `first` on come after all others."""
    order = f"(x,y)=>(x.id>={first})-(y.id>={first})"
    changed, count = _sorting.subn(rf".items.sort(\g<compare>({order},...\g<orders>))", worker)
    if count != 1:
        raise ValueError("zensical now sorts in another way: see `ranked` in tools/site.py")
    return changed


def without_server(index: str, worker: str) -> str:
    """Return the search index and program as one script, which pages opened as files load.

    Browsers refuse to fetch the index from a file and to start a worker from one. The theme then
    loads `search.js` and expects the index in `__index`. We also replace `Worker`, so that the
    search program runs in the page.
    """
    return f"""var __index = {index};
if (location.protocol === "file:") window.Worker = class {{
  constructor() {{
    this.self = {{ postMessage: data => this.onmessage?.({{ data: structuredClone(data) }}) }};
    (self => {{ {worker}
    }})(this.self);
  }}
  postMessage(data) {{
    setTimeout(() => this.self.onmessage({{ data: structuredClone(data) }}));
  }}
  terminate() {{}}
}};
"""


def improve_search(site: Path) -> None:
    """Show decisions last, and make search work in pages that are opened as files."""
    index = json.loads((site / "search.json").read_text("utf-8"))
    sections = index["items"]  # the search program numbers them in this order
    sections.sort(key=lambda section: section["location"].startswith(LAST))
    first = sum(not section["location"].startswith(LAST) for section in sections)
    (program,) = site.glob("assets/javascripts/workers/search.*.js")
    worker = ranked(program.read_text("utf-8"), first)
    text = json.dumps(index, ensure_ascii=False)
    program.write_text(worker, "utf-8")
    (site / "search.json").write_text(text, "utf-8")
    (site / "search.js").write_text(without_server(text, worker), "utf-8")


# --- links ------------------------------------------------------------------------------------


@dataclass
class Found(HTMLParser):
    """What a page of the site links to, what it fetches, and what can be linked to in it."""

    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.fetched.append(given.get("href", ""))
        elif tag in FETCHED and FETCHED[tag] in given:
            self.fetched.append(given[FETCHED[tag]])


def read(path: Path) -> Found:
    """One page of the site."""
    found = Found()
    found.feed(path.read_text("utf-8"))
    return found


def flaws(site: Path) -> Iterator[str]:
    """Links that lead nowhere, and what a page would fetch from elsewhere."""
    pages = {path: read(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        for target in page.fetched:
            if urlsplit(target).scheme in ("http", "https") or target.startswith("//"):
                yield f"{name} fetches {target}"
        if name == "404.html":  # its links are from the root of wherever it is served
            continue
        for target in [*page.links, *page.fetched]:
            parts = urlsplit(target)
            if parts.scheme or target.startswith("//"):
                continue
            there = (
                Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            )
            if there.is_dir():
                there /= "index.html"
            if not there.is_file():
                yield f"{name} links to {target}, which is not there"
            elif parts.fragment and unquote(parts.fragment) not in pages.get(there, page).anchors:
                yield f"{name} links to {target}, where there is no such heading"


# --- all of it --------------------------------------------------------------------------------


def build(site: Path) -> list[str]:
    """Build the site into a folder; what is wrong with it."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        lay_out(folder / "docs")
        settings = SETTINGS.read_text("utf-8").replace("# navigation\n", as_toml(navigation()))
        (folder / "zensical.toml").write_text(settings, "utf-8")
        command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            return [done.stdout + done.stderr]
        improve_search(folder / "site")
        if site.exists():
            shutil.rmtree(site)
        shutil.copytree(folder / "site", site)
    return list(flaws(site))


def main() -> int:
    """Build it and say where it is; 1 if something is wrong with it."""
    site = Path(sys.argv[1]) if len(sys.argv) > 1 else SITE
    found = build(site)
    print("\n".join(found) or f"The documentation is in {site}: open {site / 'index.html'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
