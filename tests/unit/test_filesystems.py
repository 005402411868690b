"""Where SQLite's log does not work, Tenure refuses to put a database."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tenure import InvalidInput, Tenure
from tenure.store.sqlite import connection
from tenure.store.sqlite.connection import filesystem_of, kind_at
from tenure.values.findings import CheckResult

MOUNTS = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
31 27 0:40 / /srv rw,relatime shared:7 master:2 - nfs4 filer:/export rw,vers=4.2
32 31 254:0 /local /srv/local rw,relatime - xfs /dev/vdb rw
33 27 0:41 / /with\040space\134 rw - cifs //filer/share rw
34 27 0:42 / /twice rw - ext4 /dev/vdc rw
35 34 0:43 / /twice rw - fuse.sshfs user@host: rw
torn line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/jobs.db", "ext4"),
        ("/srv/jobs.db", "nfs4"),
        ("/srv/deep/er/jobs.db", "nfs4"),
        ("/srv/local/jobs.db", "xfs"),
        ("/srvother/jobs.db", "ext4"),
        ("/with space\\/jobs.db", "cifs"),
        ("/twice/jobs.db", "fuse.sshfs"),
    ],
)
def test_the_nearest_mount_tells_the_kind(path: str, kind: str) -> None:
    assert kind_at(Path(path), MOUNTS) == kind


def test_what_nobody_tells_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kind_at(Path("/x"), "") == ""
    monkeypatch.setattr(connection, "MOUNTS", tmp_path / "there is none")
    assert filesystem_of(tmp_path) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_this_machine_tells() -> None:
    assert filesystem_of(Path("/proc/version")) == "proc"


@pytest.fixture
def mounted_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`folder` under this path is a network file system, as far as Tenure can see."""
    (tmp_path / "folder").mkdir()
    table = tmp_path / "mountinfo"
    table.write_text(f"27 1 8:1 / / rw - ext4 x rw\n28 27 0:9 / {tmp_path}/folder rw - nfs4 x rw\n")
    monkeypatch.setattr(connection, "MOUNTS", table)
    return tmp_path


@pytest.mark.scenario(52)
def test_a_network_file_system_is_refused_before_anything_is_made(mounted_as: Path) -> None:
    folder = mounted_as / "folder"
    with pytest.raises(InvalidInput, match=r"kind nfs4.*PostgreSQL.*\?filesystem=any"):
        Tenure(f"sqlite:///{folder}/jobs.db").migrate()
    assert list(folder.iterdir()) == []


@pytest.mark.scenario(52)
def test_a_link_does_not_hide_where_it_leads(mounted_as: Path) -> None:
    (mounted_as / "link").symlink_to(mounted_as / "folder")
    with pytest.raises(InvalidInput, match="nfs4"):
        Tenure(f"sqlite:///{mounted_as}/link/jobs.db").enqueue("x")


@pytest.mark.scenario(52)
def test_who_vouches_for_the_place_may_use_it(mounted_as: Path) -> None:
    folder = mounted_as / "folder"
    app = Tenure(f"sqlite:///{folder}/jobs.db?filesystem=any")
    app.enqueue("x")
    assert app.check()
    app.close()
    assert (folder / "jobs.db").exists()
    with pytest.raises(InvalidInput, match="not the URL of a SQLite file"):
        Tenure(f"sqlite:///{folder}/jobs.db?filesystem=none").migrate()


def test_every_kind_is_told_from_a_local_one() -> None:
    assert not connection.REMOTE & {"ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs"}


STICKY, OWN = 0o41777, 0o40755
ME, OTHER, ROOT = 1000, 1001, 0


def stat_of(mode: int, owner: int) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))


@pytest.mark.requirement("C19")
@pytest.mark.parametrize(
    ("owner", "mode", "folders", "planted"),
    [
        (OTHER, STICKY, ROOT, True),
        (ROOT, STICKY, OTHER, True),
        (ME, STICKY, ROOT, False),
        (ROOT, STICKY, ROOT, False),
        (OTHER, STICKY, OTHER, False),
        (OTHER, OWN, ROOT, False),
        (OTHER, 0o41755, ROOT, False),
    ],
)
def test_whose_links_are_followed(owner: int, mode: int, folders: int, planted: bool) -> None:
    link, folder = stat_of(0o120777, owner), stat_of(mode, folders)
    assert connection.is_planted(link, folder, ME) == planted


@pytest.mark.requirement("C19")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to another user")
@pytest.mark.parametrize("by_way_of", ["", "mine.db", "folder/jobs.db"])
def test_a_link_that_another_user_planted_is_refused(tmp_path: Path, by_way_of: str) -> None:
    shared, elsewhere = tmp_path / "shared", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shared.mkdir()
    shared.chmod(0o1777)
    planted = shared / "jobs.db"
    planted.symlink_to(elsewhere / "jobs.db")
    (tmp_path / "mine.db").symlink_to(planted)
    (tmp_path / "folder").symlink_to(shared)
    os.chown(planted, 4711, -1, follow_symlinks=False)
    app = Tenure(f"sqlite:///{tmp_path / by_way_of if by_way_of else planted}")
    with pytest.raises(InvalidInput, match="a link that another user made"):
        app.open()
    (check,) = [check for check in app.check() if check.health is CheckResult.PROBLEM]
    assert "a link that another user made" in check.advice
    assert list(elsewhere.iterdir()) == []
    os.chown(planted, os.geteuid(), -1, follow_symlinks=False)
    with app:
        assert (elsewhere / "jobs.db").exists()


def test_links_that_lead_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    connection.refuse_planted(tmp_path / "a")
