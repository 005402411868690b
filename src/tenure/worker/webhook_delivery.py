"""What delivers to webhooks: a small worker of its own, so that slow receivers hold nobody up.

It runs once there is somebody to deliver to. A delivery is a job like any other: the store decides
whether it is tried again, and the id of the job is the id of the message, the same at each attempt.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import msgspec

from tenure.app.app import Tenure
from tenure.errors import PermanentFailure, TenureError
from tenure.jobs.handlers import Handlers, JobContext, describe
from tenure.jobs.reserved import WEBHOOK, WEBHOOK_QUEUE
from tenure.lifecycle import Status
from tenure.webhooks import request as outbound
from tenure.webhooks.registry import key_of
from tenure.worker.worker import Worker

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
LEFT_SECONDS = 30.0
"""Between looks for what is left of webhooks that are gone: it is dropped, which can wait."""
CONCURRENCY = 8
GONE = 410
REMOVED = "the webhook is removed"


class DeliveryFailed(Exception):
    """The receiver did not take the message, this time."""


def add_delivery(handlers: Handlers, app: Tenure, *, private: bool) -> None:
    """Have deliveries handled. `private`: also to addresses that are not public."""

    async def deliver(
        context: JobContext, /, hook: str, hook_id: str, event: dict[str, Any]
    ) -> str:
        target = await asyncio.to_thread(app.maintenance().webhook_target, hook, hook_id)
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
            "webhook-signature": outbound.signature(key_of(secret), context.id, now, body),
        }
        try:
            status = await outbound.post(url, headers, body, private=private)
        except outbound.NotSent as error:
            raise DeliveryFailed(str(error)) from None
        if status == GONE:
            raise PermanentFailure(f"the receiver answered {GONE}: it wants no more of these")
        if not 200 <= status < 300:
            raise DeliveryFailed(f"the receiver answered {status}")
        return f"the receiver answered {status}"

    handlers.add(describe(deliver, WEBHOOK, handlers.defaults(WEBHOOK)))


class WebhookDelivery:
    """Delivers on a thread and an event loop of its own, from `start` until `stop`."""

    def __init__(self, app: Tenure, *, private: bool, grace_seconds: float = 30.0) -> None:
        """`private`: also to addresses that are not public."""
        self._app = app
        self._grace = grace_seconds
        self._handlers = Handlers()
        add_delivery(self._handlers, app, private=private)
        self._stop = threading.Event()
        self._worker: Worker | None = None
        self._look_for_left = 0.0  # monotonic seconds
        self._thread = threading.Thread(target=self._run, name="tenure-courier", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Have it finish what it delivers just now. Safe from a signal handler."""
        self._stop.set()
        if self._worker is not None:
            self._worker.request_stop()

    def stop(self) -> None:
        """End, after the deliveries that may be under way."""
        self.ask_to_stop()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if self._needed():
                    self._deliver()
            except TenureError as error:
                log.warning("deliveries wait for the database: %s", error)
            except Exception:
                log.exception("the worker that delivers to webhooks failed and begins again")
            self._stop.wait(LOOK_SECONDS)

    def _needed(self) -> bool:
        """Whether there is somebody to deliver to, or left to be told that there is not.

        The one queue is looked at, for to count all of them takes long while much is going on.
        """
        if self._app.webhooks.list():
            return True
        now = time.monotonic()
        if now < self._look_for_left:
            return False
        self._look_for_left = now + LEFT_SECONDS
        return bool(self._app.find(status=Status.PENDING, queue=WEBHOOK_QUEUE, limit=1))

    def _deliver(self) -> None:
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._work())
        finally:
            loop.close()  # without waiting for names that do not resolve

    async def _work(self) -> None:
        self._worker = Worker(
            self._app.work_source(),
            self._handlers,
            queues=(WEBHOOK_QUEUE,),
            concurrency=CONCURRENCY,
            grace_seconds=self._grace,
        )
        if self._stop.is_set():
            self._worker.request_stop()
        await self._worker.run()
