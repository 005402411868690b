"""Delivers to webhooks with a separate small worker, so that slow receivers delay no other job.

A delivery is a job like any other: the store decides whether it is tried again. The id of the job
is the id of the message, the same at each attempt. Each webhook has a queue. The worker claims from
the queues that have room. A webhook that timed out several times in a row has none for a while; its
deliveries stay pending meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import msgspec

from tenure.app.app import Tenure
from tenure.app.webhooks import queues_of_webhooks, queues_with_deliveries
from tenure.errors import TenureError
from tenure.handlers.context import JobContext
from tenure.handlers.registry import Handlers, PlainFailure, describe
from tenure.rules.reports import Duty, longer_wait
from tenure.telemetry.logs import Repeats
from tenure.webhooks import request
from tenure.webhooks.deliveries import BACKOFF, WEBHOOK
from tenure.worker.worker import Worker

log = logging.getLogger(__name__)

DELIVERING = {Duty.WEBHOOKS, Duty.DELIVERIES}

WEBHOOK_CHECK_SECONDS = 2.0
"""How often it looks for new webhooks."""
LEFTOVER_CHECK_SECONDS = 30.0
"""How often it looks for deliveries of webhooks that were removed; they are dropped."""
GONE = 410
REMOVED = "the webhook is removed"
CONCURRENCY = 8
"""Deliveries at once."""
MAX_OF_ONE = 2
"""Deliveries at once to one webhook."""
MAX_TIMEOUTS = 3
"""Time-outs in a row from which on a webhook is skipped for a while, and then tried alone."""
MIN_SKIP_SECONDS = 10.0
MAX_SKIP_SECONDS = 300.0


@dataclass(slots=True)
class Silence:
    """What is known of a receiver that has not answered since its last answer."""

    timeouts: int = 0
    until: float = 0.0  # it is skipped


class Receivers:
    """The queues of all webhooks, and which of them have room. Times are of one steady clock."""

    def __init__(self) -> None:
        self.queues: Collection[str] = ()
        self._silent: dict[str, Silence] = {}

    def room(self, here: Iterable[str], now: float) -> tuple[tuple[str, ...], int]:
        """Return the queues to claim from, and how many jobs, with attempts of `here` under way.

        That many jobs are not too many for any of the queues.
        """
        busy = Counter(here)
        free = {queue: self._most(queue, now) - busy[queue] for queue in self.queues}
        queues = tuple(queue for queue, room in free.items() if room > 0)
        most = min((free[queue] for queue in queues), default=0)
        return queues, min(most, CONCURRENCY - busy.total())

    def _most(self, queue: str, now: float) -> int:
        silence = self._silent.get(queue)
        if silence is None or silence.timeouts < MAX_TIMEOUTS:
            return MAX_OF_ONE
        return 1 if now >= silence.until else 0

    def answered(self, queue: str) -> None:
        """Note that a receiver answered, whatever it said."""
        self._silent.pop(queue, None)

    def timed_out(self, queue: str, now: float) -> None:
        silence = self._silent.setdefault(queue, Silence())
        silence.timeouts += 1
        more = silence.timeouts - MAX_TIMEOUTS
        if more >= 0:
            pause = min(MIN_SKIP_SECONDS * 2 ** min(more, 10), MAX_SKIP_SECONDS)
            silence.until = now + pause
            log.warning(
                "%s timed out %d times in a row: no delivery to it for %g s",
                queue,
                silence.timeouts,
                pause,
            )


class DeliveryFailed(PlainFailure):
    """The receiver did not accept the message in this attempt."""


class ReceiverGone(DeliveryFailed):
    """The receiver wants no more of these messages."""

    retryable = False


def add_delivery(handlers: Handlers, app: Tenure, receivers: Receivers, *, private: bool) -> None:
    """Add the handler of deliveries. With `private`, also to addresses that are not public."""

    async def deliver(
        context: JobContext, /, hook: str, hook_id: str, event: dict[str, Any]
    ) -> str:
        target = await asyncio.to_thread(app.core.webhook_target, hook, hook_id)
        if target is None:
            return REMOVED
        url, secret = target
        body = msgspec.json.encode(
            {"type": f"job.{event['event']}", "timestamp": event["at"], "data": event}
        )
        now = int((await asyncio.to_thread(app.core.clock)).timestamp())
        headers = {
            "webhook-id": context.id,
            "webhook-timestamp": str(now),
            "webhook-signature": request.signature(request.key_of(secret), context.id, now, body),
        }
        try:
            answered = await request.post(url, headers, body, private=private)
        except request.NotSent as error:
            if isinstance(error, request.TimedOut):
                receivers.timed_out(context.queue, time.monotonic())
            raise DeliveryFailed(str(error)) from None
        receivers.answered(context.queue)
        text = f"the receiver answered {answered.status}"
        if answered.status == GONE:
            raise ReceiverGone(f"{text}: it wants no more of these messages")
        if not 200 <= answered.status < 300:
            refused = DeliveryFailed(text)
            asked = answered.retry_after
            refused.delay = longer_wait(asked, BACKOFF, context.id, context.attempt)
            raise refused
        return text

    handlers.add(describe(deliver, WEBHOOK))


class WebhookDelivery(threading.Thread):
    """Delivers in its own thread and event loop, as long as there are webhooks."""

    def __init__(self, app: Tenure, *, private: bool, grace_seconds: float = 30.0) -> None:
        """With `private`, it delivers also to addresses that are not public.

        `grace_seconds` is how long deliveries may take to finish when it is asked to stop.
        """
        super().__init__(name="tenure-webhooks", daemon=True)
        self._app = app
        self._grace_seconds = grace_seconds
        self._handlers = Handlers()
        self._receivers = Receivers()
        add_delivery(self._handlers, app, self._receivers, private=private)
        self._stop_asked = False
        self._stops: SimpleQueue[None] = SimpleQueue()  # a signal may interrupt its `put`
        self._worker: Worker | None = None
        self._check_leftovers_at = 0.0  # by the monotonic clock
        self._leftovers: set[str] = set()
        self._repeats = Repeats()

    def ask_to_stop(self) -> None:
        """Ask it to finish the deliveries under way. Safe from a signal handler."""
        self._stop_asked = True
        self._stops.put(None)
        if self._worker is not None:
            self._worker.request_stop()

    def stop(self) -> None:
        """Ask it to stop, and wait until the deliveries under way are finished."""
        self.ask_to_stop()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Deliver until asked to end; called by `start`, on the thread."""
        while not self._stop_asked:
            try:
                if DELIVERING & self._app.core.look():
                    self._app.core.check_store()  # a worker would end again at once, and say so
                    self._find_queues()
                    self._deliver()
            except Exception as error:
                self._log_failure(error)
            with suppress(Empty):
                self._stops.get(timeout=WEBHOOK_CHECK_SECONDS)

    def _find_queues(self) -> None:
        """Note the queues of the webhooks, and of deliveries to webhooks that were removed."""
        now = time.monotonic()
        if now >= self._check_leftovers_at:
            self._check_leftovers_at = now + LEFTOVER_CHECK_SECONDS
            self._leftovers = queues_with_deliveries(self._app.core)
        self._receivers.queues = sorted(queues_of_webhooks(self._app.core) | self._leftovers)

    def _log_failure(self, error: Exception) -> None:
        if not self._repeats.is_due(error):
            return
        if isinstance(error, TenureError):
            log.warning("deliveries wait for the database: %s", error)
        else:
            log.error("delivering to webhooks failed and is tried again", exc_info=error)

    async def _find_new_queues(self) -> None:
        while True:
            await asyncio.sleep(WEBHOOK_CHECK_SECONDS)
            try:
                await asyncio.to_thread(self._find_queues)
            except Exception as error:  # the worker beside it would not learn of new queues
                self._log_failure(error)

    async def _run(self, worker: Worker) -> None:
        finding = asyncio.create_task(self._find_new_queues())
        try:
            await worker.run()
        finally:
            finding.cancel()

    def _deliver(self) -> None:
        self._worker = Worker(
            self._app.core,
            self._handlers,
            room=lambda here: self._receivers.room(here, time.monotonic()),
            concurrency=CONCURRENCY,
            grace_seconds=self._grace_seconds,
        )
        if self._stop_asked:
            self._worker.request_stop()
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._run(self._worker))
        finally:
            loop.close()
