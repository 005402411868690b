"""The harness sees what is wrong: a page that shows something else than what happens fails."""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, Block, Page
from tests.docs.stage import Mismatch, Stage, commands, matches


def run(text: str, folder: Path) -> int:
    with Stage(folder) as stage:
        count = stage.run(Page(DOCS / "made-up.md", text))
        stage.check_last()
    return count


def block(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```", ""])


WRONG = {
    "other output": block("console", "$ echo one", "two"),
    "more output than shown": block("console", "$ printf 'one\\ntwo\\n'", "one"),
    "less output than shown": block("console", "$ echo one", "one", "two"),
    "a command that fails": block("console", "$ false", "$ echo on"),
    "a last command that fails": block("console", "$ false"),
    "another exit code": block("console", "$ false", "$ echo $?", "2"),
    "no command": block("console", "echo one"),
    "Python that raises": block("python", "1 / 0"),
    "Python that prints something else": block("python", "print(1)") + block("output", "2"),
    "an output without its program": block("output", "2"),
    "Python that cannot be read": block("python", "# file.py", "def"),
    "a server that says something else": block("console", "$ tenure serve", "Hello"),
    "a server that does not start": block("console", "$ tenure serve --port none", "Tenure …"),
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_seen(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.docs.stage.SECONDS", 0.5)
    with pytest.raises((Mismatch, SyntaxError)):
        run(text, tmp_path)


def test_what_is_right_passes(tmp_path: Path) -> None:
    text = (
        block("python", "# shop.py", "NAME = 'shop'")
        + block("python", "import shop", "print(shop.NAME, 'at 2026-11-24 15:47:24 UTC')")
        + block("output", "sh… at 2027-01-01 00:00:00 UTC")
        + block(
            "console", "$ name=$(cat shop.py)", "$ echo $name \\", "> again", "# shop.py … again"
        )
        + block("console", "$ false", "$ echo $?", "1")
        + "<!-- not run: it would fail -->\n"
        + block("console", "$ false")
        + block("text", "anything")
    )
    assert run(text, tmp_path) == 5


@pytest.mark.parametrize(
    ("shown", "printed", "alike"),
    [
        (["a", "…", "z"], "a\nb\nc\nz\n", True),
        (["a", "…", "z"], "a\nz\n", True),
        (["a", "…", "z"], "a\nb\nc\n", False),
        (["a … c"], "a b c\n", True),
        (["a … c"], "a b d\n", False),
        (
            ["id 01a20e38-9c21-74ab-b468-bccbb24dbffa"],
            "id 01a20e2f-41ea-77aa-8b67-9ad52c0ef6b2",
            True,
        ),
        (["id 01a20e38-9c21-74ab-b468-bccbb24dbffa"], "id 01a20e2f", False),
        (["a  b"], "a      b", True),
        (["a.b"], "axb", False),
        (["{a}", "[b]"], "{a}\n[b]\n", True),
    ],
)
def test_shown_and_printed_are_compared(shown: list[str], printed: str, alike: bool) -> None:
    assert matches(shown, printed) is alike


def test_a_console_block_is_taken_apart() -> None:
    first, second = commands(Block(10, "console", "$ a \\\n> b\nc\n$ d\n^C", None))
    assert (first.line, first.text, first.shown) == (10, "a \\\nb", ["c"])
    assert (second.line, second.text, second.interrupted) == (13, "d", True)


# --- the stand-in for curl ------------------------------------------------------------------------


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with what was asked."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        kind = self.headers.get("Content-Type", "none")
        said = (
            f"{self.command} {self.path} {kind} {self.headers.get('X-Own', '-')} {body}\n".encode()
        )
        self.send_response(201 if body else 200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST = do_PUT = answer  # noqa: N815 - the names are the library's

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"localhost:{server.server_port}"
        server.shutdown()


ASKED = (
    ["-s", "{}/jobs?limit=1"],
    ["-s", "http://{}/jobs", "-H", "Content-Type: application/json", "-d", '{"type": "ä"}'],
    ["-si", "{}/jobs", "-H", "X-Own: 1", "-d", "{}"],
    ["-s", "-X", "POST", "{}/jobs/1/cancel"],
    ["-s", "-X", "PUT", "{}/queues/mail/limit", "-d", "3"],
    ["-sN", "{}/events?after="],
)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here to compare with")
@pytest.mark.parametrize("arguments", ASKED, ids=" ".join)
def test_the_stand_in_does_what_curl_does(arguments: list[str], echo: str) -> None:
    asked = [argument.format(echo) if "{}/" in argument else argument for argument in arguments]
    stand_in = [sys.executable, str(Path(__file__).with_name("curl.py"))]
    given, expected = (
        subprocess.run([*program, *asked], check=True, capture_output=True).stdout.decode()
        for program in (stand_in, ["curl"])
    )
    without_date = re.compile(r"^date: .*\n|^server: .*\n", re.IGNORECASE | re.MULTILINE)
    assert (
        without_date.sub("", given).lower().split()
        == without_date.sub("", expected).lower().split()
    )
