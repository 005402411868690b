"""B6: a dashboard that is mounted in an application lets its server stop and reload."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.support.cli import clean_environment
from tests.support.programs import Program

SHOP = """
from starlette.applications import Starlette
from starlette.routing import Mount
from tenure import Tenure
from tenure.server import build
app = Starlette(routes=[Mount("/queue", build(Tenure("sqlite:///jobs.db")))])
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize("path", ["/ui/live", "/events"])
def test_b6_an_open_stream_lets_the_server_stop(tmp_path: Path, path: str) -> None:
    (tmp_path / "shop.py").write_text(SHOP, "utf-8")
    port = free_port()
    program = [sys.executable, "-m", "uvicorn", "shop:app", "--port", str(port)]
    server = Program(
        program, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=clean_environment()
    )
    assert server.stderr is not None
    try:
        assert any("running on" in line for line in server.stderr)
        with httpx2.stream("GET", f"http://127.0.0.1:{port}/queue{path}", timeout=5) as stream:
            parts = stream.iter_bytes()  # open until the end of the block
            assert b"retry" in next(parts)
            server.send_signal(signal.SIGTERM)
            assert server.wait(5) in (0, -signal.SIGTERM)
    finally:
        server.kill()
        server.communicate()
