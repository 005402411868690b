"""Machines of our own, each with its own network, in namespaces of Linux.

    with Machines(3) as machines:
        machines.start(["etcd"], 0, log)
        machines.cut(2)

Machine 0 has a bridge, and a cable leads from it to each other machine. It takes no rights of root
where the system lets users make namespaces. Nothing of it is seen on the system's own network. All
processes share one space of process numbers. The first of them ends when this process does, however
that happens, and the kernel then ends the others.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest

from tests.support.postgres import NOBODY
from tests.support.waiting import wait_until

NEEDED = ("unshare", "nsenter", "ip")
UP = """
set -e
mount -t tmpfs none /run
ip link set lo up
ip link add hub type bridge
ip address add {hub}/24 dev hub
ip link set hub up
"""
PLUG_IN = """
ip netns add machine{n}
ip link add cable{n} type veth peer name eth0 netns machine{n}
ip link set cable{n} master hub up
ip -n machine{n} address add {address}/24 dev eth0
ip -n machine{n} link set eth0 up
ip -n machine{n} link set lo up
"""
# The first process collects those whose parents were killed, and ends with the pipe that it reads.
FIRST = (
    "import signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
    "print('ready', flush=True); sys.stdin.read()"
)


def address_of(machine: int) -> str:
    """The address of a machine."""
    return f"10.77.0.{10 + machine}"


class Machines:
    """So many machines beside machine 0; they are there within the block."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._first: subprocess.Popen[str] | None = None
        self._networks: dict[int, str] = {}
        self._started = list[subprocess.Popen[bytes]]()

    def __enter__(self) -> Self:
        for program in NEEDED:
            if shutil.which(program) is None:
                pytest.skip(f"no {program}: on Debian `apt-get install util-linux iproute2`")
        script = UP.format(hub=address_of(0))
        for n in range(1, self._count + 1):
            script += PLUG_IN.format(n=n, address=address_of(n))
        self._first = subprocess.Popen(
            [
                *("unshare", "--user", "--map-root-user", "--net", "--pid", "--mount-proc"),
                *("--fork", "--kill-child", "sh", "-c", f'{script}exec "$0" -c "$1"'),
                *(sys.executable, FIRST),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._first.stdout is not None
        if self._first.stdout.readline() != "ready\n":
            _, said = self._first.communicate()
            pytest.skip(
                f"no network namespaces ({said.strip()}): allow them with "
                "`sysctl kernel.unprivileged_userns_clone=1`, or run as root"
            )
        show = ("readlink", "/proc/self/ns/net")
        self._networks = {n: self.run(show, n).strip() for n in range(self._count + 1)}
        return self

    def __exit__(self, *_: object) -> None:
        if self._first is not None:
            self._first.kill()  # and the kernel kills the others
            self._first.communicate()
            for each in self._started:
                each.communicate()
            wait_until(lambda: not any(self.processes(n) for n in self._networks), "the end")

    def command(self, command: Sequence[str], machine: int, folder: Path = Path("/")) -> list[str]:
        """The command that runs another one on a machine, in a folder, as a user without rights."""
        assert self._first is not None
        space = f"/proc/{self._first.pid}/ns"
        entered = ["nsenter", f"--target={self._first.pid}", "--user", "--mount", "--net"]
        entered += [f"--pid={space}/pid_for_children", "--preserve-credentials"]
        # The shell: nsenter stops itself if its child is stopped, and stays so.
        entered += ["sh", "-c", 'exec 3<&0; "$@" <&3 & wait $!', "sh"]
        if machine:
            entered += ["nsenter", f"--net=/run/netns/machine{machine}"]
        as_nobody = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
        return [*entered, *as_nobody, f"--wd={folder}", *command]

    def start(
        self,
        command: Sequence[str],
        machine: int,
        log: Path,
        folder: Path = Path("/"),
        *,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start a program on a machine; `log` gets its output.

        PostgreSQL needs /dev/null as `stdin`: a session that outlives its server may read it.
        """
        with log.open("ab") as output:
            started = subprocess.Popen(
                self.command(command, machine, folder),
                stdin=stdin,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._started.append(started)
        return started

    def run(self, command: Sequence[str], machine: int = 0) -> str:
        """Run a program to its end on a machine, and return what it prints."""
        done = subprocess.run(
            self.command(command, machine), check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return done.stdout

    def processes(self, machine: int, name: str | None = None) -> dict[int, int]:
        """The processes of a machine, or those of one program, each with its parent."""
        found = dict[int, int]()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                if str((entry / "ns/net").readlink()) == self._networks[machine]:
                    stat = (entry / "stat").read_text()
                    program = stat[stat.index("(") + 1 : stat.rindex(")")]
                    state, parent = stat[stat.rindex(")") + 2 :].split()[:2]
                    if state not in "ZX" and name in (None, program):
                        found[int(entry.name)] = int(parent)
        return found

    def signal(self, number: signal.Signals, machine: int, name: str | None = None) -> None:
        """Send a signal to all of these; whoever starts meanwhile gets it, too."""
        reached = set[int]()
        while new := self.processes(machine, name).keys() - reached:
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            reached |= new

    def cut(self, machine: int, *, cut: bool = True) -> None:
        """Take the cable of a machine from the bridge, or put it back: packets just get lost."""
        assert self._first is not None
        entered = ["nsenter", f"--target={self._first.pid}", "--user", "--net"]
        link = [
            "ip",
            "link",
            "set",
            f"cable{machine}",
            *(("nomaster",) if cut else ("master", "hub")),
        ]
        subprocess.run([*entered, "--preserve-credentials", *link], check=True)
