"""Several commands of `manage.py` in one process, which starts in a second.

Reads a list of lists of words, and answers a list of [exit code, what was printed].
"""

import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

from django.core.management import execute_from_command_line


def answer(words: list[str]) -> tuple[object, str]:
    """Run a command as `manage.py` does."""
    said, code = StringIO(), 0
    with redirect_stdout(said), redirect_stderr(said):
        try:
            execute_from_command_line(["manage.py", *words])
        except SystemExit as end:
            code = end.code
        except Exception as error:
            print(error)
            code = 1
    return code, said.getvalue()


if __name__ == "__main__":
    json.dump([answer(words) for words in json.load(sys.stdin)], sys.stdout)
