"""Runs `tenure`, typed into a shell, as a process that is forked off (`tests.support.programs`).

The shell starts a stand-in, which hands over its arguments, folder, environment and streams here,
passes on signals, and ends as the process ends. That takes a third of the time of a new
interpreter that imports Tenure.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.programs import MAX_REQUEST_BYTES, TENURE, Program

STAND_IN = Path(__file__).with_name("stand_in.py")


class Typed:
    """A program `tenure` in a folder, for the PATH of a shell; as a context manager, it is served.

    program: what is run, a Python file. What still runs at the end is killed.
    """

    def __init__(self, folder: Path, program: str | Path = TENURE) -> None:
        self._program = str(program)
        self._asked = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A socket has at most about 100 characters, and folders of tests have long names.
        self._asked.bind("")
        name = self._asked.getsockname()[1:].decode()
        stand_in = folder / "tenure"
        stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{STAND_IN}" {name} "$@"\n')
        stand_in.chmod(0o755)

    def __enter__(self) -> Self:
        self._asked.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._asked.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._asked.close()

    def _serve(self) -> None:
        threads = []
        while True:
            try:
                link, _ = self._asked.accept()
            except OSError:  # it was shut down
                break
            threads.append(threading.Thread(target=run, args=(link, self._program)))
            threads[-1].start()
        for thread in threads:
            thread.join()


def run(link: socket.socket, program: str) -> None:
    """Run the process that a stand-in asks for, to its end or to that of the stand-in."""
    with link:
        asked, streams, _, _ = socket.recv_fds(link, MAX_REQUEST_BYTES, 3)
        folder, count, *rest = asked.decode().split("\0")
        arguments, variables = rest[: int(count)], rest[int(count) :]
        process = Program(
            [sys.executable, program, *arguments],
            cwd=folder,
            env=dict(variable.split("=", 1) for variable in variables),
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            start_new_session=True,
        )
        for stream in streams:
            os.close(stream)
        with process:
            ended = os.pidfd_open(process.pid)
            while process.returncode is None:
                ready, _, _ = select.select([ended, link], [], [])
                if ended in ready:
                    with suppress(OSError):  # the stand-in was killed
                        link.send(str(process.wait()).encode())
                elif number := link.recv(1):
                    process.send_signal(number[0])
                else:
                    process.kill()
                    process.wait()
            os.close(ended)
