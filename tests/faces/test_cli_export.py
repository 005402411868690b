"""`tenure export`: the options, what it prints, and what is hidden."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tenure import NewJob, StoreUnavailable, Tenure
from tenure.app import export
from tests.support.cli import cli_json, output_of, run_cli


@pytest.fixture
def settled(app: Tenure, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("TENURE_DATABASE", app.database)
    jobs = [app.enqueue("mail", {"number": number, "password": "hunter2"}) for number in range(3)]
    for job in jobs:
        app.cancel(job.id)
    app.enqueue("mail", {})
    return [job.id for job in jobs]


def test_what_is_not_deleted_is_said(
    app: Tenure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`2000 jobs, 0 deleted` was all that the jobs of a workflow got."""
    monkeypatch.setenv("TENURE_DATABASE", app.database)
    with app.workflow("import") as flow:
        flow.add(NewJob("load", {}, {}))
    app.cancel(flow.nodes[0].id)
    app.cancel(app.enqueue("mail").id)
    shown = output_of("export", str(tmp_path / "old"), "--delete")
    assert ": 2 jobs, 1 deleted; 1 kept: jobs of a workflow, jobs that others or" in shown


def test_it_writes_what_a_later_one_goes_on_from(
    app: Tenure, settled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "old"
    shown = output_of("export", str(folder), "--type", "mail")
    name = f"jobs-{settled[0]}-{settled[2]}.jsonl"
    assert shown == f"{folder / name}: 3 jobs\ncontinue with --after {settled[2]}"
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    assert [line["job"]["id"] for line in found] == settled
    assert found[0] == {
        key: value
        for key, value in cli_json("jobs", "show", settled[0]).items()
        if key != "explanation"
    }
    assert output_of("export", str(folder), "--after", settled[2]) == "no settled job"
    assert ".parquet: 3 jobs" in output_of("export", str(folder), "--format", "parquet")
    (file,) = cli_json("export", str(folder), "--after", settled[0], "--delete")
    assert (file["jobs"], file["deleted"]) == (2, 2)
    assert [job.id for job in app.find(status="cancelled")] == settled[:1]
    for wrong in (["--status", "pending"], ["--after", "x"], ["--created-after", "soon"]):
        assert run_cli("export", str(folder), *wrong).exit_code == 2


def test_an_outage_hides_no_file_that_was_written_before(
    settled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As JSON nothing was printed of files whose jobs were deleted."""
    monkeypatch.setattr(export, "MAX_JOBS", 1)
    monkeypatch.setattr(export, "MAX_AT_ONCE", 1)
    sync, written = export._sync, []

    def fail(folder: Path) -> None:
        sync(folder)
        written.append(folder)
        if len(written) == 2:
            raise StoreUnavailable("the connection was lost")

    monkeypatch.setattr(export, "_sync", fail)
    result = run_cli("export", str(tmp_path / "old"), "--delete", "--json")
    assert result.exit_code == 4
    assert "the connection was lost" in result.stderr
    (file,) = json.loads(result.stdout)
    assert (file["last"], file["deleted"]) == (settled[0], 1)


def test_a_folder_that_cannot_be_written_was_answered_with_a_traceback(
    settled: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file / "below", Path("/proc/none")):
        refused = run_cli("export", str(folder))
        assert refused.exit_code == 2
        (line,) = refused.stderr.splitlines()
        assert line.startswith(f"Error: FOLDER: {folder} cannot be written: ")


@pytest.mark.requirement("C19")
@pytest.mark.skipif(os.name != "posix", reason="files have no such modes")
@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_file_is_its_owners_only_whatever_the_umask(tmp_path: Path, format: str) -> None:
    before = os.umask(0)
    try:
        (file,) = cli_json("export", str(tmp_path / "old"), "--format", format)
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path(file["path"]).stat().st_mode) == 0o600
