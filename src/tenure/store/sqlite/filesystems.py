"""Whether a database may be where a path leads: the file system, and links on the way.

The write-ahead log needs locks and shared memory that every process using the file sees alike. On
a network or a host's shared folder they do not exist, or not for all: commits are lost and files
damaged without an error. So such a place is refused before anything is written, where the
kind is known, which is on Linux.

In a folder where every user may make files, such as /tmp, any user can put a link under the name of
a database, so that it is made elsewhere or another one is read. Linux refuses such links if
fs.protected_symlinks is 1, which not every system sets.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from tenure.errors import InvalidInput

MOUNTS = Path("/proc/self/mountinfo")
"""Every mount of this process, one a line: proc_pid_mountinfo(5)."""

REMOTE = frozenset(
    {
        # file servers and cluster storage
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "ceph", "lustre"),
        *("glusterfs", "beegfs", "gpfs", "pvfs2", "orangefs"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.juicefs", "fuse.smbnetfs"),
        # object stores in the shape of folders
        *("fuse.s3fs", "fuse.mount-s3", "fuse.gcsfuse", "fuse.rclone", "fuse.goofys"),
        *("fuse.geesefs", "fuse.blobfuse", "fuse.blobfuse2"),
        # folders of the host, shown to a virtual machine or container
        *("9p", "virtiofs", "vboxsf", "vmhgfs", "prl_fs", "drvfs", "fakeowner"),
        *("fuse.vmhgfs-fuse", "fuse.osxfs", "fuse.grpcfuse"),
    }
)
"""Kinds that are known not to carry the log."""
ANY = "filesystem=any"
"""After `?` in a URL, it says that the log works there. In some sandboxes every folder is
`9p`, with one kernel for all users: the log works, but the name of the kind does not show it."""

_escaped = re.compile(r"\\([0-7]{3})")


def filesystem_of(path: Path) -> str:
    """The kind of file system that `path` is or would be on (`ext4`, `nfs4`); "" if unknown."""
    try:
        mounts = MOUNTS.read_text("utf-8", "surrogateescape")
    except OSError:
        return ""  # not Linux, or /proc is not there
    return kind_at(path.resolve(), mounts)


def kind_at(path: Path, mounts: str) -> str:
    """The kind of file system at an absolute `path` without links, by the text of `mounts`."""
    found, depth = "", -1
    for line in mounts.splitlines():
        place, _, source = line.partition(" - ")
        where, kind = place.split()[4:5], source.split()[:1]
        if not where or not kind:
            continue
        point = Path(_escaped.sub(lambda code: chr(int(code[1], 8)), where[0]))
        # Of two mounts at one place the later one covers the other.
        if path.is_relative_to(point) and len(point.parts) >= depth:
            found, depth = kind[0], len(point.parts)
    return found


def refuse_remote(path: Path) -> None:
    """Raise InvalidInput if SQLite's log does not work where `path` is or would be."""
    kind = filesystem_of(path)
    if kind in REMOTE:
        raise InvalidInput(
            f"{path} is on a file system of kind {kind}, where SQLite's locks and log do not "
            "work: jobs would be lost or the file damaged. Put it on a local disk (of a container: "
            "a volume that is a local folder), or use PostgreSQL. If only one kernel ever opens "
            f"it, and you are sure of that, add ?{ANY} to the URL"
        )


MAX_LINKS = 40
"""As many as Linux follows on the way to one file."""


def refuse_planted(path: Path) -> None:
    """Raise InvalidInput if `path` leads through a link that a stranger may have put there."""
    waiting, followed = [path], 0
    while waiting and followed < MAX_LINKS:
        way = waiting.pop()
        for step in (*reversed(way.parents), way):
            if not _is_link(step):
                continue
            followed += 1
            if is_planted(step.lstat(), step.parent.stat(), os.geteuid()):
                raise InvalidInput(
                    f"{path} leads through {step}, a link that another user made in a folder where "
                    "every user may make files: put the database into a folder that is yours"
                )
            waiting.append(step.parent / step.readlink())


def _is_link(path: Path) -> bool:
    """Whether there is a link. Path.is_symlink says no for every OSError, from Python 3.14 on."""
    try:
        return stat.S_ISLNK(path.lstat().st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise


def is_planted(link: os.stat_result, folder: os.stat_result, user: int) -> bool:
    """Whether a link is neither the user's nor the folder's owner's, where all may make files."""
    open_to_all = folder.st_mode & stat.S_ISVTX and folder.st_mode & stat.S_IWOTH
    return bool(open_to_all) and link.st_uid not in (user, folder.st_uid)
