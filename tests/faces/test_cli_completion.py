"""Completion, in a real bash and as every shell asks for it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tenure import Tenure
from tenure.cli.completing import SHELLS
from tests.support.cli import PROGRAM, Terminal, clean_environment, output_of, run_cli, run_program
from tests.support.programs import run
from tests.support.typed import Typed

PATIENT = """\
from tenure.cli import completing, main

completing.PATIENCE_SECONDS = 60  # on a busy machine the moment that a user gets may be too short
main()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a `tenure` to call, for a PATH."""
    (tmp_path / "bin").mkdir()
    (patient := tmp_path / "patient.py").write_text(PATIENT)
    with Typed(tmp_path / "bin", patient):
        yield tmp_path


def offered(
    line: str, program: Sequence[str] = (sys.executable, "-c", PATIENT), **environ: str
) -> list[str]:
    """What is offered at the end of a command line, as bash asks for it."""
    words = line.split(" ")
    done = run(
        program,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(
            _TENURE_COMPLETE="bash_complete",
            COMP_WORDS=line,
            COMP_CWORD=str(len(words) - 1),
            **environ,
        ),
    )
    assert done.stderr == ""
    return [item.partition(",")[2] for item in done.stdout.split()]


def test_bash_completes_commands_and_names_from_the_database(folder: Path, sqlite_url: str) -> None:
    with Tenure(sqlite_url) as app:
        job = app.enqueue("newsletter", queue="evening")
    bash = shutil.which("bash")
    assert bash is not None
    path = f"{folder}/bin:/usr/bin:/bin"
    with Terminal(
        *(bash, "--norc", "--noprofile", "-i"), columns=200, PATH=path, TENURE_DATABASE=sqlite_url
    ) as shell:
        shell.type('eval "$(tenure completion bash)"; echo rea""dy\n')
        shell.wait_for("ready")
        for typed, becomes in (
            ("tenure comple", "tenure completion "),
            ("tenure jobs list --status pro", "--status processing "),
            ("tenure jobs list --type n", "--type newsletter "),
            ("tenure tail --queue e", "--queue evening "),
            (f"tenure explain {job.id[:8]}", f"tenure explain {job.id} "),
        ):
            shell.type(typed)
            shell.type("\t")
            shell.wait_for(becomes)
            shell.type("\x15")  # clears the line
        shell.type("exit\n")
        assert shell.wait_for_exit() == 0


def test_bash_completes_what_stands_behind_an_equals_sign() -> None:
    assert offered("tenure jobs list --status = pe") == ["pending"]
    assert len(offered("tenure jobs list --status =")) == 6


def installed(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"there is no {shell} here")
    return found


LINES = {
    "tenure comple": "tenure completion",
    "tenure jobs list --status=pro": "tenure jobs list --status=processing",
    "tenure jobs list --type n": "tenure jobs list --type newsletter",
    "tenure tokens revoke c": "tenure tokens revoke ci:deploy",
}


@pytest.fixture
def names(folder: Path, sqlite_url: str) -> dict[str, str]:
    """Surroundings in which there is something to complete."""
    with Tenure(sqlite_url) as app:
        app.enqueue("newsletter", queue="evening")
        app.tokens.create("ci:deploy", ["enqueue"])
    path = f"{folder}/bin:/usr/bin:/bin"
    return {"PATH": path, "TENURE_DATABASE": sqlite_url, "HOME": str(folder)}


def test_zsh_completes_without_a_configuration_of_its_own(names: dict[str, str]) -> None:
    with Terminal(installed("zsh"), "-f", "-i", columns=200, **names) as shell:
        shell.type('bindkey -e; eval "$(tenure completion zsh)"; echo rea""dy\n')
        shell.wait_for("ready")
        assert "not found" not in shell.shown
        for typed, becomes in LINES.items():
            shell.type(f"{typed}\t\x01print -r -- \n")  # the line is printed, not run
            shell.wait_for(f"\n{becomes}\r\n")
        shell.type("exit\n")
        assert shell.wait_for_exit() == 0


def test_fish_completes_with_whole_descriptions(names: dict[str, str]) -> None:
    lines = [*LINES, "tenure queue"]
    asked = "".join(f'complete -C "{line}"; ' for line in lines)
    done = subprocess.run(
        [installed("fish"), "--no-config", "-c", f"tenure completion fish | source; {asked}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env=clean_environment(**names),
    )
    assert done.stdout.splitlines() == [
        "completion\tPrint the script that switches completion...",
        "--status=processing",
        "newsletter",
        "ci:deploy\tenqueue",
        "queues\tList, pause, resume and limit queues.",
    ]
    assert done.stderr == ""


def test_only_jobs_that_can_take_it_are_offered(sqlite_url: str) -> None:
    with Tenure(sqlite_url) as app:
        waiting, gone = app.enqueue("email"), app.enqueue("report")
        app.cancel(gone.id)

    found = {"TENURE_DATABASE": sqlite_url}
    assert offered("tenure jobs cancel ", **found) == [waiting.id]
    assert offered("tenure jobs retry ", **found) == []
    assert sorted(offered("tenure jobs show ", **found)) == [waiting.id, gone.id]
    assert offered(f"tenure --database {sqlite_url} stats --database") == ["--database"]
    assert offered(f"tenure jobs show --database {sqlite_url} {waiting.id[:30]}") == [waiting.id]


def test_a_database_that_is_not_there_is_not_made_and_not_complained_of(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/jobs.db", "mysql://nowhere", "postgresql://127.0.0.1:1/x"):
        assert offered("tenure jobs show ", TENURE_DATABASE=url) == []
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_does_not_answer_holds_up_nobody_for_long() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        url = f"postgresql://127.0.0.1:{port}/jobs"
        assert offered("tenure explain ", PROGRAM, TENURE_DATABASE=url) == []
        assert time.monotonic() - began < 10  # far from what a connection may take


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_its_script(shell: str) -> None:
    assert "_TENURE_COMPLETE" in output_of("completion", shell)


def test_a_shell_that_is_not_known() -> None:
    assert run_cli("completion", "tcsh").exit_code == 2
    assert run_program("completion").returncode == 2
