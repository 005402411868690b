"""Where SQLite's log does not work, Tenure refuses to put a database."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tenure import InvalidInput, Tenure
from tenure.store import filesystems
from tenure.store.filesystems import filesystem_of, kind_at

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
    monkeypatch.setattr(filesystems, "MOUNTS", tmp_path / "there is none")
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
    monkeypatch.setattr(filesystems, "MOUNTS", table)
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
    assert app.checks()
    app.close()
    assert (folder / "jobs.db").exists()
    with pytest.raises(InvalidInput, match="names no SQLite file"):
        Tenure(f"sqlite:///{folder}/jobs.db?filesystem=none").migrate()


def test_every_kind_is_told_from_a_local_one() -> None:
    assert not filesystems.REMOTE & {"ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "apfs"}
