"""Programs that tests fork off instead of starting them are processes like any other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tenure import failpoints
from tests.support.programs import Program, run

TELL = """
import os, sys

print(sys.argv[1:], os.getcwd(), os.environ.get("MINE"), __name__, sys.path[0])
print(os.getppid(), os.getsid(0) == os.getpid(), "tenure" in sys.modules)
print("an error", file=sys.stderr)
sys.exit(int(sys.stdin.read()))
"""
Start = type[subprocess.Popen[str]]


def told(start: Start, command: list[str], folder: Path) -> tuple[str, str, int]:
    process = start(
        [sys.executable, *command, "a", "b c"],
        cwd=folder,
        env={**os.environ, "MINE": "yes", "PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    output, error = process.communicate("3")
    return output, error, process.returncode


@pytest.mark.parametrize("command", [["-c", TELL], ["-m", "tells"], ["tells.py"]])
def test_it_has_what_a_new_interpreter_has(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "tells.py").write_text(TELL)
    forked = told(Program, command, tmp_path)
    assert forked[0].endswith(f"\n{os.getpid()} True True\n")
    anew = told(subprocess.Popen, command, tmp_path)
    assert (forked[0].replace("True\n", "False\n"), *forked[1:]) == anew


def test_it_is_killed_stopped_and_waited_for() -> None:
    with Program([sys.executable, "-c", "print('up', flush=True); input()"], **PIPES) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        process.kill()
        assert process.wait(30) == -signal.SIGKILL


PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}


def test_an_error_is_printed_and_output_comes_through_to_the_end() -> None:
    done = run([sys.executable, "-c", "print('x' * 10**6); 1 / 0"], capture_output=True, text=True)
    assert (len(done.stdout), done.returncode) == (10**6 + 1, 1)
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
    with pytest.raises(subprocess.CalledProcessError):
        run([sys.executable, "-c", "exit(2)"], check=True)


ENDS = {
    "in order": "import atexit; atexit.register(print, 'at exit'); print('here')",
    "with what is left in memory": "import os; print('x' * 100_000, end='')",
    "with half a line": "import sys; print('x', end='', file=sys.stderr)",
    "with a code": "exit(300)",
    "with a text": "exit('no')",
    "with True": "exit(True)",
    "by Ctrl-C": "import os; os.kill(os.getpid(), 2); input()",
    "with what __main__ has": """
class Held:
    def __del__(self):
        print("closed", flush=True)

one, other = Held(), Held()
one.self = one
""",
    "after its threads": """
import threading, time

def last():
    time.sleep(0.1)
    print(word)

word = "the thread"
threading.Thread(target=last).start()
""",
    "by Ctrl-C after its threads": """
import os, threading, time

def last():
    threading.main_thread().join()
    for _ in range(5):  # the main thread may not have begun to wait
        os.kill(os.getpid(), 2)
        time.sleep(1)
    print("the thread")

threading.Thread(target=last).start()
""",
    "before a thread that serves it": """
import threading, time

def serve():
    while True:
        word

class Held:
    def __del__(self):
        time.sleep(0.05)

held, word = Held(), "served"
threading.Thread(target=serve, daemon=True).start()
""",
    "with errors on the way": "import atexit; atexit.register(lambda: 1 / 0); print('here')",
    "without its output": "import sys; sys.stdout.close()",
    "without any stream": "import sys; sys.stdout = sys.stderr = None",
    "with an error of its output": "import os; os.close(1); print('lost'); exit()",
}


def last_line(text: str) -> str:
    """The end of a last line. What comes before it shows code, from Python 3.13 on, if it can."""
    return "".join(text.strip(": \n").splitlines()[-1:])[-20:]


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS)
def test_it_ends_as_an_interpreter_does(code: str) -> None:
    env = {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}
    how: dict[str, Any] = {"env": env, "capture_output": True, "text": True, "input": ""}
    command = [sys.executable, "-c", code]
    ended = [each(command, check=False, **how) for each in (run, subprocess.run)]
    forked, anew = (
        (done.stdout, last_line(done.stderr), "Traceback" in done.stderr, done.returncode)
        for done in ended
    )
    assert forked == anew


def test_a_failpoint_is_armed() -> None:
    armed = {**os.environ, failpoints.ENVIRONMENT: "claim.before_commit=kill"}
    hit = "from tenure import failpoints; failpoints.hit('claim.before_commit')"
    assert run([sys.executable, "-c", hit], env=armed).returncode == -signal.SIGKILL
    assert run([sys.executable, "-c", hit]).returncode == 0


def test_what_only_a_new_interpreter_can_do_is_asked_of_one() -> None:
    """A seed of hashes of its own, or another program."""
    seeded = {**os.environ, "PYTHONHASHSEED": "7"}
    code = "import sys; print('tenure' in sys.modules)"
    done = run([sys.executable, "-c", code], env=seeded, capture_output=True, text=True)
    assert done.stdout == "False\n"
    assert run(["true"]).returncode == 0
