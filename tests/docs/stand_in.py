"""Stands in for `tenure` in a shell: asks the tests to fork it off, and ends as it ends.

It is run as a program, on its own; `typed.py` has the other side.
"""

from __future__ import annotations

import os
import signal
import socket
import sys


def main() -> int:
    name, *arguments = sys.argv[1:]
    passed_on = (signal.SIGINT, signal.SIGTERM)
    variables = [f"{key}={value}" for key, value in os.environ.items()]
    here = os.getcwd()  # noqa: PTH109 - to import pathlib takes as long as all else
    asked = [here, str(len(arguments)), *arguments, *variables]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.connect(f"\0{name}")
        socket.send_fds(link, ["\0".join(asked).encode()], [0, 1, 2])
        for number in passed_on:
            signal.signal(number, lambda number, _: link.send(bytes([number])))
        code = int(link.recv(20))
    if code < 0:
        for number in passed_on:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
