"""`make words` finds the words on the list wherever people read them, and no others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import words
from tools.words import found

HITS = """\
legal moves, illegal move, moves of a job
the last move, each move, its moves
MOVES
it tells, was told, untold, telling
the next bite, bites
the bell rings, a doorbell, it rang, ringing
the courier
a keyring
two drafts
acting
a rehearsal, rehearse
whoever, whosoever, whomever
anew
heed it, heeded, unheeded
withheld, to withhold
a thread of its own, of their own, of your own
a server of yours
as it stands in the table
it lets in what is old
the one door, the door
no haste
one colour
default: ever
begun
seldom
all at one moment
Likewise.
The same.
whence, ere, lest
therein, whereof
for they are many, for nobody needs it
it stops, for it is old
it stops, for the file is gone
nobody knows, somebody else, for everybody, anybody
those that wait, none that is due, those who send
Write the row as it is. Returned as they are.
it goes on, workers go on, going on
by itself, on its own
it runs all the same
all but for the file
For there is no other.
for to count them takes long
"""

PLAIN = """\
The worker reports the result of each attempt. A transition is recorded in the ledger.
Move the file to another disk; jobs move from Celery. The clock moves, and moves to the front.
HTML forms are standard. UTC stands for a time zone. A ring buffer holds the last lines.
It waits for the lease, for it and for the job. It was for the best, and it is for them.
Whatever the handler returns is stored, whichever comes first. A stand-in, the Bell-LaPadula model.
Continue as soon as it is settled, as long as it is due, as far as they are known.
Same as above. A bitext, a sterling heart, a foretold-free text, acting-up children.
"""


@pytest.mark.parametrize("line", HITS.splitlines())
def test_a_word_on_the_list_is_found(line: str) -> None:
    assert found(line, "page.md")


def test_every_rule_is_shown_by_an_example() -> None:
    assert [p.pattern for p in words._hits if not p.search(HITS)] == []


def test_plain_english_passes() -> None:
    assert found(PLAIN, "page.md") == []


def test_a_phrase_is_found_across_the_end_of_a_line() -> None:
    assert found("a process of\nits own", "page.md") == [
        "page.md:1: of its own -> its own, separate, private"
    ]
    assert found('f(1, "of its "\n  "own")', "a.py")
    assert found("# a thread of\n# its own\n", "a.py")
    assert found('f("of its", "own")', "a.py") == []


def test_code_in_a_page_is_not_read() -> None:
    page = "`told`\n\n```python\ntold = 1\n```\n\n[a page](how-to/told.md)\n"
    assert found(page, "page.md") == []
    assert found(page + "\nIt was told.\n", "page.md") == [
        "page.md:9: told -> report, notify, say; `told apart`: distinguished"
    ]


def test_comments_strings_and_names_of_a_program_are_read() -> None:
    program = (
        '"""Begun."""\nx = f"told {y.told}"  # anew\ny.bite(1)\n'
        "MOST_ROWS = 5\nclass IllegalMove: ...\n"
    )
    lines = [line.partition(" -> ")[0] for line in found(program, "a.py")]
    assert lines == [
        "a.py:1: Begun",
        "a.py:2: anew",
        "a.py:2: told",
        "a.py:4: MOST_ROWS",
        "a.py:5: IllegalMove",
    ]


def test_docstrings_that_say_nothing_are_found() -> None:
    assert len(found('def close():\n    """Close it."""\n', "a.py")) == 1
    assert found('def close():\n    """Close the file."""\n', "a.py") == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.sql", "CREATE TABLE t (i int); -- made anew\n"),
        ("a.sql", "SELECT 'it was told';\n"),
        ("a.html", "<p>{{ job.told }}</p><p>It was told.</p>"),
        ("a.js", "told(); // made anew\n"),
        ("a.css", "/* made anew */ a { color: red }"),
    ],
)
def test_other_files_are_read(file: str, text: str) -> None:
    assert len(found(text, file)) == 1


def test_a_file_may_be_allowed_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(words.ALLOWED, "page.md", ["drafts"])
    assert found("Two drafts.", "page.md") == []
    assert found("Two drafts.", "other.md")


def test_the_command_says_where_and_fails(tmp_path: Path) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, words.__file__, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    (tmp_path / "page.md").write_text("A user reads this.\n")
    done = run()
    assert done.returncode == 0, done
    (tmp_path / "page.md").write_text("\nMade anew.\n")
    done = run()
    assert done.returncode == 1
    assert f"{tmp_path / 'page.md'}:2: anew -> again" in done.stdout


NEWCOMER = [
    "README.md",
    "docs/tutorial.md",
    *(
        f"docs/how-to/{page}.md"
        for page in ["install", "enqueue", "handlers", "run-workers", "retries", "deploy"]
    ),
]
MAX_NEWCOMER_WORDS = 6_000


def test_what_a_newcomer_reads_first_is_short() -> None:
    """The words of the eight pages, without code and addresses."""
    root = Path(words.__file__).parent.parent
    not_prose = r"(?s)```.*?```|<!--.*?-->|\]\([^)]*\)|<[^>]+>"
    read = [re.sub(not_prose, "", (root / page).read_text("utf-8")) for page in NEWCOMER]
    count = sum(len(re.findall(r"\w\S*", text)) for text in read)
    assert count <= MAX_NEWCOMER_WORDS, f"{count} words: move what a newcomer can do without"
