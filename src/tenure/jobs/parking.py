"""How a handler gives its slot back before its job has ended: it sleeps, or waits for something."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Wait(msgspec.Struct, frozen=True, gc=False):
    """What a suspended job waits for: the signal `number` of a `name`, until `expires_at`."""

    name: str
    number: int
    expires_at: datetime | None = None


class Parked(BaseException):
    """Raised through a handler to end its attempt, which is not a failure: the job runs again.

    After `delay` seconds, or when what it `wait`s for has come. It is no Exception, so that
    `except Exception` in a handler lets it pass.
    """

    def __init__(self, what: str, *, delay: float = 0.0, wait: Wait | None = None) -> None:
        super().__init__(what)
        self.delay = delay
        self.wait = wait


def swallowed(parked: Parked) -> str:
    """Return the error of a handler that has returned in spite of `parked`."""
    return (
        f"the handler was parked ({parked}), yet it returned: let BaseException pass. It is caught "
        "by `except:`, by `finally:` with a return, or by contextlib.suppress(BaseException)"
    )
