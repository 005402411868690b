"""The part of `JobContext` that waits for signals, and makes the tokens to send them with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from tenure.errors import InvalidInput, SignalTimeout
from tenure.jobs import durations
from tenure.jobs.enqueue import Duration
from tenure.jobs.postpone import Parked, Wait
from tenure.jobs.signals import (
    check_link_label,
    check_signal_name,
    new_token,
    signal_text,
    token_digest,
)
from tenure.jobs.steps import FindSignal, FoundSignal, KeepToken, Step, Waiting, awaited, waited

if TYPE_CHECKING:
    from tenure.jobs.step_book import StepBook

T = TypeVar("T")

NO_ATTEMPT = "only a worker's attempt can wait for signals; this is a plain call of the handler"


class SignalContext:
    """What a handler says to, and hears from, the world outside."""

    __slots__ = ()
    if TYPE_CHECKING:

        def _steps(self) -> StepBook: ...

    @overload
    def wait_for_signal(self, name: str, timeout: Duration | None = None) -> Any: ...
    @overload
    def wait_for_signal(
        self, name: str, timeout: Duration | None = None, *, type: type[T]
    ) -> T: ...
    def wait_for_signal(
        self, name: str, timeout: Duration | None = None, *, type: Any = Any
    ) -> Any:
        """Return what the next signal of a name says; without a slot until it comes.

        - `name`: of the signal: 1 to 100 of `A-Z a-z 0-9 _ : - .`.
        - `timeout`: how long to wait, from the first time that the handler comes here: seconds, a
          timedelta or text such as `7d`; 0 to 10 years. A signal that was sent later does not
          count; one that was sent in time does, however late a worker sees it. Default: None, as
          long as it takes.
        - `type`: what the payload is, as an annotation. Default: any JSON.

        If the signal is not there, the handler ends here and runs again from its begin when it has
        come or the time is over. No attempt is charged, and the time counts for no timeout.
        `finally` blocks run at each such end: it is a BaseException, which has to get through.

        The first wait for a name in a run of the handler takes the first signal of that name, the
        second the second, whenever they were sent; a wait that timed out takes none. So a handler
        has to come to its waits for a name in the same order in every run.

        Raises SignalTimeout, in every later run too; InvalidInput if the payload does not fit
        `type`, and where no worker runs the handler; and what `step` raises.
        """
        book = self._steps()
        return book.said(waited(receive(book, name, timeout)), type, name)

    @overload
    async def wait_for_signal_async(self, name: str, timeout: Duration | None = None) -> Any: ...
    @overload
    async def wait_for_signal_async(
        self, name: str, timeout: Duration | None = None, *, type: type[T]
    ) -> T: ...
    async def wait_for_signal_async(
        self, name: str, timeout: Duration | None = None, *, type: Any = Any
    ) -> Any:
        """Wait for a signal like `wait_for_signal`, without blocking the event loop."""
        book = self._steps()
        return book.said(await awaited(receive(book, name, timeout)), type, name)

    def signal_token(self, name: str, payload: Any = None, *, label: str | None = None) -> str:
        """Return a new token, whose holder can send one signal to this job and do nothing else.

        - `name`: of the signal, as of `wait_for_signal`.
        - `payload`: what the signal says, as plain JSON of at most 64 KiB. Default: None, what its
          sender gives.
        - `label`: what the page of its address and the button there say, such as `Approve`: plain
          text of 1 to 100 characters, no control characters. Default: None, the name.

        The token is the last part of an address of your server: `/signals/{token}`. A POST to it
        sends the signal, and people who open it get a page with one button that does. It works
        once, needs no other token, and ends all tokens of this job and name. Only its digest is
        stored. Each call makes another one, at most 1,000 of a job, so make it in the step that
        sends it. Raises InvalidInput and what `step` raises.
        """
        token, keep = _new_token(name, payload, label)
        waited(self._steps().ask(keep))
        return token

    async def signal_token_async(
        self, name: str, payload: Any = None, *, label: str | None = None
    ) -> str:
        """Return a token like `signal_token`, without blocking the event loop."""
        token, keep = _new_token(name, payload, label)
        await awaited(self._steps().ask(keep))
        return token


def _new_token(name: str, payload: Any, label: str | None) -> tuple[str, KeepToken]:
    token = new_token()
    text = None if payload is None else signal_text(payload)
    said = check_link_label(label, "label")
    return token, KeepToken(str(token_digest(token)), check_signal_name(name), text, said)


def receive(book: StepBook, name: str, timeout: Duration | None) -> Waiting[str]:
    """Return the payload of the signal that this wait of a run takes, as JSON text."""
    check_signal_name(name, "name")
    seconds = None if timeout is None else durations.seconds(timeout, "$.timeout")
    if not book.is_attempt:
        raise InvalidInput(NO_ATTEMPT)
    place = book.next_place(f"wait:{name}:")
    own = f"wait:{name}:{place}"
    kept = yield from book.begin(own, reserved=True)
    with book.doing(own):
        payload = yield from _received(book, name, place, seconds, kept)
    if payload is None:
        raise SignalTimeout(name)
    return payload


def _received(
    book: StepBook, name: str, place: int, seconds: float | None, kept: Step | None
) -> Waiting[str | None]:
    """Return what the signal says, None if the time of the wait is over."""
    steps = yield from book.steps()
    ends = [f"timeout:{name}:{n}" for n in range(1, place + 1)]
    if ends[-1] in steps:
        return None
    number = place - sum(end in steps for end in ends)
    limit = None if seconds is None else kept
    is_over = limit is not None and book.left(limit) <= 0  # before it looks: nothing is missed
    found: FoundSignal | None = yield from book.ask(FindSignal(name, number))
    if found is not None and (limit is None or found.at < limit.until):
        return found.payload
    if seconds is not None and limit is None:
        limit = yield from book.record(book.new(f"wait:{name}:{place}", seconds))
        is_over = book.left(limit) <= 0
    if found is None and not is_over:
        wait = Wait(name, number, None if limit is None else limit.until)
        book.park(Parked(f"it waits for the signal {name}", wait=wait))
    yield from book.begin(ends[-1], reserved=True)
    with book.doing(ends[-1]):
        yield from book.record(book.new(ends[-1], None))
    return None
