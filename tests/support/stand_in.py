"""Stands in for `tenure` in a shell: asks the tests to fork it off, and ends as it ends.

It is run as a program, on its own; `typed.py` has the other side. What `socket` and `signal` add to
the modules below them takes as long to import as the interpreter takes to start.
"""

from __future__ import annotations

import os
import sys
from _signal import SIG_DFL, SIGINT, SIGTERM, signal  # type: ignore[import-not-found]
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, socket

STREAMS = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2))


def main() -> int:
    name, *arguments = sys.argv[1:]
    variables = [f"{key}={value}" for key, value in os.environ.items()]
    here = os.getcwd()  # noqa: PTH109 - to import pathlib takes as long as all else
    asked = [here, str(len(arguments)), *arguments, *variables]
    link = socket(AF_UNIX, SOCK_SEQPACKET)
    link.connect(f"\0{name}")
    link.sendmsg(["\0".join(asked).encode()], [(SOL_SOCKET, SCM_RIGHTS, STREAMS)])
    for number in (SIGINT, SIGTERM):
        signal(number, lambda number, _: link.send(bytes([number])))
    code = int(link.recv(20))
    if code < 0:
        for number in (SIGINT, SIGTERM):
            signal(number, SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
