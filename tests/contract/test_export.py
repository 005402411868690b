"""Settled jobs in files: all of them, once each, and none deleted that is not on disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.json import encode
from pyarrow import parquet

import tenure.app.parquet
from tenure import Tenure
from tenure.app import export as exports
from tenure.app.export import ExportedFile, export
from tenure.errors import InvalidInput
from tenure.events import Cancelled, Retried
from tenure.rules.search import Filter, Query
from tenure.values.redaction import NOTHING_HIDDEN, Redaction
from tests.contract.granted_role import also_as_granted_role
from tests.support.cli import clean_environment
from tests.support.store import StoreHarness, new_job, report_completed, report_failed


def settle(harness: StoreHarness, count: int, type: str = "mail", **fields: Any) -> list[str]:
    """Complete jobs; their ids, oldest first."""
    jobs = harness.add_all(*(new_job(type, **fields) for _ in range(count)))
    harness.report(*map(report_completed, harness.claim(count)))
    return sorted(added.job.id for added in jobs)


def write(
    app: Tenure, folder: Path, filter: Filter | None = None, **how: Any
) -> list[ExportedFile]:
    how = {"redaction": NOTHING_HIDDEN, **how}
    return list(export(app.core, folder, filter or Filter(), **how))


def lines(folder: Path) -> list[Mapping[str, Any]]:
    """The lines of all files that are complete, in order."""
    return [
        json.loads(line)
        for path in sorted(folder.glob("jobs-*.jsonl"))
        for line in path.read_text().splitlines()
    ]


def ids(folder: Path) -> list[str]:
    return [line["job"]["id"] for line in lines(folder)]


def there(harness: StoreHarness) -> list[str]:
    return sorted(job.id for job in harness.store.read.find(Query(limit=5_000)))


def test_a_line_has_the_job_and_its_history(
    harness: StoreHarness, app: Tenure, tmp_path: Path
) -> None:
    lease = harness.take(payload='{"to":"ann"}', tags='["a"]')
    harness.report(report_failed(lease, "boom", retryable=False))
    harness.add()
    (file,) = write(app, tmp_path)
    assert (file.jobs, file.last, file.deleted) == (1, lease.id, 0)
    (line,) = lines(tmp_path)
    assert line["job"]["payload"] == {"to": "ann"}
    assert line["job"]["status"] == "failed"
    assert [entry["event"] for entry in line["history"]] == ["enqueued", "claimed", "gave_up"]
    assert line["history"][-1]["detail"] == "boom"
    assert len(there(harness)) == 2


def test_files_are_bounded_and_a_later_export_goes_on(
    harness: StoreHarness, app: Tenure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "MAX_JOBS", 20)
    monkeypatch.setattr(exports, "MAX_AT_ONCE", 10)
    first = settle(harness, 45)
    files = write(app, tmp_path)
    assert [file.jobs for file in files] == [20, 20, 5]
    assert ids(tmp_path) == first
    later = settle(harness, 3)
    assert write(app, tmp_path / "more", after=files[-1].last)[0].jobs == 3
    assert ids(tmp_path / "more") == later
    assert write(app, tmp_path / "none", after=later[-1]) == []
    assert list((tmp_path / "none").iterdir()) == []


def test_a_filter_selects_what_is_written_and_deleted(
    harness: StoreHarness, app: Tenure, tmp_path: Path
) -> None:
    mails = settle(harness, 3)
    others = settle(harness, 2, type="other")
    (file,) = write(app, tmp_path, Filter(type="mail", status="completed"), delete=True)
    assert file.deleted == 3
    assert ids(tmp_path) == mails
    assert there(harness) == others
    assert sum(count.jobs for count in app.stats.counts()) == 2
    with pytest.raises(InvalidInput, match="only cancelled, completed, failed jobs"):
        write(app, tmp_path, Filter(status="pending"))


def test_values_are_hidden_as_elsewhere(harness: StoreHarness, app: Tenure, tmp_path: Path) -> None:
    lease = harness.take(payload='{"password":"hunter2"}')
    harness.report(report_failed(lease, "wrong: hunter2", retryable=False))
    write(app, tmp_path, redaction=Redaction(["password"]))
    text = next(tmp_path.iterdir()).read_text()
    assert "hunter2" not in text
    assert text.count("[redacted]") == 3  # the payload, the error, and the same in the history


@also_as_granted_role
def test_what_has_changed_since_or_is_needed_is_not_deleted(
    harness: StoreHarness, app: Tenure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retried, and cancelled again, between the file and the deletion: its end is not in it."""
    lease = harness.take()
    harness.report(report_failed(lease, retryable=False))
    (gone,) = settle(harness, 1)
    parent = app.enqueue("parent")
    app.enqueue("child", depends_on=[parent.id])
    harness.report(*map(report_completed, harness.claim(1)))
    sync = exports._sync

    def change(folder: Path) -> None:
        sync(folder)
        harness.store.apply(lease.id, Retried(more_retries=1)).result()
        harness.store.apply(lease.id, Cancelled()).result()

    monkeypatch.setattr(exports, "_sync", change)
    (file,) = write(app, tmp_path, delete=True)
    assert (file.jobs, file.deleted) == (3, 1)
    assert gone in ids(tmp_path)
    assert gone not in there(harness)
    assert {lease.id, parent.id} <= set(there(harness))


def test_a_later_file_replaced_one_with_jobs_that_were_deleted(
    harness: StoreHarness, app: Tenure, tmp_path: Path
) -> None:
    """Both were named for the first and the last job, which were kept."""
    first, gone, last = settle(harness, 3)
    app.enqueue("child", depends_on=[first, last])
    for _ in range(2):
        write(app, tmp_path, delete=True)
    assert gone not in there(harness)
    assert set(ids(tmp_path)) == {first, gone, last}


def test_a_file_that_cannot_be_named_deletes_nothing(
    harness: StoreHarness, app: Tenure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = settle(harness, 3)

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            write(app, tmp_path / "out", delete=True)
    assert list((tmp_path / "out").iterdir()) == []
    assert there(harness) == jobs


@pytest.mark.parametrize("place", ["prune.before_commit", "prune.after_commit"])
def test_a_crash_loses_nothing_and_deletes_only_what_is_on_disk(
    harness: StoreHarness, app: Tenure, tmp_path: Path, place: str
) -> None:
    """Killed in the second batch of deletions; the next run exports and deletes the rest."""
    jobs = settle(harness, 30)
    harness.measure()
    killed = subprocess.run(
        [sys.executable, "-c", EXPORT, harness.url, str(tmp_path)],
        env=clean_environment(TENURE_FAILPOINTS=f"{place}=kill@2"),
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    left = there(harness)
    assert len(left) == (20 if place == "prune.before_commit" else 10)
    assert set(jobs) - set(left) <= set(ids(tmp_path))
    (file,) = write(app, tmp_path / "again", delete=True)
    assert file.deleted == len(left)
    assert there(harness) == []
    assert set(ids(tmp_path)) | set(ids(tmp_path / "again")) == set(jobs)


EXPORT = """
import sys
from pathlib import Path
from tenure import Tenure
from tenure.app import export
from tenure.rules.search import Filter
from tenure.values.redaction import NOTHING_HIDDEN

export.MAX_AT_ONCE = 10
app = Tenure(sys.argv[1])
folder = Path(sys.argv[2])
list(export.export(app.core, folder, Filter(), redaction=NOTHING_HIDDEN, delete=True))
"""


def test_a_parquet_file_holds_what_the_lines_hold(
    harness: StoreHarness, app: Tenure, tmp_path: Path
) -> None:
    lease = harness.take(payload='{"to":"ann"}', tags='["a"]', timeout=2.5)
    harness.report(report_failed(lease, "boom", retryable=False))
    settle(harness, 2)
    write(app, tmp_path)
    (file,) = write(app, tmp_path, format="parquet")
    assert (file.jobs, Path(file.path).suffix) == (3, ".parquet")
    rows = parquet.read_table(file.path).to_pylist()
    assert list(map(as_line, rows)) == lines(tmp_path)


def as_line(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a Parquet file as the line of the job."""
    texts = {name: json.loads(row[name] or "null") for name in ("payload", "result", "backoff")}
    history = row.pop("history")
    line = {"job": {**row, **texts, "lease_expires_at": None, "progress": None}, "history": history}
    return cast("dict[str, Any]", json.loads(encode(line)))


def test_a_parquet_file_that_could_not_be_written_deletes_nothing(
    harness: StoreHarness, app: Tenure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(harness, 3)
    monkeypatch.setattr(tenure.app.parquet, "_row", lambda job, history: {"token": "none"})
    with pytest.raises(ValueError, match="none"):
        write(app, tmp_path / "old", format="parquet", delete=True)
    assert list((tmp_path / "old").iterdir()) == []
    assert len(there(harness)) == 3


def test_without_pyarrow_the_error_says_what_to_install(
    app: Tenure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "tenure.app.parquet", raising=False)
    with pytest.raises(InvalidInput, match=r"pip install 'tenure\[parquet\]'"):
        write(app, tmp_path / "old", format="parquet")
    assert not (tmp_path / "old").exists()
